"""Whether people can train every method as they train anything, where each method could go wrong."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint

import fxprune
from fxprune.mask_modules import WeightMask
from fxprune.methods.base import Method
from fxprune.model import PreparedModel
from tests.methods.test_contract import (
    CASES,
    SHARE,
    Residual,
    batches,
    closed_share,
    every,
    make,
    make_optimizer,
    open_gates,
    train,
)

SKELETON = fxprune.FilterSkeleton(alpha=1e-3, delta=0.6)
STATEFUL: list[tuple[Method, str]] = [
    (SKELETON, "stripe"),
    (fxprune.STR(start=-3.0), "weight"),
    (fxprune.ProbMask(), "weight"),
    (fxprune.GMP(), "weight"),
    (fxprune.RNI(strength=1e-2), "channel"),
    (fxprune.ST3(), "stripe"),
    (fxprune.Feather(), "channel"),
]
STEPS = 10


def followed(method: Method, granularity: Any, **options: Any) -> tuple[PreparedModel, torch.optim.Optimizer]:
    prepared = make(method, granularity)
    groups = fxprune.param_groups(prepared, lr=0.05, weight_decay=1e-3)
    optimizer = torch.optim.SGD(groups, momentum=0.9, **options)
    fxprune.Scheduler(prepared, optimizer, total_steps=STEPS)
    return prepared, optimizer


def close(prepared: PreparedModel) -> PreparedModel:
    """Prune in one go where that is what the method does."""
    return (fxprune.prune(prepared) if prepared.fxprune.method.one_shot else prepared).eval()


def assert_pruned_and_exact(prepared: PreparedModel) -> None:
    x = torch.randn(8, 3, 8, 8)
    if prepared.fxprune.target is not None:
        assert closed_share(prepared) == pytest.approx(SHARE, abs=0.04)
    torch.testing.assert_close(fxprune.convert(prepared)(x), prepared(x), rtol=1e-4, atol=1e-5)


@every(STATEFUL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_with_a_scaler_clipping_and_accumulation(method: Method, granularity: str, dtype: torch.dtype) -> None:
    prepared, optimizer = followed(method, granularity)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for number, (x, y) in zip(range(2 * STEPS), batches(), strict=False):
        with torch.autocast("cpu", dtype=dtype):
            loss = nn.functional.cross_entropy(prepared(x).float(), y) + fxprune.penalty(prepared)
        scaler.scale(loss / 2).backward()
        if number % 2:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(prepared.parameters(), 3.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert int(prepared.fxprune.step) == STEPS
    assert {tensor.dtype for tensor in prepared.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
    assert_pruned_and_exact(close(prepared))


@every(STATEFUL)
@pytest.mark.parametrize("cast", [False, True])
def test_weights_in_bfloat16_are_trained_to_their_target(method: Method, granularity: Any, cast: bool) -> None:
    """A half holds few magnitudes apart, and those that are equal close together."""
    prepared = make(method, granularity).bfloat16() if cast else make(method, granularity, torch.bfloat16)
    optimizer = torch.optim.SGD(fxprune.param_groups(prepared, lr=0.05, weight_decay=1e-3), momentum=0.9)
    fxprune.Scheduler(prepared, optimizer, total_steps=STEPS)
    for _, (x, y) in zip(range(STEPS), batches(), strict=False):
        loss = nn.functional.cross_entropy(prepared(x.bfloat16()).float(), y) + fxprune.penalty(prepared)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert {tensor.dtype for tensor in prepared.fxprune.variables.values()} <= {torch.float32}
    close(prepared)
    if prepared.fxprune.target is not None:
        gates = prepared.fxprune.gates.numel() or 100
        assert closed_share(prepared) == pytest.approx(SHARE, abs=1.01 / gates)
    x = torch.randn(8, 3, 8, 8).bfloat16()
    difference = (fxprune.convert(prepared)(x) - prepared(x)).abs().max()
    assert difference <= 2**-6 * prepared(x).abs().max()  # two last places of bfloat16


def test_a_fused_optimizer_and_a_scaler_are_as_the_plain_one() -> None:
    """A fused optimizer unscales gradients within its step, and is called for steps that it then leaves out."""
    states = []
    for fused in (False, True):
        prepared, optimizer = followed(fxprune.FilterSkeleton(alpha=0.05, delta=0.6), "stripe", fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for number, (x, y) in zip(range(6), batches(), strict=False):
            loss = nn.functional.cross_entropy(prepared(x), y) * (float("inf") if number == 2 else 1)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert int(prepared.fxprune.step) == 5
        states.append(prepared.state_dict())
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-6)


@every(STATEFUL)
def test_accumulated_gradients_are_those_of_the_whole_batch(method: Method, granularity: str) -> None:
    prepared, _ = followed(method, granularity)
    prepared.double().eval()
    x = torch.randn(8, 3, 8, 8).double()
    prepared(x).square().sum().backward()
    whole = {name: p.grad.clone() for name, p in prepared.named_parameters() if p.grad is not None}
    prepared.zero_grad()
    for part in x.chunk(4):
        prepared(part).square().sum().backward()
    torch.testing.assert_close({n: p.grad for n, p in prepared.named_parameters() if p.grad is not None}, whole)


@pytest.mark.parametrize("use_buffers", [False, True])
@every(STATEFUL)
def test_averaged_weights_are_pruned_to_the_target_and_converted(
    method: Method, granularity: str, use_buffers: bool
) -> None:
    """Averaged weights are not those for which the masks were found: they are found again, which closes the target."""
    prepared, optimizer = followed(method, granularity)
    averaged = AveragedModel(prepared, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=use_buffers)
    for _ in range(STEPS):
        train(prepared, optimizer, 1)
        averaged.update_parameters(prepared)
    own = copy.deepcopy(prepared.state_dict())
    if averaged.module.fxprune.target is not None:
        fxprune.prune(averaged.module)
    update_bn([x for _, (x, _) in zip(range(2), batches(), strict=False)], averaged)
    assert_pruned_and_exact(averaged.module.eval())
    torch.testing.assert_close(prepared.state_dict(), own, rtol=0, atol=0)


def train_compiled(method: Method, granularity: str) -> None:
    torch._dynamo.reset()
    states = []
    for compiled in (False, True):
        prepared, optimizer = followed(method, granularity)
        run = torch.compile(prepared, backend="aot_eager", fullgraph=True) if compiled else prepared
        for _, (x, y) in zip(range(3), batches(), strict=False):
            torch.manual_seed(0)
            loss = nn.functional.cross_entropy(run(x), y) + fxprune.penalty(run)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        states.append(prepared.state_dict())
    torch.testing.assert_close(*states, rtol=1e-3, atol=1e-4)


COMPILED = [case for case in STATEFUL if case[0].learns and not isinstance(case[0], fxprune.ProbMask)]


@every(COMPILED)
def test_a_compiled_step_is_the_plain_one_without_a_graph_break(method: Method, granularity: str) -> None:
    train_compiled(method, granularity)


@pytest.mark.zoo
@every([case for case in CASES if case not in COMPILED])
def test_every_other_method_compiles_without_a_graph_break(method: Method, granularity: str) -> None:
    train_compiled(method, granularity)


@every(STATEFUL)
def test_channels_last_stays_and_changes_nothing(method: Method, granularity: str) -> None:
    states = []
    for layout in (torch.contiguous_format, torch.channels_last):
        prepared, optimizer = followed(method, granularity)
        prepared.double().to(memory_format=layout)
        for _, (x, y) in zip(range(4), batches(), strict=False):
            torch.manual_seed(0)
            optimizer.zero_grad()
            nn.functional.cross_entropy(prepared(x.double().to(memory_format=layout)), y).backward()
            optimizer.step()
        for name in ("first", "second"):
            weight = prepared.get_parameter(f"{name}.weight")
            assert weight.is_contiguous(memory_format=layout)
            assert weight.grad.is_contiguous(memory_format=layout)
        states.append(prepared.state_dict())
    torch.testing.assert_close(*states, rtol=1e-9, atol=1e-12, check_stride=False)


@every(STATEFUL)
def test_a_checkpointed_forward_gives_the_same_gradients(method: Method, granularity: str) -> None:
    """ProbMask draws its noise again, RNI's norms count their batches twice."""
    prepared, optimizer = followed(method, granularity)
    train(prepared, optimizer, 4)
    again, x = copy.deepcopy(prepared), torch.randn(4, 3, 8, 8)
    results = []
    for model, run in ((prepared, prepared), (again, lambda x: checkpoint(again, x, use_reentrant=False))):
        model.zero_grad()
        torch.manual_seed(0)
        run(x).square().sum().backward()
        results.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*results, rtol=0, atol=0)


@every([(SKELETON, "stripe"), (fxprune.GMP(), "channel")])
def test_knowledge_is_distilled_by_the_users_own_loss(method: Method, granularity: str) -> None:
    torch.manual_seed(0)
    teacher = Residual().eval()
    before = copy.deepcopy(teacher.state_dict())
    student = fxprune.prepare(teacher, torch.randn(2, 3, 8, 8), method=method, granularity=granularity).train()
    optimizer = make_optimizer(student)
    fxprune.Scheduler(student, optimizer, total_steps=60)

    def distance(x: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = teacher(x).softmax(1)
        return nn.functional.kl_div(student(x).log_softmax(1), wanted, reduction="batchmean")

    losses = []
    for _, (x, _) in zip(range(60), batches(), strict=False):
        loss = distance(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)


@every([case for case in CASES if not isinstance(case[0], fxprune.RNI)])  # its norms start anew
def test_pretrained_weights_are_loaded_before_or_after(method: Method, granularity: str) -> None:
    torch.manual_seed(1)
    pretrained = Residual()
    for module in (pretrained.norm, pretrained.inner, pretrained.outer):
        nn.init.uniform_(module.weight), nn.init.normal_(module.bias), nn.init.normal_(module.running_mean)
    options = {"method": method, "granularity": granularity}
    x = torch.randn(4, 3, 8, 8)
    before = fxprune.prepare(pretrained, x, **options).eval()
    after = fxprune.prepare(Residual(), x, **options).eval()
    missing = after.load_state_dict(pretrained.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(name.startswith("fxprune.") for name in missing.missing_keys)
    assert torch.equal(before(x), after(x))
    if method == fxprune.FilterSkeleton(alpha=1e-3, delta=None):  # its stripes are up to 5e-5 smaller, layer by layer
        torch.testing.assert_close(before(x), pretrained.eval()(x), rtol=0, atol=5e-5)
    elif not isinstance(method, fxprune.STR):  # its thresholds are a little above zero from the start
        torch.testing.assert_close(before(x), pretrained.eval()(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("granularity", ["weight", "stripe", "channel"])
def test_pruning_without_training_and_measuring_statistics_anew(granularity: str) -> None:
    torch.manual_seed(0)
    model = Residual().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images = [torch.randn(32, 3, 8, 8) * 3 + 1 for _ in range(20)]
    for x in images:
        nn.functional.cross_entropy(model(x), (x.mean((1, 2, 3)) * 20).long() % 5).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    pruned = fxprune.prune(model, images[0], target=fxprune.Sparsity(0.3), granularity=granularity)
    assert closed_share(pruned) == pytest.approx(0.3, abs=0.04)
    states = {name: p.detach().clone() for name, p in pruned.named_parameters()}
    shifted = statistics_error(pruned, images)
    fxprune.recalibrate(pruned, images, count=8)
    assert statistics_error(pruned, images) < 0.3 * shifted
    assert all(torch.equal(states[name], p) for name, p in pruned.named_parameters())
    compact = fxprune.convert(pruned)
    torch.testing.assert_close(compact(images[0]), pruned(images[0]), rtol=1e-4, atol=1e-4)


def statistics_error(prepared: PreparedModel, images: list[Tensor]) -> float:
    """How far the last norm's running mean is from the mean of its inputs."""
    seen: list[Tensor] = []
    hook = prepared.outer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].mean((0, 2, 3))))
    with torch.no_grad():
        for x in images[:8]:
            prepared(x)
    hook.remove()
    return float((torch.stack(seen).mean(0) - prepared.outer.running_mean).norm())


@pytest.mark.parametrize("decay", [0.9, 0.99, 0.9999])
def test_remembered_masks_that_were_averaged_follow_the_threshold(decay: float) -> None:
    """Averages of bits are other bits."""
    prepared, optimizer = followed(fxprune.GMP(), "weight")
    averaged = AveragedModel(prepared, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    for _ in range(STEPS):
        train(prepared, optimizer, 1)
        averaged.update_parameters(prepared)
    model = averaged.module.eval()
    magnitudes = torch.cat([model.get_parameter(m.parameter).detach().abs().flatten() for m in find_masks(model)])
    thresholds = torch.cat([m.threshold.expand(m.count_gates()) for m in find_masks(model)])
    model(torch.randn(2, 3, 8, 8))
    assert torch.equal(open_gates(model), magnitudes > thresholds)
    is_open = open_gates(fxprune.prune(model))
    assert float((~is_open).double().mean()) == pytest.approx(SHARE, abs=0.01)
    assert magnitudes[is_open].min() > magnitudes[~is_open].max()


def find_masks(prepared: PreparedModel) -> list[Any]:
    return list(prepared.fxprune.weight_masks.values())


@pytest.mark.parametrize("decay", [0.9, 0.9999])
def test_averaged_buffers_leave_units_where_they_are(decay: float) -> None:
    """Averages of whole numbers are cut off, also where both are the same: the numbers of units must be no buffers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 300, 3), nn.ReLU(), nn.Conv2d(300, 5, 3))
    target = fxprune.Sparsity(SHARE)
    prepared = fxprune.prepare(model, torch.randn(2, 3, 8, 8), method=fxprune.GMP(), target=target)
    averaged = AveragedModel(prepared, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    for _ in range(3):
        averaged.update_parameters(prepared)
    for each in (prepared, averaged.module):
        fxprune.prune(each)
    gates = averaged.module.fxprune.gates
    assert torch.equal(gates, prepared.fxprune.gates)
    for mask in averaged.module.fxprune.unit_masks.values():
        assert torch.equal(mask.gate, gates)


@every([(fxprune.GMP(), "weight"), (fxprune.GMP(), "stripe")])
def test_masks_that_remember_rest_once_the_target_is_reached(
    method: Method, granularity: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, optimizer = followed(method, granularity)
    train(prepared, optimizer, STEPS)
    before = open_gates(prepared)
    monkeypatch.setattr(WeightMask, "measure", None)
    train(prepared, optimizer, 3)
    assert torch.equal(open_gates(prepared), before)
    assert float((~before).double().mean()) == pytest.approx(SHARE, abs=0.005)

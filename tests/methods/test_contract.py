"""What every method keeps to at every granularity that it has, whatever else it does."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import FxpruneError, OptimizerError, TargetError
from fxprune.mask_modules import WeightMask
from fxprune.masks import GRANULARITIES, Granularity
from fxprune.methods.base import Method
from fxprune.model import PreparedModel

METHODS: list[Method] = [
    fxprune.Feather(),
    fxprune.ST3(),
    fxprune.ST3(sigma=True),
    fxprune.FilterSkeleton(alpha=1e-3, delta=0.6),
    fxprune.FilterSkeleton(alpha=1e-3, delta=None),
    fxprune.RNI(strength=1e-2),
    fxprune.NetworkSlimming(strength=1e-2),
    fxprune.UCS(),
    fxprune.GMP(),
    fxprune.GMP(sticky=False),
    fxprune.STR(start=-3.0),
    fxprune.ProbMask(),
    fxprune.LRR(rate=0.5),
]
CASES = [(method, each) for method in METHODS for each in GRANULARITIES if each in method.granularities]
STEPS, SHARE = 30, 0.6


def every(cases: list[tuple[Method, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("method", "granularity"), cases, ids=[f"{m}-{g}" for m, g in cases])


class Residual(nn.Module):
    """A stem, a residual block and a head: shared channels, norms, and a convolution whose rows nothing else feeds."""

    def __init__(self, width: int = 12, hidden: int = 16) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.first, self.inner = nn.Conv2d(width, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden)
        self.second, self.outer = nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.outer(self.second(self.inner(self.first(x)).relu()))).relu()
        return self.head(x.mean((2, 3)))


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randn(16, 3, 8, 8, generator=generator), torch.randint(5, (16,), generator=generator)


def make(method: Method, granularity: Granularity, dtype: torch.dtype = torch.float32) -> PreparedModel:
    torch.manual_seed(0)
    target = fxprune.Sparsity(SHARE) if method.takes_target else None
    model, x = Residual().train().to(dtype), torch.randn(2, 3, 8, 8, dtype=dtype)
    prepared = fxprune.prepare(model, x, method=method, target=target, granularity=granularity)
    if isinstance(method, fxprune.FilterSkeleton) and not method.takes_target:
        for mask in prepared.fxprune.weight_masks.values():  # in so few steps they would all stay alike
            mask.variable.data.uniform_(0.3, 1)
    return prepared


def make_optimizer(prepared: PreparedModel) -> torch.optim.Optimizer:
    return torch.optim.SGD(fxprune.param_groups(prepared, lr=0.05, weight_decay=1e-3), momentum=0.9)


def train(prepared: PreparedModel, optimizer: torch.optim.Optimizer, steps: int = STEPS) -> None:
    for _, (x, y) in zip(range(steps), batches(), strict=False):
        loss = nn.functional.cross_entropy(prepared(x), y) + fxprune.penalty(prepared)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def trained(method: Method, granularity: Granularity) -> PreparedModel:
    prepared = make(method, granularity)
    optimizer = make_optimizer(prepared)
    fxprune.Scheduler(prepared, optimizer, total_steps=STEPS)
    train(prepared, optimizer)
    if method.one_shot:
        for _ in range(3):
            fxprune.prune(prepared)
    return prepared.eval()


def closed_share(prepared: PreparedModel) -> float:
    """The share of gates that are closed."""
    masks = prepared.fxprune
    if masks.granularity == "channel":
        return float((masks.gates == 0).double().mean())
    gates = []
    for mask in masks.weight_masks.values():
        assert isinstance(mask, WeightMask)
        masked = mask(prepared.get_parameter(mask.parameter))
        gates.append((masked == 0).all(1).flatten() if masks.granularity == "stripe" else (masked == 0).flatten())
    return float(torch.cat(gates).double().mean())


@every(CASES)
def test_the_target_is_reached_and_conversion_is_exact(method: Method, granularity: Granularity) -> None:
    prepared = trained(method, granularity)
    if method.takes_target:
        gates = prepared.fxprune.gates.numel() or 1000
        assert closed_share(prepared) == pytest.approx(SHARE, abs=1.01 / gates if granularity == "channel" else 0.005)
    else:
        assert 0.02 < closed_share(prepared) < 0.98
    compact = fxprune.convert(prepared)
    x = torch.randn(8, 3, 8, 8)
    torch.testing.assert_close(compact(x), prepared(x), rtol=1e-4, atol=1e-5)
    assert compact.report.masked == pytest.approx(closed_share(prepared), abs=1e-6)
    assert compact.report.asked == (SHARE if method.takes_target else None)
    assert not any(name.startswith("fxprune") for name in compact.state_dict())
    assert {type(module) for module in compact.modules()} >= {nn.BatchNorm2d}
    if granularity == "channel":
        assert compact.report.parameters_after < compact.report.parameters_before
    again = fxprune.convert(compact, x)
    torch.testing.assert_close(again(x), compact(x), rtol=1e-4, atol=1e-5)


@every(CASES)
def test_a_run_that_is_resumed_goes_on_as_it_would_have(method: Method, granularity: Granularity) -> None:
    whole = make(method, granularity)
    optimizer = make_optimizer(whole)
    fxprune.Scheduler(whole, optimizer, total_steps=STEPS)
    train(whole, optimizer, 10)
    saved, state = copy.deepcopy(whole.state_dict()), copy.deepcopy(optimizer.state_dict())
    torch.manual_seed(1)
    train(whole, optimizer, 5)

    resumed = make(method, granularity)
    fresh = make_optimizer(resumed)
    fxprune.Scheduler(resumed, fresh, total_steps=STEPS)
    resumed.load_state_dict(saved)
    fresh.load_state_dict(state)
    torch.manual_seed(1)
    train(resumed, fresh, 5)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@every(CASES)
def test_copies_have_masks_of_their_own(method: Method, granularity: Granularity) -> None:
    prepared = trained(method, granularity)
    x = torch.randn(4, 3, 8, 8)
    copied = copy.deepcopy(prepared)
    before = copied(x)
    with torch.no_grad():
        for parameter in prepared.parameters():
            parameter.zero_()
    assert torch.equal(copied(x), before)


@every(CASES)
def test_every_parameter_is_in_one_group(method: Method, granularity: Granularity) -> None:
    prepared = make(method, granularity)
    groups = fxprune.param_groups(prepared, lr=0.1, weight_decay=1e-4)
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(id(parameter) for parameter in prepared.parameters())
    names = {group["name"] for group in groups}
    assert ("gate" in names) == (method.learns or isinstance(method, fxprune.RNI))


def test_groups_have_the_options_that_methods_ask_for() -> None:
    def options(method: Method, granularity: Granularity) -> dict[str, tuple[float, float]]:
        groups = fxprune.param_groups(make(method, granularity), lr=0.1, weight_decay=1e-4)
        return {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}

    assert options(fxprune.Feather(), "weight") == {"weight": (0.1, 1e-4), "norm": (0.1, 0.0), "bias": (0.1, 0.0)}
    assert options(fxprune.RNI(), "channel")["gate"] == (1.0, 0.0)
    assert options(fxprune.RNI(), "channel")["norm"] == (0.1, 1e-4)
    assert set(options(fxprune.FilterSkeleton(), "stripe").values()) == {(0.1, 1e-4)}
    assert options(fxprune.STR(), "weight")["gate"] == (0.1, 1e-4)
    assert options(fxprune.ProbMask(), "weight")["gate"] == (1.0, 0.0)
    assert options(fxprune.ProbMask(lr_ratio=300), "weight")["gate"] == (30.0, 0.0)


@every([case for case in CASES if case[0].remembers])
def test_what_was_closed_stays_closed(method: Method, granularity: Granularity) -> None:
    prepared = trained(method, granularity)
    optimizer = make_optimizer(prepared.train())
    before = open_gates(prepared)
    train(prepared, optimizer, 3)
    with torch.no_grad():
        for parameter in prepared.parameters():
            parameter.mul_(3)
    fxprune.prune(prepared)
    after = open_gates(prepared)
    assert not (after & ~before).any()


def open_gates(prepared: PreparedModel) -> Tensor:
    masks = prepared.fxprune
    kept = [mask.kept.read().bool().flatten() for mask in masks.weight_masks.values() if isinstance(mask, WeightMask)]
    return torch.cat([*kept, masks.gates != 0])


def test_scale_and_shift_behind_a_dead_filter_become_zero() -> None:
    """Behind the first convolution of the block, which feeds that norm alone; not where a shortcut joins."""
    prepared = make(fxprune.FilterSkeleton(alpha=0.0, delta=0.5), "stripe")
    optimizer = make_optimizer(prepared)
    fxprune.Scheduler(prepared, optimizer, total_steps=STEPS)
    skeleton = prepared.fxprune.weight_masks["first-weight"].variable
    skeleton.data[3] = 0.1
    prepared.fxprune.weight_masks["stem-weight"].variable.data[5] = 0.1
    train(prepared, optimizer, 3)
    assert not skeleton[3].any()
    assert prepared.inner.weight[3] == prepared.inner.bias[3] == 0
    assert (prepared.inner.weight == 0).sum() == 1
    assert (prepared.norm.weight != 0).all()


def test_weight_decay_on_the_skeleton_is_what_prunes() -> None:
    """At the published strength the L1 term alone closes nothing in a while in which decay does."""
    closed = []
    for decay in (1e-1, 0.0):
        prepared = make(fxprune.FilterSkeleton(alpha=1e-5, delta=0.8), "stripe")
        gates = [mask.variable for mask in prepared.fxprune.weight_masks.values()]
        for gate in gates:
            gate.data.fill_(1)
        optimizer = torch.optim.SGD(
            [{"params": gates, "weight_decay": decay}, {"params": [prepared.stem.weight]}], lr=0.1
        )
        fxprune.Scheduler(prepared, optimizer, total_steps=STEPS)
        train(prepared, optimizer)
        closed.append(closed_share(prepared))
    assert closed[0] > closed[1] + 0.5


def test_a_receding_norm_that_has_receded_is_removed_without_a_trace() -> None:
    prepared = make(fxprune.RNI(), "channel")
    with torch.no_grad():
        prepared.inner.weight[::2] = -18.0
    x = torch.randn(4, 3, 8, 8)
    before = prepared.eval()(x)
    fxprune.prune(prepared)
    assert (prepared(x) - before).abs().max() < 1  # others went, too
    gates = torch.ones_like(prepared.fxprune.gates)
    units = prepared.fxprune.slices
    inner = next(place.index for place in units if place.parameter == "inner.weight")
    gates[inner[::2]] = 0
    prepared.fxprune.set_gates(gates)
    torch.testing.assert_close(prepared(x), before, rtol=0, atol=1e-6)


def test_a_plain_model_is_pruned_without_training() -> None:
    model = Residual().eval()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, 8, 8)
    prepared = fxprune.prune(model, x, target=fxprune.Sparsity(0.5))
    assert closed_share(prepared) == pytest.approx(0.5, abs=0.05)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert fxprune.convert(prepared).report.parameters_after < 0.6 * sum(p.numel() for p in model.parameters())


def test_statistics_are_measured_anew() -> None:
    model = Residual().eval()
    prepared = fxprune.prune(model, torch.randn(2, 3, 8, 8), target=fxprune.Sparsity(0.5))
    compact = fxprune.convert(prepared)
    inputs = [(torch.randn(16, 3, 8, 8) * 3 + 1, None) for _ in range(3)]
    fxprune.recalibrate(compact, inputs)
    assert not compact.norm.training
    assert compact.norm.momentum == 0.1
    stem = torch.cat([compact.stem(x) for x, _ in inputs])
    torch.testing.assert_close(compact.norm.running_mean, stem.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    before = copy.deepcopy(compact.state_dict())
    with pytest.raises(FxpruneError, match="no batches"):
        fxprune.recalibrate(compact, [])
    with pytest.raises(RuntimeError, match="channels"):
        fxprune.recalibrate(compact, [*inputs, torch.randn(2, 5, 8, 8)])
    torch.testing.assert_close(compact.state_dict(), before, rtol=0, atol=0)


def test_what_does_not_fit_together_is_refused_in_a_sentence() -> None:
    model, x = Residual(), torch.randn(2, 3, 8, 8)
    for method, granularity, message in (
        (fxprune.RNI(), "weight", "RNI has no granularity='weight': give 'channel'"),
        (fxprune.STR(), "channel", "STR has no granularity='channel'"),
        (fxprune.FilterSkeleton(), "channel", "FilterSkeleton has no granularity='channel': give 'stripe'"),
    ):
        with pytest.raises(TargetError, match=message):
            fxprune.prepare(model, x, method=method, granularity=granularity)
    with pytest.raises(TargetError, match="STR takes no target"):
        fxprune.prepare(model, x, method=fxprune.STR(), target=fxprune.Sparsity(0.5), granularity="weight")
    with pytest.raises(TargetError, match="RNI prunes what a batch norm scales"):
        fxprune.prepare(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), method=fxprune.RNI())
    with pytest.raises(TargetError, match="no convolution that is not excluded"):
        fxprune.prepare(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), granularity="stripe")
    prepared = make(fxprune.FilterSkeleton(), "stripe")
    with pytest.raises(OptimizerError, match="before each step"):
        fxprune.Scheduler(prepared, total_steps=3)
    with pytest.raises(TargetError, match="no target"):
        fxprune.prune(prepared)
    with pytest.raises(FxpruneError, match="alone"):
        fxprune.prune(make(fxprune.UCS(), "channel"), target=fxprune.Sparsity(0.2))


def test_uniform_scaling_closes_the_same_share_of_every_layer() -> None:
    prepared = fxprune.prune(make(fxprune.UCS(), "channel"))
    for place in prepared.fxprune.slices:
        gates = prepared.fxprune.gates[place.index]
        assert float((gates == 0).double().mean()) == pytest.approx(SHARE, abs=1 / len(gates))


def test_a_receding_model_has_the_originals_state_dict_and_is_saved(tmp_path: Path) -> None:
    prepared = trained(fxprune.RNI(), "channel")
    assert {name for name in prepared.state_dict() if not name.startswith("fxprune.")} == set(Residual().state_dict())
    compact = fxprune.convert(prepared)
    fxprune.save(compact, tmp_path / "compact.safetensors")
    loaded = fxprune.load(Residual(), tmp_path / "compact.safetensors")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded.eval()(x), compact(x))
    assert fxprune.convert(prepared, into=Residual()).norm.bias.requires_grad

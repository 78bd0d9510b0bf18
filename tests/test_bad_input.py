"""Whether what goes wrong in a training is said in a sentence, before it does damage."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import FxpruneError, OptimizerError
from fxprune.masks import Granularity
from fxprune.methods.base import Method
from fxprune.model import PreparedModel
from tests.methods.test_contract import CASES, batches, every, make, make_optimizer, train

GRANULARITIES = ["weight", "stripe", "channel"]


def followed(
    method: fxprune.Feather | None = None, granularity: str = "channel"
) -> tuple[PreparedModel, torch.optim.Optimizer, fxprune.Scheduler]:
    prepared = make(method or fxprune.Feather(), granularity)
    optimizer = make_optimizer(prepared)
    return prepared, optimizer, fxprune.Scheduler(prepared, optimizer, total_steps=10)


def state(prepared: PreparedModel) -> dict[str, torch.Tensor]:
    return copy.deepcopy(prepared.state_dict())


@every(CASES)
def test_a_gradient_that_is_not_finite_is_refused_before_the_step(method, granularity) -> None:
    prepared, optimizer, _ = followed(method, granularity)
    train(prepared, optimizer, 3)
    x, y = next(batches())
    nn.functional.cross_entropy(prepared(x), y).backward()
    name = next(iter(prepared.fxprune.parameter_names))
    prepared.get_parameter(name).grad.view(-1)[:2] = float("nan")
    before = state(prepared)
    with pytest.raises(FxpruneError, match=rf"{name}: the gradient is NaN or infinite in 2 of .* has not stepped"):
        optimizer.step()
    torch.testing.assert_close(prepared.state_dict(), before, rtol=0, atol=0)
    train(prepared, optimizer, 1)
    assert int(prepared.fxprune.step) == 4


def test_a_gradient_of_what_has_no_mask_is_watched_too() -> None:
    prepared, optimizer, _ = followed()
    for parameter in prepared.parameters():
        parameter.grad = torch.zeros_like(parameter)
    name, unmasked = next((n, p) for n, p in prepared.named_parameters() if n not in prepared.fxprune.parameter_names)
    unmasked.grad.view(-1)[0] = float("nan")
    with pytest.raises(FxpruneError, match=rf"{name}: the gradient is NaN or infinite in 1 of"):
        optimizer.step()


def test_what_masks_learn_is_watched_too() -> None:
    prepared, optimizer, _ = followed(fxprune.FilterSkeleton(), "stripe")
    for parameter in prepared.parameters():
        parameter.grad = torch.zeros_like(parameter)
    prepared.fxprune.weight_masks["first-weight"].variable.grad[0] = float("inf")
    with pytest.raises(FxpruneError, match=r"the mask of first\.weight: the gradient is NaN or infinite in 9 of 144"):
        optimizer.step()


def test_gradients_that_are_large_but_finite_pass() -> None:
    prepared, optimizer, _ = followed()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for parameter in prepared.parameters():
        parameter.grad = torch.full_like(parameter, 1e38)  # their sum is infinite
    optimizer.step()
    assert int(prepared.fxprune.step) == 1


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_weights_that_are_not_finite_are_refused_by_name(granularity: str) -> None:
    prepared = make(fxprune.Feather(), granularity)
    with torch.no_grad():
        prepared.first.weight[0] = float("nan")
    with pytest.raises(FxpruneError, match=r"first\.weight: (108 of 1728|9 of 144) weights are NaN or infinite"):
        fxprune.prune(prepared)
    assert not prepared.fxprune.calls


@pytest.mark.parametrize("total_steps", [7.5, float("nan"), float("inf"), 0.5])
def test_a_fraction_of_steps_is_refused(total_steps: float) -> None:
    with pytest.raises(OptimizerError, match=rf"total_steps={total_steps}: give the number of optimizer steps"):
        fxprune.Scheduler(make(fxprune.Feather(), "channel"), total_steps=total_steps)


def test_past_its_end_a_schedule_stays_at_the_target() -> None:
    prepared, optimizer, scheduler = followed()
    train(prepared, optimizer, 13)
    assert scheduler.sparsity == prepared.fxprune.target.share
    fxprune.Scheduler(prepared, make_optimizer(prepared), total_steps=5)  # of a second training


def test_a_second_scheduler_on_the_same_optimizer_is_refused() -> None:
    prepared, optimizer, _ = followed()
    with pytest.raises(OptimizerError, match="follows this optimizer already, and each step would count twice"):
        fxprune.Scheduler(prepared, optimizer, total_steps=10)
    train(prepared, optimizer, 1)
    assert int(prepared.fxprune.step) == 1
    other = make(fxprune.Feather(), "channel")
    optimizer.add_param_group({"params": list(other.parameters())})
    fxprune.Scheduler(other, optimizer, total_steps=10)  # two models may share an optimizer
    optimizer.step()
    assert int(other.fxprune.step) == 1


def test_masks_that_learn_refuse_a_training_in_eval_mode() -> None:
    prepared = make(fxprune.ProbMask(), "weight").eval()
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
    fxprune.Scheduler(prepared, optimizer, total_steps=10)
    prepared(torch.randn(2, 3, 8, 8)).sum().backward()
    before = copy.deepcopy(prepared.state_dict())
    with pytest.raises(OptimizerError, match=r"masks of ProbMask receive no gradient.*call prepared\.train\(\)"):
        optimizer.step()
    torch.testing.assert_close(prepared.state_dict(), before, rtol=0, atol=0)
    prepared.train()(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"method": fxprune.Feather(p=1)}, r"p=1.0\)"),
        ({"method": fxprune.ST3()}, r"method=ST3"),
        ({"target": fxprune.Sparsity(0.9)}, r"masked=0\.9"),
        ({"granularity": "weight"}, r"granularity='weight'"),
        ({"granularity": "channel"}, r"granularity='channel'"),
        ({"shapes": "rectangles"}, r"shapes='rectangles'"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_state_dict_of_other_masks_is_refused_before_anything_is_loaded(options, difference, strict) -> None:
    own = {"method": fxprune.Feather(), "target": fxprune.Sparsity(0.6), "granularity": "stripe"}
    prepared = make(fxprune.Feather(), "stripe")
    x, original = torch.randn(2, 3, 8, 8), copy.deepcopy(prepared)
    other = fxprune.prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)), x, **{**own, **options})
    held = nn.ModuleDict({"student": prepared})
    saved = {f"student.{name}": value for name, value in other.state_dict().items()}
    with pytest.raises(FxpruneError, match=rf"prepared with .*{difference}.*, and this one with .*prepare it in the"):
        held.load_state_dict({**saved, "student.stem.weight": torch.zeros(12, 3, 3, 3)}, strict=strict)
    torch.testing.assert_close(prepared.state_dict(), original.state_dict(), rtol=0, atol=0)
    weights = {name: value for name, value in saved.items() if not name.startswith("student.fxprune.")}
    held.load_state_dict(weights, strict=False)


def test_weights_of_ordinary_norms_are_no_receding_ones() -> None:
    original, prepared = make(fxprune.Feather(), "channel"), make(fxprune.RNI(), "channel")
    original.inner.bias.data.fill_(0.1)
    weights = {name: value for name, value in original.state_dict().items() if not name.startswith("fxprune.")}
    with pytest.raises(RuntimeError, match=r"inner: this is the state of an ordinary batch norm.*sigmoid"):
        prepared.load_state_dict(weights, strict=False)


def replace_weight(prepared: PreparedModel) -> None:
    prepared.first.weight = nn.Parameter(torch.randn_like(prepared.first.weight))


def test_a_weight_that_the_optimizer_does_not_hold_any_more_is_refused() -> None:
    prepared, optimizer, _ = followed()
    replace_weight(prepared)
    with pytest.raises(OptimizerError, match=r"first\.weight has been replaced since the Scheduler was made"):
        train(prepared, optimizer, 1)
    optimizer = make_optimizer(prepared)
    fxprune.Scheduler(prepared, optimizer, total_steps=10)
    train(prepared, optimizer, 1)


CHANGES: list[tuple[Callable[[PreparedModel], object], str]] = [
    (lambda p: p.add_module("extra", nn.Linear(5, 5)), r"the layer extra was added after fxprune\.prepare"),
    (lambda p: p.__delattr__("second"), "the layer second was removed"),
    (lambda p: p.__setattr__("second", nn.Identity()), r"second was Conv2d\(.*and became Identity\(\)"),
    (lambda p: p.__setattr__("head", nn.Linear(13, 5)), r"head was Linear\(.*and became Linear\(in_features=13"),
    (lambda p: p.__setattr__("norm", nn.SyncBatchNorm(12)), r"norm was BatchNorm2d\(.*and became SyncBatchNorm\("),
    (lambda p: p.fxprune.unit_masks.clear(), r"the layer fxprune\.unit_masks\.\S+ was removed"),
    (lambda p: p.head.__setattr__("weight", nn.Parameter(torch.randn(5, 13))), r"head\.weight has the sizes \(5, 13\)"),
    (lambda p: p.first.__delattr__("weight"), r"first\.weight, which is masked, is gone"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
@pytest.mark.parametrize("act", ["Scheduler", "prune", "convert"])
def test_a_model_that_was_changed_is_refused(change, message: str, act: str) -> None:
    prepared = copy.deepcopy(make(fxprune.Feather(), "channel"))
    change(prepared)
    acts = {
        "Scheduler": lambda: fxprune.Scheduler(prepared, total_steps=3),
        "prune": lambda: fxprune.prune(prepared),
        "convert": lambda: fxprune.convert(prepared),
    }
    with pytest.raises(FxpruneError, match=f"{message}.*(change the original model and prepare it again)"):
        acts[act]()


def test_what_leaves_the_graph_true_is_no_change() -> None:
    prepared = make(fxprune.Feather(), "channel")
    prepared.head = nn.Linear(12, 5)
    prepared.norm.momentum = 0.01
    nn.utils.parametrizations.weight_norm(prepared.second)
    optimizer = make_optimizer(prepared.double())
    fxprune.Scheduler(prepared, optimizer, total_steps=2)
    for _ in range(2):
        prepared(torch.randn(4, 3, 8, 8).double()).square().sum().backward()
        optimizer.step()
    x = torch.randn(2, 3, 8, 8).double()
    torch.testing.assert_close(fxprune.convert(prepared.eval())(x), prepared(x))


@every(CASES)
def test_converted_before_any_step_nothing_has_gone(method, granularity) -> None:
    prepared = make(method, granularity).eval()
    if isinstance(method, fxprune.FilterSkeleton):
        for variable in prepared.fxprune.variables.values():
            variable.data.fill_(1)
    compact, x = fxprune.convert(prepared), torch.randn(4, 3, 8, 8)
    assert compact.report.units_removed == 0
    torch.testing.assert_close(compact(x), prepared(x), rtol=1e-4, atol=1e-5)


def test_a_closure_would_hide_gradients_from_a_method_that_edits_them() -> None:
    prepared, optimizer, _ = followed(fxprune.FilterSkeleton(), "stripe")
    with pytest.raises(OptimizerError, match="FilterSkeleton changes gradients before each step, and a closure"):
        optimizer.step(lambda: prepared(torch.randn(2, 3, 8, 8)).sum())


@pytest.mark.parametrize("ramp", [float("nan"), 3.0, -0.1, "half"])
def test_a_schedule_has_to_give_a_share(ramp: object) -> None:
    prepared = make(fxprune.Feather(schedule=lambda step, total: ramp), "channel")
    scheduler = fxprune.Scheduler(prepared, total_steps=3)
    with pytest.raises(FxpruneError, match=f"gives {ramp!r} at step 1 of 3: it has to give the share"):
        scheduler.step()


TWO = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: fxprune.param_groups(m, lr="a"), r"param_groups\(lr='a'\): give a number of 0 or more"),
        (lambda m: fxprune.param_groups(m, lr=0.1, weight_decay=-1), r"weight_decay=-1\): give a number of 0 or more"),
        (lambda m: fxprune.Scheduler(m, "sgd", total_steps=5), "str is no torch.optim.Optimizer, whose steps"),
        (lambda m: fxprune.GMP(sticky="no"), r"GMP\(sticky='no'\): give True"),
        (lambda m: fxprune.ST3(sigma=0.5), r"ST3\(sigma=0.5\): give True"),
        (lambda m: fxprune.prepare(TWO, method=fxprune.GMP(schedule="cubic")), "schedule='cubic': give"),
        (
            lambda m: fxprune.prepare(TWO, target=fxprune.Sparsity(0.5, overrides={3: 0.5})),
            "overrides takes names, glo",
        ),
        (lambda m: fxprune.Sparsity(0.5, align=True), "align=True: give the multiple"),
        (lambda m: fxprune.Sparsity(0.5, least=True), "least=True: give the number"),
        (lambda m: fxprune.Latency(0.5, runtime=3), "runtime=3: give the name"),
        (lambda m: fxprune.convert(m, align=True), "align=True: give 1 or more"),
        (lambda m: fxprune.convert(m, {}), "does not run on the example inputs in eval mode"),
        (lambda m: fxprune.convert(m, torch.randn(2, 5, 8, 8)), "to have 3 channels, but got 5"),
        (lambda m: fxprune.recalibrate("model", []), "not a str first"),
        (lambda m: fxprune.recalibrate(m, None), "a NoneType is not: give a loader"),
        (lambda m: fxprune.recalibrate(m, torch.randn(2, 3, 8, 8)), "a Tensor is not: give a loader"),
        (lambda m: fxprune.recalibrate(m, [], count="all"), "count='all': give the number of batches"),
        (lambda m: fxprune.save(fxprune.convert(m), None), "takes a path"),
        (lambda m: fxprune.lower_stripes(fxprune.convert(m), threads="all"), "threads='all': give a whole number"),
        (lambda m: fxprune.export.count("model"), "count takes a torch.nn.Module, not a str"),
        (lambda m: fxprune.export.benchmark("dense.onnx"), "networks have names"),
    ],
)
def test_options_of_another_kind_are_refused_where_they_are_given(call, message: str) -> None:
    with pytest.raises(FxpruneError, match=message):
        call(make(fxprune.Feather(), "channel"))


CALLS: list[Callable[[nn.Module], object]] = [
    lambda model: fxprune.prepare(model, IMAGES),
    lambda model: fxprune.prepare(model),
    lambda model: fxprune.convert(model, IMAGES),
    lambda model: fxprune.inspect(model, IMAGES),
]
IMAGES = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize("call", CALLS)
def test_parameters_without_shapes_or_values_are_named(call: Callable[[nn.Module], object]) -> None:
    lazy = nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with pytest.raises(FxpruneError, match=r"0\.weight gets its shape in the first call of Sequential: call the model"):
        call(lazy)
    lazy(IMAGES)
    call(lazy)
    meta = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to("meta")
    with pytest.raises(FxpruneError, match=r"0\.weight lies on the meta device .* load the weights"):
        call(meta)


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_hooks_compute_are_refused_with_what_to_use_instead(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), getattr(nn.utils, name)(nn.Conv2d(8, 4, 3)))
    model(IMAGES)
    with pytest.raises(FxpruneError, match=rf"weight of 2 .*torch\.nn\.utils\.parametrizations\.{name} instead"):
        fxprune.prepare(model, IMAGES)


@pytest.mark.parametrize(
    ("gates", "match"),
    [
        (torch.ones(3), r"gates of shape \(3,\): give a tensor of shape \(\d+,\)"),
        ([1.0], "gates of type list"),
        (None, "NaN or infinite"),
    ],
)
def test_gates_that_are_none_are_refused(gates: object, match: str) -> None:
    prepared, _, _ = followed()
    before = state(prepared)
    with pytest.raises(FxpruneError, match=match):
        prepared.fxprune.set_gates(torch.full_like(prepared.fxprune.gates, float("nan")) if gates is None else gates)
    torch.testing.assert_close(prepared.state_dict(), before, rtol=0, atol=0)


def test_the_layer_that_makes_all_outputs_nan_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    model[1].running_var.fill_(-1.0)
    with pytest.raises(FxpruneError, match="look at 1, which is the first layer to give such numbers"):
        fxprune.convert(model, IMAGES)


class Activated(nn.BatchNorm2d):
    """A batch norm with code of its own, as timm's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


def test_rni_refuses_batch_norms_whose_code_it_would_not_replace() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Activated(8), nn.Conv2d(8, 4, 3))
    with pytest.raises(FxpruneError, match=r"1 \(Activated\) is a batch norm with code of its own.*NetworkSlimming"):
        fxprune.prepare(model, IMAGES, method=fxprune.RNI())
    average = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.Conv2d(8, 4, 3))
    prepared = fxprune.prepare(average, IMAGES, method=fxprune.RNI())
    prepared(IMAGES)
    prepared.eval()(IMAGES)


@pytest.mark.parametrize(
    ("method", "granularity"),
    [(fxprune.ProbMask(), "weight"), (fxprune.FilterSkeleton(delta=None), "stripe"), (fxprune.STR(), "weight")],
    ids=str,
)
def test_an_optimizer_that_lacks_what_masks_learn_is_refused(method: Method, granularity: Granularity) -> None:
    prepared = make(method, granularity)
    weights = [each for name, each in prepared.named_parameters() if not name.startswith("fxprune.")]
    with pytest.raises(OptimizerError, match=r"lacks variables of the masks, which \w+ learns; make it from fx"):
        fxprune.Scheduler(prepared, torch.optim.SGD(weights, lr=0.1), total_steps=10)


def test_two_schedulers_do_not_count_at_once() -> None:
    prepared, optimizer, _ = followed()
    x, y = next(batches())
    second = torch.optim.SGD(prepared.parameters(), lr=0.1)
    fxprune.Scheduler(prepared, second, total_steps=10)
    nn.functional.cross_entropy(prepared(x), y).backward()
    before = state(prepared)
    with pytest.raises(OptimizerError, match="another Scheduler was made for this model since"):
        optimizer.step()
    torch.testing.assert_close(prepared.state_dict(), before, rtol=0, atol=0)
    second.step()
    assert int(prepared.fxprune.step) == 1


@pytest.mark.parametrize("total", [0, None, -5, 0.5])
def test_a_total_that_is_none_is_refused_in_the_middle_too(total: object) -> None:
    _, _, scheduler = followed()
    with pytest.raises(OptimizerError, match="total_steps="):
        scheduler.total_steps = total
    assert scheduler.total_steps == 10


@pytest.mark.parametrize(
    ("method", "granularity"),
    [(fxprune.ProbMask(), "weight"), (fxprune.FilterSkeleton(delta=None), "stripe"), (fxprune.RNI(), "channel")],
    ids=str,
)
def test_methods_that_learn_do_not_prune_at_once(method: Method, granularity: Granularity) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    target = fxprune.Sparsity(0.5)
    with pytest.raises(FxpruneError, match="prunes by what it learns in training, and nothing was trained yet"):
        fxprune.prune(model, IMAGES, method=method, granularity=granularity, target=target)


def test_a_power_may_be_written_as_a_whole_number() -> None:
    saved = make(fxprune.Feather(), "channel").state_dict()
    fit = make(fxprune.Feather(p=3), "channel").load_state_dict(saved)
    assert not fit.missing_keys
    assert not fit.unexpected_keys

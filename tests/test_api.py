"""Whether the public functions refuse what they cannot take, in a sentence, and keep what a training loop relies on."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import FxpruneError, OptimizerError, TargetError, TraceError
from fxprune.model import RESERVED, PreparedModel
from tests.exactness import randomise, varied_images


def build(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1)]
    layers += [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(8, 5)).double()
    randomise(model)
    return model


def prepare(granularity: Any = "channel", model: nn.Module | None = None, **options: Any) -> PreparedModel:
    return fxprune.prepare(model or build(), varied_images(2, 3, 8), granularity=granularity, **options)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


class Reserved(nn.Linear):
    fxprune = "mine"


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"model": "resnet18"}, FxpruneError, r"takes a torch\.nn\.Module, not str"),
    ({"model": build}, FxpruneError, r"takes a torch\.nn\.Module, not function"),
    ({"method": "feather"}, FxpruneError, r"fxprune\.Feather\(\)"),
    ({"method": fxprune.Feather}, FxpruneError, r"fxprune\.Feather\(\)"),
    ({"target": 0.5}, TargetError, r"fxprune\.Sparsity\(0\.5\)"),
    ({"granularity": "filter"}, TargetError, r"granularity='filter'.*'weight', 'stripe' or 'channel'"),
    ({"model": Reserved(3, 3)}, FxpruneError, "part named `fxprune`"),
    ({"model": nn.Sequential(nn.Flatten(), nn.Linear(192, 4))}, TargetError, "no channel is left to prune"),
    ({"model": nn.ReLU(), "granularity": "weight"}, TargetError, "no weight is left to prune"),
    ({"exclude": ["*"], "model": build().float()}, TargetError, r"exclude leaves out all \d+ that could be"),
    ({"model": nn.Conv2d, "example_inputs": None}, FxpruneError, r"takes a torch\.nn\.Module, not the class Conv2d"),
    (
        {"method": fxprune.FilterSkeleton()},
        TargetError,
        r"no granularity='channel': give 'stripe'; 'channel' is what prepare takes unless",
    ),
    (
        {"method": fxprune.FilterSkeleton(), "granularity": "stripe", "target": fxprune.Sparsity(0.5)},
        TargetError,
        r"leave target out, or give method=FilterSkeleton\(delta=None\)",
    ),
    (
        {"target": fxprune.Sparsity(0.5, align=64), "model": build().float()},
        TargetError,
        r"largest group has \d+, .* multiples of align=64",
    ),
    (
        {"target": fxprune.Sparsity(0.5, least=64), "model": build().float()},
        TargetError,
        r"least=64 of each group stay.*least=0\)",
    ),
    (
        {"model": nn.Sequential(nn.Flatten(), nn.Linear(192, 1), nn.Linear(1, 3))},
        TargetError,
        r"no channel is left to prune: .*\(no layer has two\)",
    ),
    ({"example_inputs": torch.randn(2, 3, 8, 8).numpy()}, FxpruneError, r"numpy\.ndarray: pass torch\.from_numpy"),
    ({"example_inputs": torch.randn(0, 3, 8, 8)}, FxpruneError, r"an empty batch, of shape \(0, 3, 8, 8\)"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED)
def test_bad_arguments_are_refused_in_a_sentence(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fxprune.prepare(**{"model": build(), "example_inputs": torch.randn(2, 3, 8, 8), **arguments})


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, float("nan")])
def test_a_target_outside_of_its_range_is_refused(share: float) -> None:
    with pytest.raises(TargetError, match=r"Sparsity"):
        fxprune.Sparsity(share)


def test_a_prepared_model_is_not_prepared_again() -> None:
    with pytest.raises(FxpruneError, match=r"prepared already; convert it"):
        fxprune.prepare(prepare(), varied_images(2, 3, 8))


def test_an_optimizer_of_the_original_model_is_refused() -> None:
    model = build()
    with pytest.raises(OptimizerError, match=r"after fxprune\.prepare, from prepared\.parameters\(\)"):
        fxprune.Scheduler(prepare(model=model), sgd(model), total_steps=4)


@pytest.mark.parametrize("bad", ["text", None, 3])
def test_convert_refuses_what_is_no_model(bad: Any) -> None:
    with pytest.raises(FxpruneError, match=r"torch\.nn\.Module"):
        fxprune.convert(bad, torch.randn(2, 3, 8, 8))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.last = nn.Embedding(30, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(self.table(x))).mean(1))


@pytest.mark.parametrize(
    "model",
    [
        build(),
        nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 3, 1)),
        nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 3)),
        Words(),
    ],
)
def test_an_example_input_is_made_from_the_first_layer(model: nn.Module) -> None:
    random = torch.get_rng_state()
    assert fxprune.prepare(model).fxprune.gates.numel() > 0
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    "model", [nn.Bilinear(3, 3, 2), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(5, 2))]
)
def test_an_example_input_is_asked_for_where_none_can_be_made(model: nn.Module) -> None:
    with pytest.raises(TraceError, match=r"no example input could be made.*pass example_inputs"):
        fxprune.prepare(model)


@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_weights_of_the_original_load_and_masks_stay_as_they_are(granularity: str) -> None:
    prepared, other = prepare(granularity), build(seed=1).eval()
    weights = other.state_dict()
    before = {name: copy.deepcopy(t) for name, t in prepared.state_dict().items() if name.startswith("fxprune.")}
    assert not any(prepared.load_state_dict(weights))
    nn.ModuleDict({"student": prepared}).load_state_dict({f"student.{name}": t for name, t in weights.items()})
    torch.testing.assert_close({name: prepared.state_dict()[name] for name in before}, before)
    assert list(weights) == list(other.state_dict())
    x = varied_images(2, 3, 8)
    torch.testing.assert_close(prepared.eval()(x), other(x), rtol=0, atol=0)


WRONG_STATES: list[tuple[dict[str, Any], str]] = [
    (
        nn.Linear(2, 3).state_dict(),
        r"lacks \d+ of \d+ tensors \(0\.weight, .*has 2 that the model lacks \(weight, bias\)",
    ),
    ({f"module.{name}": value for name, value in build().state_dict().items()}, "begin with `module.`, which Distrib"),
    ({**build().state_dict(), "0.bias": torch.zeros(3)}, r"0\.bias has the sizes \(3,\), and \(8,\) here"),
]


@pytest.mark.parametrize(("state", "message"), WRONG_STATES)
@pytest.mark.parametrize("converted", [False, True])
def test_a_state_dict_of_something_else_is_refused_in_a_sentence(state, message: str, converted: bool) -> None:
    model = fxprune.convert(prepare()) if converted else prepare()
    with pytest.raises(RuntimeError, match=rf"no state dict of Sequential: .*{message}.*give one of "):
        model.load_state_dict(state)


@pytest.mark.parametrize(
    ("x", "note"),
    [
        (torch.randn(2, 1, 8, 8).double(), r"raised by conv, in the model's code at .*test_api\.py:\d+ in forward"),
        (torch.randn(2, 3, 8, 8), r"raised by conv, in .*test_api\.py:\d+ in forward"),
        ([1, 2], r"raised by conv, in .*test_api\.py:\d+ in forward"),
    ],
)
def test_a_call_that_fails_inside_the_graph_names_the_line_of_the_users_code(x: Any, note: str) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3).double(), nn.Conv2d(8, 2, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.conv(x)))

    prepared = prepare(model=Own())
    for model in (prepared, fxprune.convert(prepared)):
        with pytest.raises((RuntimeError, TypeError)) as caught:
            model(x)
        assert re.search(note, caught.value.__notes__[0])
        with pytest.raises(TypeError) as caught:
            model(x, x)
        assert caught.value.__notes__ == ["this model was prepared to be called with (x), as its example_inputs were"]


def test_one_batch_is_no_loader() -> None:
    with pytest.raises(FxpruneError, match=r"goes through batches, which a Tensor is not: give a loader"):
        fxprune.recalibrate(build(), varied_images(2, 3, 8))


@pytest.mark.parametrize("training", [False, True])
def test_a_prepared_model_is_in_the_mode_of_the_original(training: bool) -> None:
    model = build().train(training)
    model.get_submodule("1").train(not training)
    prepared = prepare(model=model)
    modes = {name: m.training for name, m in prepared.named_modules() if not name.startswith("fxprune")}
    assert modes == {name: m.training for name, m in model.named_modules()}
    assert prepared.fxprune.training == training


def test_parts_cannot_have_the_names_of_our_own_attributes() -> None:
    class Stepping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    with pytest.raises(FxpruneError, match="part named `steps`"):
        fxprune.prepare(Stepping(), torch.randn(2, 4))
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    prepared = fxprune.prepare(model, torch.randn(2, 4))
    compact = fxprune.convert(prepared)
    for each in (prepared, compact):
        own = {name for name in dir(each) if not name.startswith("_")} - set(dir(model))
        assert own <= RESERVED | {"0", "1"}


def test_optional_inputs_may_stand_before_those_that_are_given_by_name() -> None:
    """As blocks of transformers are called: a positional one left out, keywords behind it."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor, cache: Any = None, *, scale: Tensor, **rest: Any) -> Tensor:
            return self.b(self.a(x)) * scale + rest["shift"]

    x, scale = torch.randn(2, 4), torch.ones(4)
    prepared = fxprune.prepare(Block(), {"x": x, "cache": None, "scale": scale, "shift": scale})
    torch.testing.assert_close(
        prepared(x, scale=2 * scale, shift=scale), prepared(x, None, scale=2 * scale, shift=scale)
    )


def test_a_constant_table_loses_no_coordinates() -> None:
    """What a table holds is read by weights, and made by none."""

    class Tabled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.randn(1, 7, 7, 2))
            self.inner, self.outer, self.head = nn.Linear(2, 12), nn.Linear(12, 4), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x) + self.outer(self.inner(self.table).relu()).view(-1, 4).mean(0)

    prepared = fxprune.prepare(Tabled(), torch.randn(2, 3))
    assert prepared.fxprune.gates.numel() == 12
    compact = fxprune.convert(prepared)
    assert not compact.report.kept  # no row of the table was taken for one that nobody reads


def test_public_names_are_not_hidden_by_modules_of_the_same_name() -> None:
    code = "import fxprune.prune, fxprune.penalty, fxprune.param_groups, fxprune.inspection.inspect, fxprune as f; "
    code += "assert all(map(callable, (f.prune, f.penalty, f.param_groups, f.inspect))); from fxprune import *; Feather"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert set(dir(fxprune)) >= {"prepare", "convert", "export", "errors"}
    with pytest.raises(AttributeError, match="perpare"):
        fxprune.perpare  # noqa: B018


@pytest.mark.parametrize(
    "first", ["fxprune.reporting.comparison", "fxprune.layer_times.measure", "fxprune.export.report"]
)
def test_any_part_can_be_imported_first(first: str) -> None:
    code = f"import {first}, fxprune; assert callable(fxprune.export.report) and callable(fxprune.export.benchmark)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_training_and_conversion_load_no_runtime() -> None:
    code = """
import sys, torch, fxprune
from torch import nn
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
x = torch.randn(2, 3, 8, 8)
prepared = fxprune.prepare(model, x, target=fxprune.Macs(remaining=0.5))
optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
fxprune.Scheduler(prepared, optimizer, total_steps=1)
prepared(x).sum().backward()
optimizer.step()
fxprune.convert(prepared)
print([name for name in ("onnx", "onnxruntime", "onnxscript", "openvino") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"

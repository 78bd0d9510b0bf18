"""Whether a converted model comes back from its file to the last bit, and whether every other file is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

import fxprune
from fxprune.errors import FxpruneError, PlanError
from fxprune.model import TracedModel, named_tensors, tensors_in
from fxprune.saving import container
from tests.conversion import leave_as_large
from tests.exactness import close_units, randomise, varied_images, zero_filters
from tests.mutations import mutate
from tests.test_seven_modules import SEVEN, AttentionMap


class Small(nn.Module):
    """Three layers; `width` is an argument that a user may get wrong."""

    def __init__(self, width: int = 8, last: type[nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, width), nn.Linear(width, 6), last(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class Tied(nn.Module):
    """One layer used twice under two names, and a table that is no parameter."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.first, self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.b.weight = self.a.weight if tied else self.b.weight
        self.order = torch.arange(8).flip(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(torch.relu(self.a(torch.relu(self.first(x))))) + self.a(self.first(x))[:, self.order])


class Inner(nn.Module):
    """Attention whose heads may lose inner channels, others for queries than for values."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(10, 36), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, 6).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Normed(nn.Module):
    """A norm that counts all channels of the layer before."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 1), nn.GroupNorm(1, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)))


class Deciding(nn.Module):
    """Two parts that can be traced, and code between that decides by values."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 6))
        self.back = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(x)
        return self.back(x[x[:, 0] > x[:, 0].mean()] if x.sum() > 1e9 else x)


def weight_normed() -> nn.Module:
    norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(norm(nn.Linear(4, 8)), nn.ReLU(), norm(nn.Linear(8, 6)), nn.ReLU(), nn.Linear(6, 2))


def assert_same(compact: TracedModel, loaded: TracedModel, *inputs: Tensor) -> None:
    """The same outputs to the last bit in both modes, tensors under the same names, the same graphs."""
    ours, theirs = named_tensors(compact), named_tensors(loaded)
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    assert all(torch.equal(a, b) and a.dtype is b.dtype for (_, a), (_, b) in zip(ours, theirs, strict=True))
    for a, b in zip(compact.graphs, loaded.graphs, strict=True):
        assert a.python_code("self").src == b.python_code("self").src
    for training in (False, True):
        results = []
        for model in (compact, loaded):
            torch.manual_seed(0)
            results.append(tensors_in(copy.deepcopy(model).train(training)(*inputs)))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def build(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = make().double()
    randomise(model)
    return model


def compress(model: nn.Module, x: Tensor, share: float = 0.4, **options: Any) -> TracedModel:
    prepared = fxprune.prepare(model, x, **options)
    close_units(prepared, share, seed=1)
    return fxprune.convert(prepared)


def there_and_back(compact: TracedModel, make: Callable[[], nn.Module], folder: Path) -> TracedModel:
    fxprune.save(compact, folder / "compact.safetensors")
    torch.manual_seed(1)
    return fxprune.load(make(), folder / "compact.safetensors")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    fxprune.save(compress(build(Small), torch.randn(3, 4).double()), tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


class Sums(nn.Module):
    """Adds up from zeros, which are a constant of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).relu()
        total = torch.zeros_like(y)
        for number in range(2):
            total = total + y * number
        out: torch.Tensor = self.b(total)
        return out


def test_sums_from_zeros_come_back(tmp_path: Path) -> None:
    x, model = torch.randn(3, 6), Sums()
    compact = fxprune.convert(fxprune.prune(model, x))
    fxprune.save(compact, tmp_path / "sums.safetensors")
    assert torch.equal(fxprune.load(model, tmp_path / "sums.safetensors")(x), compact(x))


def test_a_residual_network_comes_back(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return torchvision.models.resnet18(num_classes=10)

    model = make()
    randomise(model)
    compact = compress(model, torch.randn(2, 3, 64, 64))
    loaded = there_and_back(compact, make, tmp_path)
    assert loaded.layer1[0].conv1.out_channels == compact.layer1[0].conv1.out_channels < 64
    assert loaded.report == compact.report
    assert_same(compact, loaded, torch.randn(3, 3, 96, 96))


@pytest.mark.parametrize("kind", SEVEN)
@pytest.mark.parametrize("masked", [True, False])
def test_closed_units_and_what_zero_filters_leave_behind_come_back(
    kind: type[nn.Module], masked: bool, tmp_path: Path
) -> None:
    model = build(kind)
    if masked:
        compact = compress(model, varied_images(2, 3, 12))
    else:
        zero_filters(model, 0.5, seed=2)
        compact = fxprune.convert(model, varied_images(2, 3, 12))
    assert_same(compact, there_and_back(compact, kind, tmp_path), varied_images(3, 3, 15))


def test_branches_that_became_constants_come_back(tmp_path: Path) -> None:
    model = build(AttentionMap)
    with torch.no_grad():
        model.map.weight.zero_()
        model.features.weight[:3] = 0
    compact = fxprune.convert(model, varied_images(2, 3, 12))
    assert compact.steps[0].constants
    assert_same(compact, there_and_back(compact, AttentionMap, tmp_path), varied_images(3, 3, 15))


def test_constants_absorbed_by_layers_without_bias_come_back(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6, bias=False), nn.ReLU(), nn.Linear(6, 2))

    model = build(make)
    with torch.no_grad():
        model[0].weight[:3], model[0].bias[:3] = 0, 1.0
    compact = fxprune.convert(model, torch.randn(3, 4).double())
    assert compact.steps[0].biased
    assert compact.get_submodule("2").bias is not None
    assert_same(compact, there_and_back(compact, make, tmp_path), torch.randn(5, 4).double())


@pytest.mark.parametrize("heads", ["whole", "inner"])
def test_attention_comes_back(heads: Any, tmp_path: Path) -> None:
    compact = compress(build(Inner), torch.randn(2, 5, 10).double(), heads=heads)
    assert_same(compact, there_and_back(compact, Inner, tmp_path), torch.randn(3, 7, 10).double())


def test_what_had_to_be_muted_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_as_large(monkeypatch, "first")
    compact = compress(build(Normed), varied_images(2, 3, 8))
    assert compact.steps[0].muted
    assert_same(compact, there_and_back(compact, Normed, tmp_path), varied_images(3, 3, 12))


def test_regions_of_a_model_that_decides_come_back(tmp_path: Path) -> None:
    compact = compress(build(Deciding), torch.randn(3, 4).double())
    assert list(compact.steps[0].traced) == ["front", "back"]
    loaded = there_and_back(compact, Deciding, tmp_path)
    assert loaded.front[0].out_features == compact.front[0].out_features < 8
    assert loaded.untraced == compact.untraced
    assert_same(compact, loaded, torch.randn(5, 4).double())


@pytest.mark.parametrize("make", [weight_normed, Tied])
def test_parametrized_and_tied_weights_come_back(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    compact = compress(build(make), torch.randn(3, 4).double())
    assert not list(compact.buffers()) or make is Tied  # weights stay parameters
    assert_same(compact, there_and_back(compact, make, tmp_path), torch.randn(5, 4).double())


@pytest.mark.parametrize("kind", [Small, *SEVEN[3:], Deciding])
def test_what_was_converted_three_times_comes_back(kind: type[nn.Module], tmp_path: Path) -> None:
    x = torch.randn(3, 4).double() if kind in (Small, Deciding) else varied_images(3, 3, 12)
    compact = compress(compress(build(kind), x, 0.2), x)
    zero_filters(compact, 0.3, seed=3)
    compact = fxprune.convert(compact, x)
    assert len(compact.steps) == 3
    assert_same(compact, there_and_back(compact, kind, tmp_path), x[:2])


def test_inputs_of_tracing_and_of_conversion_come_back(tmp_path: Path) -> None:
    prepared = fxprune.prepare(build(Small), torch.randn(3, 4).double())
    close_units(prepared, 0.4)
    compact = fxprune.convert(prepared, torch.randn(7, 4).double())
    loaded = there_and_back(compact, Small, tmp_path)
    assert torch.equal(loaded.inputs[0][0], compact.inputs[0][0])
    assert loaded.graphs.regions[0].inputs[0][0].shape == (7, 4)


def test_what_was_loaded_trains_converts_saves_and_exports(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    loaded = there_and_back(compress(build(Small).float(), x), Small, tmp_path)
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loaded(x).square().sum().backward()
    optimizer.step()
    smaller = compress(loaded, x)
    assert smaller.first.out_features < loaded.first.out_features
    assert_same(smaller, there_and_back(smaller, Small, tmp_path), x)
    fxprune.export.to_onnx(smaller, x, tmp_path / "small.onnx")


def test_loading_leaves_the_fresh_model_and_the_random_state_alone(saved: Path) -> None:
    fresh = Small().eval()
    before, random, names = copy.deepcopy(fresh.state_dict()), torch.get_rng_state(), sorted(vars(fresh))
    loaded = fxprune.load(fresh, saved)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), fresh.state_dict().values(), strict=True))
    assert sorted(vars(fresh)) == names
    assert not loaded.training
    assert loaded.first.weight.dtype is torch.float64
    assert fresh.first.weight.dtype is torch.float32


def test_any_reader_of_safetensors_shows_the_tensors_and_the_plan(saved: Path) -> None:
    with safetensors.safe_open(saved, "pt") as file:
        plan = json.loads(file.metadata()["plan"])
        assert plan["steps"][0]["class_name"] == "Small"
        kept = plan["steps"][0]["kept"]["first.weight"]["0"]
        assert len(kept) == file.get_tensor("model.first.weight").size(0) < 8


@pytest.mark.parametrize(
    ("fresh", "message"),
    [
        (nn.Sequential(nn.Linear(4, 8)), r"what was converted is a Small, and this model is a Sequential"),
        (Small(9), r"first\.weight has the shape \(9, 4\) and had \(8, 4\) before.*arguments of the original"),
        (Small(last=lambda *sizes: nn.Linear(*sizes, bias=False)), r"head\.bias of the Small .* is missing"),
        (Small(last=lambda *sizes: nn.Sequential(nn.Linear(*sizes))), r"head\.weight of the Small .* is missing"),
        ("Small", r"takes a fresh model and a path"),
    ],
)
def test_other_models_are_refused(fresh: Any, message: str, saved: Path) -> None:
    with pytest.raises(PlanError, match=message):
        fxprune.load(fresh, saved)


def test_models_with_more_tensors_or_other_ties_are_refused(saved: Path, tmp_path: Path) -> None:
    more = Small()
    more.third = nn.Linear(2, 2)
    with pytest.raises(PlanError, match=r"this Small has a tensor third\.weight that the one"):
        fxprune.load(more, saved)
    fxprune.save(compress(build(Tied), torch.randn(3, 4).double()), tmp_path / "tied")
    with pytest.raises(PlanError, match=r"traces the model differently|one and the same"):
        fxprune.load(Tied(tied=False), tmp_path / "tied")


def test_prepared_and_plain_models_are_not_saved(tmp_path: Path) -> None:
    prepared = fxprune.prepare(Small(), torch.randn(3, 4))
    with pytest.raises(PlanError, match=r"prepared model is not saved whole: save its state_dict\(\)"):
        fxprune.save(prepared, tmp_path / "x")
    with pytest.raises(PlanError, match=r"takes what fxprune\.convert returns, not a Small"):
        fxprune.save(Small(), tmp_path / "x")
    with pytest.raises(PlanError, match=r"a fresh model as its class makes it, not a prepared one"):
        fxprune.load(prepared, tmp_path / "x")


def test_inputs_that_are_objects_are_not_saved(tmp_path: Path) -> None:
    compact = compress(build(Small), torch.randn(3, 4).double())
    compact.steps = (dataclasses.replace(compact.steps[0], inputs=((object(),), {})),)
    with pytest.raises(PlanError, match=r"an example input is a object, and a file holds tensors"):
        fxprune.save(compact, tmp_path / "x")


def test_nested_inputs_come_back(tmp_path: Path) -> None:
    compact = compress(build(Small), torch.randn(3, 4).double())
    inputs = ((compact.inputs[0][0],), {})
    odd: Any = (torch.ones(2), [1, 2.5, None, (True, "text")], {"a": torch.float16, "b": {}})
    compact.steps = (dataclasses.replace(compact.steps[0], inputs=(odd, {"k": inputs[0][0]})),)
    args, kwargs = there_and_back(compact, Small, tmp_path).inputs
    assert args[1:] == odd[1:]
    assert torch.equal(args[0], odd[0])
    assert torch.equal(kwargs["k"], inputs[0][0])


def test_other_files_are_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(3)}, tmp_path / "theirs", {"format": "pt"})
    torch.save({"a": 1}, tmp_path / "pickle")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("theirs", "pickle", "empty"):
        with pytest.raises(PlanError, match=r"is no file of fxprune\.save"):
            fxprune.load(Small(), tmp_path / name)
    with pytest.raises(PlanError, match=r"cannot be read: No such file"):
        fxprune.load(Small(), tmp_path / "nowhere")


def test_truncated_files_are_refused(saved: Path) -> None:
    blob = saved.read_bytes()
    for length in (*range(0, len(blob), 97), len(blob) - 1):
        saved.write_bytes(blob[:length])
        with pytest.raises(PlanError, match=r"is cut off: it has|or what is left of one"):
            fxprune.load(Small(), saved)
    with pytest.raises(PlanError, match=r"is cut off: it has .* of .* bytes"):
        fxprune.load(Small(), saved)


def test_a_changed_byte_is_found_wherever_it_is(saved: Path) -> None:
    blob = saved.read_bytes()
    for place in (*range(200), *range(200, len(blob), 7)):
        saved.write_bytes(blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :])
        with pytest.raises(PlanError, match=r"is damaged|is cut off|or what is left of one"):
            container.read_file(saved)
    saved.write_bytes(blob + b"\0")
    with pytest.raises(PlanError, match=r"is damaged"):
        fxprune.load(Small(), saved)


def test_arguments_in_another_order_are_refused(saved: Path) -> None:
    for arguments in ((saved,), (str(saved), Small()), (Small(), None)):
        with pytest.raises(PlanError, match=r"takes a fresh model and a path, as in .* the file holds no code; it got"):
            fxprune.load(*arguments)


def test_every_mutation_of_a_file_is_refused(saved: Path) -> None:
    for mutant in mutate(saved.read_bytes()):
        saved.write_bytes(mutant)
        with pytest.raises(PlanError, match=r"is damaged|is cut off|or what is left of one"):
            fxprune.load(Small(), saved)


def test_every_hostile_plan_is_refused_or_loads(saved: Path) -> None:
    """Plans that someone wrote by hand, with a digest that is right."""
    text, tensors = container.read_file(saved)
    plan, generator = json.loads(text), random.Random(0)
    refused = 0
    for _ in range(200):
        changed = copy.deepcopy(plan)
        change_somewhere(changed, generator)
        container.write_file(saved, json.dumps(changed), tensors)
        try:
            fxprune.load(Small().double(), saved)
        except FxpruneError:
            refused += 1
    assert 100 < refused < 200  # others changed what says nothing of the model, such as torch's version


def change_somewhere(plan: Any, generator: random.Random) -> None:
    """Walk to a random place of a JSON value and put something else there, or take away what is there."""
    places = list(plan) if isinstance(plan, dict) else list(range(len(plan)))
    place = generator.choice(places)
    value = plan[place]
    if isinstance(value, (dict, list)) and len(value) and generator.random() < 0.8:
        change_somewhere(value, generator)
    elif generator.random() < 0.2:
        del plan[place]
    else:
        hostile: list[Any] = [None, True, -1, 3, 2**70, 1e300, "", "__class__", [], [[]], {}, {"tensor": "x"}]
        plan[place] = generator.choice(hostile)


def test_other_versions_of_the_format_are_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "FORMAT", "fxprune 2")
    with pytest.raises(PlanError, match=r"has the format 'fxprune 1', and this fxprune reads 'fxprune 2'"):
        fxprune.load(Small(), saved)


@pytest.mark.parametrize("plan", ["", "[]", "{}", '{"steps": [{}], "tied": {}, "report": null}'])
def test_plans_that_say_too_little_are_refused(plan: str, tmp_path: Path) -> None:
    container.write_file(tmp_path / "x", plan, {"a": torch.ones(3)})
    with pytest.raises(PlanError, match=r"the plan in the file cannot be read"):
        fxprune.load(Small(), tmp_path / "x")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"biased": ((0, "linear_9"),)}, "the graph has no node linear_9"),
        ({"biased": ((0, "relu"),)}, "the node relu no longer multiplies"),
        ({"constants": ((0, "nothing", (1, 8)),)}, "the graph has no node nothing"),
        ({"constants": ((0, "relu", (8,)),)}, "the result of the node relu has other dimensions"),
        ({"muted": ((99, "relu"),)}, "the node relu no longer counts channels"),
        ({"kept": {"first.weight": {0: [0, 8]}}}, r"dimension 0 of first\.weight is not what was pruned"),
        ({"kept": {"third.weight": {0: [0]}}}, r"dimension 0 of third\.weight is not what was pruned"),
        ({"kept": {"first.weight": {0: [0, 1]}}}, "other channels are tied"),
        ({"kept": {"head.weight": {0: [0]}}}, "other channels are tied"),
        ({"kept": {}}, r"first\.weight is \(8, 4\) when replayed and \(\d, 4\) in the file"),
        ({"traced": {"third": ((), {})}, "converted": {"third": ((), {})}}, "third can no longer be traced"),
    ],
)
def test_models_that_are_traced_differently_are_refused(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:  # fmt: skip
    compact = compress(build(Small), torch.randn(3, 4).double())
    compact.steps = (dataclasses.replace(compact.steps[0], **changed),)
    fxprune.save(compact, tmp_path / "x")
    with pytest.raises(PlanError, match=message + r".* traces the model differently from the one that saved the file"):
        fxprune.load(Small(), tmp_path / "x")


def test_a_file_is_replaced_at_once_or_not_at_all(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def fail(*paths: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(PlanError, match=r"cannot be written: No space left on device"):
            fxprune.save(compress(build(Small), torch.randn(3, 4).double()), saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]
    fxprune.save(compress(build(Small), torch.randn(3, 4).double(), 0.7), saved)
    assert saved.read_bytes() != before
    with pytest.raises(PlanError, match=r"cannot be written: No such file or directory; give a path in a folder"):
        fxprune.save(compress(build(Small), torch.randn(3, 4).double()), saved.parent / "nowhere" / "x")

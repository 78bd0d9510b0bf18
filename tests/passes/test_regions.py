"""Whether models whose code decides are pruned where they can be: regions exact, all else as it was, reasons said."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import FxpruneError, TraceError
from fxprune.model import PreparedModel
from tests.conversion import assert_same, convert_closed, count_units, prepare_randomised
from tests.exactness import randomise, varied_images


class Body(nn.Module):
    """Sixteen channels out of three; another way in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.Conv2d(24, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.n(self.a(x))))


class Head(nn.Module):
    """Five outputs of sixteen features."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.b(torch.nn.functional.softplus(self.a(x)) * scale)


class Detector(nn.Module):
    """A body, a decision by values, and a head on the samples that it leaves; or any other code between the two."""

    def __init__(self, body: Callable[[Detector, Tensor], Any] | None = None, **layers: nn.Module) -> None:
        super().__init__()
        self.code, self.body, self.head = body, Body(), Head()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        if self.code is not None:
            return self.code(self, x)
        features = self.body(x).mean((2, 3))
        if features.sum() > 0:
            features = features * 2
        return self.head(features[features.sum(1) > -1e9])


def images(count: int = 3, size: int = 8, seed: int = 0) -> Tensor:
    return varied_images(count, 3, size, seed)


def paths(prepared: PreparedModel) -> list[str]:
    return [region.path for region in prepared.graphs.regions]


def decide(x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x


def test_what_can_be_traced_inside_is_pruned_and_the_rest_runs_as_it_did() -> None:
    prepared = prepare_randomised(Detector(), images())
    assert paths(prepared) == ["body", "head"]
    assert "test_regions.py:" in prepared.untraced["the whole model"]
    assert "by the values of a tensor" in prepared.untraced["the whole model"]
    assert list(prepared.untraced) == ["the whole model"]
    assert count_units(prepared) == 24 + 32
    compact = convert_closed(prepared, images(5, 9, 1), images(2, 12, 2))
    assert compact.body.a.out_channels < 24
    assert compact.head.a.out_features < 32
    assert (compact.body.b.out_channels, compact.head.a.in_features) == (16, 16)
    assert compact.untraced == prepared.untraced


def test_the_users_model_stays_as_it_was() -> None:
    model = Detector().double()
    before = copy.deepcopy(model.state_dict())
    prepared = fxprune.prepare(model, images())
    fxprune.convert(prepared)
    fxprune.convert(model, images())
    assert "forward" not in vars(model.body)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert model.training


def test_names_and_states_are_the_models_own() -> None:
    model = Detector().double()
    prepared = fxprune.prepare(model, images())
    own = {name for name in prepared.state_dict() if not name.startswith("fxprune.")}
    assert own == set(model.state_dict())
    randomise(model, seed=4)
    prepared.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(prepared(images()), model(images()))
    compact = fxprune.convert(prepared)
    assert list(compact.state_dict()) == list(model.state_dict())
    assert type(prepared.body) is Body


def test_modes_are_kept_and_switched() -> None:
    def code(m: Detector, x: Tensor) -> Tensor:
        y = decide(m.body(x).mean((2, 3)))
        return m.head(y) + 1 if m.training else m.head(y)

    model = Detector(code).double()
    randomise(model)
    model.body.n.eval()
    prepared = fxprune.prepare(model, images())
    assert prepared.training
    assert prepared.body.training
    assert not prepared.body.n.training
    for training in (True, False):
        prepared.train(training), model.train(training)
        x = images(4, 10, 5)
        torch.testing.assert_close(prepared(x), model(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(prepared.body.n.running_mean, model.body.n.running_mean)
    compact = fxprune.convert(prepared.train())
    assert compact.training
    prepared.eval(), compact.eval()
    torch.testing.assert_close(compact(x), prepared(x))
    prepared.train(), compact.train()
    torch.testing.assert_close(compact(x), prepared(x))


def test_copies_run_their_own_weights() -> None:
    prepared = prepare_randomised(Detector(), images())
    compact = convert_closed(prepared, images(2))
    for model in (prepared, compact):
        other = copy.deepcopy(model)
        expected = model(images())
        torch.testing.assert_close(other(images()), expected, rtol=0, atol=0)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert not torch.equal(other(images()), expected)
        torch.testing.assert_close(model(images()), expected, rtol=0, atol=0)


def test_a_converted_model_can_be_prepared_and_converted_again() -> None:
    compact = convert_closed(prepare_randomised(Detector(), images()), images(2))
    again = fxprune.prepare(compact, images())
    assert paths(again) == ["body", "head"]
    smaller = convert_closed(again, images(5, 9, 1))
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in compact.parameters())
    assert_same(fxprune.convert(smaller, images()), smaller, images(4))


def test_a_model_that_was_never_prepared_converts_by_regions() -> None:
    model = Detector().double().eval()
    randomise(model)
    with torch.no_grad():
        model.body.a.weight[::3] = 0
        model.head.a.weight[1::2] = 0
    compact = fxprune.convert(model, images())
    assert compact.report.units_removed == 16 + 7  # one of the 8 constants meets a padded border
    assert_same(model, compact, images(5, 11, 1))


def test_a_region_takes_all_the_shapes_with_which_it_is_called() -> None:
    def code(m: Detector, x: Tensor) -> Tensor:
        a = m.body(x).mean((2, 3))
        b = m.body(x[:, :, ::2, 1:]).mean((2, 3))
        return m.head(decide(a)) + m.head(b[:1] * 0.5) + m.head(a + b)

    prepared = prepare_randomised(Detector(code), images())
    assert paths(prepared) == ["body", "head"]
    convert_closed(prepared, images(5, 9, 1))


def test_a_region_that_takes_another_way_in_another_call_is_none() -> None:
    class Wavering(Head):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu()) if len(x) > 1 else self.b(self.a(x))

    def code(m: Detector, x: Tensor) -> Tensor:
        y = decide(m.body(x).mean((2, 3)))
        return m.other(y) + m.other(y[:1]) + m.head(y)

    prepared = prepare_randomised(Detector(code, other=Wavering()), images())
    assert paths(prepared) == ["body", "head"]
    assert "was True when the model was prepared and is False" in prepared.untraced["other"]
    convert_closed(prepared, images(5, 9, 1))


def test_a_region_that_keeps_a_state_is_none() -> None:
    class Counting(Head):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x) * self.calls

    def code(m: Detector, x: Tensor) -> Tensor:
        y = decide(m.body(x).mean((2, 3)))
        return m.head(y) + 0 * (m.other(y) + m.other(y[:2]).sum(0))

    prepared = prepare_randomised(Detector(code, other=Counting()), images())
    assert "other" not in paths(prepared)
    assert "keep a state" in prepared.untraced["other"]


def test_a_module_that_is_called_past_its_owner_makes_the_owner_none() -> None:
    def code(m: Detector, x: Tensor) -> Tensor:
        y = decide(m.body(x).mean((2, 3)))
        return m.head(y) + m.head.b(m.head.a(y))

    prepared = prepare_randomised(Detector(code), images())
    assert paths(prepared) == ["body"]
    assert "head.b inside of it is also called from outside" in prepared.untraced["head"].replace("head.a", "head.b")
    convert_closed(prepared, images(5, 9, 1))


def test_a_parameter_that_is_tied_to_one_outside_of_all_regions_is_left_as_it_is() -> None:
    """Other inputs than the example may lead to code that reads it."""

    def code(m: Detector, x: Tensor) -> Tensor:
        y = decide(m.body(x).mean((2, 3)))
        return m.head(y) + (m.single.weight.sum(1)[:5] * y.mean(1, keepdim=True) if len(x) > 3 else 0)

    model = Detector(code, single=nn.Linear(16, 32))
    model.single.weight = model.head.a.weight
    prepared = prepare_randomised(model, images())
    assert paths(prepared) == ["body", "head"]
    assert count_units(prepared) == 24
    assert any("is the same parameter" in reason for reason in prepared.pinned)
    compact = convert_closed(prepared, images(5, 9, 1))
    assert compact.single.weight is compact.head.a.weight


@pytest.mark.parametrize(
    "read",
    [
        lambda m: m.head.a.bias.sum(),
        lambda m: m.head.a.weight.shape[0] / 32,
        lambda m: sum(parameter.data.mean() for parameter in m.head.parameters()),
        lambda m: torch.stack([m.head.a.bias, m.head.a.bias]).mean(),
    ],
)
def test_a_region_whose_weights_other_code_reads_is_none(read: Callable[[Detector], Any]) -> None:
    def code(m: Detector, x: Tensor) -> Tensor:
        y = decide(m.body(x).mean((2, 3)))
        return m.head(y) + read(m) * y.mean(1, keepdim=True)

    prepared = prepare_randomised(Detector(code, other=Head()), images())
    assert "head" not in paths(prepared)
    assert re.search(r"head\.a\.\w+ inside of it .* read from outside \(.*test_regions.py:", prepared.untraced["head"])
    gates = torch.zeros(prepared.fxprune.gates.numel())
    gates[::3] = 1
    prepared.fxprune.set_gates(gates)
    assert_same(prepared, fxprune.convert(prepared), images(5, 9, 1))


def test_a_result_that_is_left_in_an_attribute_for_other_code_is_missed_and_said() -> None:
    class Leaving(Head):
        left: Any = 0.0

        def forward(self, x: Tensor) -> Tensor:
            self.left = self.a(x)
            return self.b(self.left)

    def code(m: Detector, x: Tensor) -> Tensor:
        return m.other(decide(m.body(x).mean((2, 3)))) + torch.as_tensor(m.other.left).mean(-1, keepdim=True)

    with pytest.raises(TraceError, match="in an attribute that code outside of it reads"):
        prepare_randomised(Detector(code, other=Leaving()), images())


def test_code_may_ask_for_the_type_and_the_device_of_a_regions_weights() -> None:
    def code(m: Detector, x: Tensor) -> Tensor:
        weight = m.head.a.weight
        y = m.body(x.to(weight.device, weight.dtype) if weight.is_floating_point() else x)
        return m.head(decide(y.mean((2, 3))))

    prepared = prepare_randomised(Detector(code), images())
    assert paths(prepared) == ["body", "head"]
    convert_closed(prepared, images(5, 9, 1))


def test_lists_of_modules_that_code_goes_through_are_searched() -> None:
    def code(m: Detector, x: Tensor) -> Tensor:
        y = m.body(x).mean((2, 3))
        for head in m.heads:
            y = y + decide(head(y)).sum(1, keepdim=True) * 0.01
        return m.head(y)

    prepared = prepare_randomised(Detector(code, heads=nn.ModuleList([Head(), Head()])), images())
    assert paths(prepared) == ["body", "head", "heads.0", "heads.1"]
    convert_closed(prepared, images(5, 9, 1))


def test_regions_may_lie_deep_and_outputs_may_be_containers() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = Body(), Head()

        def forward(self, x: Tensor) -> dict[str, Any]:
            y = decide(self.body(x).mean((2, 3)))
            return {"scores": self.head(y), "all": [y, (y * 2,)]}

    prepared = prepare_randomised(
        Detector(lambda m, x: m.deep(x)["scores"] + m.deep(x)["all"][0].mean(), deep=Deep()), images()
    )
    assert paths(prepared) == ["deep.body", "deep.head"]
    assert {"the whole model", "deep"} <= set(prepared.untraced)
    convert_closed(prepared, images(5, 9, 1))


def test_a_model_of_which_nothing_can_be_traced_is_refused_with_its_line() -> None:
    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(decide(self.a(x)))

    with pytest.raises(TraceError, match=r"test_regions.py:\d+ in decide.*by the values of a tensor"):
        fxprune.prepare(Nothing(), torch.randn(2, 3))


@pytest.mark.parametrize("inputs", [torch.ones(2, 4, 8, 8).double(), (images(), 1), {"y": images()}])
def test_inputs_that_the_model_does_not_take_are_refused_as_ever(inputs: Any) -> None:
    with pytest.raises(FxpruneError, match=r"(run on|take).*example inputs.*as a tensor, a tuple"):
        fxprune.prepare(Detector().double(), inputs)


def test_training_changes_regions_and_their_gates_follow() -> None:
    model = Detector().double()
    randomise(model)
    prepared = fxprune.prepare(model, images(), target=fxprune.Sparsity(0.5))
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.01)
    fxprune.Scheduler(prepared, optimizer, total_steps=4)
    for _ in range(4):
        optimizer.zero_grad()
        prepared(images()).square().mean().backward()
        optimizer.step()
    assert (prepared.fxprune.gates == 0).float().mean() == pytest.approx(0.5, abs=0.05)
    compact = fxprune.convert(prepared)
    assert compact.report.units_removed >= 20
    assert_same(prepared, compact, images(4, 9))


def test_weights_of_regions_are_pruned_one_by_one_too() -> None:
    model = Detector().double().eval()
    randomise(model)
    prepared = fxprune.prepare(model, images(), granularity="weight")
    prepared.fxprune.refresh({n: prepared.get_parameter(n) for n in prepared.fxprune.parameter_names}, 0.7)
    assert_same(prepared, fxprune.convert(prepared), images(4, 9))


def test_the_blocks_of_a_sequence_may_be_called_one_by_one_from_around_it() -> None:
    """As detectors do to keep what lies between: the module that does so is one region."""

    class Extractor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.Conv2d(12, 6, 3))

        def forward(self, x: Tensor) -> list[Tensor]:
            found = []
            for block in self.features:
                x = block(x)
                found.append(x)
            return found[-1:]

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Extractor()

        def forward(self, x: Tensor) -> Tensor:
            (x,) = self.backbone(x)
            return x[:, : 3 if float(x.mean()) > 1e9 else 6]

    prepared = fxprune.prepare(Detector(), torch.randn(2, 3, 12, 12))
    assert [region.path for region in prepared.graphs.regions] == ["backbone"]
    assert prepared.fxprune.gates.numel() == 20


def test_weights_are_copied_once_to_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[Any] = []
    copy_parameter = nn.Parameter.__deepcopy__
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", lambda p, memo: copied.append(p) or copy_parameter(p, memo))
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    fxprune.prepare(model, torch.randn(2, 4))
    assert len(copied) == len(list(model.parameters()))


class Listening(nn.Module):
    """A tower of blocks, listened to by hooks that the code adds when it first runs; and a decision by values."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(2)]
        self.tower, self.head = nn.Sequential(nn.Linear(8, 8), *blocks), nn.Linear(8, 4)
        self.is_hooked = False

    def forward(self, x: Tensor) -> list[Tensor]:
        if not self.is_hooked:
            for block in self.tower[1:]:
                block.register_forward_hook(lambda module, args, output: heard.append(output))
            self.is_hooked = True
        heard.clear()
        x = self.tower(x)
        return [self.head(x if float(x.detach().sum()) < 1e9 else -x), *heard]


heard: list[Tensor] = []


def test_what_hooks_hear_of_blocks_they_hear_of_traced_parts() -> None:
    x, model = torch.randn(4, 8), Listening()
    with torch.no_grad():
        randomise(model)
    prepared = fxprune.prepare(model, x, target=fxprune.Sparsity(0.5))
    assert "tower" in prepared.untraced
    assert "tower.1 inside of it has hooks" in prepared.untraced["tower"]
    fxprune.prune(prepared)
    compact = fxprune.convert(prepared)
    for batch in (x, torch.randn(7, 8)):
        wanted, found = list(prepared.eval()(batch)), list(compact.eval()(batch))
        assert len(wanted) == len(found) == 3
        torch.testing.assert_close(found, wanted)
    assert compact.get_submodule("tower.1.0").out_features < 16

"""Whether a conversion leaves its source alone, bakes what computes its weights, and is caught where it is wrong."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import fxprune
import fxprune.passes.check_exact as checks
from fxprune.errors import ExactnessError
from fxprune.model import TracedModel, find_tensor
from tests.exactness import relative_error, varied_images, zero_filters
from tests.passes.test_compact import Small, prepare_closed, step


@pytest.mark.parametrize("training", [False, True])
def test_conversion_leaves_its_source_and_the_random_state_alone(training: bool) -> None:
    prepared = prepare_closed().train(training)
    prepared.norm.eval()
    prepared(varied_images(2, 3, 12)).sum().backward()
    before, grads = copy.deepcopy(prepared.state_dict()), [p.grad.clone() for p in prepared.parameters()]
    modes, random, code = (
        [m.training for m in prepared.modules()],
        torch.get_rng_state(),
        str(prepared.graphs.regions[0].eval),
    )
    compact = fxprune.convert(prepared)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], value) for name, value in prepared.state_dict().items())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(prepared.parameters(), grads, strict=True))
    assert [m.training for m in prepared.modules()] == modes
    assert str(prepared.graphs.regions[0].eval) == code
    assert (compact.training, compact.norm.training, compact.stem.training) == (training, False, training)


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
def test_parametrizations_train_on_and_are_baked(norm: Any) -> None:
    model = Small(norm)
    prepared = fxprune.prepare(model, varied_images(2, 3, 12), granularity="weight").train()
    prepared.fxprune.refresh({name: find_tensor(prepared, name) for name in prepared.fxprune.parameter_names}, 0.5)
    names = [name for name, _ in prepared.named_parameters() if "parametrizations" in name]
    before = {name: prepared.get_parameter(name).clone() for name in names}
    assert step(prepared) > 0
    assert all(not torch.equal(before[name], prepared.get_parameter(name)) for name in names)
    compact = fxprune.convert(prepared)
    assert not [name for name in compact.state_dict() if "parametrizations" in name]
    assert relative_error(prepared, compact, varied_images(4, 3, 12)) < 1e-12  # the source still runs
    assert model(varied_images(2, 3, 12)).isfinite().all()  # and so does the owner's


def test_a_wrong_conversion_is_caught_and_its_first_node_named(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fxprune.api.shrink

    def shrink(*args: Any) -> TracedModel:
        compact = right(*args)
        compact.depth.weight.data[1] += 0.5
        return compact

    monkeypatch.setattr(fxprune.api, "shrink", shrink)
    prepared = prepare_closed()
    with pytest.raises(
        ExactnessError, match=r"first node that differs is depth_weight \(.*test_\w+.py:\d+ in forward\)"
    ):
        fxprune.convert(prepared)
    assert fxprune.convert(prepared, check=False).report.error is None


def test_the_rounding_of_absorbed_constants_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where double precision decides, biases that took in constants are made again in double."""
    model = Small().float().eval()
    zero_filters(model, 0.5)
    monkeypatch.setattr(checks, "SINGLE", 0.0)
    monkeypatch.setattr(checks, "DOUBLE", 1e-13)
    real = checks.measure_rounding

    def forgive_no_bit_of_double(model: nn.Module, *given: Any) -> float:
        is_double = next(model.parameters()).dtype is torch.float64 and len(given) == 3
        return 0.0 if is_double else real(model, *given)

    monkeypatch.setattr(checks, "measure_rounding", forgive_no_bit_of_double)
    before = copy.deepcopy(model.state_dict())
    compact = fxprune.convert(model, varied_images(2, 3, 12).float())
    assert compact.report.parameters_after < compact.report.parameters_before
    assert {t.dtype for t in compact.parameters()} == {torch.float32}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    monkeypatch.setattr(checks, "in_double", lambda source: nullcontext())
    with pytest.raises(ExactnessError):  # by what is rounded alone
        fxprune.convert(model, varied_images(2, 3, 12).float())


def test_rounding_is_told_from_a_difference_by_the_last_bits_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SINGLE", 0.0)
    monkeypatch.setattr(checks, "DOUBLE", 0.0)
    prepared = prepare_closed().double()
    assert fxprune.convert(prepared).report.error > 0
    right = fxprune.api.shrink

    def shrink(*args: Any) -> TracedModel:
        compact = right(*args)
        compact.depth.weight.data *= 1 + 1e-11
        return compact

    monkeypatch.setattr(fxprune.api, "shrink", shrink)
    with pytest.raises(ExactnessError):
        fxprune.convert(prepared)


class Modes(nn.Module):
    """A layer for each mode, in front of one that both read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.trained, self.evaluated = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.trained(x) if self.training else self.evaluated(x)
        return self.last(x.relu().mean((2, 3)))


@pytest.mark.parametrize(("trained", "evaluated", "goes"), [(1.0, 1.0, 1), (1.0, 0.0, 0), (0.0, 1.0, 0), (1.0, 2.0, 0)])
def test_a_bias_takes_in_what_is_the_same_in_both_modes(trained: float, evaluated: float, goes: int) -> None:
    model, x = Modes().double().eval(), varied_images(2, 3, 12)
    with torch.no_grad():
        for layer, constant in ((model.trained, trained), (model.evaluated, evaluated)):
            layer.weight[0], layer.bias[0] = 0, constant
    compact = fxprune.convert(model, x)
    assert compact.report.units_removed == goes
    for training in (False, True):
        torch.testing.assert_close(compact.train(training)(x), model.train(training)(x))

"""What tests of conversion do with a model: close some of its units, convert it, and look at what came out."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.model import PreparedModel, TracedModel, as_inputs, find_tensor, tensors_in
from fxprune.passes.mend import CannotMend, Mender
from tests.exactness import close_units, randomise, settle_statistics

LEAST_VARIATION = 1e-3
"""Outputs that vary less than this beside their own size hardly depend on the input."""


def prepare_randomised(model: nn.Module, inputs: Any, heads: Literal["whole", "inner"] = "whole") -> PreparedModel:
    """Prepare a model in double precision, in eval mode, with random parameters."""
    model = model.double().eval()
    randomise(model)
    return fxprune.prepare(model, inputs, target=fxprune.Sparsity(0.5, least=0), heads=heads)


def convert_closed(prepared: PreparedModel, *others: Any, share: float = 0.5, seed: int = 3) -> TracedModel:
    """Close some units, let statistics settle, check gradients, convert, and compare on other inputs.

    Each of `others` is what a call takes: a tensor, a tuple or a dict; of other sizes than the example.
    """
    assert_closed_units_rest(prepared)
    close_units(prepared, share, seed)
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in prepared.modules()):
        settle_statistics(prepared, prepared.inputs[0][0])
    compact = fxprune.convert(prepared)
    assert_same(prepared, compact, *others)
    return compact


def leave_as_large(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let a node have no form for fewer channels: closed ones stay, to be muted by all that counts them."""
    mend = Mender.mend

    def refuse(self: Mender, node: fx.Node) -> None:
        mend(self, node)
        if node.name == name and bool(self.plan.dead[units := self.units_of(self.originals[node])].any()):
            raise CannotMend(node, units)

    monkeypatch.setattr(Mender, "mend", refuse)


def assert_closed_units_rest(prepared: PreparedModel) -> None:
    """Check that a gradient reaches most units while all are open, and none of those that are closed.

    What is normalised as a whole before it is masked (weight norm) hands some on to closed units; it is left out.
    """
    gates = torch.ones(count_units(prepared))
    assert (sum_gradients(prepared) > 0).float().mean() > 0.8
    gates[::5] = 0
    prepared.fxprune.set_gates(gates)
    moved = (sum_gradients(prepared, parametrized=False) > 0) & (gates == 0)
    assert not moved.any(), f"a gradient reaches the closed units {moved.nonzero().flatten().tolist()}"


def assert_open_units_learn_alike(prepared: PreparedModel, compact: TracedModel, x: Tensor) -> None:
    """Check that the input and the weights' open slices receive the compact model's gradient, of hard gates."""
    received = []
    for model in (prepared, compact):
        leaf = x.detach().clone().requires_grad_()
        out = model(leaf)
        (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out)).sum().backward()
        received.append(leaf.grad)
    torch.testing.assert_close(*received, rtol=1e-8, atol=1e-9)
    gates = torch.cat([prepared.fxprune.gates, torch.ones(1)])
    for name, smaller in compact.named_parameters():
        if smaller.dim() < 2:
            continue  # biases are in no score, so that nothing says which of them are closed
        gradient = prepared.get_parameter(name).grad
        for dim in range(gradient.dim()):
            stays = gates[units_of(prepared, name, dim)] > 0
            gradient = gradient.index_select(dim, stays.nonzero().flatten())
        torch.testing.assert_close(gradient, smaller.grad, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def sum_gradients(prepared: PreparedModel, parametrized: bool = True) -> Tensor:
    """The absolute gradient in all places where each unit appears, [units]; raises where one is not finite.

    `parametrized`: also what parametrizations are computed from.
    """
    args, kwargs = prepared.inputs
    outputs = [t for t in tensors_in(prepared(*args, **kwargs)) if t.requires_grad]
    generator = torch.Generator().manual_seed(0)  # a random direction: some sums are the same whatever the weights
    sum((t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in outputs).backward()
    received = torch.zeros(count_units(prepared) + 1, dtype=torch.float64)
    for place in prepared.fxprune.slices:
        source = find_source(prepared, place.parameter)
        gradient = source.grad
        if gradient is None or not (parametrized or source is find_tensor(prepared, place.parameter)):
            continue
        assert gradient.isfinite().all(), f"{place.parameter} receives a gradient that is not finite"
        along = gradient.abs().transpose(0, place.dim).reshape(gradient.size(place.dim), -1).sum(1)
        received.index_add_(0, place.index.remainder(len(received)), along.double())
    prepared.zero_grad()
    return received[:-1]


def find_source(prepared: PreparedModel, name: str) -> Tensor:
    """The parameter behind a name: with a parametrization, the last tensor from which it is computed."""
    owner, _, leaf = name.rpartition(".")
    parametrized = getattr(prepared.get_submodule(owner), "parametrizations", {})
    return list(parametrized[leaf].parameters())[-1] if leaf in parametrized else find_tensor(prepared, name)


@torch.no_grad()
def assert_same(prepared: nn.Module, compact: nn.Module, *calls: Any, tolerance: float = 1e-12) -> None:
    """Compare outputs to `tolerance` of how much they vary over the batch, which must not be nothing."""
    prepared.eval(), compact.eval()
    for args, kwargs in map(as_inputs, calls):
        expected, actual = tensors_in(prepared(*args, **kwargs)), tensors_in(compact(*args, **kwargs))
        assert len(expected) == len(actual)
        for wanted, got in zip(expected, actual, strict=True):
            assert wanted.shape == got.shape
            assert wanted.dtype == got.dtype
            variation = (wanted.amax(0) - wanted.amin(0)).max()
            assert variation >= LEAST_VARIATION * wanted.abs().max(), "the outputs hardly depend on the input: vacuous"
            assert (wanted - got).abs().max() <= tolerance * variation


def count_units(prepared: PreparedModel) -> int:
    """How many units may go."""
    return prepared.fxprune.gates.numel()


def set_gates(prepared: PreparedModel, closed: list[int]) -> None:
    """Close these units, and leave all others fully open."""
    gates = torch.ones(count_units(prepared))
    gates[closed] = 0
    prepared.fxprune.set_gates(gates)


def units_of(prepared: PreparedModel, name: str, dim: int) -> Tensor:
    """The unit of each index of a parameter's dimension, -1 where it cannot go."""
    found = [place.index for place in prepared.fxprune.slices if (place.parameter, place.dim) == (name, dim)]
    return found[0] if found else torch.full((find_tensor(prepared, name).size(dim),), -1)

"""Does an inspection show which stripes live, and how they are computed?"""

from __future__ import annotations

import json

import torch
from torch import nn
from typer.testing import CliRunner

import fxprune
from fxprune.cli import app
from tests.stripes.test_lower import EAGER, Block, kill_stripes, randomise

X = torch.randn(2, 3, 8, 8)


def make_lowered() -> nn.Module:
    """A model by name, as the command line takes it."""
    model = randomise(Block())
    kill_stripes(model, 0.6, patterns=3)
    return fxprune.lower_stripes(model, X, cost=EAGER)


def test_a_model_with_dead_stripes_shows_what_lives() -> None:
    model = randomise(Block())
    with torch.no_grad():
        model.first.weight[:, :, 0] = 0  # the upper row of all filters, and the right column of half of them
        model.first.weight[:12, :, :, 2] = 0
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = fxprune.inspect(model, X)
    (layer,) = found.stripes.values()
    assert layer.living == ((0, 0, 0), (24, 24, 12), (24, 24, 12))
    assert layer.live == (12 * 4 + 12 * 6) / (24 * 9)
    assert layer.measured is None
    assert 0 < layer.predicted <= 1
    assert "24  24  12" in str(found)
    assert json.loads(found.to_json())["stripes"]["first.weight"]["living"][1] == [24, 24, 12]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_prepared_model_shows_what_its_gates_close() -> None:
    prepared = fxprune.prepare(Block(), X, granularity="stripe", target=fxprune.Sparsity(0.3))
    fxprune.Scheduler(prepared, total_steps=1).step()
    closed = {name: layer.living for name, layer in fxprune.inspect(prepared.eval()).stripes.items()}
    dead = {name: layer.living for name, layer in fxprune.inspect(fxprune.convert(prepared)).stripes.items()}
    assert closed == dead
    assert "second.weight" in closed


def test_a_lowered_model_shows_what_was_done() -> None:
    lowered = make_lowered()
    found = fxprune.inspect(lowered)
    assert found.stripes == lowered.lowered.layers
    assert str(found).endswith(str(lowered.lowered))
    shown = CliRunner().invoke(app, ["inspect", "tests.stripes.test_inspected:make_lowered"])
    assert str(lowered.lowered) in shown.stdout


def test_a_model_without_dead_stripes_has_no_table() -> None:
    found = fxprune.inspect(randomise(Block()), X)
    assert found.stripes == {}
    assert "filters that keep a position" not in str(found)

"""Does a lowered model come back from its file to the last bit, with what is known of its layers?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import PlanError
from fxprune.saving.plan_text import About, read_steps, write_steps
from fxprune.stripes.replay import record
from fxprune.stripes.step import Race
from tests.stripes.test_lower import EAGER, Block, kill_stripes, randomise

X = torch.randn(2, 3, 8, 8)


def lower(model: nn.Module) -> fxprune.model.TracedModel:
    kill_stripes(model, 0.6, patterns=3)
    return fxprune.lower_stripes(randomise(model), X, cost=EAGER)


def test_a_lowered_model_is_saved_and_loaded(tmp_path: Path) -> None:
    lowered = lower(Block())
    fxprune.save(lowered, tmp_path / "lowered.safetensors")
    loaded = fxprune.load(Block().eval(), tmp_path / "lowered.safetensors")
    assert torch.equal(loaded(X), lowered(X))
    assert loaded.lowered == lowered.lowered
    assert str(loaded.lowered) == str(lowered.lowered)
    assert [name for name, _ in loaded.named_modules()] == [name for name, _ in lowered.named_modules()]


def test_it_is_trained_on_pruned_converted_and_saved_again(tmp_path: Path) -> None:
    prepared = fxprune.prepare(Block(), X, granularity="stripe", target=fxprune.Sparsity(0.7))
    fxprune.Scheduler(prepared, total_steps=1).step()
    lowered = fxprune.lower_stripes(fxprune.convert(prepared.eval()), cost=EAGER)
    smaller = fxprune.convert(fxprune.prune(lowered, X, target=fxprune.Sparsity(0.3)))
    fxprune.save(smaller, tmp_path / "smaller.safetensors")
    loaded = fxprune.load(Block().eval(), tmp_path / "smaller.safetensors")
    assert torch.equal(loaded(X), smaller(X))
    assert len(loaded.steps) == 3


def test_what_was_measured_is_kept() -> None:
    lowered = lower(Block())
    layers = {name: replace(layer, measured=(2.0, 1.5)) for name, layer in lowered.lowered.layers.items()}
    step = replace(lowered.lowered, layers=layers, race=Race("a runtime", 2, 8, 0.5, 0.4, 0.6))
    lowered.steps = lowered.steps[:-1]
    record(lowered, step)
    text, tensors = write_steps(lowered.steps, About(None, {}))
    steps, _ = read_steps(text, tensors)
    assert steps[-1] == step
    assert "0.50 (0.40 to 0.60) of the time, on a runtime, 2 threads, batch 8" in str(steps[-1])
    assert "2.000 to 1.500" in str(steps[-1])


def test_another_model_is_refused(tmp_path: Path) -> None:
    fxprune.save(lower(Block()), tmp_path / "lowered.safetensors")
    other = Block()
    other.first = nn.Conv2d(16, 20, 3, padding=1, bias=False)
    with pytest.raises(PlanError, match="arguments of the original"):
        fxprune.load(other.eval(), tmp_path / "lowered.safetensors")


@pytest.mark.parametrize(
    ("key", "value"),
    [("filters", [0, 0]), ("rectangles", [[[0, 9], [0]]]), ("rectangles", [[[0, 1, 1], [0]]]), ("filters", None)],
)
def test_parts_that_do_not_fit_their_layer_are_refused(key: str, value: object) -> None:
    lowered = lower(Block())
    text, tensors = write_steps(lowered.steps, About(None, {}))
    plan = json.loads(text)
    layer = next(layer for layer in plan["steps"][-1]["layers"].values() if layer["lowering"])
    layer["lowering"][0][key] = value
    with pytest.raises(PlanError, match="cannot be read"):
        read_steps(json.dumps(plan), tensors)

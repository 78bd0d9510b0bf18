"""How a file becomes the converted model again: its steps are replayed on a fresh one, and its tensors taken over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.conversion_report import Report
from fxprune.errors import PlanError
from fxprune.model import PreparedModel, Rewrite, Step, TracedModel, find_tensor
from fxprune.passes.record import differs
from fxprune.passes.replay import replay
from fxprune.run_alone import run_alone
from fxprune.saving.container import read_file
from fxprune.saving.plan_text import read_steps
from fxprune.saving.save import names_of
from fxprune.stripes.replay import replay_stripes
from fxprune.stripes.step import StripeStep


@run_alone()
def load(fresh_model: nn.Module, path: str | Path | None = None) -> TracedModel:
    """Return the converted model that `save` wrote, made from a copy of `fresh_model`.

    `fresh_model` is of the original's class, made with the original's arguments; it stays as it was, as does the
    random state. Nothing of the file is run. The result gives what the saved model gave, to the last bit on the
    same device, and is on the device and in the mode of `fresh_model`.

    Raises:
        PlanError: the file is damaged or of another kind, or does not fit the model.
    """
    if not isinstance(fresh_model, nn.Module) or not isinstance(path, str | Path):
        raise PlanError(
            "fxprune.load takes a fresh model and a path, as in fxprune.load(Net(), 'compact.safetensors'), because "
            f"the file holds no code; it got {type(fresh_model).__name__} and {type(path).__name__}"
        )
    if isinstance(fresh_model, PreparedModel):
        raise PlanError("fxprune.load takes a fresh model as its class makes it, not a prepared one")
    text, tensors = read_file(path)
    like = next((p for p in fresh_model.parameters()), torch.zeros(()))
    inputs = {name: t.to(like.device) for name, t in tensors.items() if name.startswith("inputs.")}
    steps, about = read_steps(text, inputs)
    model = fresh_model
    for step in steps:
        model = redo(step, model)
    if not isinstance(model, TracedModel):
        raise PlanError(f"{path} holds no steps; save the compact model again")
    states = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    take_tensors(model, states, about.tied)
    if about.report is not None:
        model.report = read_report(about.report)
    return model.compile_graphs()


def redo(step: Rewrite, model: nn.Module) -> TracedModel:
    """Do one step again."""
    if isinstance(step, StripeStep):
        return replay_stripes(step, model)
    assert isinstance(step, Step)
    return replay(step, model)


def read_report(fields: dict[str, Any]) -> Report:
    """Read the report, which has to be one that can be shown."""
    try:
        report = Report(**fields)
        str(report)
        if not isinstance(report.method, str | None) or not isinstance(report.target, str | None):
            raise TypeError("method and target are texts")
    except (TypeError, ValueError, AttributeError) as error:
        raise PlanError(f"the report in the file cannot be read ({error}); save the compact model again") from error
    return report


@torch.no_grad()
def take_tensors(model: TracedModel, states: dict[str, Tensor], tied: dict[str, str]) -> None:
    """Give every parameter and buffer its values from the file, strictly: the same names, shapes and ties."""
    names = names_of(model)
    if {name: first for first, *others in names.values() for name in others} != tied:
        raise differs("other parameters are one and the same under several names")
    firsts = [first for first, *_ in names.values()]
    if set(firsts) != set(states):
        raise differs(f"{sorted(set(firsts) ^ set(states))[0]} is only in one of the file and the replayed model")
    for first in firsts:
        tensor, value = find_tensor(model, first), states[first]
        if tensor.shape != value.shape:
            raise differs(f"{first} is {tuple(tensor.shape)} when replayed and {tuple(value.shape)} in the file")
        tensor.data = value.to(tensor.device, copy=True)

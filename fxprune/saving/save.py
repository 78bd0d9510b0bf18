"""How a converted model becomes a file."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import torch
from torch import nn

from fxprune.check_unchanged import check_layers
from fxprune.conversion_report import Report
from fxprune.errors import PlanError
from fxprune.model import PreparedModel, TracedModel, find_tensor, named_tensors
from fxprune.saving.container import write_file
from fxprune.saving.plan_text import About, write_steps


def save(compact: nn.Module, path: str | Path) -> None:
    """Write what `convert` returned into one safetensors file, from which `load` makes it again.

    The file holds every tensor and, as JSON, what conversion did: no code, and nothing that is run. A file that is
    there is replaced at once when the new one is whole.

    Raises:
        PlanError: the model does not come from `convert`, or was converted with inputs that a file cannot hold; or the
            path is none, or cannot be written to.
        FxpruneError: a layer was made into another one since.
    """
    if isinstance(compact, PreparedModel):
        raise PlanError(
            "a prepared model is not saved whole: save its state_dict(), and load it into the same model prepared in "
            "the same way; fxprune.save takes what fxprune.convert returns"
        )
    if not isinstance(compact, TracedModel) or not compact.steps:
        raise PlanError(f"fxprune.save takes what fxprune.convert returns, not a {type(compact).__name__}")
    if not isinstance(path, str | os.PathLike):
        raise PlanError(f"fxprune.save takes a path, as in fxprune.save(compact, 'compact.safetensors'), not {path!r}")
    check_layers(compact, "fxprune.save")
    names = names_of(compact)
    report = getattr(compact, "report", None)
    about = About(
        report=dataclasses.asdict(report) if isinstance(report, Report) else None,
        tied={name: first for first, *others in names.values() for name in others},
    )
    text, tensors = write_steps(compact.steps, about)
    tensors |= {f"model.{first}": find_tensor(compact, first) for first, *_ in names.values()}
    layout = torch.contiguous_format
    write_file(path, text, {name: t.detach().cpu().clone(memory_format=layout) for name, t in tensors.items()})


def names_of(model: nn.Module) -> dict[int, list[str]]:
    """The names of each parameter and buffer, by its identity, in order."""
    names: dict[int, list[str]] = {}
    for name, tensor in named_tensors(model):
        names.setdefault(id(tensor), []).append(name)
    return names

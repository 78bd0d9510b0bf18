"""How are stripes lowered again on a fresh model, by the step alone?"""

from __future__ import annotations

import copy

from torch import nn

from fxprune.errors import PlanError
from fxprune.model import TracedModel
from fxprune.passes.record import differs
from fxprune.passes.replay import check_structure
from fxprune.stripes.rewrite import find_convolutions, replace_layers
from fxprune.stripes.step import StripeStep


def replay_stripes(step: StripeStep, model: nn.Module) -> TracedModel:
    """Return a copy of a converted model that is lowered as the step says; the weights mean nothing.

    Raises:
        PlanError: the model is not what was lowered.
    """
    check_structure(step, model)
    if not isinstance(model, TracedModel):
        raise PlanError("the file lowers stripes before it converts; save the lowered model again")
    lowered = copy.deepcopy(model)
    convolutions = find_convolutions(lowered)
    missing = next((name for name in step.layers if name not in convolutions), None)
    if missing is not None:
        raise differs(f"{missing} is not the weight of a convolution alone")
    replace_layers(lowered, {name: layer.lowering for name, layer in step.layers.items() if layer.lowering.parts})
    return record(lowered, step)


def record(lowered: TracedModel, step: StripeStep) -> TracedModel:
    """Write down on a lowered model what was done to it."""
    lowered.steps = (*lowered.steps, step)
    lowered.lowered = step
    return lowered.compile_graphs()

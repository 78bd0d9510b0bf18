"""How a conversion is done again on a fresh model: traced, analysed and made smaller as it was, by the plan alone."""

from __future__ import annotations

from torch import nn

from fxprune.errors import PlanError, TraceError
from fxprune.model import Graphs, Rewrite, Step, TracedModel, find_tensor, states_of
from fxprune.passes.analyse import analyse
from fxprune.passes.bake_masks import bake_parametrizations
from fxprune.passes.decompose import decompose
from fxprune.passes.mend import CannotMend
from fxprune.passes.record import differs, rebuild_plan
from fxprune.passes.regions import take_constants
from fxprune.passes.shrink import shrink
from fxprune.passes.trace import copy_model, trace_region


def replay(step: Step, model: nn.Module) -> TracedModel:
    """Return a copy of `model` that is as small as the step's conversion left its model; the weights mean nothing.

    `model` and the random state stay as they were; the result is in the mode of `model`.

    Raises:
        PlanError: the model is not of the class or the sizes that were converted, or its code became another graph.
    """
    check_structure(step, model)
    source = trace_again(step, model)
    if step.masked:  # in the order of `prepare` and `convert`
        decompose(source)
        bake_parametrizations(source)
    else:
        bake_parametrizations(source)
        decompose(source)
    for region in source.graphs.regions:
        region.inputs = step.converted[region.path]
    channels = analyse(source, constants=False, whole_heads=step.whole_heads)
    try:
        compact = shrink(source, channels, rebuild_plan(step, source, channels))
    except CannotMend as error:
        raise differs(str(error)) from error
    compact.steps = (*(model.steps if isinstance(model, TracedModel) else ()), step)
    return compact.compile_graphs()


def check_structure(step: Rewrite, model: nn.Module) -> None:
    """Refuse a model of another class or of other sizes, and name the first tensor that tells."""
    name = model.class_name if isinstance(model, TracedModel) else type(model).__name__
    if name != step.class_name:
        raise PlanError(
            f"what was converted is a {step.class_name}, and this model is a {name}; give a {step.class_name}, made "
            "with the arguments of the original"
        )
    states = states_of(model)
    for key, (shape, _) in step.tensors.items():
        if key not in states:
            raise PlanError(
                f"{key} of the {name} that was converted is missing in this one; make it with the arguments of the "
                "original"
            )
        if tuple(states[key].shape) != shape:
            raise PlanError(
                f"{key} has the shape {tuple(states[key].shape)} and had {shape} before conversion; make the {name} "
                "with the arguments of the original"
            )
    more = next((key for key in states if key not in step.tensors), None)
    if more is not None:
        raise PlanError(
            f"this {name} has a tensor {more} that the one which was converted had not; make it with the arguments of "
            "the original"
        )


def trace_again(step: Step, model: nn.Module) -> TracedModel:
    """Trace a copy of the model in the precision and in the regions of the original."""
    root = copy_model(model)
    for name, (_, dtype) in step.tensors.items():
        tensor = find_tensor(root, name)
        tensor.data = tensor.data.to(dtype)
    regions = []
    try:
        for path, inputs in step.traced.items():
            used = copy_model(root) if path else root
            regions.append(trace_region(used, path, inputs))
            take_constants(regions[-1], used, root)
    except (TraceError, AttributeError) as error:
        raise differs(f"{path or step.class_name} can no longer be traced ({error})") from error
    return in_modes_of(model, TracedModel(root, Graphs(regions), step.class_name, step.inputs, dict(step.untraced)))


def in_modes_of(model: nn.Module, traced: TracedModel) -> TracedModel:
    traced.training = model.training
    for name, module in model.named_modules():
        traced.get_submodule(name).training = module.training
    return traced

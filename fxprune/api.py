"""What a user calls: prepare a model for pruning, and convert it to a smaller one; each a straight line of passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from fxprune.check_arguments import check_arguments, check_into, check_surroundings
from fxprune.check_unchanged import check_unchanged
from fxprune.conversion_report import Report
from fxprune.errors import ExactnessError, FxpruneError
from fxprune.is_number import is_whole
from fxprune.masks import Granularity, Masks
from fxprune.methods.base import Method
from fxprune.methods.feather import Feather
from fxprune.methods.targets import Latency, Sparsity, Target
from fxprune.model import Inputs, PreparedModel, TracedModel, as_inputs, find_tensor
from fxprune.passes.align_widths import find_padding
from fxprune.passes.analyse import Channels, analyse
from fxprune.passes.bake_masks import bake_masks, bake_parametrizations, find_closed
from fxprune.passes.check_exact import check_exact, find_first_difference
from fxprune.passes.decompose import decompose
from fxprune.passes.exclude import Pattern, find_excluded
from fxprune.passes.find_dead import EMPTIED, Plan, find_dead
from fxprune.passes.guess_inputs import guess_inputs
from fxprune.passes.insert_masks import insert_unit_masks, insert_weight_masks
from fxprune.passes.mend import CannotMend
from fxprune.passes.record import record_step
from fxprune.passes.regions import trace_regions
from fxprune.passes.resize_original import Model, resize_original
from fxprune.passes.shrink import shrink
from fxprune.passes.trace import require_runs
from fxprune.run_alone import run_alone
from fxprune.scheduler import find_masked
from fxprune.vector_width import VECTOR

Heads = Literal["whole", "inner"]
Shapes = Literal["free", "rectangles"]


@run_alone()
def prepare(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    method: Method | None = None,
    target: Target | None = None,
    granularity: Granularity = "channel",
    heads: Heads = "whole",
    shapes: Shapes = "free",
    exclude: Sequence[Pattern] = (),
    check: bool = True,
) -> PreparedModel:
    """Return a copy of `model` that learns to be sparse in its owner's training loop.

    The copy has parameters of its own (make the optimizer from them, and give both to `Scheduler`), the
    state dict of the original plus fxprune's own state under the prefix `fxprune.`, and the original's mode.
    Until the first step of a `Scheduler` nothing is masked, but for STR, whose threshold is there at once, and RNI,
    which draws new scales. Activation checkpoints (`torch.utils.checkpoint`) inside the model are traced through: the
    copy keeps its activations.

    Args:
        model: any module that can be traced; it stays as it was.
        example_inputs: a tensor, a tuple of positional or a dict of keyword inputs; any other batch or
            image size that the model takes may follow. None makes one from the first layer.
        method: how gates follow from magnitudes; `Feather()` if None.
        target: how much goes by the end of the schedule: `Sparsity(0.9)` is the share of gates that is masked,
            `Params(remaining=0.5)`, `Macs(remaining=0.5)` and `Latency(remaining=0.5)` what the compact model keeps.
            `Sparsity(0.5)` if None, for methods that take one.
        granularity: "weight" for one gate per weight, "stripe" for one per filter and kernel position of every
            convolution, "channel" for one per unit of tied channels.
        heads: what of attention is one unit at channel granularity: "whole" heads, or "inner" for the same
            channel of every head (the number of heads stays).
        shapes: at stripe granularity, whether a filter's stripes are "free" or "rectangles" of its kernel, few shapes a
            layer, so that what training prunes is fast: see `lower_stripes`.
        exclude: layers to leave as they are: names, globs over names, types of modules, or predicates
            of (name, module). The model's inputs and outputs are left as they are anyway.
        check: run the model's own code beside the graph that was made of it, and compare. Without it only shapes are
            computed, so that inputs which the model refuses for their values are not found out.

    Raises:
        TraceError: the model cannot be traced, or does not run on the inputs.
        PatternError: a pattern of `exclude` matches nothing.
        TargetError: nothing is left to prune, the target is out of reach, or the granularity is unknown.
        ExportError: the runtime of a `Latency` is unknown or not installed (RuntimeUnavailable), or refuses the model.
    """
    method = Feather() if method is None else method
    check_arguments(model, method, target, granularity, heads, shapes)
    target = target or (Sparsity(0.5) if method.takes_target else None)
    if target is not None and method.uniform:
        target = replace(target, scope="layer")
    excluded = find_excluded(model, exclude)
    inputs = guess_inputs(model) if example_inputs is None else as_inputs(example_inputs)
    traced = trace_regions(model, inputs, check)
    method.adapt(traced)
    decompose(traced)
    channels = analyse(traced, constants=False, whole_heads=heads == "whole")
    if granularity == "channel":
        prepared = insert_unit_masks(traced, channels, method, target, excluded)
    else:
        rectangles = shapes == "rectangles"
        prepared = insert_weight_masks(traced, channels, method, target, excluded, granularity, rectangles)
    prepared.compile_graphs()
    prepared.whole_heads = heads == "whole"
    if isinstance(target, Latency):
        from fxprune.meet_latency import meet_latency  # loads ONNX and its runtimes, 50 MB that training does without

        prepared.latency = meet_latency(prepared, target, target.share, partial(convert, check=False))
    return prepared


@overload
def convert(
    model: nn.Module, example_inputs: Any = None, *, align: int | None = None, check: bool = True, into: None = None
) -> TracedModel: ...  # fmt: skip


@overload
def convert(
    model: nn.Module, example_inputs: Any = None, *, align: int | None = None, check: bool = True, into: Model
) -> Model: ...  # fmt: skip


@run_alone()
def convert(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    align: int | None = None,
    check: bool = True,
    into: Model | None = None,
) -> TracedModel | Model:
    """Return a smaller dense model that computes what `model.eval()` computes.

    A prepared model loses what its gates close, as they are now; any other model loses what is provably
    dead. The result is in the mode of `model`, trains on, exports, and can be prepared again; its
    `report` says what went and what had to stay. `model` and the random state stay as they were.

    Args:
        model: a prepared model, or any other that can be traced.
        example_inputs: as for `prepare`; a prepared model brings its own.
        align: let so many dead units stay that widths are multiples of this, where they were as wide: 16 for
            processors with AVX-512, 8 for AVX2; 1 lets all go. It changes nothing but the speed. Unless given, it
            is 16 where weights or stripes are masked, of whose units single ones die by accident, and 1 elsewhere.
            Where norms run over channels (transformers), give `align` to the target instead.
        check: run both models and compare.
        into: the model as it was before `prepare`. The result is then a copy of it with smaller layers, whose own
            code runs, so that its other methods survive; compared with the compact model in any case.

    Raises:
        ExactnessError: the outputs differ by more than rounding; the first node that differs is named.
        TraceError: the model does not run on the inputs.
        IntoError: the class of `into` cannot hold the smaller model; the first node that is why is named.
    """
    check_surroundings(model)
    masks = model.fxprune if isinstance(model, PreparedModel) else None
    align = find_multiple(align, masks)
    check_into(into)
    inputs = find_inputs(model, example_inputs)
    if isinstance(model, TracedModel) and example_inputs is not None:
        require_runs(model, inputs)
    if isinstance(model, PreparedModel):
        check_unchanged(model)
        find_masked(model, model.fxprune)
        source = bake_masks(model)
    else:
        source = trace_source(model, inputs, check)
    traced = fit_inputs(source, inputs, floats=masks is not None)
    channels = analyse(source, whole_heads=not isinstance(model, PreparedModel) or model.whole_heads)
    closed = find_closed(model, channels) if isinstance(model, PreparedModel) else None
    compact, plan = shrink_all(source, channels, closed, align)
    error = None
    if check:
        try:
            error = check_exact(model, source, compact, inputs, lambda: shrink(source, channels, plan))
        except ExactnessError as wrong:
            first = find_first_difference(source, compact, channels, plan)
            where = f"; the first node that differs is {first}" if first else ""
            raise ExactnessError(
                f"{wrong}{where}. This is a bug in fxprune: please report it with the model; until it is mended leave "
                "that layer out with exclude=[...]"
            ) from wrong
    compact.compile_graphs()
    step = record_step(model, source, traced, channels, plan, masks is not None)
    compact.steps = (*(model.steps if isinstance(model, TracedModel) else ()), step)
    report = Report(
        parameters_before=count(source),
        parameters_after=count(compact),
        units_removed=int(plan.dead.sum()),
        kept=plan.kept,
        error=error,
        **({} if masks is None else report_masks(masks, source)),
    )
    result = compact if into is None else resize_original(into, compact, inputs)
    result.report = report
    return result


def report_masks(masks: Masks, source: TracedModel) -> dict[str, Any]:
    """Give what a report says of the masks, whose weights `source` holds as they leave them."""
    return {
        "method": repr(masks.method),
        "target": None if masks.target is None else repr(masks.target),
        "counted": masks.counted,
        "masked": masks.measure_closed(partial(find_tensor, source)),
        "asked": None if masks.target is None else masks.target.share,
    }


def find_multiple(align: int | None, masks: Masks | None) -> int:
    """Of what number shall widths be multiples? Of any, where it was units that were to go."""
    if align is None:
        return 1 if masks is None or masks.granularity == "channel" else VECTOR
    if not is_whole(align, 1):
        raise FxpruneError(f"align={align!r}: give 1 or more, the number of which widths shall be multiples")
    return align


def trace_source(model: nn.Module, inputs: Inputs, check: bool = True) -> TracedModel:
    """Trace a model that was not prepared, with its layers written out and its parametrizations baked."""
    source = trace_regions(model, inputs, check)
    bake_parametrizations(source)
    decompose(source)
    return source


def shrink_all(
    source: TracedModel, channels: Channels, closed: torch.Tensor | None, align: int
) -> tuple[TracedModel, Plan]:  # fmt: skip
    """Shrink by all dead units but those that make widths multiples of `align`, or have to stay for a node's sake."""
    keep = torch.zeros(len(channels.units), dtype=torch.bool)
    reasons: dict[str, int] = {}
    while True:
        plan = find_dead(source, channels, closed, keep)
        padding = find_padding(channels, plan.dead, align) if align > 1 else None
        if padding is not None and padding.any():
            keep |= padding
            reason = f"widths are multiples of {align}"
            reasons[reason] = reasons.get(reason, 0) + int(padding.sum())
            if EMPTIED in plan.kept:  # of which others stay by now
                reasons[EMPTIED] = plan.kept[EMPTIED]
            continue
        try:
            compact = shrink(source, channels, plan)
        except CannotMend as refusal:
            new = refusal.units[plan.dead[refusal.units]]
            if not len(new):
                raise FxpruneError(
                    f"{refusal}, although nothing of it was to go; please report this model"
                ) from refusal
            keep[new] = True
            reasons[str(refusal)] = len(new)
            continue
        plan.kept.update(reasons)
        return compact, plan


def find_inputs(model: nn.Module, example_inputs: Any) -> Inputs:
    """The inputs to convert with: those given, those that the model was traced with, or a guess."""
    if example_inputs is not None:
        inputs = as_inputs(example_inputs)
    else:
        inputs = model.inputs if isinstance(model, TracedModel) else guess_inputs(model)
    return move_inputs(model, inputs, floats=example_inputs is None)


def fit_inputs(source: TracedModel, inputs: Inputs, floats: bool) -> dict[str, Inputs]:
    """Let the graphs of a whole model take these inputs, those of regions their own.

    Return those with which each region was traced; where `floats`, of the precision that the model has by now.
    """
    traced = {region.path: move_inputs(source, region.inputs, floats) for region in source.graphs.regions}
    source.inputs = traced.get("", inputs)
    for region in source.graphs.regions:
        region.inputs = traced[region.path] if region.path else region.arguments.fit(*inputs)
    return traced


def move_inputs(model: nn.Module, inputs: Inputs, floats: bool) -> Inputs:
    """Bring inputs to the model's device, and `floats` to its precision: it may have changed since it was traced."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))

    def follow(t: torch.Tensor) -> torch.Tensor:
        return t.to(like) if floats and t.is_floating_point() else t.to(like.device)

    return tree_map_only(torch.Tensor, follow, inputs)  # type: ignore[no-any-return]


def count(model: nn.Module) -> int:
    """Count the model's parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())

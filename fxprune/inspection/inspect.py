"""What would `prepare` find in a model? A dry run of it, that changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fxprune.api import find_inputs
from fxprune.check_arguments import check_arguments
from fxprune.inspection.costs import batch_of, count_macs
from fxprune.inspection.groups import count_rows, describe_groups, find_groups
from fxprune.inspection.layers import list_layers
from fxprune.inspection.report import Inspection
from fxprune.methods.feather import Feather
from fxprune.methods.targets import Sparsity
from fxprune.model import PreparedModel, TracedModel
from fxprune.passes.analyse import Channels, analyse
from fxprune.passes.bake_masks import bake_masks
from fxprune.passes.decompose import decompose
from fxprune.passes.exclude import Pattern, find_excluded
from fxprune.passes.find_pins import find_pins
from fxprune.passes.regions import trace_regions
from fxprune.run_alone import run_alone
from fxprune.stripes.cost import CPU
from fxprune.stripes.lower import Choice, choose_layers
from fxprune.stripes.lowering import KINDS
from fxprune.stripes.step import LoweredLayer, StripeStep


@run_alone()
def inspect(model: nn.Module, inputs: Any = None, exclude: Sequence[Pattern] = ()) -> Inspection:
    """Say what of a model can be pruned at channel granularity, what cannot, and because of which line of its code.

    Of convolutions with dead stripes it says which live, and how `lower_stripes` computes them; of a model that it
    returned, what it did and measured. The model and the random state stay as they were; nothing is trained or removed.

    Args:
        model: any module that can be traced, not yet prepared but at stripe granularity.
        inputs: example inputs, as for `prepare`; None makes one from the first layer. Multiply-accumulates
            are counted for inputs of this size.
        exclude: layers to leave as they are, as for `prepare`.

    Raises:
        TraceError: the model cannot be traced, or does not run on the inputs.
        PatternError: a pattern of `exclude` matches nothing.
    """
    if isinstance(model, PreparedModel) and model.fxprune.granularity == "stripe":
        model = bake_masks(model)
    check_arguments(model, Feather(), Sparsity(0.5), "channel", "whole", "free")
    excluded = find_excluded(model, exclude)
    examples = find_inputs(model, inputs)
    traced = trace_regions(model, examples)
    decompose(traced)
    channels = analyse(traced, constants=False)
    macs = count_macs(traced, channels)
    grouping = find_groups(traced, channels, excluded)
    rows, prunable_rows = count_rows(channels, grouping.prunable)
    return Inspection(
        model=traced.class_name,
        groups=describe_groups(traced, channels, grouping, macs),
        pinned=find_pins(channels),
        untraced=dict(traced.untraced),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        macs=sum(macs.values()) // batch_of(examples),
        rows=rows,
        prunable_rows=prunable_rows,
        layers=list_layers(traced, channels, grouping, macs),
        stripes=describe_stripes(model, traced, channels),
    )


def describe_stripes(model: nn.Module, traced: TracedModel, channels: Channels) -> dict[str, LoweredLayer]:
    """What was done to a model's dead stripes, or what would be by the model of the costs; permutes `traced`."""
    done = getattr(model, "lowered", None)
    if isinstance(done, StripeStep):
        return dict(done.layers)
    return choose_layers(traced, channels, Choice(CPU, KINDS), set())

"""What would `prepare` find in a model? A dry run of it, that changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fxprune.api import check_arguments
from fxprune.inspection.costs import batch_of, count_macs
from fxprune.inspection.groups import count_rows, describe_groups, find_groups
from fxprune.inspection.layers import list_layers
from fxprune.inspection.report import Inspection
from fxprune.methods.feather import Feather
from fxprune.methods.targets import Sparsity
from fxprune.model import as_inputs
from fxprune.passes.analyse import analyse
from fxprune.passes.decompose import decompose
from fxprune.passes.exclude import Pattern, find_excluded
from fxprune.passes.find_pins import find_pins
from fxprune.passes.guess_inputs import guess_inputs
from fxprune.passes.regions import trace_regions


def inspect(model: nn.Module, inputs: Any = None, exclude: Sequence[Pattern] = ()) -> Inspection:
    """Say what of a model can be pruned at channel granularity, what cannot, and because of which line of its code.

    The model and the random state stay as they were; nothing is trained or removed.

    Args:
        model: any module that can be traced, not yet prepared.
        inputs: example inputs, as for `prepare`; None makes one from the first layer. Multiply-accumulates
            are counted for inputs of this size.
        exclude: layers to leave as they are, as for `prepare`.

    Raises:
        TraceError: the model cannot be traced, or does not run on the inputs.
        PatternError: a pattern of `exclude` matches nothing.
    """
    check_arguments(model, Feather(), Sparsity(0.5), "channel", "whole", "free")
    excluded = find_excluded(model, exclude)
    examples = guess_inputs(model) if inputs is None else as_inputs(inputs)
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
    )

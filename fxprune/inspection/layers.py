"""Which nodes of a graph are worth drawing: layers, joins and reductions, and which groups their channels are of."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from fxprune.inspection.groups import Grouping, find_layer, name_op
from fxprune.inspection.report import Layer
from fxprune.model import TracedModel
from fxprune.passes.analyse import Channels, Shadow
from fxprune.shadow.ids import PINNED


def list_layers(
    model: TracedModel, channels: Channels, grouping: Grouping, macs: dict[fx.Node, int]
) -> tuple[Layer, ...]:  # fmt: skip
    """List what is to be drawn of the eval graphs, in the order in which they run.

    Inputs and outputs, layers with parameters of their own, products of activations, norms and other ops that count
    channels alike, what pins channels, reductions, and joins of two or more of these. Batch norms, activations, and
    what only moves elements are left out: what comes after them has what comes before as its inputs.
    """
    mixing = {mix.node for mix in channels.mixes}
    pinning = {node for node, ends in channels.ties if bool((ends == PINNED).any())}
    graphs = list(model.graphs)
    layers: list[Layer] = []
    for region in model.graphs.regions:
        results = channels.values[graphs.index(region.eval)]
        before: dict[fx.Node, dict[str, None]] = {}  # the drawn nodes from which each node's value comes
        for node in region.eval.nodes:
            shadows = [leaf for leaf in tree_leaves(results.get(node)) if isinstance(leaf, Shadow)]
            if node.op == "get_attr" or (not shadows and node.op != "output"):
                continue
            operands = [before[n] for n in node.all_input_nodes if before.get(n)]
            before[node] = {name: None for names in operands for name in names}
            counts = node in mixing or macs.get(node, 0) > 0
            owner = find_layer(model, node)
            if (
                node.op in ("placeholder", "output")
                or (bool(owner or node in pinning) and not is_batch_norm(model, node))
                or counts
                or len({tuple(names) for names in operands}) > 1
                or is_reduction(node, channels, results, shadows)
            ):
                result = shadows[0] if shadows else Shadow((), (), None)
                name = f"{region.path}.{node.name}" if region.path else node.name
                op = f"{owner} {name_op(model, node)}".strip()
                groups = find_channel_groups(result, channels, grouping)
                layers.append(Layer(name, op, result.shape, groups, tuple(before[node])))
                before[node] = {name: None}
    return tuple(layers)


def is_batch_norm(model: nn.Module, node: fx.Node) -> bool:
    """Whether a node scales and shifts channels by statistics, alone."""
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), nn.modules.batchnorm._BatchNorm)
    return node.target in (F.batch_norm, torch.batch_norm)


def is_reduction(
    node: fx.Node, channels: Channels, results: dict[fx.Node, Any], shadows: list[Shadow]
) -> bool:  # fmt: skip
    """Whether a node computes fewer numbers of more, as pooling does."""
    if node in channels.moves or node in channels.elementwise or len(node.all_input_nodes) == 0:
        return False
    operand = results.get(node.all_input_nodes[0])
    return isinstance(operand, Shadow) and math.prod(shadows[0].shape) < math.prod(operand.shape) if shadows else False


def find_channel_groups(result: Shadow, channels: Channels, grouping: Grouping) -> tuple[int, ...]:
    """The groups along a result's channels, in order; -1 where all of them are pinned, nothing where it has none."""
    ids = [t.reshape(-1) for t in result.ids]
    groups = torch.unique(grouping.of_unit[channels.units[torch.cat(ids)]]).tolist() if ids else []
    return tuple(sorted(g for g in groups if g >= 0)) or ((-1,) if groups else ())

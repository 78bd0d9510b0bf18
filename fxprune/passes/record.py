"""What a conversion did, in names that hold for any model of the same class, and the plan that follows from them."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from fxprune.errors import PlanError
from fxprune.model import Inputs, Step, TracedModel, describe_tensors
from fxprune.passes.analyse import Channels, Shadow
from fxprune.passes.find_dead import Muted, Plan
from fxprune.shadow.ids import Reader


def record_step(
    model: nn.Module, source: TracedModel, traced: dict[str, Inputs], channels: Channels, plan: Plan, masked: bool
) -> Step:  # fmt: skip
    """Write down what `plan` removes from `source`, which is `model` without its masks.

    `traced` are the inputs with which each region was traced; those that it has now are what it was analysed with.
    """
    graphs = {graph: number for number, graph in enumerate(source.graphs)}
    return Step(
        class_name=source.class_name,
        tensors=describe_tensors(model),
        inputs=source.inputs,
        traced=traced,
        converted={region.path: region.inputs for region in source.graphs.regions},
        untraced=source.untraced,
        masked=masked,
        whole_heads=channels.whole_heads,
        kept=find_kept(channels, plan.dead),
        biased=tuple((graphs[reader.node.graph], reader.node.name) for reader, _ in plan.absorbed),
        constants=tuple((graphs[n.graph], n.name, tuple(value.shape)) for n, value in plan.constants.items()),
        muted=tuple((muted.number, muted.node.name) for muted in plan.muted),
    )


def find_kept(channels: Channels, dead: Tensor) -> dict[str, dict[int, list[int]]]:
    """Which indexes stay of each dimension that loses some, by the tensor's name."""
    kept: dict[str, dict[int, list[int]]] = {}
    for name, dim, units in channels.positions:
        if bool(dead[units].any()):
            kept.setdefault(name, {})[dim] = (~dead[units]).nonzero().reshape(-1).tolist()
    return kept


def rebuild_plan(step: Step, source: TracedModel, channels: Channels) -> Plan:
    """Find the units, nodes and readers that a step names in a freshly analysed model.

    What went into biases, and the values of constants, are zero here: they arrive with the tensors.

    Raises:
        PlanError: a name or an index is not there.
    """
    nodes = {(number, node.name): node for number, graph in enumerate(source.graphs) for node in graph.nodes}
    readers = {reader.node: reader for reader in channels.readers}
    unread = [(mix.node, mix.ids) for mix in channels.mixes]
    unread += [(reader.node, reader.columns.reshape(-1)) for reader in channels.readers]
    nothing = torch.zeros(len(channels.units), dtype=torch.bool)
    constants = {find_node(nodes, (graph, name)): torch.zeros(shape) for graph, name, shape in step.constants}
    for node, value in constants.items():
        shadow = next(values[node] for values in channels.values if node in values)
        if not isinstance(shadow, Shadow) or value.dim() not in (0, len(shadow.shape)):  # one number for all, or each
            raise differs(f"the result of the node {node.name} has other dimensions")
    return Plan(
        dead=find_removed(step, channels),
        absorbed=[absorb_nothing(readers, find_node(nodes, key)) for key in step.biased],
        merges=[],  # change weights alone
        constants=constants,
        kept={},
        closed=nothing,
        muted=[find_muted(unread, number, name) for number, name in step.muted],
    )


def find_removed(step: Step, channels: Channels) -> Tensor:
    """Which units a step removes, bool [units]."""
    dead = torch.zeros(len(channels.units), dtype=torch.bool)
    for name, dims in step.kept.items():
        shadow = channels.parameters.get(name)
        for dim, kept in dims.items():
            if shadow is None or dim >= len(shadow.shape) or max(kept, default=0) >= shadow.shape[dim]:
                raise differs(f"dimension {dim} of {name} is not what was pruned")
            gone = torch.ones(shadow.shape[dim], dtype=torch.bool)
            gone[kept] = False
            dead[channels.units_along(name, dim)[gone]] = True
    if find_kept(channels, dead) != step.kept:
        raise differs("other channels are tied to each other")
    return dead


def find_node(nodes: dict[tuple[int, str], fx.Node], key: tuple[int, str]) -> fx.Node:
    if key not in nodes:
        raise differs(f"the graph has no node {key[1]}")
    return nodes[key]


def absorb_nothing(readers: dict[fx.Node, Reader], node: fx.Node) -> tuple[Reader, Tensor]:
    if node not in readers:
        raise differs(f"the node {node.name} no longer multiplies with a weight")
    return readers[node], torch.zeros(readers[node].rows.shape)


def find_muted(unread: list[tuple[fx.Node, Tensor]], number: int, name: str) -> Muted:
    """The mix or reader of this number, which must be that of the node `name`."""
    if number >= len(unread) or unread[number][0].name != name:
        raise differs(f"the node {name} no longer counts channels where it did")
    return Muted(number, *unread[number])


def differs(what: str) -> PlanError:
    """The error of a model that becomes another graph than it did when it was saved."""
    return PlanError(
        f"{what}: this version of torch ({torch.__version__}), of fxprune or of the model's code traces the model "
        "differently from the one that saved the file; load it with that one"
    )

"""Which units live on the same dimensions of the same parameters, and what ties them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fxprune.inspection.report import Group, Place, Tie
from fxprune.model import TracedModel
from fxprune.passes.analyse import Channels, Shadow
from fxprune.passes.cost_terms import is_parametrized_away, list_parameters
from fxprune.passes.find_pins import rows_of
from fxprune.passes.insert_masks import find_maskable, find_muted, number_units
from fxprune.passes.living import can_live
from fxprune.shadow.ids import PINNED

EXCLUDED = "excluded"
NONE = torch.zeros(0, dtype=torch.int64)
UNREAD = "no contraction reads them, so no mask can close them"

Position = tuple[str, int, Tensor]
"""A parameter or buffer, one of its dimensions, and the units along it."""


@dataclass(frozen=True)
class Grouping:
    """Which units make a group, and where they stand."""

    of_unit: Tensor  # [ids], the group of each unit; -1 for what is pinned or lives on no parameter
    units: list[int]  # by group, how many
    reasons: list[str | None]  # by group, why they cannot be pruned
    places: list[list[Place]]  # by group
    prunable: Tensor  # bool [ids], whether a unit can be pruned


def find_groups(model: TracedModel, channels: Channels, excluded: set[str]) -> Grouping:
    """Group the units by the places on which they live, and by the reason that keeps them; in the model's order."""
    positions = [position for position in channels.positions if not is_parametrized_away(position[0])]
    prunable = number_units(model, channels, excluded) >= 0
    reasons, reason_of = explain_units(model, channels, excluded, prunable, positions)
    units = torch.cat([NONE, *(along for _, _, along in positions)])
    places = torch.cat([NONE, *(torch.full_like(along, p) for p, (_, _, along) in enumerate(positions))])
    living = units != PINNED
    units, places = units[living], places[living]
    present = torch.unique(units)
    of_unit = torch.full((len(channels.units),), -1)
    of_unit[present] = number_alike(sign_units(units, places, reason_of)[present])
    count = int(of_unit.max()) + 1 if len(of_unit) else 0
    first = torch.full((count,), len(units)).scatter_reduce(0, of_unit[units], torch.arange(len(units)), "amin")
    of_unit[present] = first.argsort().argsort()[of_unit[present]]  # by the place where each appears first
    codes = torch.zeros(count, dtype=torch.int64).scatter(0, of_unit[present], reason_of[present])
    return Grouping(
        of_unit,
        torch.bincount(of_unit[present], minlength=count).tolist(),
        [reasons[code] for code in codes.tolist()],
        list_places(channels, positions, of_unit, count, units, places),
        prunable,
    )


def sign_units(units: Tensor, places: Tensor, reason_of: Tensor) -> Tensor:
    """Give each unit a number, [ids], that is equal for units of the same places and the same reason.

    It is a sum of random 64-bit numbers, one for each place and reason, so that two sets hardly ever share it.
    """
    draw = torch.Generator().manual_seed(0)
    shared = int(places.max()) + 1 if len(places) else 0
    numbers = torch.randint(-(2**62), 2**62, (shared + int(reason_of.max()) + 1,), generator=draw)
    pairs = torch.unique(units * max(shared, 1) + places)
    return numbers[shared + reason_of].index_add(0, pairs // max(shared, 1), numbers[pairs % max(shared, 1)])


def number_alike(values: Tensor) -> Tensor:
    """Number the different values from 0, and give each element its value's number."""
    _, numbers = torch.unique(values, return_inverse=True)
    return numbers  # type: ignore[no-any-return]


def list_places(
    channels: Channels, positions: list[Position], of_unit: Tensor, count: int, units: Tensor, places: Tensor
) -> list[list[Place]]:  # fmt: skip
    """List the places of each of `count` groups, with the indexes that the group and each of its units have there."""
    listed: list[list[Place]] = [[] for _ in range(count)]
    many = max(len(positions), 1)
    pairs, indexes = torch.unique(units * many + places, return_counts=True)
    keys, at = torch.unique(of_unit[pairs // many] * many + pairs % many, return_inverse=True)
    zeros = torch.zeros(len(keys), dtype=torch.int64)
    total = zeros.index_add(0, at, indexes)
    least, most = (zeros.scatter_reduce(0, at, indexes, by, include_self=False) for by in ("amin", "amax"))
    for key, indexes_of, low, high in zip(*(t.tolist() for t in (keys, total, least, most)), strict=True):
        name, dim, along = positions[key % many]
        place = Place(name, dim, find_role(channels, name, dim), len(along), indexes_of, (low, high))
        listed[key // many].append(place)
    return listed


def explain_units(
    model: TracedModel, channels: Channels, excluded: set[str], prunable: Tensor, positions: list[Position]
) -> tuple[list[str | None], Tensor]:  # fmt: skip
    """List the reasons why units cannot be pruned, None first, and say for each unit which is its, [ids]."""
    reasons: list[str | None] = [None, UNREAD, EXCLUDED]
    reason_of = torch.where(prunable, 0, 1)
    if bool(prunable[torch.unique(channels.units)][1:].all()):
        return reasons, reason_of
    for node, ids in find_muted(channels, find_maskable(model, channels)):
        if not can_live(node) or channels.find_operand(node, ids) is None:
            reason_of[channels.units[ids]] = len(reasons)
            reasons.append(
                f"no mask can stand where {node.name} reads them ({node.meta.get('where', 'no line known')})"
            )
    for name, _, units in positions:
        if name in excluded:
            reason_of[units] = 2
    reason_of[prunable] = 0
    return reasons, reason_of


def find_role(channels: Channels, name: str, dim: int) -> str:
    """What a dimension of a parameter is."""
    rows = channels.weights.get(name)
    return "scale" if rows is None else "rows" if dim == rows else "columns"


def describe_groups(
    model: TracedModel, channels: Channels, grouping: Grouping, macs: dict[fx.Node, int]
) -> tuple[Group, ...]:  # fmt: skip
    """Put what is known of each group together."""
    shapes = list_parameters(model, channels)
    parameters = [share_parameters(places, shapes) for places in grouping.places]
    touched = share_macs(channels, grouping, macs).tolist()
    ties = find_ties(model, channels, grouping)
    return tuple(
        Group(name_group(places), units, reason, own, part, tuple(places), tuple(tied))
        for places, units, reason, own, part, tied in zip(
            grouping.places, grouping.units, grouping.reasons, parameters, touched, ties, strict=True
        )
    )


def name_group(places: list[Place]) -> str:
    """The layer whose rows the units are, or else the first on which they live."""
    made = [place.parameter for place in places if place.role == "rows"] or [places[0].parameter]
    return made[0].rpartition(".")[0] or made[0]


def share_parameters(places: list[Place], shapes: dict[str, torch.Size]) -> float:
    """The share of all parameters that lie on these places: those left are off on every dimension."""
    off: dict[str, dict[int, int]] = {}
    for place in places:
        if place.parameter in shapes:
            off.setdefault(place.parameter, {})[place.dim] = place.size - place.indexes
    on = 0
    for name, dims in off.items():
        sizes = shapes[name]
        on += sizes.numel() - torch.Size([dims.get(d, size) for d, size in enumerate(sizes)]).numel()
    total = sum(shape.numel() for shape in shapes.values())
    return on / total if total else 0.0


def share_macs(channels: Channels, grouping: Grouping, macs: dict[fx.Node, int]) -> Tensor:
    """The share of all multiply-accumulates whose row or column is a group's, [groups].

    Depthwise convolutions and products of two activations have no reader: there it is the largest share of
    an operand's or the result's channels.
    """
    count = len(grouping.units)
    readers: dict[fx.Node, list[Tensor]] = {}
    for reader in channels.readers:
        rows, columns = (count_groups(channels, grouping, ids) for ids in (reader.rows, reader.columns))
        readers.setdefault(reader.node, []).append(1 - ((1 - rows) * (1 - columns)).mean(0))
    touched = torch.zeros(count, dtype=torch.float64)
    for node, cost in macs.items():
        if node in readers:
            touched += cost * torch.stack(readers[node]).mean(0)
            continue
        around = [t.reshape(1, -1) for t in ids_around(channels, node)]
        shares = [count_groups(channels, grouping, ids)[0] for ids in around]
        touched += cost * torch.stack([torch.zeros(count), *shares]).amax(0)
    return touched / max(sum(macs.values()), 1)


def count_groups(channels: Channels, grouping: Grouping, ids: Tensor) -> Tensor:
    """Which share of each line of ids, [lines, ids], each group has, [lines, groups]."""
    lines, count = len(ids), len(grouping.units)
    group = grouping.of_unit[channels.units[ids]] + 1
    flat = torch.bincount(
        (group + torch.arange(lines)[:, None] * (count + 1)).reshape(-1), minlength=lines * (count + 1)
    )
    return flat.view(lines, count + 1)[:, 1:].double() / ids.size(1)


def ids_around(channels: Channels, node: fx.Node) -> Iterator[Tensor]:
    """Go through the ids of a node's operands and result."""
    results = next(values for values in channels.values if node in values)
    for shadow in (results[n] for n in (*node.all_input_nodes, node)):
        yield from shadow.ids if isinstance(shadow, Shadow) else ()


def find_ties(model: TracedModel, channels: Channels, grouping: Grouping) -> list[list[Tie]]:
    """List, by group, the ops that unite ids of different parameters, in the order in which they run.

    Of ops without parameters of their own also those that unite different ids of one parameter.
    """
    names = list(channels.parameters)
    owner = torch.full((len(channels.units),), -1)
    for number, name in enumerate(names):
        for ids in channels.parameters[name].ids:
            owner[ids.reshape(-1)] = number
    nodes = [node for node, _ in channels.ties]
    ends = torch.cat([NONE.view(2, 0), *(edges for _, edges in channels.ties)], 1)
    source = torch.cat([NONE, *(torch.full((e.size(1),), i) for i, (_, e) in enumerate(channels.ties))])
    group, (a, b) = grouping.of_unit[channels.units[ends[0]]], owner[ends]
    across = (group >= 0) & (ends[0] != ends[1]) & (a >= 0) & (b >= 0)
    sizes = (len(nodes), len(names), len(names))
    keys = torch.unique((((group * sizes[0] + source) * sizes[1] + a) * sizes[2] + b)[across])
    described = {i: describe_tie(model, nodes[i]) for i in torch.unique(source[across]).tolist()}
    tied: list[dict[tuple[str, str, str, str], dict[str, None]]] = [{} for _ in grouping.units]
    for g, i, *both in zip(*(place.tolist() for place in torch.unravel_index(keys, (len(tied), *sizes))), strict=True):
        tied[g].setdefault(described[i], {}).update(dict.fromkeys(names[end] for end in sorted(both)))
    made = [[Tie(*tie, tuple(parameters)) for tie, parameters in ties.items()] for ties in tied]
    return [[tie for tie in ties if len(tie.parameters) > 1 or not tie.layer] for ties in made]


def describe_tie(model: TracedModel, node: fx.Node | None) -> tuple[str, str, str, str]:
    """A node's name, op, source line, and layer if it has parameters of its own."""
    if node is None or node.op == "output":  # not by a node: done when all have run
        return "", "only whole indexes of a dimension can go", "", ""
    return node.name, name_op(model, node), str(node.meta.get("where", "no line known")), find_layer(model, node)


def name_op(model: nn.Module, node: fx.Node) -> str:
    """What a node does, in a word: a function's name, a method's, or a module's type."""
    if node.op == "call_module":
        return type(model.get_submodule(str(node.target))).__name__
    return str(getattr(node.target, "__name__", node.target))


def find_layer(model: nn.Module, node: fx.Node) -> str:
    """The module whose parameters a node uses; empty if it uses none."""
    if node.op == "call_module":
        own = any(True for _ in model.get_submodule(str(node.target)).parameters())
        return str(node.target) if own else ""
    for name in [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]:
        owner, _, leaf = name.rpartition(".")
        if leaf not in model.get_submodule(owner)._buffers:
            return owner or name
    return ""


def count_rows(channels: Channels, prunable: Tensor) -> tuple[int, int]:
    """Count the rows of all weights, and those of them that are prunable."""
    total = sum(
        channels.parameters[name].shape[dim] for name, dim in channels.weights.items() if name in channels.parameters
    )
    return total, sum(int(prunable[channels.units[ids]].sum()) for _, ids in rows_of(channels))

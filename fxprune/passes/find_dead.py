"""Which units no output needs: liveness against the flow, constants along it, until nothing changes.

A unit is dead if every contraction that reads it ignores it (its columns are zero), or reads a constant
that the contraction can take into its own bias. A constant that meets zeros at a padded border cannot
go into a bias; there all constant inputs become one of them, times a summed kernel. A node whose result
is constant as a whole is replaced by that constant, and the branch that fed it goes.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxprune.model import TracedModel
from fxprune.passes.analyse import Channels, Shadow, find_written
from fxprune.shadow.ids import PINNED, Reader
from fxprune.shadow.tensor import compress, varying

HAVE_BIAS = (F.conv1d, F.conv2d, F.conv3d, F.linear, torch.conv1d, torch.conv2d, torch.conv3d)
"""Functions of (input, weight, bias), into whose bias a constant can go."""

JOINS = (torch.cat, torch.concat, torch.concatenate)
"""Functions whose empty operands can be left out."""

EMPTIED = "the strongest unit of a layer that would be empty stays"

OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
"""In-place operators, and what computes the same where the left side is a constant to be broadcast."""


@dataclass(frozen=True)
class Merge:
    """At a padded border the constants of a reader's dead `columns` are carried by one of them, `keeper`."""

    reader: Reader
    columns: Tensor  # bool, [groups, columns]
    keeper: int  # index of the column that stays


@dataclass(frozen=True)
class Muted:
    """A node that reads or counts closed units which stay, and has to leave them out."""

    number: int  # among the model's mixes and readers
    node: fx.Node
    ids: Tensor  # [channels]


@dataclass
class Plan:
    """What conversion removes, and what it does first so that the outputs stay the same."""

    dead: Tensor  # bool, [units]
    absorbed: list[tuple[Reader, Tensor]]  # readers, and what goes into their bias: [groups, rows]
    merges: list[Merge]
    constants: dict[fx.Node, Tensor]  # nodes replaced by what they always give
    kept: dict[str, int]  # why closed units stay, and how many
    closed: Tensor  # bool, [units]; those that nothing reads or counts, whether they go or stay
    muted: list[Muted]
    alive: dict[Shadow, dict[int, Tensor]] = field(default_factory=dict, repr=False)  # what `alive_along` has found
    living: dict[Tensor, Tensor] = field(default_factory=dict, repr=False)  # by ids, which many shadows share

    def alive_along(self, channels: Channels, shadow: Shadow) -> dict[int, Tensor]:
        """For each dimension of a tensor that has channels, which of its indexes stay."""
        if shadow not in self.alive:
            self.alive[shadow] = self.find_alive(channels, shadow)
        return self.alive[shadow]

    def find_alive(self, channels: Channels, shadow: Shadow) -> dict[int, Tensor]:
        alive: dict[int, Tensor] = {}
        for ids in shadow.ids:
            if ids not in self.living:
                keep = ~self.dead[channels.units[ids]]
                self.living[ids] = compress(keep) if len(varying(ids)) > 1 else keep
            keep, dims = self.living[ids], varying(ids)
            for dim in dims:
                index = keep.reshape(-1) if varying(keep) == [dim] else keep.reshape(-1)[:1]
                index = index.expand(shadow.shape[dim])
                if len(dims) == 1 or varying(keep) == [dim]:
                    alive[dim] = alive[dim] & index if dim in alive else index
        return alive

    def is_ragged(self, channels: Channels, shadow: Shadow) -> bool:
        """Whether the dead units of a tensor are no whole indexes of one dimension."""
        several = (ids for ids in shadow.ids if len(varying(ids)) > 1)
        return any(len(varying(compress(self.dead[channels.units[ids]]))) > 1 for ids in several)


def find_dead(model: TracedModel, channels: Channels, closed: Tensor | None = None, keep: Tensor | None = None) -> Plan:
    """Find all units that can go without changing any output of either graph.

    `closed`, bool [units], marks units that are left out wherever channels are read or counted;
    `keep`, likewise, units that must stay. The model's weights are as the gates leave them: zero where
    closed. Nothing is changed.
    """
    nothing = torch.zeros(len(channels.units), dtype=torch.bool)
    may_die = nothing.clone()
    for _, _, units in channels.positions:
        may_die[units] = True
    may_die[PINNED] = False
    if keep is not None:
        may_die &= ~keep
    search = Search(model, channels, nothing if closed is None else closed, may_die)
    while True:
        plan = search.settle()
        emptied = search.find_emptied(plan.dead)
        if not emptied:
            return plan
        for units in emptied:
            search.revive(units)


class Search:
    """The search for dead units: facts that do not change, and the units that may still die."""

    def __init__(self, model: TracedModel, channels: Channels, closed: Tensor, may_die: Tensor) -> None:
        self.model, self.channels, self.closed, self.may_die = model, channels, closed, may_die
        self.inputs = [channels.units[r.columns] for r in channels.readers]
        self.outputs = [channels.units[r.rows] for r in channels.readers]
        self.reading = [None if r.weight is None else find_reading(r.weight) for r in channels.readers]
        self.absorbs = find_absorbing(channels.readers)
        self.constants = find_constants(model, channels)
        self.kept: dict[str, int] = {}
        self.strength: Tensor | None = None

    def settle(self) -> Plan:
        """Let units die until nothing changes; what is dead stays dead, so this ends."""
        dead = torch.zeros_like(self.may_die)
        while True:
            hard, soft = self.find_needed(dead)
            keepers, merges = self.choose_keepers(hard, soft, dead)
            grown = dead | (self.may_die & ~hard & ~keepers)
            if torch.equal(grown, dead):
                absorbed, muted = self.find_absorbed(dead), self.find_muted(dead)
                return Plan(dead, absorbed, merges, self.constants, dict(self.kept), self.closed, muted)
            dead = grown

    def find_needed(self, dead: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Find the units that some reader or mix needs, and, by reader, the columns of constants at a border."""
        hard = ~self.may_die
        soft: dict[int, Tensor] = {}
        for index, reader in enumerate(self.channels.readers):
            read = self.reads(index, dead) & ~self.closed[self.inputs[index]]
            value, known = reader.constant
            constant = read & known & (value != 0)
            needed = read & ~known
            if not self.absorbs[index]:
                needed |= constant
            elif reader.border and constant.any():
                soft[index] = constant
            hard[self.inputs[index][needed]] = True
        for mix in self.channels.mixes:
            units = self.channels.units[mix.ids]
            hard[units[~self.closed[units]]] = True
        return hard, soft

    def reads(self, index: int, dead: Tensor) -> Tensor:
        """Which columns of a reader have a weight other than zero in a row that stays, [groups, columns]."""
        reading = self.reading[index]
        if reading is None:
            return torch.ones_like(self.inputs[index], dtype=torch.bool)
        return reading.by_rows(~dead[self.outputs[index]])

    def choose_keepers(self, hard: Tensor, soft: dict[int, Tensor], dead: Tensor) -> tuple[Tensor, list[Merge]]:
        """At each padded reader let one constant column carry all others: one that stays anyway, or the largest."""
        keepers = torch.zeros_like(dead)
        chosen: dict[int, int] = {}
        for index, constant in soft.items():
            units = self.inputs[index]
            going = constant & ~hard[units]
            if not going.any():
                continue
            reader = self.channels.readers[index]
            size = (reader.constant.value.abs() * reader.constant.known).amin(0)  # [columns]
            size = torch.where(dead[units].any(0), 0.0, size)
            stays = size * (hard[units] | keepers[units]).all(0)
            chosen[index] = int((stays if bool(stays.any()) else size).argmax())
            if size[chosen[index]] == 0:  # no column is constant in every group
                keepers[units[going]] = True
            else:
                keepers[units[:, chosen[index]]] = True
        gone = dead | (self.may_die & ~hard & ~keepers)
        merges = []
        for index, keeper in chosen.items():
            columns = soft[index] & gone[self.inputs[index]]
            if columns.any():
                merges.append(Merge(self.channels.readers[index], columns, keeper))
        return keepers, merges

    def find_absorbed(self, dead: Tensor) -> list[tuple[Reader, Tensor]]:
        """Sum up, for each reader without a border, what its dead constant inputs add to every output."""
        absorbed = []
        for index, reader in enumerate(self.channels.readers):
            value, known = reader.constant
            units = self.inputs[index]
            gone = dead[units] & ~self.closed[units] & known & (value != 0) & self.reads(index, dead)
            if reader.weight is None or reader.border or not gone.any():
                continue
            total = (reader.weight.double().sum(3) * torch.where(gone, value, 0.0)[:, None]).sum(2)
            absorbed.append((reader, total))
        return absorbed

    def find_muted(self, dead: Tensor) -> list[Muted]:
        """Find what would read or count closed units that stay: ops without weights, and weights that take some in."""
        stays = self.closed & ~dead
        mixes = [(mix.node, mix.ids, True) for mix in self.channels.mixes]
        readers = [
            (r.node, r.columns.reshape(-1), reading is None or bool(reading.columns[stays[columns]].any()))
            for r, reading, columns in zip(self.channels.readers, self.reading, self.inputs, strict=True)
        ]
        return [
            Muted(number, node, ids)
            for number, (node, ids, counts) in enumerate(mixes + readers)
            if counts and bool(stays[self.channels.units[ids]].any())
        ]

    def find_emptied(self, dead: Tensor) -> list[Tensor]:
        """Find the tensors that are still computed and would lose all of a dimension; return the units of each."""
        emptied = []
        for graph, values in zip(self.model.graphs, self.channels.values, strict=True):
            can_go = functools.partial(self.can_go, values=values, dead=dead)
            for node in find_used(graph, self.channels.moves, can_go):
                if not isinstance(values[node], Shadow) or can_go(node):
                    continue
                for ids in values[node].ids:
                    units = self.channels.units[ids].reshape(-1)
                    if len(varying(ids)) == 1 and dead[units].all():
                        emptied.append(units)
        return emptied

    def can_go(self, node: fx.Node, values: dict[fx.Node, object], dead: Tensor) -> bool:
        """Whether a node need not be computed: it is replaced by a constant, or only joined although it is empty."""
        if node in self.constants:
            return True
        shadow = values.get(node)
        if not isinstance(shadow, Shadow) or not all(user.target in JOINS for user in node.users):
            return False
        dims = {joined_dim(user) % len(shadow.shape) for user in node.users}
        return bool(dims) and all(is_empty(dead, self.channels, shadow, dim) for dim in dims)

    def revive(self, units: Tensor) -> None:
        """Let the strongest of these units stay."""
        if self.strength is None:
            self.strength = measure_strength(self.model, self.channels)
        strongest = units[self.strength[units].argmax()]
        if self.may_die[strongest]:
            self.kept[EMPTIED] = self.kept.get(EMPTIED, 0) + 1
        self.may_die[strongest] = False


class Reading(NamedTuple):
    """Which columns a weight reads: most of its rows all that any row reads, the others each its own."""

    columns: Tensor  # bool, [groups, columns], those that any row reads
    alike: Tensor  # bool, [groups, rows], the rows that read all of them
    group: Tensor  # [others]
    row: Tensor  # [others]
    own: Tensor  # bool, [others, columns]

    def by_rows(self, alive: Tensor) -> Tensor:
        """Which columns the living rows read, bool [groups, columns]; `alive` is bool [groups, rows]."""
        read = self.columns & any_along(self.alike & alive, 1)[:, None]
        for group in self.group.unique():
            own = self.own[(self.group == group) & alive[self.group, self.row]]
            read[group] |= any_along(own, 0) if len(own) else False
        return read


def find_reading(weight: Tensor) -> Reading:
    """Which columns a weight [groups, rows, columns, positions] reads: those that are not zero."""
    nonzero = weight != 0
    nonzero = any_along(nonzero, 3) if weight.size(3) > 1 else nonzero[..., 0]
    columns = any_along(nonzero, 1)
    alike = ~any_along(nonzero != columns[:, None], 2)
    group, row = (~alike).nonzero(as_tuple=True)
    return Reading(columns, alike, group, row, nonzero[group, row])


def any_along(marks: Tensor, dim: int) -> Tensor:
    """`marks.any(dim)`, several times as fast: torch has no vectors of truth values."""
    return marks.view(torch.uint8).amax(dim).bool()


def cut(t: Tensor, alive: dict[int, Tensor]) -> Tensor:
    """Leave only the living indexes of each dimension, as `Plan.alive_along` gives them."""
    for dim, keep in alive.items():
        t = t.index_select(dim, keep.nonzero().reshape(-1).to(t.device))
    return t


def is_empty(dead: Tensor, channels: Channels, shadow: Shadow, dim: int) -> bool:
    """Whether no index of a dimension stays."""
    return any(bool(dead[channels.units[ids]].all()) for ids in shadow.along(dim))


def joined_dim(node: fx.Node) -> int:
    """The dimension along which a node joins its operands."""
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return dim if isinstance(dim, int) else 0


def find_absorbing(readers: list[Reader]) -> list[bool]:
    """Which readers can take constants: those with weights and a bias of their own, not shared between calls."""
    calls: dict[tuple[fx.Graph, str | None], int] = {}
    for reader in readers:
        key = (reader.node.graph, reader.source)
        calls[key] = calls.get(key, 0) + 1
    return [
        r.weight is not None
        and r.source is not None
        and r.node.target in HAVE_BIAS
        and has_own_bias(r.node)
        and calls[r.node.graph, r.source] == 1
        for r in readers
    ]


def has_own_bias(node: fx.Node) -> bool:
    """Whether a contraction has a parameter for its bias, or none; part of another tensor is no place for constants."""
    bias = find_bias(node)
    return bias is None or (isinstance(bias, fx.Node) and bias.op == "get_attr")


def find_bias(node: fx.Node) -> Any:
    """Find the bias that a convolution or linear layer is given."""
    return node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")


def measure_strength(model: TracedModel, channels: Channels) -> Tensor:
    """Sum up the mean squares of all slices in which each unit appears, [units]."""
    strength = torch.zeros(len(channels.units), dtype=torch.float64)
    for name, dim, units in channels.positions:
        tensor = model.get_parameter(name) if name in dict(model.named_parameters()) else None
        if tensor is None or tensor.dim() < 2:
            continue
        others = [d for d in range(tensor.dim()) if d != dim]
        strength.index_add_(0, units, tensor.detach().square().mean(others).double().cpu())
    return strength


def find_constants(model: TracedModel, channels: Channels) -> dict[fx.Node, Tensor]:
    """Find nodes that always give the same, and whose every use can take that value broadcast."""
    constants: dict[fx.Node, Tensor] = {}
    for graph, values in zip(model.graphs, channels.values, strict=True):
        gone: set[fx.Node] = set()  # what is not computed any more
        for node in reversed(graph.nodes):
            if node.op == "placeholder" or not node.users or not is_known(values[node]):
                continue
            users = [user for user in node.users if user not in gone]
            if all(can_broadcast(user, node, values, channels, constants) for user in users):
                gone.add(node)
                constants |= {node: values[node].constant.value} if users else {}
    return constants


def is_known(shadow: object) -> bool:
    """Whether a result is the same for every input of every size."""
    if not isinstance(shadow, Shadow) or shadow.constant is None or not bool(shadow.constant.known.all()):
        return False
    return all(shadow.along(dim) for dim in varying(shadow.constant.value))


def can_broadcast(
    user: fx.Node, node: fx.Node, values: dict[fx.Node, Any], channels: Channels, constants: Collection[fx.Node]
) -> bool:
    """Whether a use works position by position with another operand of full shape, which is itself no constant."""
    if user not in channels.elementwise:
        return False
    if find_written(user) is node and (user.target not in OUT_OF_PLACE or len(node.users) > 1):
        return False
    others = [values[n] for n in user.all_input_nodes if n is not node and n not in constants]
    return any(isinstance(o, Shadow) and o.shape == values[user].shape for o in others)


def find_used(graph: fx.Graph, moves: set[fx.Node], can_go: Callable[[fx.Node], bool]) -> list[fx.Node]:
    """List the nodes that the outputs need, in order, not looking behind those that can go."""
    used: set[fx.Node] = set()
    stack = [node for node in graph.nodes if node.op in ("output", "placeholder") or has_effect(node, moves)]
    while stack:
        node = stack.pop()
        if node not in used:
            used.add(node)
            stack += () if can_go(node) else node.all_input_nodes
    return [node for node in graph.nodes if node in used]


def has_effect(node: fx.Node, moves: set[fx.Node]) -> bool:
    """Whether a node does something besides computing its result: a guard, a switch, a write that others see."""
    if node.op == "call_function" and node.target in fx.node._side_effectful_functions:
        return True
    if node.meta.get("writes"):
        return True
    written = find_written(node)
    if written is None:
        return False
    return not node.users or written in moves or any(node < user for user in written.users)

"""Which channels are tied: the ids that a run hands out, what it unites, and the units that follow.

An id stands for one index of one dimension of one tensor that does not depend on the model's inputs.
Id 0 means "not a channel": what is united with it is pinned. A *unit* is one class of united ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, fx

from fxprune.shadow.tensor import Constant, Ids, compress, varying

PINNED = 0

MANY = 2_000
"""Pairs of ids to unite among which many are alike: more than most tensors have channels."""


class Pin(NamedTuple):
    """Why ids are pinned: the reason in words, and the line of the model's source."""

    reason: str
    where: str

    def __str__(self) -> str:
        return f"{self.reason} ({self.where})"


@dataclass(frozen=True)
class Reader:
    """One contraction of an activation with a weight: where units are summed away.

    `columns[g, i]` is the id of input i of group g, `rows[g, j]` that of output j of group g; the weight
    is brought to [groups, rows, columns, positions] and `constant` to what is known of each input.
    """

    node: fx.Node
    source: str | None  # the parameter that is the weight, under the name by which the graph gets it
    columns: Tensor  # [groups, columns]
    rows: Tensor  # [groups, rows]
    weight: Tensor | None  # [groups, rows, columns, positions]; None where it depends on an input
    dim: int  # the weight's own dimension that is contracted
    constant: Constant  # value and known, [groups, columns] each
    border: bool  # whether zeros are mixed in at the border


@dataclass(frozen=True)
class Mix:
    """One op that counts every channel alike, with no weight that could ignore one: a norm, a mean, q k^T."""

    node: fx.Node
    ids: Tensor  # [channels]; [channels, 1] or [1, channels] where each stands for several positions


class Side(NamedTuple):
    """One dimension of an operand: the ids of the operand, the dimension, and its size."""

    ids: Ids
    dim: int
    size: int


@dataclass(frozen=True)
class Layer:
    """How an op applies a weight of [rows, columns of one group, kernel...]: by a convolution, or a matrix product."""

    input: tuple[int, ...]  # [samples, channels, ...], or [positions, channels] of a matrix product
    kernel: tuple[int, ...]  # () for a matrix product, as are the next three
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    rows: Side
    columns: Side  # of one group


@dataclass(frozen=True)
class Product:
    """The multiply-accumulates of one op, for the whole batch: `macs`, in proportion to the length of each side."""

    node: fx.Node
    macs: int
    source: str | None  # the parameter that is one of the factors
    sides: tuple[Side, ...]
    layer: Layer | None = None  # None for transposed convolutions, products of activations, and ops of neither kind


@dataclass
class IdTable:
    """The ids that one analysis hands out, and what it learns of them."""

    count: int = 1
    edges: list[Tensor] = field(default_factory=list)  # [2, n] each
    tied_by: list[fx.Node | None] = field(default_factory=list)  # the node that united each of them
    pins: dict[Pin, list[Tensor]] = field(default_factory=dict)
    rectangles: list[Tensor] = field(default_factory=list)  # ids that vary along several dimensions where computed
    readers: list[Reader] = field(default_factory=list)
    mixes: list[Mix] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    parameters: dict[str, Ids] = field(default_factory=dict)  # the ids of what the graphs get by name
    used: set[str] = field(default_factory=set)  # weights of contractions that something else uses, too
    weights: dict[str, int] = field(default_factory=dict)  # weights of contractions, and the dimension of their rows
    node: fx.Node | None = None  # the node of the graph that is running
    can_live: Callable[[fx.Node, int], bool] = lambda node, dims: False  # whether it can leave out closed channels
    whole_heads: bool = True  # where heads meet their inner channels: whole heads go, or the same channel of each

    def fresh(self, shape: Sequence[int]) -> Ids:
        """Hand out one id for each index of each dimension longer than 1."""
        ids = []
        for d, size in enumerate(shape):
            if size > 1:
                ids.append(self.take(size).view([size if i == d else 1 for i in range(len(shape))]))
        return tuple(ids)

    def take(self, size: int) -> Tensor:
        """Hand out `size` new ids."""
        self.count += size
        return torch.arange(self.count - size, self.count)

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Unite two id tensors position by position; they broadcast."""
        if a is b or (a.shape == b.shape and a.data_ptr() == b.data_ptr() and a.stride() == b.stride()):
            return
        a, b = torch.broadcast_tensors(a, b)
        ends = torch.stack([a.reshape(-1), b.reshape(-1)])
        if ends.size(1) > MANY:  # as of a mask for every pair of tokens, which says the same again and again
            keys = torch.unique(ends[0] * self.count + ends[1])
            ends = torch.stack([keys // self.count, keys % self.count])
        self.edges.append(ends)
        self.tied_by.append(self.node)

    def pin(self, ids: Tensor | Ids, reason: str) -> None:
        """Unite ids with "not a channel"."""
        for t in ids if isinstance(ids, tuple) else (ids,):
            where = self.node.meta.get("where", self.node.name) if self.node is not None else "the model"
            self.pins.setdefault(Pin(reason, where), []).append(t.reshape(-1))
            self.unite(t, torch.tensor(PINNED))

    def collapse(self, ids: Tensor, dims: set[int], reason: str) -> Tensor | None:
        """Tie ids that differ only along other dimensions than `dims`; give what is left, None if that is pinned."""
        kept = ids
        for d in set(varying(ids)) - dims:
            kept = kept.narrow(d, 0, 1)
        if kept is ids:
            return ids
        if kept.numel() == 1:
            self.pin(ids, reason)
            return None
        self.unite(ids, kept)
        return kept

    def collapse_all(self, ids: Ids, dims: set[int], reason: str) -> Ids:
        """Collapse each of a tensor's ids to `dims`; one channel alone, as `x[:, 2]`, is pinned."""
        for t in ids:
            if t.numel() == 1 and int(t) != PINNED:
                self.pin(t, reason)
        kept = [self.collapse(t, dims, reason) for t in ids if varying(t)]
        return tuple(t for t in kept if t is not None)

    def mix(self, ids: Tensor, reason: str) -> None:
        """Note that the running node counts these channels alike; pin them where it cannot leave any out."""
        assert self.node is not None
        if bool((ids == PINNED).all()):
            return
        dims = 1 + sum(mix.node is self.node for mix in self.mixes)
        if self.can_live(self.node, dims):
            self.mixes.append(Mix(self.node, fold_positions(ids)))
        else:
            self.pin(ids, reason)

    def make_rectangular(self, ids: Ids) -> None:
        """Note ids that vary along several dimensions of one computed tensor: all but one must be tied."""
        self.rectangles += [t for t in ids if len(varying(t)) > 1]

    def resolve(self) -> Tensor:
        """Return the unit of every id, [count]: the smallest id of its class (so 0 for what is pinned)."""
        units = join(torch.arange(self.count), self.edges)
        for t in self.rectangles:
            dims = varying(t)
            seen = varying(compress(units[t]))
            if len(seen) < 2:
                continue
            for d in dims[1:]:  # keep the first: whole heads
                self.unite(t, t.narrow(d, 0, 1))
            units = join(units, self.edges[-len(dims) + 1 :])
        return units


def fold_positions(ids: Tensor) -> Tensor:
    """Bring ids that repeat, as of a flattened image, to [channels, 1] or [1, channels]; leave others as they are."""
    count = len(ids.unique())
    if not 1 < count < len(ids) or len(ids) % count:
        return ids
    for folded in (ids.view(count, -1)[:, :1], ids.view(-1, count)[:1]):
        if torch.equal(spread_positions(folded, len(ids)), ids):
            return folded
    return ids


def spread_positions(values: Tensor, size: int) -> Tensor:
    """Give each of the `size` positions its channel's value; one value for each position stays as it is."""
    if values.dim() == 1:
        return values
    if values.numel() == 1:
        return values.reshape(1).expand(size)
    positions = size // values.numel()
    return values.expand([positions if length == 1 else length for length in values.shape]).reshape(-1)


def join(units: Tensor, edges: list[Tensor]) -> Tensor:
    """Unite the classes at both ends of each edge, [2, n]: repeated minima and pointer jumping."""
    if not edges:
        return units
    a, b = units[torch.cat(edges, 1)]
    while True:
        apart = (a != b).nonzero().reshape(-1)
        if not len(apart):
            return units
        a, b = a[apart], b[apart]
        units = units.scatter_reduce(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        while not torch.equal(units, further := units[units]):
            units = further
        a, b = units[a], units[b]

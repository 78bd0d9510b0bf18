"""Which rectangle of its kernel does a filter keep, so that what training prunes is a smaller dense convolution?

With magnitudes m of its stripes and T^2 as the price of one stripe, each filter takes the lattice rectangle

    R = argmax over R of sum over p in R of (m_p^2 - T^2),      or none where that is not above 0

which without the rectangle is the usual m_p > T. A layer shares few shapes: those that together keep most, chosen one
after the other. A processor computes several filters at a time, so blocks of as many, of filters that would take alike
shapes, take the one of these which is worth most to them together; of each layer at least one block keeps something.
The magnitude of every stripe inside is then the root of the mean square over R and the block, which is above T; that of
what is kept for the sake of its layer counts as far above it.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fxprune.errors import FxpruneError
from fxprune.stripes.rectangles import progressions
from fxprune.vector_width import VECTOR

MOST_SHAPES = 4
"""So many shapes a layer has at most, beside filters that keep nothing."""

FAR = 1e8
"""How many times the threshold's square the square of a magnitude is that has to stay above it."""

_BISECTIONS = 24


@functools.cache
def list_rectangles(*kernel: int) -> Tensor:
    """List the empty and the lattice rectangles of a kernel, float32 [rectangles, positions], 1 inside."""
    found = [torch.zeros(math.prod(kernel))]
    for lines in itertools.product(*(progressions(list(range(size))) for size in kernel)):
        inside = torch.zeros(kernel)
        inside[tuple(slice(line.start, line.stop, line.step) for line in lines)] = 1
        found.append(inside.flatten())
    return torch.stack(found)


def choose_rectangles(layers: Mapping[str, Tensor], thresholds: Mapping[str, Tensor | float]) -> dict[str, Tensor]:
    """Give the magnitudes of stripes in rectangles from those of all, 0 for those outside, [filters, *kernel] each."""
    chosen: dict[str, Tensor] = {}
    for kernel, values in _join(layers).items():
        prices = torch.stack([torch.as_tensor(thresholds[name]) ** 2 for name in values.names])
        choice = values.choose(prices)
        inside = list_rectangles(*kernel).to(values.worth)[choice.rectangles] * choice.magnitudes[:, None]
        parts = inside.view(-1, *kernel).split(values.filters.tolist())
        chosen.update(zip(values.names, parts, strict=True))
    return {name: chosen[name] for name in layers}


def select_rectangle_threshold(
    layers: Mapping[str, Tensor],
    closed: int,
    scales: Mapping[str, float] | None = None,
    prices: Mapping[str, int] | None = None,
) -> Tensor:
    """Give the least threshold T, to 7 digits, at which the stripes outside of rectangles cost `closed` or more.

    `layers` are magnitudes of stripes, [filters, *kernel] each; all else is as for `select_priced_threshold`.
    """
    first = next(iter(layers.values()))
    scaled = {name: values / (scales or {}).get(name, 1.0) for name, values in layers.items()}
    largest = torch.stack([values.max() for values in scaled.values()]).max()
    if not bool(largest.isfinite()):
        raise FxpruneError("weights are NaN or infinite, so no threshold exists; lower the learning rate")
    low = first.new_zeros(())
    if closed <= 0:
        return low
    joined = _join(scaled)
    costs = {key: torch.tensor([(prices or {}).get(name, 1) for name in each.names]) for key, each in joined.items()}
    total = sum((prices or {}).get(name, 1) * values.numel() for name, values in layers.items())
    high = largest * 1.001  # at which no more stays than has to
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        kept = sum(each.count_cost(middle**2, costs[key]) for key, each in joined.items())
        low, high = (low, middle) if total - kept >= closed else (middle, high)
    return high


class _Choice(NamedTuple):
    """What each filter keeps."""

    rectangles: Tensor  # their numbers, [filters]
    magnitudes: Tensor  # of the stripes inside, [filters]


class _Blocks(NamedTuple):
    """The filters of all layers, in order, by blocks that keep one rectangle each."""

    order: Tensor  # of the filters, [filters]
    values: Tensor  # of each rectangle to each block, [blocks, rectangles]
    rectangles: Tensor  # those chosen, [blocks]
    stripes: Tensor  # in those, of all filters of the block, [blocks]


class _Joined(NamedTuple):
    """The filters of all layers of one kernel size, one after the other."""

    names: list[str]
    filters: Tensor  # of each layer, int64 [layers]
    blocks: Tensor  # of filters in each layer, [layers]
    block: Tensor  # of each filter, once those of a layer are in order, [filters]
    worth: Tensor  # of each rectangle to each filter if stripes cost nothing, [filters, rectangles]; the first is empty
    sizes: Tensor  # of the rectangles, [rectangles]

    def choose(self, prices: Tensor) -> _Choice:
        """Choose each filter's rectangle, at the price of a stripe in each layer, [layers]."""
        blocks = self._form_blocks(prices)
        price = prices.to(blocks.values).repeat_interleave(self.blocks)
        own = blocks.values.gather(1, blocks.rectangles[:, None])[:, 0]
        squares = own / blocks.stripes.clamp(min=1) + price
        magnitudes = torch.where(squares > price, squares, FAR * price).sqrt()
        back = torch.empty_like(blocks.order).scatter_(0, blocks.order, self.block)
        return _Choice(blocks.rectangles[back], magnitudes[back])

    def count_cost(self, price: Tensor, costs: Tensor) -> int:
        """Give what the stripes in rectangles cost, at one price for the choice and a cost in each layer, [layers]."""
        stripes = self._form_blocks(price.expand(len(self.names))).stripes.double()
        return int((torch.segment_reduce(stripes, "sum", lengths=self.blocks).cpu() * costs).sum())

    def _form_blocks(self, prices: Tensor) -> _Blocks:
        """Put filters into blocks, and choose a rectangle for each block."""
        layer = _list_layers(self.filters)
        values = self.worth - prices.to(self.worth)[layer, None] * self.sizes
        order = self._sort(values, layer, _share(values, layer, self.filters))
        layer = _list_layers(self.blocks)
        sums = values.new_zeros(len(layer), len(self.sizes)).index_add_(0, self.block, values[order])
        strongest = _sort_in_groups(layer, sums[:, 1:].amax(1))[self.blocks.cumsum(0) - 1]
        sums[strongest, 0] = -torch.inf  # one of each layer keeps something, whatever it costs
        which = _share(sums, layer, self.blocks)
        return _Blocks(order, sums, which, self.sizes[which] * self.block.bincount())

    def _sort(self, values: Tensor, layer: Tensor, which: Tensor) -> Tensor:
        """Sort filters by layer, the rectangle that each would take, small ones first, and what it is worth."""
        own = values.gather(1, which.clamp(min=1)[:, None])[:, 0]
        closed = values[:, 1:].amax(1)  # what it would be worth to keep something
        rank = self.sizes.argsort(stable=True).argsort()
        return _sort_in_groups(layer * len(rank) + rank[which], torch.where(which > 0, own, closed))


def _list_layers(lengths: Tensor) -> Tensor:
    """Give the number of each row's layer, where these have so many rows."""
    return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)


def _sort_in_groups(group: Tensor, key: Tensor) -> Tensor:
    """Give the indexes that bring groups in order, and what is in each from small keys to large."""
    order = key.argsort()
    return order[group[order].argsort(stable=True)]


def _share(values: Tensor, layer: Tensor, lengths: Tensor) -> Tensor:
    """Choose few rectangles for the rows of each layer, as many as `lengths` says, by values [rows, rectangles]."""
    best, which = values[:, 0].clone(), torch.zeros_like(layer)
    for _ in range(min(MOST_SHAPES, values.size(1) - 1)):
        sums = torch.segment_reduce(torch.maximum(values, best[:, None]), "sum", lengths=lengths)
        shape = sums.argmax(1)[layer]
        value = values.gather(1, shape[:, None])[:, 0]
        which = torch.where(value > best, shape, which)
        best = torch.maximum(best, value)
    return which


def _join(layers: Mapping[str, Tensor]) -> dict[tuple[int, ...], _Joined]:
    kernels: dict[tuple[int, ...], list[str]] = {}
    for name, magnitudes in layers.items():
        kernels.setdefault(tuple(magnitudes.shape[1:]), []).append(name)
    joined = {}
    for kernel, names in kernels.items():
        squares = torch.cat([layers[name].flatten(1).square() for name in names])
        table = list_rectangles(*kernel).to(squares)
        filters = torch.tensor([len(layers[name]) for name in names], device=squares.device)
        layer = _list_layers(filters)
        blocks = (filters + VECTOR - 1) // VECTOR
        place = torch.arange(len(layer), device=squares.device) - (filters.cumsum(0) - filters)[layer]
        block = (blocks.cumsum(0) - blocks)[layer] + place // VECTOR
        joined[kernel] = _Joined(names, filters, blocks, block, squares @ table.T, table.sum(1))
    return joined

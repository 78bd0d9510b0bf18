"""How is a convolution with dead stripes computed?

As a list of parts, each with its filters and the rectangles that are summed for them: dense, one smaller kernel,
several smaller convolutions over groups of filters, sums of rectangles, or mixtures. Filters start apart by their
patterns, and two groups at a time are joined, those for which that costs least; the cheapest that is met is taken.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fxprune.stripes.cost import CostModel
from fxprune.stripes.rectangles import Pattern, Rectangle, find_covers, find_hull

Group = tuple[int, ...]
"""Filters that are computed together."""

Cover = tuple[tuple[Rectangle, ...], float]
"""The smaller kernels that are summed for a group, and what they cost."""

MOST_GROUPS = 24
"""Joining begins with so many groups; rarer patterns go to the group whose kernel grows least."""


@dataclass(frozen=True)
class Part:
    """Some filters of a convolution, in their order, and the smaller kernels that are summed for them."""

    filters: tuple[int, ...]
    rectangles: tuple[Rectangle, ...]


@dataclass(frozen=True)
class Lowering:
    """The parts of one convolution, joined in this order; no parts for what stays as it is."""

    parts: tuple[Part, ...]
    cost: float

    @property
    def order(self) -> list[int]:
        """Which filter each output channel is of."""
        return [number for part in self.parts for number in part.filters]

    def in_order(self) -> Lowering:
        """The same once the filters stand in this order."""
        numbers = itertools.count()
        parts = tuple(Part(tuple(next(numbers) for _ in part.filters), part.rectangles) for part in self.parts)
        return Lowering(parts, self.cost)


@dataclass(frozen=True)
class Layer:
    """What the choice depends on: the sizes of a convolution and of its output."""

    rows: int
    columns: int  # input channels of one group
    kernel: tuple[int, int]
    groups: int
    positions: int  # of one output channel, over the whole batch


def find_patterns(weight: Tensor) -> list[Pattern]:
    """For each filter of a weight, [filters, channels, height, width], which positions of its kernel live."""
    alive = (weight.detach() != 0).any(1).cpu()
    return [frozenset((int(i), int(j)) for i, j in each.nonzero()) for each in alive]


def choose(layer: Layer, patterns: list[Pattern], model: CostModel, is_free: bool) -> Lowering:
    """Choose the cheapest lowering by a cost model; `is_free`: whether the order of the output channels may change."""
    cover = functools.cache(lambda group: cheapest_cover(layer, model, group, patterns))
    groups = collect(patterns)
    together = [[tuple(range(layer.rows))]]  # channels of several groups are not parted
    ways = together if layer.groups > 1 else join_groups(groups, cover)
    dense = Lowering((), count_part(layer, model, layer.rows, (whole_kernel(layer),)))
    candidates = [dense, *(assemble(layer, model, way, cover, is_free) for way in ways)]
    return min(candidates, key=lambda lowering: lowering.cost)


def whole_kernel(layer: Layer) -> Rectangle:
    return Rectangle(range(layer.kernel[0]), range(layer.kernel[1]))


def collect(patterns: list[Pattern]) -> list[tuple[int, ...]]:
    """Collect the filters of each pattern; those without a living position go to the smallest kernel."""
    filters: dict[Pattern, list[int]] = {}
    for number, pattern in enumerate(patterns):
        filters.setdefault(pattern, []).append(number)
    empty = filters.pop(frozenset(), [])
    if not filters:
        return [tuple(empty)]
    smallest = min(filters, key=lambda pattern: (find_hull(pattern).taps, -len(filters[pattern])))
    filters[smallest] = sorted(filters[smallest] + empty)
    return [tuple(each) for each in filters.values()]


def join_groups(groups: list[Group], cover: Callable[[Group], Cover]) -> list[list[Group]]:
    """Join groups of filters two by two, always those whose union is cheapest; give all partings that were met."""

    def loss(a: Group, b: Group) -> float:
        return cover(unite(a, b))[1] - cover(a)[1] - cover(b)[1]

    groups = sorted(groups, key=len, reverse=True)
    while len(groups) > MOST_GROUPS:
        rare = groups.pop()
        losses = [loss(group, rare) for group in groups]
        best = losses.index(min(losses))
        groups[best] = unite(groups[best], rare)
    ways = [groups]
    while len(groups) > 1:
        a, b = min(itertools.combinations(groups, 2), key=lambda pair: loss(*pair))
        groups = [group for group in groups if group not in (a, b)] + [unite(a, b)]
        ways.append(groups)
    return ways


def unite(a: Group, b: Group) -> Group:
    return tuple(sorted(a + b))


def assemble(
    layer: Layer, model: CostModel, groups: list[Group], cover: Callable[[Group], Cover], is_free: bool
) -> Lowering:
    """Make the lowering of these groups of filters, and count its cost: that of joining them, too."""
    parts, cost = [], 0.0
    for group in sorted(groups):
        rectangles, price = cover(group)
        parts.append(Part(group, rectangles))
        cost += price
    elements = layer.rows * layer.positions
    if len(parts) > 1:
        cost += model.count_moves(elements)
    lowering = Lowering(tuple(parts), cost)
    if not is_free and lowering.order != sorted(lowering.order):
        return Lowering(lowering.parts, cost + model.count_moves(elements))
    return lowering


def cheapest_cover(layer: Layer, model: CostModel, group: Group, patterns: list[Pattern]) -> Cover:
    """Find the sum of smaller kernels that computes a group of filters at the least cost."""
    union = frozenset[tuple[int, int]]().union(*(patterns[number] for number in group))
    if not union:
        union = frozenset({(0, 0)})
    priced = [(cover, count_part(layer, model, len(group), cover)) for cover in find_covers(union)]
    return min(priced, key=lambda each: each[1])


def count_part(layer: Layer, model: CostModel, filters: int, rectangles: tuple[Rectangle, ...]) -> float:
    """The cost of the convolutions of one part, and of adding them up."""
    cost = 0.0
    for rectangle in rectangles:
        is_line = 1 in (len(rectangle.rows), len(rectangle.columns)) and max(layer.kernel) > 1
        cost += model.count_convolution(layer.positions, filters, layer.columns, rectangle.taps, is_line)
    return cost + (len(rectangles) - 1) * model.count_moves(filters * layer.positions)

"""Which lowerings of a convolution are worth a try?

Filters start apart by their patterns, and two groups at a time are joined, those for which that costs least; once with
one smaller kernel a group and once with sums. Of each parting there is a second form, in which filters move to larger
kernels until the widths of groups are whole multiples of what the runtime computes at a time. The cheapest by the cost
model are proposed, of each kind one with such widths and one without.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection
from typing import NamedTuple

from torch import Tensor

from fxprune.stripes.cost import CostModel
from fxprune.stripes.lowering import Kind, Layer, Lowering, Part
from fxprune.stripes.reading import find_reading
from fxprune.stripes.rectangles import Pattern, Rectangle, find_covers, find_hull

Group = tuple[int, ...]
"""Filters that are computed together."""

Cover = tuple[tuple[Rectangle, ...], float]
"""The smaller kernels that are summed for a group, and what they cost."""

MOST_GROUPS = 24
"""Joining begins with so many groups; rarer patterns go to the group whose kernel grows least."""

MOST_PROPOSED = 5
"""So many are proposed beside dense."""


class Proposal(NamedTuple):
    """A lowering, and its cost by the model."""

    lowering: Lowering
    cost: float


def find_patterns(weight: Tensor) -> list[Pattern]:
    """For each filter of a weight, [filters, channels, height, width], which positions of its kernel live."""
    alive = (weight.detach() != 0).any(1).cpu()
    return [frozenset((int(i), int(j)) for i, j in each.nonzero()) for each in alive]


def propose(
    layer: Layer, patterns: list[Pattern], model: CostModel, is_free: bool, kinds: Collection[Kind]
) -> list[Proposal]:
    """List dense, and then the cheapest lowerings of these kinds, the cheapest one in front.

    They differ in kind, or in whether all their widths are whole multiples. `is_free`: whether the order of the output
    channels may change.
    """
    dense = Proposal(Lowering(()), count_part(layer, model, layer.rows, (layer.whole,)))
    found: dict[Lowering, float] = {}
    for summed in (False, True):
        for groups, cover in part_filters(layer, patterns, model, summed):
            lowering, cost = assemble(layer, model, groups, cover, is_free)
            if [part.rectangles for part in lowering.parts] != [(layer.whole,)]:
                found[lowering] = cost
    ranked = sorted((Proposal(*each) for each in found.items()), key=lambda proposal: proposal.cost)
    best: dict[tuple[Kind, bool], Proposal] = {}
    for proposal in ranked:
        whole = all(len(part.filters) % model.align == 0 for part in proposal.lowering.parts)
        if proposal.lowering.kind in kinds:
            best.setdefault((proposal.lowering.kind, whole), proposal)
    return [dense, *list(best.values())[:MOST_PROPOSED]]


def part_filters(
    layer: Layer, patterns: list[Pattern], model: CostModel, summed: bool
) -> list[tuple[list[Group], Callable[[Group], Cover]]]:
    """List ways to part the filters into groups, and what covers each; channels of several groups are not parted."""
    cover = functools.cache(lambda group: cheapest_cover(layer, model, group, patterns, summed))
    if layer.options.groups > 1:
        return [([tuple(range(layer.rows))], cover)]
    ways = join_groups(collect(patterns), cover)
    rounded = [round_widths(groups, cover, model.align, patterns) for groups in ways if len(groups) > 1]
    return [(groups, cover) for groups in (*ways, *rounded)]


def collect(patterns: list[Pattern]) -> list[Group]:
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


def round_widths(
    groups: list[Group], cover: Callable[[Group], Cover], align: int, patterns: list[Pattern]
) -> list[Group]:
    """Move filters from small kernels to larger ones until each group, but for the last, has a multiple of `align`."""
    groups = sorted(groups, key=lambda group: cover(group)[1] / len(group))
    rounded: list[Group] = []
    while len(groups) > 1:
        group, *groups = groups
        largest = sorted(group, key=lambda number: -len(patterns[number]))
        moved, kept = largest[: len(group) % align], largest[len(group) % align :]
        if moved:
            rest = tuple(sorted(moved))
            losses = [cover(unite(other, rest))[1] - cover(other)[1] for other in groups]
            best = losses.index(min(losses))
            groups[best] = unite(groups[best], rest)
        if kept:
            rounded.append(tuple(sorted(kept)))
    return rounded + groups


def unite(a: Group, b: Group) -> Group:
    return tuple(sorted(a + b))


def assemble(
    layer: Layer, model: CostModel, groups: list[Group], cover: Callable[[Group], Cover], is_free: bool
) -> Proposal:
    """Make the lowering of these groups of filters, and count its cost: that of joining them, too."""
    parts, cost = [], 0.0
    for group in sorted(groups):
        rectangles, price = cover(group)
        parts.append(Part(group, rectangles))
        cost += price
    lowering = Lowering(tuple(parts))
    elements = layer.rows * layer.positions
    if len(parts) > 1:
        cost += model.count_join(layer.positions, [len(part.filters) for part in parts])
    if not is_free and not lowering.is_ordered:
        cost += model.count_moves(elements)
    return Proposal(lowering, cost)


def cheapest_cover(layer: Layer, model: CostModel, group: Group, patterns: list[Pattern], summed: bool) -> Cover:
    """Find the smaller kernel, or if `summed` the sum of some, that computes a group of filters at the least cost."""
    union = frozenset[tuple[int, int]]().union(*(patterns[number] for number in group))
    if not union:
        union = frozenset({(0, 0)})
    covers = find_covers(union) if summed else ((find_hull(union),),)
    return min(((each, count_part(layer, model, len(group), each)) for each in covers), key=lambda priced: priced[1])


def count_part(layer: Layer, model: CostModel, filters: int, rectangles: tuple[Rectangle, ...]) -> float:
    """The cost of the convolutions of one part, and of adding them up."""
    cost = 0.0
    for rectangle in rectangles:
        is_line = 1 in (len(rectangle.rows), len(rectangle.columns)) and max(layer.kernel) > 1
        cost += model.count_convolution(layer.positions, filters, layer.columns, rectangle.taps, is_line)
        if find_reading(rectangle, layer.kernel, layer.options).crops:
            cost += model.count_moves(layer.columns * layer.options.groups * layer.positions)
    return cost + (model.count_sums((len(rectangles) - 1) * filters * layer.positions) if len(rectangles) > 1 else 0.0)

"""Which smaller kernels hold what is left of a kernel?

A *lattice rectangle* is a set of rows times a set of columns of a kernel, each an arithmetic progression: what a dense
convolution with a smaller kernel and a dilation reads. A 3 x 3 kernel has 49 of them. A *pattern* says which positions
of a kernel live: a frozenset of (row, column).
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

Pattern = frozenset[tuple[int, int]]

MOST_SUMMED = 3
"""So many smaller kernels are summed at most."""

MOST_TRIED = 100
"""Where a kernel has more rectangles than these, the largest inside a pattern are tried for a sum."""


@dataclass(frozen=True)
class Rectangle:
    """A set of rows times a set of columns, each a range of positions in the kernel."""

    rows: range
    columns: range

    def __hash__(self) -> int:
        return hash((tuple(self.rows), tuple(self.columns)))

    def __str__(self) -> str:
        spread = "" if self.rows.step == self.columns.step == 1 else " spread"
        return f"{len(self.rows)} x {len(self.columns)}{spread}"

    @property
    def taps(self) -> int:
        """How many positions it has."""
        return len(self.rows) * len(self.columns)

    @functools.cached_property
    def positions(self) -> Pattern:
        """The positions in it."""
        return frozenset(itertools.product(self.rows, self.columns))


def find_hull(pattern: Pattern) -> Rectangle:
    """Give the smallest lattice rectangle that holds a pattern, which is not empty."""
    return Rectangle(span({row for row, _ in pattern}), span({column for _, column in pattern}))


def span(numbers: set[int]) -> range:
    """Give the shortest arithmetic progression that holds these numbers."""
    first, last = min(numbers), max(numbers)
    return range(first, last + 1, math.gcd(*(number - first for number in numbers)) or 1)


@functools.lru_cache(maxsize=4096)
def find_covers(pattern: Pattern) -> tuple[tuple[Rectangle, ...], ...]:
    """List ways to write a pattern as a sum of smaller kernels: the hull alone, and the cheapest of 2 and 3 rectangles.

    A sum that has as many positions as the hull, or more, is left out.
    """
    hull = find_hull(pattern)
    covers: list[tuple[Rectangle, ...]] = [(hull,)]
    parts = find_parts(pattern)
    least = hull.taps
    for count in range(2, MOST_SUMMED + 1):
        best = None
        for chosen in itertools.combinations(parts, count):
            taps = sum(part.taps for part in chosen)
            if taps < least and pattern <= frozenset().union(*(part.positions for part in chosen)):
                best, least = chosen, taps
        if best is not None:
            covers.append(best)
    return tuple(covers)


def find_parts(pattern: Pattern) -> list[Rectangle]:
    """List the rectangles inside a pattern that no other inside of it holds, the largest first."""
    rows, columns = sorted({row for row, _ in pattern}), sorted({column for _, column in pattern})
    inside = []
    for these in progressions(rows):
        for those in progressions(columns):
            candidate = Rectangle(these, those)
            if candidate.positions <= pattern:
                inside.append(candidate)
    inside.sort(key=lambda part: (-part.taps, tuple(part.rows), tuple(part.columns)))
    kept: list[Rectangle] = []
    for part in inside:
        if not any(part.positions < other.positions for other in kept):
            kept.append(part)
    return kept[:MOST_TRIED]


def progressions(numbers: list[int]) -> list[range]:
    """List the arithmetic progressions among these numbers, of each length."""
    found = [range(n, n + 1) for n in numbers]
    known = set(numbers)
    for first, second in itertools.combinations(numbers, 2):
        step, last = second - first, second
        while last in known:
            found.append(range(first, last + 1, step))
            last += step
    return found

"""Do smaller kernels hold what is left of a kernel, and no more than they must?"""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.stripes.rectangles import Rectangle, find_covers, find_hull, find_parts, progressions

POSITIONS = st.integers(1, 7).flatmap(
    lambda size: st.frozensets(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)), min_size=1)
)


def test_a_kernel_of_three_has_49_rectangles() -> None:
    assert len(progressions([0, 1, 2])) == 7
    everything = frozenset(itertools.product(range(3), range(3)))
    assert find_parts(everything) == [Rectangle(range(3), range(3))]


def test_a_cross_is_a_row_and_a_column() -> None:
    cross = frozenset({(1, 0), (1, 1), (1, 2), (0, 1), (2, 1)})
    hull, parts = find_covers(cross)
    assert hull == (Rectangle(range(3), range(3)),)
    assert {part.positions for part in parts} == {
        frozenset({(1, 0), (1, 1), (1, 2)}),
        frozenset({(0, 1), (1, 1), (2, 1)}),
    }


def test_corners_are_one_kernel_of_dilation_two() -> None:
    hull = find_hull(frozenset({(0, 0), (0, 2), (2, 0), (2, 2)}))
    assert (hull.rows, hull.columns, hull.taps) == (range(0, 3, 2), range(0, 3, 2), 4)


@given(POSITIONS)
@settings(max_examples=150, deadline=None)
def test_covers_hold_the_pattern_and_sums_are_smaller_than_the_hull(pattern: frozenset[tuple[int, int]]) -> None:
    hull, *sums = find_covers(pattern)
    assert pattern <= hull[0].positions
    taps = [sum(part.taps for part in cover) for cover in sums]
    assert all(pattern == frozenset().union(*(part.positions for part in cover)) for cover in sums)
    assert taps == sorted(taps, reverse=True)
    assert all(count < hull[0].taps for count in taps)


@given(POSITIONS)
@settings(max_examples=100, deadline=None)
def test_no_smaller_rectangle_holds_the_pattern(pattern: frozenset[tuple[int, int]]) -> None:
    hull = find_hull(pattern)
    rows = {row for row, _ in pattern}
    candidates = [r for r in progressions(list(range(7))) if rows <= set(r)]
    assert len(hull.rows) == min(len(r) for r in candidates)

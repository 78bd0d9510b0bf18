"""Are the lowerings that are proposed complete, of the kinds that are asked for, and on whole widths?"""

from __future__ import annotations

import itertools

import pytest
import torch

from fxprune.stripes.cost import CostModel
from fxprune.stripes.lowering import KINDS, Kind, Layer
from fxprune.stripes.propose import find_patterns, propose
from fxprune.stripes.reading import Options
from fxprune.stripes.rectangles import Pattern

LAYER = Layer(64, 64, (3, 3), Options((1, 1), (1, 1, 1, 1), (1, 1), 1), 28 * 28, ((1, 64, 28, 28),))
CHEAP = CostModel(call=0.0)


def draw_patterns(share: float, filters: int = 64, kinds: int = 6) -> list[Pattern]:
    kept = torch.rand(kinds, 3, 3, generator=torch.Generator().manual_seed(0)) >= share
    return find_patterns(kept[torch.arange(filters) % kinds][:, None].float())


@pytest.mark.parametrize("share", [0.3, 0.7])
@pytest.mark.parametrize("is_free", [True, False])
def test_each_filter_is_computed_once_with_all_that_lives(share: float, is_free: bool) -> None:
    patterns = draw_patterns(share)
    dense, *others = propose(LAYER, patterns, CHEAP, is_free, KINDS)
    assert dense.lowering.kind == "dense"
    assert others
    for lowering, cost in others:
        assert sorted(lowering.order) == list(range(64))
        assert cost > 0
        for part in lowering.parts:
            computed = frozenset().union(*(r.positions for r in part.rectangles))
            assert all(patterns[number] <= computed for number in part.filters)


@pytest.mark.parametrize("kinds", [*itertools.combinations(KINDS, 1), *itertools.combinations(KINDS, 2), ()])
def test_only_the_kinds_that_are_asked_for_are_proposed(kinds: tuple[Kind, ...]) -> None:
    found = {lowering.kind for lowering, _ in propose(LAYER, draw_patterns(0.7), CHEAP, True, kinds)}
    assert found <= {"dense", *kinds}


def test_widths_are_multiples_of_what_is_computed_at_a_time() -> None:
    best = min(propose(LAYER, draw_patterns(0.8), CHEAP, True, KINDS), key=lambda proposal: proposal.cost)
    assert len(best.lowering.parts) > 1
    assert all(len(part.filters) % CHEAP.align == 0 for part in best.lowering.parts)


def test_channels_of_several_groups_stay_together() -> None:
    grouped = Layer(64, 32, (3, 3), LAYER.options._replace(groups=2), 28 * 28, LAYER.inputs)
    assert {len(p.lowering.parts) for p in propose(grouped, draw_patterns(0.9), CHEAP, True, KINDS)} <= {0, 1}

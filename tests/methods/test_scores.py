"""Is a unit's score what it is said to be?"""

import math

import pytest
import torch

from fxprune.errors import FxpruneError
from fxprune.methods import scores as module
from fxprune.methods.scores import Slice, unit_scores
from fxprune.methods.threshold import select_threshold


def test_rows_columns_and_scale_count_alike_each_by_its_layers_mean() -> None:
    torch.manual_seed(0)
    rows, scale, columns = torch.randn(4, 3, 3, 3), torch.rand(4), 100 * torch.randn(5, 4, 3, 3)
    index = torch.arange(4)
    slices = [Slice("a", 0, index), Slice("norm", 0, index), Slice("b", 1, index)]
    found = unit_scores({"a": rows, "norm": scale, "b": columns}, slices, 4)
    parts = [rows.square().mean((1, 2, 3)), scale.square(), columns.square().mean((0, 2, 3))]
    expected = sum(part / part.mean() for part in parts).div(3).sqrt()
    torch.testing.assert_close(found, expected)


def test_a_unit_that_appears_often_is_the_mean_over_its_places() -> None:
    weight = torch.tensor([[1.0, 3.0, 2.0, 5.0]])  # columns of units 0 0 1 and none
    found = unit_scores({"w": weight}, [Slice("w", 1, torch.tensor([0, 0, 1, -1]))], 2)
    mean = (1 + 9 + 4 + 25) / 4
    torch.testing.assert_close(found, torch.tensor([math.sqrt(5 / mean), math.sqrt(4 / mean)]))


def test_blocks_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight = torch.randn(37, 11, 3, 2)
    slices = [Slice("w", dim, torch.arange(size)) for dim, size in enumerate(weight.shape[:2])]
    whole = unit_scores({"w": weight}, slices, 37)
    monkeypatch.setattr(module, "_BLOCK", 100)
    torch.testing.assert_close(unit_scores({"w": weight}, slices, 37), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_type_is_scored(dtype: torch.dtype) -> None:
    weight = torch.tensor([[3.0], [4.0]], dtype=dtype)
    found = unit_scores({"w": weight}, [Slice("w", 0, torch.arange(2))], 2)
    torch.testing.assert_close(found.float(), torch.tensor([9 / 12.5, 16 / 12.5]).sqrt())


def test_a_layer_of_zeros_scores_zero() -> None:
    slices = [Slice("zero", 0, torch.arange(2)), Slice("w", 0, torch.arange(2))]
    found = unit_scores({"zero": torch.zeros(2, 3), "w": torch.ones(2, 3)}, slices, 3)
    torch.testing.assert_close(found, torch.tensor([math.sqrt(0.5), math.sqrt(0.5), 0.0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_unfinite_weights_are_refused_with_their_scores(bad: float) -> None:
    weight = torch.ones(4, 3)
    weight[1, 1] = bad
    scores = unit_scores({"w": weight}, [Slice("w", 0, torch.arange(4))], 4)
    with pytest.raises(FxpruneError, match="NaN or infinite"):
        select_threshold({"unit scores": scores}, 0.5)


def test_no_slices_give_no_scores() -> None:
    assert unit_scores({}, [], 0).shape == (0,)

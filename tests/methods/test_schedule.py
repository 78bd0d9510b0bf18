"""Does the sparsity rise as published?"""

import pytest

from fxprune.errors import TargetError
from fxprune.methods.feather import Feather
from fxprune.methods.schedule import Cubic
from fxprune.methods.st3 import ST3
from fxprune.methods.targets import Sparsity


@pytest.mark.parametrize(
    ("step", "sparsity"),
    [(0, 0), (1, 0.005389), (50, 0.2439), (100, 0.4392), (250, 0.7875), (500, 0.9), (700, 0.9), (2000, 0.9)],
)
def test_feather_rises_over_the_first_half(step: int, sparsity: float) -> None:
    assert 0.9 * Feather().schedule(step, 1000) == pytest.approx(sparsity, abs=1e-5)


@pytest.mark.parametrize(
    ("epochs", "steps", "sparsity", "tolerance"),
    [
        (5, 0, 0, 1e-12),
        (5, 1, 0.000102, 1e-6),
        (15, 0, 0.3141, 5e-5),
        (42, 0, 0.7829, 5e-5),
        (80, 0, 0.9, 1e-12),
        (160, 0, 0.9, 1e-12),
    ],
)
def test_st3_rises_from_epoch_5_to_80_of_160(epochs: int, steps: int, sparsity: float, tolerance: float) -> None:
    batches = 352
    assert 0.9 * ST3().schedule(epochs * batches + steps, 160 * batches) == pytest.approx(sparsity, abs=tolerance)


def test_a_schedule_without_length_prunes_in_one_go() -> None:
    assert [Cubic(0.29, 0.29)(step, 100) for step in (0, 28, 29, 30)] == [0, 0, 1, 1]


def test_fractions_are_floored_as_written() -> None:
    assert Cubic(0.0, 0.57)(56, 100) < 1 == Cubic(0.0, 0.57)(57, 100)  # 0.57 * 100 is 56.99999999999999
    assert Cubic(0.0, 0.5)(2, 5) == 1


@pytest.mark.parametrize(("begin", "end"), [(-0.1, 0.5), (0.5, 0.4), (0.0, 1.1)])
def test_fractions_out_of_order_are_refused(begin: float, end: float) -> None:
    with pytest.raises(TargetError, match="0 <= begin <= end <= 1"):
        Cubic(begin, end)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 90.0, float("nan")])
def test_a_share_outside_of_zero_and_one_is_refused(share: float) -> None:
    with pytest.raises(TargetError, match="lies between 0 and 1"):
        Sparsity(share)


def test_a_share_reads_well() -> None:
    assert str(Sparsity(0.5)) == "0.5 masked"

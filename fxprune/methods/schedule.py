"""How much of the final sparsity does the model have after so many steps?"""

import math
from dataclasses import dataclass

from fxprune.errors import TargetError
from fxprune.is_number import is_number


@dataclass(frozen=True)
class Cubic:
    """Rise from nothing to all between two fractions of the training, fast at first.

        ramp(t) = 1 - (1 - (t - t1) / (t2 - t1))^3      for t1 <= t < t2; 0 before, 1 from t2    (Zhu & Gupta 2017)

    with t1 = floor(begin * total) and t2 = floor(end * total). `begin == end` prunes in one go.
    Raises TargetError unless 0 <= begin <= end <= 1.
    """

    begin: float
    end: float

    def __post_init__(self) -> None:
        if not is_number(self.begin) or not is_number(self.end) or not 0 <= self.begin <= self.end <= 1:
            raise TargetError(
                f"Cubic(begin={self.begin!r}, end={self.end!r}): both are fractions of the training; "
                "give 0 <= begin <= end <= 1"
            )

    def __call__(self, step: int, total_steps: int) -> float:
        """Give the share of the final sparsity that is reached after `step` of `total_steps` optimizer steps."""
        begin, end = _whole_steps(self.begin, total_steps), _whole_steps(self.end, total_steps)
        if step >= end:
            return 1.0
        if step <= begin:
            return 0.0
        return 1.0 - (1.0 - (step - begin) / (end - begin)) ** 3


def _whole_steps(fraction: float, total_steps: int) -> int:
    return math.floor(round(fraction * total_steps, 6))  # 0.29 * 100 is 28.999999999999996

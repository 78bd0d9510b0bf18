"""LRR: how is a trained network pruned in cycles, each with the learning rate of the first?

Renda, Frankle, Carbin: Comparing Rewinding and Fine-tuning in Neural Network Pruning, ICLR 2020.

    s_i = 1 - (1 - r)^i after cycle i, at most the target;      dL/dw = dL/dq where w is open, else 0

The i-th call of `fxprune.prune(prepared)` closes the share s_i of the smallest magnitudes, and keeps the mask until the
next. Between two calls the owner trains one cycle: with the weights of the last one, the best of its checkpoints, and a
new optimizer and learning-rate schedule.
"""

from dataclasses import dataclass
from typing import ClassVar

from fxprune.errors import TargetError
from fxprune.is_number import is_number
from fxprune.methods.base import Method


@dataclass(frozen=True)
class LRR(Method):
    """Learning-rate rewinding; `rate` is the share of what is open that each cycle closes."""

    rate: float = 0.2
    one_shot: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not is_number(self.rate) or not 0 < self.rate < 1:
            raise TargetError(f"LRR(rate={self.rate!r}): a cycle closes a share between 0 and 1; the usual one is 0.2")

    @property
    def remembers(self) -> bool:
        return True

    def closed_gradient(self, sparsity: float) -> float:
        return 0.0

    def share_of(self, calls: int, target: float) -> float:
        return min(1.0, (1 - (1 - self.rate) ** calls) / target)

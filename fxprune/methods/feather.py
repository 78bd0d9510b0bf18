"""Feather: how are weights thresholded almost hard, with the gradient straight through?

Glentis Georgoulakis, Retsinas, Maragos: Feather: An Elegant Solution to Effective DNN Sparsification, BMVC 2023.

    q = sign(w) * (|w|^p - T^p)^(1/p) where |w| > T, else 0;      dL/dw = dL/dq * (1 where |w| > T, else theta)

theta is 1/2 for final sparsities above 0.95, else 1. The schedule fills the first half of the training. Deviation:
the published code takes the threshold before each forward, here it is taken after each step; the same but for one.
"""

from dataclasses import dataclass

from torch import Tensor

from fxprune.errors import TargetError
from fxprune.is_number import is_number
from fxprune.methods.base import Method
from fxprune.methods.gate import power_gate


@dataclass(frozen=True)
class Feather(Method):
    """Feather with the power p: 1 is soft, 3 the published one, infinity hard. Raises TargetError for p < 1."""

    p: float = 3.0

    def __post_init__(self) -> None:
        if not is_number(self.p) or not self.p >= 1:
            raise TargetError(f"Feather(p={self.p!r}): the power is 1 (soft) or more; the published one is 3")
        object.__setattr__(self, "p", float(self.p))  # 3 is written as 3.0 is, also in a state dict

    def gate(self, magnitude: Tensor, threshold: Tensor) -> Tensor:
        return power_gate(magnitude, threshold, self.p)

    def closed_gradient(self, sparsity: float) -> float:
        return 0.5 if sparsity > 0.95 else 1.0

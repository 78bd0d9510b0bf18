"""ST-3: how are weights thresholded softly and rescaled, with the gradient straight through?

Vanderschueren, De Vleeschouwer: Are Straight-Through gradients and Soft-Thresholding all you need for Sparse
Training?, WACV 2023.

    q = c * sign(w) * (|w| - tau) where |w| > tau, else 0;        dL/dw = dL/dq, without c and without the mask
    c = 1.01 / (s + 0.01),      s = (mean |w| of what stays + 1e-6) / (mean |w| + 1e-6)

per output channel. A whole output channel has s = 1, so at channel granularity c is one number a layer; there scores
are divided by their layer's mean anyway, and sigma changes nothing. The published schedule runs from epoch 5 to 80 of
160. Deviation: no ten epochs with a fixed mask at the end.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from fxprune.errors import TargetError
from fxprune.methods.base import Method
from fxprune.methods.gate import power_gate
from fxprune.methods.schedule import Cubic


@dataclass(frozen=True)
class ST3(Method):
    """ST-3, or ST-3-sigma: with `sigma` a layer's magnitudes are divided by 1 / sqrt(sum of its weight's sizes)."""

    schedule: Cubic = field(default=Cubic(5 / 160, 0.5), kw_only=True)
    rescales: ClassVar[bool] = True
    sigma: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.sigma, bool):
            raise TargetError(f"ST3(sigma={self.sigma!r}): give True, for layers on one scale, or False")

    def gate(self, magnitude: Tensor, threshold: Tensor) -> Tensor:
        return power_gate(magnitude, threshold, 1.0)

    def scale(self, weight: Tensor) -> float:
        return 1 / math.sqrt(sum(weight.shape)) if self.sigma else 1.0

    def rescale(self, kept: Tensor, total: Tensor) -> Tensor:
        return 1.01 / ((kept + 1e-6) / (total + 1e-6) + 0.01)

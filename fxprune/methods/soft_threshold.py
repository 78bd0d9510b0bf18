"""STR: how does every layer learn its own threshold?

Kusupati et al.: Soft Threshold Weight Reparameterization for Learnable Sparsity, ICML 2020.

    q = sign(w) * relu(|w| - sigmoid(a))        with gradients for w and for the layer's a

a starts far below zero, and weight decay on it is what raises the threshold: so decay, start and the length of the
training say how sparse the model becomes, and there is no target.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from fxprune.errors import TargetError
from fxprune.is_number import is_number
from fxprune.methods.base import Kind, Method


@dataclass(frozen=True)
class STR(Method):
    """Soft threshold reparameterization; `start` is the first value of every layer's a."""

    start: float = -8.0
    granularities: ClassVar[tuple[str, ...]] = ("weight",)
    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not is_number(self.start) or not math.isfinite(self.start):
            raise TargetError(
                f"STR(start={self.start!r}): give the number whose sigmoid is the first threshold, as -8.0"
            )

    @property
    def takes_target(self) -> bool:
        return False

    def find_threshold(self) -> float | None:
        return 0.0

    def make_variable(self, weight: Tensor, shared: tuple[int, ...]) -> Tensor:
        return torch.full((1,), self.start, dtype=weight.dtype, device=weight.device)  # FSDP takes no scalars

    def mask(self, weight: Tensor, variable: Tensor, threshold: Tensor, progress: Tensor, training: bool) -> Tensor:
        masked: Tensor = _SoftThreshold.apply(weight, variable.sigmoid())
        return masked

    def options(self, kind: Kind, lr: float, weight_decay: float) -> dict[str, Any]:
        decays = kind in ("weight", "gate")
        return {"lr": lr, "weight_decay": weight_decay if decays else 0.0}


class _SoftThreshold(torch.autograd.Function):
    """q = sign(w) * relu(|w| - T), which keeps nothing for the backward but w and T; torch's own ops keep three copies.

    dw = dq where |w| > T, else 0;        dT = -sum sign(w) * dw
    """

    @staticmethod
    def forward(weight: Tensor, threshold: Tensor) -> Tensor:
        return weight - weight.clamp(-threshold, threshold)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        weight, threshold = ctx.saved_tensors  # type: ignore[attr-defined]
        gradient = torch.where(weight.abs() > threshold, gradient, 0.0)
        return gradient, -(weight.sign() * gradient).sum().view_as(threshold)

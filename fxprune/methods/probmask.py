"""ProbMask: how does every weight learn the probability with which it stays?

Zhou et al.: Effective Sparsification of Neural Networks with Global Sparsity Constraint, CVPR 2021.

    q = w * sigmoid((logit p + noise) / temperature),     noise = -ln(ln u / ln u'),  u and u' uniform
    temperature = (1 - 0.97 * progress)                   with gradients for w and p; p starts as ones

After each step of the optimizer p is projected onto {0 <= p <= 1, sum p <= (1 - s) N} over all layers, which is p <-
clip(p - v, 0, 1) with v by bisection; over each layer that has a share of its own, and with prices c, where weights
cost differently, onto {sum c p <= budget}, by p <- clip(p - v c, 0, 1). In eval mode the weights of the largest p are
kept, as many as the target says. Deviations: p starts at up to 1e-5 below one, so that those which no gradient reaches
are not equal, of which all would close or none; one noise a step, where the paper averages two; the mask at the end
holds the most probable weights instead of a sample; p has `lr_ratio` times the learning rate of the weights in
`param_groups`, where the paper takes Adam. Ten is for hundreds of epochs: while p is undecided the mask of the
evaluation is not that of the training, and a training of few steps decides nothing without a larger one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fxprune.errors import TargetError
from fxprune.is_number import is_number
from fxprune.methods.base import Kind, Method
from fxprune.methods.schedule import Cubic
from fxprune.methods.ties import make_ones_apart

_EPSILON = 1e-6
_COOLING = 0.97
_BISECTIONS = 40
_APART = 1e-5


@dataclass(frozen=True)
class ProbMask(Method):
    """ProbMask: a learnt probability for every weight. Raises TargetError where `lr_ratio` is not above 0."""

    lr_ratio: float = 10.0
    schedule: Cubic = field(default=Cubic(0.16, 0.6), kw_only=True)
    granularities: ClassVar[tuple[str, ...]] = ("weight",)
    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not is_number(self.lr_ratio) or not 0 < self.lr_ratio < math.inf:
            raise TargetError(
                f"ProbMask(lr_ratio={self.lr_ratio!r}): give how many times the learning rate of the weights the "
                "probabilities have; 10 is for hundreds of epochs"
            )

    def make_variable(self, weight: Tensor, shared: tuple[int, ...]) -> Tensor:
        return make_ones_apart(weight.shape, _APART, weight)

    def mask(self, weight: Tensor, variable: Tensor, threshold: Tensor, progress: Tensor, training: bool) -> Tensor:
        if not training:
            return weight * self.gate(variable.detach().to(threshold.dtype), threshold).to(weight.dtype)
        uniform = torch.rand(2, *variable.shape, device=variable.device, dtype=variable.dtype)
        first, second = uniform.clamp(_EPSILON, 1 - _EPSILON).log()
        p = variable.clamp(_EPSILON, 1 - _EPSILON)
        kept: Tensor = ((p.logit() - (first / second).log()) / (1 - _COOLING * progress).to(p.dtype)).sigmoid()
        return weight * kept

    @torch.no_grad()
    def after_step(self, variables: Sequence[Tensor], budget: float, prices: Sequence[int]) -> None:
        priced = [(p, price) for p, price in zip(variables, prices, strict=True) if price]

        def cost(shift: float) -> float:
            return sum(price * float((p - shift * price).clamp(0, 1).sum(dtype=torch.float64)) for p, price in priced)

        low = high = 0.0
        if cost(0.0) > budget:
            high = max(float(p.max()) / price for p, price in priced)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if cost(middle) > budget else (low, middle)
        for p, price in zip(variables, prices, strict=True):
            p.sub_(high * price).clamp_(0, 1)

    def options(self, kind: Kind, lr: float, weight_decay: float) -> dict[str, Any]:
        if kind == "gate":
            return {"lr": self.lr_ratio * lr, "weight_decay": 0.0}
        return super().options(kind, lr, weight_decay)

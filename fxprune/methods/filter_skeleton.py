"""Filter Skeleton: how does a filter learn its shape, stripe by stripe?

Meng et al.: Pruning Filter in Filter, NeurIPS 2020.

    q[n, c, i, j] = w[n, c, i, j] * I[n, i, j]      with gradients for both; I starts as ones

Before each step of the optimizer the gradient of I gets alpha * sign(I), and where |I| <= delta both I and its
gradient become zero; so do scale and shift of the batch norm behind a filter that has no stripe left and shares them
with none. I decays as the weights do: at the published alpha that, more than the L1 term, is what prunes. Deviations:
a stripe that the step itself moves below delta is left out at once, not one step later; and `delta=None` takes the
threshold from a target, where published results follow from alpha and delta alone. With it I starts at up to 5e-5 below
one, so that stripes which no gradient reaches are not equal.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fxprune.errors import TargetError
from fxprune.is_number import is_number
from fxprune.methods.base import Kind, Method
from fxprune.methods.ties import make_ones_apart

_APART = 5e-5


@dataclass(frozen=True)
class FilterSkeleton(Method):
    """Filter Skeleton with the strength `alpha` of its L1 term and the threshold `delta`, or None for a target's."""

    alpha: float = 1e-5
    delta: float | None = 0.01
    granularities: ClassVar[tuple[str, ...]] = ("stripe",)
    learns: ClassVar[bool] = True
    mutes_norms: ClassVar[bool] = True
    targeted: ClassVar[str] = "FilterSkeleton(delta=None)"

    def __post_init__(self) -> None:
        delta = 1.0 if self.delta is None else self.delta
        if not (is_number(self.alpha) and self.alpha >= 0 and is_number(delta) and delta > 0):
            raise TargetError(
                f"FilterSkeleton(alpha={self.alpha!r}, delta={self.delta!r}): the strength is 0 or more, the threshold "
                "more than 0; the published ones are 1e-5 and 0.01 to 0.05"
            )

    @property
    def takes_target(self) -> bool:
        return self.delta is None

    def find_threshold(self) -> float | None:
        return self.delta

    def make_variable(self, weight: Tensor, shared: tuple[int, ...]) -> Tensor:
        sizes = [1 if dim in shared else size for dim, size in enumerate(weight.shape)]
        return make_ones_apart(sizes, 0.0 if self.delta else _APART, weight)

    def mask(self, weight: Tensor, variable: Tensor, threshold: Tensor, progress: Tensor, training: bool) -> Tensor:
        return weight * torch.where(variable.abs() > threshold, variable, 0)

    @torch.no_grad()
    def before_step(self, variable: nn.Parameter, threshold: Tensor, scale: float | Tensor = 1.0) -> None:
        stays = variable.abs() > threshold
        if variable.grad is not None:
            variable.grad.add_(variable.sign() * (self.alpha * scale)).mul_(stays)
        variable.mul_(stays)

    def options(self, kind: Kind, lr: float, weight_decay: float) -> dict[str, Any]:
        return {"lr": lr, "weight_decay": weight_decay}

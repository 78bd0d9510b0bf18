"""Network Slimming and UCS: how do the scales of batch norm say which channels matter?

Liu et al.: Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017. UCS is the uniform scaling of
Zhuang et al.: Neuron-level Structured Pruning using Polarization Regularizer, NeurIPS 2020, in the form of Suteu, Guo
(2022).

    loss = task + strength * sum |gamma|        over all batch norms; then the channels of the smallest |gamma| go

in one go, when `fxprune.prune(prepared)` is called between two trainings, the second one without the penalty. Slimming
compares all layers with each other; UCS adds no penalty, and closes the same share of every layer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fxprune.errors import TargetError
from fxprune.methods.base import Kind, Method
from fxprune.methods.scores import Slice, norm_scores


@dataclass(frozen=True)
class NetworkSlimming(Method):
    """Network Slimming with the strength of its L1 term."""

    strength: float = 1e-4
    granularities: ClassVar[tuple[str, ...]] = ("channel",)
    one_shot: ClassVar[bool] = True
    scored_by: ClassVar[Literal["all", "norms"]] = "norms"

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise TargetError(f"{type(self).__name__}(strength={self.strength}): 0 or more; usual are 1e-5 and 1e-4")

    @property
    def remembers(self) -> bool:
        return True

    def closed_gradient(self, sparsity: float) -> float:
        return 0.0

    def penalty(self, scales: Iterable[Tensor]) -> Tensor | None:
        return self.strength * torch.stack([scale.abs().sum() for scale in scales]).sum()

    def score_units(self, parameters: Mapping[str, Tensor], slices: Sequence[Slice], units: int) -> Tensor:
        return norm_scores(parameters, slices, units, torch.abs)

    def options(self, kind: Kind, lr: float, weight_decay: float) -> dict[str, Any]:
        return {"lr": lr, "weight_decay": weight_decay}


@dataclass(frozen=True)
class UCS(NetworkSlimming):
    """Uniform channel scaling: the same share of every layer, by |gamma|."""

    strength: float = 0.0
    uniform: ClassVar[bool] = True

    def penalty(self, scales: Iterable[Tensor]) -> Tensor | None:
        return None

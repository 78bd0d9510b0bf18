"""Network Slimming and UCS: how do the scales of batch norm say which channels matter?

Liu et al.: Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017. UCS is the uniform scaling of
Zhuang et al.: Neuron-level Structured Pruning using Polarization Regularizer, NeurIPS 2020, in the form of Suteu, Guo
(2022).

    loss = task + strength * sum |gamma|        over all batch norms; then the channels of the smallest |gamma| go

in one go, when `fxprune.prune(prepared)` is called between two trainings, the second one without the penalty. Slimming
compares all layers with each other; UCS adds no penalty, and closes the same share of every layer.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxprune.methods.norm_scales import NormScales


@dataclass(frozen=True)
class NetworkSlimming(NormScales):
    """Network Slimming with the strength of its L1 term."""

    def penalty(self, scales: Iterable[Tensor]) -> Tensor | None:
        return self.strength * torch.stack([scale.abs().sum() for scale in scales]).sum()


@dataclass(frozen=True)
class UCS(NormScales):
    """Uniform channel scaling: the same share of every layer, by |gamma|."""

    strength: float = 0.0
    uniform: ClassVar[bool] = True

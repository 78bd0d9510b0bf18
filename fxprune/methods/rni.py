"""RNI: how do neurons recede whose importance is small, while the others are left alone?

Suteu, Guo: Receding Neuron Importances for Structured Pruning, 2022.

    y = sigmoid(g) * (x - mean) / sqrt(var + eps),      no shift;   g starts as N(0, 1)
    loss = task + strength * sum s (1 - ln s),          s = sigmoid(g + shift), over all batch norms

so that dloss/dg = -strength * s (1 - s) ln s: with a larger shift only the small ones are pushed. `prepare` turns every
batch norm into such a one, `convert` back into an ordinary one. The channels of the smallest sigmoid(g) go in one go,
when `fxprune.prune(prepared)` is called between two trainings, the second one without the penalty.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune.errors import FxpruneError, TargetError
from fxprune.is_number import is_number
from fxprune.methods.base import Kind
from fxprune.methods.norm_scales import NormScales


@dataclass(frozen=True)
class RNI(NormScales):
    """Receding neuron importances with the strength and the shift of the regulariser."""

    shift: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.shift) or not math.isfinite(self.shift):
            raise TargetError(f"RNI(shift={self.shift!r}): give a number; the published ones are 0 and 3")

    def importance(self, scale: Tensor) -> Tensor:
        return scale.sigmoid()

    def penalty(self, scales: Iterable[Tensor]) -> Tensor | None:
        terms = []
        for scale in scales:
            log = F.logsigmoid(scale + self.shift)
            terms.append((log.exp() * (1 - log)).sum())
        return self.strength * torch.stack(terms).sum()

    def adapt(self, model: nn.Module) -> None:
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.affine]
        if any(isinstance(module, nn.SyncBatchNorm) for module in norms):
            raise FxpruneError("RNI has no synchronised batch norm; prepare the model with its ordinary ones")
        refuse_tied(model, norms)
        refuse_opened(model, norms)
        with torch.random.fork_rng(devices=[]):
            for module in norms:
                module.__class__ = make_receding(type(module))
                nn.init.normal_(module.weight)
                nn.init.zeros_(module.bias).requires_grad_(False)  # stays zero, under its name in the state dict

    def restore(self, model: nn.Module) -> None:
        done: set[int] = set()  # several may share one weight
        for module in model.modules():
            if isinstance(module, _BatchNorm) and isinstance(module, Receding):
                object.__setattr__(module, "__class__", module.ordinary)
                if id(module.weight) not in done:
                    module.weight.data = module.weight.data.sigmoid()
                done.add(id(module.weight))
                module.bias.data = torch.zeros_like(module.bias)
                module.bias.requires_grad_(module.weight.requires_grad)

    def is_gate(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, Receding) and name == "weight"

    def options(self, kind: Kind, lr: float, weight_decay: float) -> dict[str, Any]:
        return {"lr": 10 * lr, "weight_decay": 0.0} if kind == "gate" else super().options(kind, lr, weight_decay)


def refuse_opened(model: nn.Module, norms: list[_BatchNorm]) -> None:
    """Raise FxpruneError where a graph computes a batch norm itself, past the module that is to be another one."""
    graphs = getattr(model, "graphs", ())
    read = {str(node.target) for graph in graphs for node in graph.nodes if node.op == "get_attr"}
    for path, module in model.named_modules():
        if module in norms and f"{path}.weight" in read:
            raise FxpruneError(
                f"{path} ({type(module).__name__}) is a batch norm with code of its own, or is used past its module, "
                "and RNI replaces the code of batch norms; take another method, such as fxprune.NetworkSlimming(), or "
                "make it of an nn.BatchNorm and a layer behind it"
            )


def refuse_tied(model: nn.Module, norms: list[_BatchNorm]) -> None:
    """Raise FxpruneError where the scale or shift of a batch norm is something else, too."""
    scales, shifts = {id(norm.weight) for norm in norms}, {id(norm.bias) for norm in norms}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            role = name if isinstance(module, _BatchNorm) else ""
            if (id(parameter) in scales and role != "weight") or (id(parameter) in shifts and role != "bias"):
                raise FxpruneError(
                    f"{path + '.' if path else ''}{name} is a batch norm's scale or shift, too, and RNI makes "
                    "something else of those: give each a parameter of its own, or take another method, such as "
                    "fxprune.NetworkSlimming()"
                )


class Receding:
    """Marks a batch norm whose scale is the sigmoid of its weight."""

    ordinary: type[nn.Module]


def make_receding(kind: type[_BatchNorm]) -> type[_BatchNorm]:
    """Make the class of such batch norms of one kind."""

    def forward(self: Any, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        count = self.num_batches_tracked if self.momentum is None and self.training else 1
        average = 1.0 / float(count) if self.momentum is None else self.momentum
        kept = not self.training or self.track_running_stats
        mean, variance = (self.running_mean, self.running_var) if kept else (None, None)
        by_batch = self.training or self.running_mean is None
        return F.batch_norm(x, mean, variance, self.weight.sigmoid(), self.bias, by_batch, average, self.eps)

    def load(self: Any, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        scale, shift = (torch.as_tensor(state_dict.get(prefix + name, 0)) for name in ("weight", "bias"))
        if bool(shift.any()) or bool((scale == 1).all()):  # trained, or as new
            rest[-1].append(
                f"{prefix[:-1]}: this is the state of an ordinary batch norm; RNI's scale is the sigmoid of its weight "
                "and it has no shift, so leave out the batch norms' weights and biases, and load with strict=False"
            )
        kind._load_from_state_dict(self, state_dict, prefix, *rest)

    members = {"forward": forward, "_load_from_state_dict": load, "ordinary": kind}
    return type(f"Receding{kind.__name__}", (Receding, kind), members)

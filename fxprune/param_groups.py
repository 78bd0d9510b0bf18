"""What should an optimizer do to which parameters of a prepared model?"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from fxprune.errors import FxpruneError
from fxprune.is_number import is_number
from fxprune.masks import Masks
from fxprune.methods.base import Kind

NORMS = (_NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def param_groups(prepared: nn.Module, *, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Give the parameter groups of a prepared model for any optimizer, with what its method asks for.

    Each parameter is in one group, and each group has `params`, `lr`, `weight_decay` and its `name`: "weight", "norm"
    (scales and shifts of norms), "bias", or "gate" (what the method learns beside the weights, and RNI's scales). By
    default norms and biases do not decay; the methods' docstrings say what else they ask for.

    Raises FxpruneError where the model does not come from `fxprune.prepare`, or for a rate or decay that is none.
    """
    for option, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not is_number(value) or not value >= 0:
            raise FxpruneError(f"param_groups({option}={value!r}): give a number of 0 or more")
    masks = getattr(prepared, "fxprune", None)
    if not isinstance(masks, Masks):
        raise FxpruneError(f"{type(prepared).__name__} has no masks; give the model that fxprune.prepare returned")
    kinds: dict[int, Kind] = {}
    for path, module in prepared.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_gate = path.startswith("fxprune.") or masks.method.is_gate(module, name)
            kinds.setdefault(id(parameter), "gate" if is_gate else find_kind(module, name, parameter))
    groups: dict[Kind, list[nn.Parameter]] = {}
    for parameter in prepared.parameters():
        groups.setdefault(kinds[id(parameter)], []).append(parameter)
    options = {kind: masks.method.options(kind, lr, weight_decay) for kind in groups}
    return [{"params": params, **options[kind], "name": kind} for kind, params in groups.items()]


def find_kind(module: nn.Module, name: str, parameter: nn.Parameter) -> Kind:
    """Say of what kind a parameter is that is no gate."""
    if isinstance(module, NORMS):
        return "norm"
    return "bias" if "bias" in name or parameter.dim() < 2 else "weight"

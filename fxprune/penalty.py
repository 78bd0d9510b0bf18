"""What does the method add to the training's loss?"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune.errors import FxpruneError
from fxprune.masks import Masks


def penalty(prepared: nn.Module) -> Tensor:
    """Give the method's penalty on the prepared model, 0-dimensional; a zero on its device for methods without one."""
    masks = getattr(prepared, "fxprune", None)
    if not isinstance(masks, Masks):
        raise FxpruneError(f"{type(prepared).__name__} has no masks; give the model that fxprune.prepare returned")
    term = masks.method.penalty(_norm_scales(prepared))
    return torch.zeros((), device=masks.threshold.device) if term is None else term


def _norm_scales(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.affine:
            yield module.weight

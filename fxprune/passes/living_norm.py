"""What a layer norm computes while channels are being pruned: statistics over the living channels only."""

from __future__ import annotations

import torch
from torch import Tensor


def living_layer_norm(x: Tensor, is_open: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise `x`, [..., channels], over the channels where `is_open`, [channels], is 1.

        mean = sum(x * open) / n,   var = sum((x - mean)^2 * open) / n,   n = sum(open)

    What the closed channels give is finite and read by nobody. With all channels open it is layer norm.
    """
    is_open = is_open.to(x.dtype)
    count = is_open.sum().clamp(min=1)
    mean = (x * is_open).sum(-1, keepdim=True) / count
    centred = x - mean
    variance = (centred.square() * is_open).sum(-1, keepdim=True) / count
    result = centred * torch.rsqrt(variance + eps)
    if weight is not None:
        result = result * weight
    return result if bias is None else result + bias

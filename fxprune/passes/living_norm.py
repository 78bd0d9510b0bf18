"""What a layer norm computes while channels are being pruned: statistics over the living channels only."""

from __future__ import annotations

import torch
from torch import Tensor, fx


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


def use_living_norm(node: fx.Node, is_open: str) -> None:
    """Let a layer norm of a graph take its statistics over the channels that the buffer `is_open` marks."""
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    with node.graph.inserting_before(node):
        mask = node.graph.get_attr(is_open)
    node.target = living_layer_norm
    node.args = (given["input"], mask, given.get("weight"), given.get("bias"), given.get("eps", 1e-5))
    node.kwargs = {}

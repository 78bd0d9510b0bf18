"""Where do elements stand after they were moved? Tensors of numbered elements go through the moves and tell."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.passes.analyse import run_code
from fxprune.shadow.tensor import ShadowTensor


def is_table(t: Any) -> bool:
    """Whether a tensor is a table of indexes or a mask, made without an input of the model."""
    return isinstance(t, ShadowTensor) and t.is_real and not t.is_floating_point()


def number(shape: tuple[int, ...], start: int) -> Tensor:
    """Number the elements of a tensor, from 1 + start."""
    return torch.arange(start + 1, start + 1 + torch.Size(shape).numel()).view(shape)


def step(node: fx.Node, tensors: dict[fx.Node, Any], others: dict[fx.Node, Any], model: nn.Module) -> Any:
    """Run one node on plain tensors; what is no tensor is taken as another run left it."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: tensors[n] if n in tensors else others[n])
    return run_code(node, args, kwargs, model)


def find_selection(have: list[Tensor], wanted: Tensor, dim: int) -> Tensor | None:
    """Find the index along `dim` that takes `wanted` out of the joined tensors, -1 for zeros; None if there is none."""
    shapes = [list(t.shape) for t in (*have, wanted)]
    for shape in shapes:
        shape[dim] = 1
    if any(shape != shapes[-1] for shape in shapes) or not wanted.numel():
        return None
    joined = torch.cat(have, dim)
    first = (slice(0, 1),) * dim + (slice(None),) + (slice(0, 1),) * (wanted.dim() - dim - 1)
    line, goal = joined[first].flatten().contiguous(), wanted[first].flatten().contiguous()
    order = line.argsort()
    place = torch.searchsorted(line[order], goal).clamp(max=len(line) - 1)
    index = torch.where(line[order][place] == goal, order[place], -1)
    if not (index >= 0).any() or not bool(((index >= 0) | (goal == 0)).all()):
        return None
    padded = F.pad(joined, [0, 0] * (wanted.dim() - 1 - dim) + [0, 1])
    taken = padded.index_select(dim, torch.where(index < 0, joined.size(dim), index))
    return index if torch.equal(taken, wanted) else None

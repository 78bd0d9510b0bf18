"""How a rule reads one dimension of a shadow: the ids and the constants along it."""

from __future__ import annotations

import torch
from torch import Tensor

from fxprune.shadow.ids import IdTable
from fxprune.shadow.tensor import Constant, Ids, ShadowTensor, constant_of, varying


def align(t: Tensor, to: int) -> Tensor:
    """View a compressed tensor as one of `to` dimensions, aligned at the right."""
    return t.reshape([1] * (to - t.dim()) + list(t.shape))


def align_shape(shape: torch.Size, rank: int) -> list[int]:
    return [1] * (rank - len(shape)) + list(shape)


def channel_ids(table: IdTable, ids: Ids, dim: int, size: int) -> Tensor:
    """The ids along one dimension, [size]; 0 (not a channel) where there are none.

    Those of two dimensions that were flattened into this one are tied.
    """
    found = [t.reshape(-1) for t in ids if varying(t) == [dim]]
    for other in found[1:]:
        table.unite(found[0], other)
    return found[0] if found else torch.zeros(size, dtype=torch.int64)


def channel_constant(t: ShadowTensor, dim: int, size: int) -> Constant:
    """What is known of each channel, [size] each; a channel that is not uniform is not known."""
    nothing = Constant(torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.bool))
    constant = constant_of(t)
    if constant is None or t.dim() <= dim:
        return nothing
    aligned = [align(c, t.dim()) for c in constant]
    if any(d != dim for c in aligned for d in varying(c)):
        order = [dim, *(d for d in range(t.dim()) if d != dim)]
        value, known = (c.expand(t.shape).permute(order).flatten(1) for c in aligned)
        same = known.all(1) & (value == value[:, :1]).all(1)
        return Constant(value[:, 0].double(), same)
    value, known = (c.reshape(-1).expand(size) for c in aligned)
    return Constant(torch.where(known, value.double(), 0.0), known)


def take_channels(table: IdTable, t: ShadowTensor, dim: int, free: set[int], reason: str) -> tuple[Tensor, Ids]:
    """Split a tensor's ids into those along `dim`, [size], and the rest, which may vary along `free` only.

    Ids that vary along `dim` and others are tied across the others; the channels are 0 where there are none.
    """
    channels: Tensor | None = None
    rest = []
    for ids in t.ids:
        if dim not in varying(ids):
            rest.append(ids)
            continue
        along = table.collapse(ids, {dim}, reason)
        if along is not None and channels is not None:
            table.unite(channels, along)
        channels = along if channels is None else channels
    flat = torch.zeros(t.size(dim), dtype=torch.int64) if channels is None else channels.reshape(-1)
    return flat, table.collapse_all(tuple(rest), free, reason)

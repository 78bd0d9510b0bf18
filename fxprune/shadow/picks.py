"""What ops do to the shadows that take or put elements where a tensor of the run says: gather, scatter and their kin.

Which elements these are depends on the input, so along the dimensions of the indexes nothing is a channel. Along all
others everything stays where it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fxprune.shadow.channels import align, align_shape
from fxprune.shadow.elements import pin_inputs, tie_operands, unknown
from fxprune.shadow.ids import IdTable
from fxprune.shadow.tensor import Call, Constant, Ids, ShadowTensor, compress, constant_of, varying

aten = torch.ops.aten

BY_ELEMENT = {aten.gather, aten.scatter, aten.scatter_add, aten.scatter_reduce}
"""Ops that have an index for every element: it has the dimensions of the tensor, and its channels."""


def is_pick(call: Call) -> bool:
    """Whether an op selects by indexes that depend on an input of the model."""
    if call.op.overloadpacket not in (aten.index, aten.index_select):
        return False
    return any(not t.is_real for t in call.tensors[1:])


def pick_ids(table: IdTable, call: Call) -> list[Ids]:
    """Follow what takes elements: `index_select`, `gather`, and indexing by a tensor."""
    source, *indexes = call.tensors
    dims = find_indexed(call)
    if dims is None:
        return pin_inputs(table, call)
    kept = keep_beside(table, call, source, dims)
    taken = [take(call, t) for t in kept]
    if call.functional not in BY_ELEMENT:
        for index in indexes:
            table.pin(index.ids, "a table of indexes")
        return [tuple(taken)]
    shape = list(call.outputs[0].shape)
    told = keep_beside(table, call, indexes[0], dims)
    return [tie_operands(table, [(taken, shape), (told, shape)], call.functional.__name__)]


def pick_constants(call: Call) -> list[Constant | None]:
    """What is known of all along the dimensions of the indexes is known of those that are taken."""
    dims, constant = find_indexed(call), constant_of(call.tensors[0])
    if dims is None or constant is None:
        return unknown(call)
    value, known = (align(part, call.tensors[0].dim()) for part in constant)
    if dims & {*varying(value), *varying(known)}:
        return unknown(call)
    return [Constant(take(call, value), take(call, known))]


def put_ids(table: IdTable, call: Call) -> list[Ids]:
    """Follow what puts elements: `scatter`, `index_add`, `index_put` and writing by a tensor of indexes."""
    target, *others = call.tensors
    dims = find_indexed(call)
    if dims is None:
        return pin_inputs(table, call)
    if call.functional is aten.index_put:
        return put_by_index(table, call, dims)
    if call.functional not in BY_ELEMENT:
        table.pin(others[0].ids, "a table of indexes")
        others = others[1:]
    operands = [(keep_beside(table, call, t, dims), list(t.shape)) for t in (target, *others)]
    sizes = {tuple(1 if d in dims else size for d, size in enumerate(shape)) for _, shape in operands}
    if len(sizes) > 1:  # only a corner is written
        return pin_inputs(table, call)
    return [tie_operands(table, operands, call.functional.__name__)]


def put_by_index(table: IdTable, call: Call, dims: set[int]) -> list[Ids]:
    """Follow `index_put`: what is written has the channels of what an index would read there."""
    target, places, values = call.args[:3]
    indexes = [t for t in places if t is not None]
    for index in indexes:
        table.pin(index.ids, "a table of indexes")
    kept = keep_beside(table, call, target, dims)
    if values.numel() == 1:
        return [tuple(kept)]
    if any(map(is_mask, indexes)):  # nobody knows how many there are
        return pin_inputs(table, call)
    read = aten.index.Tensor(torch.empty(target.shape, device="meta"), lower(places))
    if values.dim() > read.dim():
        return pin_inputs(table, call)
    taken = [compress(aten.index.Tensor(t.expand(target.shape), lower(places))) for t in kept]
    given = [align(t, read.dim()) for t in values.ids], align_shape(values.shape, read.dim())
    tie_operands(table, [(taken, list(read.shape)), given], call.functional.__name__)
    return [tuple(kept)]


def is_mask(index: Tensor) -> bool:
    """Whether an index says of each element whether it is meant, for as many dimensions as it has."""
    return index.dtype in (torch.bool, torch.uint8)


def find_indexed(call: Call) -> set[int] | None:
    """Find the dimensions along which indexes choose; None where they are not known."""
    rank = call.tensors[0].dim()
    if call.functional not in (aten.index, aten.index_put):
        return {call.argument("dim") % rank} if rank else None
    found, dim = set(), 0
    for index in call.args[1]:
        width = index.dim() if index is not None and is_mask(index) else 1
        found |= set(range(dim, dim + width)) if index is not None else set()
        dim += width
    return found


def keep_beside(table: IdTable, call: Call, t: ShadowTensor, dims: set[int]) -> list[Tensor]:
    """Give a tensor's ids along all but these dimensions, those of whole rank; along them nothing is a channel."""
    beside = set(range(t.dim())) - dims
    reason = f"{call.functional.__name__} chooses among channels by a tensor that depends on an input"
    return [align(each, t.dim()) for each in table.collapse_all(t.ids, beside, reason)]


def take(call: Call, part: Tensor) -> Tensor:
    """Take those elements of a part of the source's shadow that the op takes first, wherever its indexes point."""
    source = call.tensors[0]
    rest: Any = lower((call.args[1:], call.kwargs))
    return compress(call.op(part.expand(source.shape), *rest[0], **rest[1]))


def lower(arguments: Any) -> Any:
    """Let tensors of indexes be zeros, which point to what is the same everywhere."""
    return tree_map_only(ShadowTensor, lambda t: torch.zeros(t.shape, dtype=torch.int64), arguments)

"""What ops that only move elements do to the shadows: the same op, run on the shadows themselves."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fxprune.shadow.channels import align
from fxprune.shadow.elements import keep_shared, pin_inputs, unknown
from fxprune.shadow.ids import IdTable
from fxprune.shadow.tensor import Call, Constant, Ids, ShadowTensor, compress, constant_of, varying
from fxprune.shadow.views import find_cut_by_size

aten = torch.ops.aten

CUTS = {aten.slice, aten.narrow, aten.split, aten.split_with_sizes, aten.chunk}
"""Ops that cut a tensor along a dimension; what varies along others stays, also of parts that are empty."""


def move_ids(table: IdTable, call: Call) -> list[Ids]:
    if any(not t.is_real for t in call.tensors[1:]):
        return pin_inputs(table, call)
    for index in call.tensors[1:]:
        table.pin(index.ids, "a table of indexes")
    source = call.tensors[0]
    for cut in find_cut_by_size(source.ids, source.shape, call.outputs[0].shape, call.sized_dims):
        table.pin(cut, "a view cuts them where the size of an input says")
    if repeats_alone(call) and not call.tensors[0].ids and not call.sized:
        return [repeat_ids(table, call.tensors[0].shape, call.outputs[0].shape)]
    moved = move(call, list(call.tensors[0].ids))
    for before, after in zip(call.tensors[0].ids, moved, strict=True):
        if call.sized and len(torch.cat([t.reshape(-1) for t in after]).unique()) < len(before.unique()):
            table.pin(before, "the size of an input says which of these are used")
    return [tuple(m[i] for m in moved) for i in range(len(call.outputs))]


def repeats_alone(call: Call) -> bool:
    """Whether an op repeats single elements, as expand does, and repeat where the sizes are 1."""
    if call.op.overloadpacket is not aten.repeat:
        return call.op.overloadpacket is aten.expand
    counts, shape = call.args[1], call.tensors[0].shape
    sizes = [1] * (len(counts) - len(shape)) + list(shape)
    return all(count == 1 or size == 1 for count, size in zip(counts, sizes, strict=True))


def repeat_ids(table: IdTable, before: torch.Size, after: torch.Size) -> Ids:
    """Give ids to copies of what has no channels, as of a mask for each head: each copy may go."""
    before = torch.Size([1] * (len(after) - len(before)) + list(before))
    return table.fresh([size if size != old else 1 for size, old in zip(after, before, strict=True)])


def move_constants(call: Call) -> list[Constant | None]:
    constant = constant_of(call.tensors[0])
    if constant is None or any(not t.is_real for t in call.tensors[1:]):
        return unknown(call)
    value = torch.where(constant.known, constant.value, torch.zeros((), dtype=constant.value.dtype))
    moved = move(call, [value, constant.known])
    return [Constant(v, k) for v, k in zip(*moved, strict=True)]


def move(call: Call, tensors: list[Tensor]) -> list[list[Tensor]]:
    """Run a movement op of one tensor on full tensors of its shape; return for each its compressed outputs."""
    source = call.tensors[0]

    def run(t: Tensor) -> list[Tensor]:
        swap = lambda leaf: t if leaf is source else leaf.held  # noqa: E731
        args, kwargs = tree_map_only(ShadowTensor, swap, (call.args, call.kwargs))
        kwargs = {key: value for key, value in kwargs.items() if key not in ("memory_format", "dtype", "device")}
        result = functional_op(call.op)(*args, **kwargs)
        return [compress(r) for r in ([result] if isinstance(result, Tensor) else result)]

    along = call.argument("dim") if call.op.overloadpacket in CUTS else None
    whole = [along is not None and align(t, source.dim()).size(along) == 1 for t in tensors]
    return [
        [t] * len(call.outputs) if stays else run(t.expand(source.shape))
        for t, stays in zip(tensors, whole, strict=True)
    ]


def functional_op(op: Any) -> Any:
    """Use reshape for view: ids held with stride 0 cannot always be viewed."""
    return {aten.view: torch.reshape, aten._unsafe_view: torch.reshape}.get(op.overloadpacket, op)


def concatenate(table: IdTable, call: Call) -> list[Ids]:
    """Follow cat and stack: ids that vary along the same other dimensions are one tensor of ids."""
    tensors, dim, stacked = joined(call)
    rank = call.outputs[0].dim()
    rows: list[dict[frozenset[int], Tensor]] = []
    operands = []
    for t in tensors:
        ids = [align(i, t.dim()) for i in t.ids]
        ids = [i.unsqueeze(dim) for i in ids] if stacked else ids
        shape = [*t.shape[:dim], 1, *t.shape[dim:]] if stacked else list(t.shape)
        operands.append((ids, [1 if d == dim else size for d, size in enumerate(shape)]))
    for index, (ids, shape) in enumerate(operands):  # what is joined along a dimension without channels
        apart = [i for i in ids if dim in varying(i)]
        beside = ([i for i in ids if dim not in varying(i)], shape)
        ids = keep_shared(table, [*operands[:index], beside, *operands[index + 1 :]], index, "cat") + apart
        rows.append({frozenset(varying(i)) - {dim}: i for i in ids})
    result = []
    for key in dict.fromkeys(key for row in rows for key in row):
        parts = [row.get(key, torch.zeros([1] * rank, dtype=torch.int64)) for row in rows]
        if all(part.size(dim) == 1 and varying(part) for part in parts):  # tokens beside tokens: one set of channels
            for part in parts[1:]:
                table.unite(part, parts[0])
            result.append(parts[0])
        else:
            result.append(join_parts(parts, tensors, dim, stacked))
    return [tuple(result)]


def concatenate_constants(call: Call) -> list[Constant | None]:
    """What is known of joined tensors: of each part what was known of it."""
    tensors, dim, stacked = joined(call)
    known = [constant_of(t) for t in tensors]
    if all(k is None for k in known) or any(t.numel() == 0 for t in tensors):  # at another size it may have elements
        return [None]
    nothing = Constant(torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.bool))
    rank = call.outputs[0].dim()
    columns = zip(*[k or nothing for k in known], strict=True)
    parts = []
    for column in columns:
        aligned = [align(c, t.dim()) for c, t in zip(column, tensors, strict=True)]
        aligned = [a.unsqueeze(dim) for a in aligned] if stacked else aligned
        aligned = [a.double() if a.dtype != torch.bool else a for a in aligned]
        parts.append(join_parts([align(a, rank) for a in aligned], tensors, dim, stacked))
    return [Constant(*parts)]


def joined(call: Call) -> tuple[list[ShadowTensor], int, bool]:
    """The tensors that cat or stack joins (empty ones of old style left out), the dimension, whether it is new."""
    stacked = call.op.overloadpacket is aten.stack
    tensors = [t for t in call.args[0] if stacked or t.dim() == call.outputs[0].dim()]
    return tensors, call.argument("dim", 0) % call.outputs[0].dim(), stacked


def join_parts(parts: list[Tensor], tensors: list[ShadowTensor], dim: int, stacked: bool) -> Tensor:
    """Concatenate compressed tensors, each only as large as any of them varies."""
    sizes = [max(p.size(d) for p in parts) for d in range(parts[0].dim())]
    full = []
    for part, tensor in zip(parts, tensors, strict=True):
        sizes[dim] = 1 if stacked else tensor.size(dim)
        full.append(part.expand(sizes))
    return compress(torch.cat(full, dim))


def pad_ids(table: IdTable, call: Call) -> list[Ids]:
    """Padding along the ids' own dimension makes new ids (a constant), along any other it repeats them."""
    source, pads = call.tensors[0], call.args[1]
    padded_dims = {-1 - i // 2 for i, p in enumerate(pads) if p}
    single = len(padded_dims) == 1 and all(source.size(d) == 1 for d in padded_dims)
    result = []
    for t in source.ids:
        t = align(t, source.dim())
        lone = single and t.numel() == 1  # the one channel that a smaller graph has left
        kept = [p if lone or t.size(-1 - i // 2) > 1 else 0 for i, p in enumerate(pads)]
        padded = F.pad(t, kept, value=-1)
        new = padded < 0
        padded[new] = table.take(int(new.sum()))
        result.append(padded)
    return [tuple(result)]


def pad_constants(call: Call) -> list[Constant | None]:
    """The padding is known, the rest as before; what differs at the border varies along that dimension."""
    source, pads = call.tensors[0], call.args[1]
    fill = call.argument("value", 0)
    constant = constant_of(source)
    if constant is None:
        constant = Constant(torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.bool))
    value, known = (c.expand(source.shape) for c in constant)
    if call.sized:  # another size may have padding where this one has none
        known = known & (value == fill)
    value = torch.where(known, value, torch.zeros((), dtype=value.dtype))
    return [Constant(compress(F.pad(value, pads, value=fill)), compress(F.pad(known, pads, value=True)))]

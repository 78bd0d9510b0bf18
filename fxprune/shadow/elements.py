"""What element-wise ops do to the shadows: position by position, broadcasting included."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fxprune.shadow.channels import align, align_shape
from fxprune.shadow.ids import IdTable
from fxprune.shadow.tensor import Call, Constant, Ids, ShadowTensor, compress, constant_of, varying


def tie_elements(table: IdTable, call: Call) -> list[Ids]:
    """Unite the operands' ids position by position; what is broadcast along a dimension takes no part there."""
    rank = max((out.dim() for out in call.outputs), default=0)
    operands = [([align(i, rank) for i in t.ids], align_shape(t.shape, rank)) for t in call.tensors]
    return [tie_operands(table, operands, call.op.overloadpacket.__name__)] * len(call.outputs)


def tie_operands(table: IdTable, operands: list[tuple[list[Tensor], list[int]]], name: str) -> Ids:
    """Unite the ids of aligned operands, (ids, shape) each, and return those of the result."""
    operands = [(keep_shared(table, operands, i, name), shape) for i, (_, shape) in enumerate(operands)]
    keep_heads(table, [ids for ids, _ in operands], name)
    result: list[tuple[int, Tensor]] = []  # one operand's ids of two flattened dimensions vary along the same
    for i, (ids, _) in enumerate(operands):
        for t in ids:
            dims = set(varying(t))
            if not dims and len(operands) > 1:
                table.pin(t, f"{name} broadcasts one channel over several")
            for o in [o for other_ids, _ in operands[:i] for o in other_ids]:
                if dims & set(varying(o)):
                    table.unite(t, o)
            if all(j == i or set(varying(r)) != dims for j, r in result):
                result.append((i, t))
    found = tuple(t for _, t in result)
    table.make_rectangular(found)
    return found


def keep_heads(table: IdTable, operands: list[list[Tensor]], name: str) -> None:
    """Where heads of inner channels meet one value for each inner channel, let whole heads go and keep the inner ones.

    So turns by position and norms of queries leave heads apart. Ids are replaced in the lists.
    """
    for i, ids in enumerate(operands):
        for t in list(ids) if table.whole_heads else ():
            met = [(o, others) for j, others in enumerate(operands) if j != i for o in others if is_inner(t, o)]
            for o, others in met:
                whole = table.collapse(o, set(varying(o)) - set(varying(t)), name)
                others[[other is o for other in others].index(True)] = o if whole is None else whole
            if met:
                table.pin(t, f"{name}: whole heads go, and what they share stays")
                del ids[[other is t for other in ids].index(True)]


def is_inner(t: Tensor, o: Tensor) -> bool:
    """Whether `t` varies along some inner dimensions of heads `o`, whose own first dimension tells all heads apart."""
    dims = varying(o)
    if not dims or dims[0] in varying(t) or not set(varying(t)) < set(dims) or not varying(t):
        return False
    heads = o.movedim(dims[0], 0).reshape(o.size(dims[0]), -1)[:, 0]
    return len(heads.unique()) == len(heads)


def keep_shared(table: IdTable, operands: list[tuple[list[Tensor], list[int]]], index: int, name: str) -> list[Tensor]:
    """Give the ids of one operand, tied across each dimension along which another one has size but no channels."""
    bare = {
        d
        for j, (ids, shape) in enumerate(operands)
        for d, size in enumerate(shape)
        if j != index and size > 1 and not any(t.size(d) > 1 for t in ids)
    }
    kept = []
    for t in operands[index][0]:
        free = set(varying(t)) - bare
        whole = table.collapse(t, free, f"{name} combines channels with a dimension that has none")
        kept += [] if whole is None else [whole]
    return kept


def compute_elements(call: Call) -> list[Constant | None]:
    """Run the op on what is known; the result is known where all operands are."""
    known = [constant_of(t) for t in call.tensors]
    if any(k is None for k in known) or not call.outputs:
        return [None] * len(call.outputs)
    constants = iter([k for k in known if k is not None])
    args, kwargs = tree_map_only(ShadowTensor, lambda t: next(constants).value, (call.args, call.kwargs))
    if kwargs.get("dtype") is not None:
        kwargs = {**kwargs, "dtype": torch.float64 if kwargs["dtype"].is_floating_point else kwargs["dtype"]}
    functional = call.op
    if call.op._schema.is_mutable:
        args = (args[0].clone().expand(call.outputs[0].shape).clone(), *args[1:])
    value = functional(*args, **kwargs)
    certain = torch.ones((), dtype=torch.bool)
    for k in known:
        if k is not None:
            certain = certain & k.known
    outputs = [value] if isinstance(value, Tensor) else [v for v in value if isinstance(v, Tensor)]
    return [Constant(compress(v), compress(certain)) for v in outputs]


def keep_first(table: IdTable, call: Call) -> list[Ids]:
    """Give every output the ids of the first tensor."""
    return [call.tensors[0].ids] * len(call.outputs)


def keep_constant(call: Call) -> list[Constant | None]:
    return [constant_of(call.tensors[0])] * len(call.outputs)


def cast_constant(call: Call) -> list[Constant | None]:
    """What is known stays so in another type: whole numbers lose what is behind the point."""
    constant, dtype = constant_of(call.tensors[0]), call.outputs[0].dtype
    if constant is None:
        return [None]
    value = torch.where(constant.known, constant.value, torch.zeros((), dtype=constant.value.dtype))
    return [Constant(value.to(torch.float64 if dtype.is_floating_point else dtype), constant.known)]


def overwrite(table: IdTable, call: Call) -> list[Ids]:
    """Follow `copy_`: both are tied; what is written has the source's ids, or the old ones where it is broadcast."""
    tie_elements(table, call)
    target, source = call.args[:2]
    shape = align_shape(source.shape, target.dim())
    written = [align(t, target.dim()) for t in source.ids]
    kept = [t for t in target.ids if all(shape[d] < target.size(d) for d in varying(t)) and varying(t)]
    return [tuple(written + kept)]


def copy_constant(call: Call) -> list[Constant | None]:
    return [constant_of(call.args[1])]


def restride(table: IdTable, call: Call) -> list[Ids]:
    """Follow as_strided where every element stays, as pooling of channels_last images does it; else pin."""
    x, out = call.tensors[0], call.outputs[0]
    lengths = [[stride for size, stride in zip(t.shape, t.stride(), strict=True) if size > 1] for t in (x, out)]
    same = out.shape == x.shape and lengths[0] == lengths[1] and out.storage_offset() == x.storage_offset()
    return keep_first(table, call) if same else pin_inputs(table, call)


def fill_like(call: Call) -> list[Constant | None]:
    """Give the value of zeros_like and its kin, known whatever the input; `empty` and random kin are unknown."""
    name = call.op.overloadpacket.__name__
    value = {"zeros_like": 0.0, "ones_like": 1.0, "zero": 0.0, "new_zeros": 0.0, "new_ones": 1.0}.get(name)
    if value is None and name in ("full_like", "fill", "new_full"):
        given = call.args[2] if name == "new_full" else call.args[1]
        value = given if isinstance(given, (int, float)) else None
    if value is None:
        return unknown(call)
    return [Constant(torch.tensor(value, dtype=torch.float64), torch.ones((), dtype=torch.bool))]


def make_anew(table: IdTable, call: Call) -> list[Ids]:
    """Give fresh ids to what takes nothing but its type from a tensor, as new_zeros does."""
    return [table.fresh(out.shape) for out in call.outputs]


def unknown(call: Call) -> list[Constant | None]:
    """Nothing is known."""
    return [None] * len(call.outputs)


def pin_inputs(table: IdTable, call: Call) -> list[Ids]:
    """Anything else: correct, merely unpruned, and named in the report."""
    for t in call.tensors:
        table.pin(t.ids, f"no rule for {call.op}")
    return [()] * len(call.outputs)

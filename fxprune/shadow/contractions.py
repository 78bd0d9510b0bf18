"""What contractions do to the shadows: units are summed away along the contracted dimension, and united across it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxprune.shadow.channels import align, align_shape, channel_constant, channel_ids, take_channels
from fxprune.shadow.elements import tie_operands
from fxprune.shadow.ids import IdTable, Reader
from fxprune.shadow.tensor import Call, Constant, Ids, ShadowTensor, varying

aten = torch.ops.aten

MIXES = "a matrix product mixes a dimension of channels"
MIXES_BY_KERNEL = "convolution mixes a dimension of channels"
NO_CHANNELS = "a kernel has no channels along its height and width"


def convolve(table: IdTable, call: Call) -> list[Ids]:
    """Follow every kind of convolution: groups lose the same index each, depthwise ones whole groups."""
    x, weight, bias = call.args[:3]
    transposed, groups = call.argument("transposed"), call.argument("groups")
    kernel_rows, kernel_columns = (1, 0) if transposed else (0, 1)
    near = neighbour_dims(call)
    inputs, batch = take_channels(table, x, 1, {0, *pointwise_dims(call), *near}, MIXES_BY_KERNEL)
    for t in batch:
        if near & set(varying(t)):
            note = table.mix if len(varying(t)) == 1 else table.pin
            note(t.reshape(-1), MIXES_BY_KERNEL)
    rows, rest = take_channels(table, weight, kernel_rows, {kernel_columns}, NO_CHANNELS)
    own = columns = channel_ids(table, rest, kernel_columns, weight.size(kernel_columns))
    inputs = inputs.view(groups, -1)
    if transposed:
        columns, rows = columns.view(groups, -1), rows.repeat(groups).view(groups, -1)
        if groups > 1 and 1 in (columns.size(1), rows.size(1)):  # whole groups go, and with each its outputs
            table.pin(rows, "the outputs of a transposed convolution's group are removed as a whole")
            rows = columns[:, :1].expand_as(rows)
        kernel = weight.held.flatten(2).unflatten(0, (groups, -1)).transpose(1, 2)
    else:
        columns, rows = columns.expand(groups, -1), rows.view(groups, -1)
        kernel = weight.held.flatten(2).unflatten(0, (groups, -1))
    if groups > 1 and 1 in (inputs.size(1), rows.size(1)):
        table.unite(inputs, rows[:, :1])
        table.unite(rows, rows[:, :1])
        note_weight(table, weight, kernel_rows)
        if inputs.size(1) > 1:
            table.pin(columns[0], "a group with one output is removed as a whole")
    else:
        table.unite(inputs, columns)
        table.unite(columns, columns[:1])
        table.unite(rows, rows[:1])
        constant = channel_constant(x, 1, inputs.numel())
        add_reader(table, weight, own, inputs, rows, kernel, constant, kernel_columns, mixes_border(call))
    output = rows.reshape(-1)
    if isinstance(bias, ShadowTensor):
        table.unite(output, channel_ids(table, bias.ids, 0, bias.size(0)))
    return [(output.view([1, -1] + [1] * (x.dim() - 2)), *batch)]


def convolve_constants(call: Call) -> list[Constant | None]:
    """A filter whose weights are zero wherever its input is unknown leaves a constant, at the least its bias."""
    x, weight, bias = call.args[:3]
    if not weight.is_real or call.argument("transposed"):
        return [None]
    groups = call.argument("groups")
    kernel = weight.held.flatten(2).unflatten(0, (groups, -1))  # [groups, rows, columns, positions]
    value, known = (c.view(groups, 1, -1) for c in channel_constant(x, 1, x.size(1)))
    if mixes_border(call):
        known = known & (value == 0)
    return [contract_constant(kernel, value, known, bias, x.dim() - 2)]


def multiply(table: IdTable, call: Call) -> list[Ids]:
    """Follow mm, bmm and their kin with a bias; either factor may be a weight, or neither."""
    a, b = call.args[-2:]
    out = multiply_weight(table, a, b) or multiply_activations(table, a, b)
    if len(call.args) < 3:
        return [out]
    bias, rank = call.args[0], call.outputs[0].dim()
    operands = [
        ([align(t, rank) for t in bias.ids], align_shape(bias.shape, rank)),
        (list(out), list(call.outputs[0].shape)),
    ]
    return [tie_operands(table, operands, call.op.overloadpacket.__name__)]


def multiply_weight(table: IdTable, a: ShadowTensor, b: ShadowTensor) -> Ids | None:
    """Follow a product of an activation with one matrix of weights, at the right or at the left; None for others."""
    right = b.is_real and (not a.is_real or (b.source is not None and a.source is None))
    left = a.is_real and (not b.is_real or (a.source is not None and b.source is None))
    if left == right:
        return None
    weight, x = (b, a) if right else (a, b)
    rank = a.dim()
    if rank == 3 and weight.size(0) > 1 and weight.held.stride(0) != 0:
        return None  # a matrix for each element of the batch
    last, before = rank - 1, rank - 2
    contracted, free = (last, before) if right else (before, last)  # of the activation; of the weight, the other
    batch = set(range(rank - 2))
    inputs, rest = take_channels(table, x, contracted, {free, *batch}, MIXES)
    rows, kept = take_channels(table, weight, contracted, {free}, MIXES)
    columns = channel_ids(table, kept, free, weight.size(free))
    table.unite(inputs, columns)
    matrix = weight.held if rank == 2 else weight.held[0]
    kernel = (matrix.t() if right else matrix)[None, :, :, None]
    constant = channel_constant(x, contracted, x.size(contracted))
    add_reader(table, weight, columns, inputs[None], rows[None], kernel, constant, 0, False)
    shape = [1] * rank
    shape[contracted] = -1
    return (rows.view(shape), *rest)


def multiply_activations(table: IdTable, a: ShadowTensor, b: ShadowTensor) -> Ids:
    """Follow a product in which both factors are made of the input, or hold a matrix for each element of a batch.

    The elements of the batch are heads. Where heads meet inner channels that are summed away, whole heads
    may go (each factor loses the same), or else the same inner channel of every head.
    """
    rank = a.dim()
    last, before = rank - 1, rank - 2
    a_ids, b_ids = free_heads(table, a.ids, last, before, b.ids)
    b_ids, a_ids = free_heads(table, b_ids, before, last, a_ids)
    heads = rank == 3 and has_channels(a_ids, 0) and has_channels(b_ids, 0)
    inner = has_channels(a_ids, last) and has_channels(b_ids, before)
    if heads and any(0 in varying(t) and len(varying(t)) > 1 for t in a_ids + b_ids):
        heads, inner = table.whole_heads, inner and not table.whole_heads
    found: dict[str, list[Tensor]] = {"heads": [], "inner": [], "free": []}
    for ids, free, contracted in ((a_ids, before, last), (b_ids, last, before)):
        for t in ids:
            use_heads = heads and 0 in varying(t)
            summed = inner and contracted in varying(t)
            kept = table.collapse(t, {0} if use_heads else {contracted} if summed else {free}, MIXES)
            if kept is None:
                continue
            kind = "heads" if use_heads else "inner" if summed else "free"
            found[kind].append(kept.reshape(-1) if kind == "inner" else kept)
    for t in found["heads"][1:]:
        table.unite(t, found["heads"][0])
    for t in found["inner"][1:]:
        table.unite(t, found["inner"][0])
    for t in found["inner"][:1]:
        table.mix(t, "a product of two activations sums over channels")
    return (*found["heads"][:1], *found["free"])


def free_heads(table: IdTable, ids: Ids, contracted: int, free: int, others: Ids) -> tuple[Ids, Ids]:
    """Where heads in the rows of one factor meet inner channels that all share, let whole heads go; those stay.

    So queries whose heads are folded into the batch meet a table of relative positions. Gives both factors' ids; the
    other one is contracted along its dimension `free`.
    """
    heads = [t for t in ids if table.whole_heads and set(varying(t)) == {contracted, free}]
    shared = [t for t in others if varying(t) == [free]]
    if not heads or not shared:
        return ids, others
    for t in shared:
        table.pin(t, "a product of two activations: whole heads go, and what they share stays")
    kept = [table.collapse(t, {free}, MIXES) if any(t is h for h in heads) else t for t in ids]
    left = [t for t in others if not any(t is s for s in shared)]
    return tuple(t for t in kept if t is not None), tuple(left)


def has_channels(ids: Ids, dim: int) -> bool:
    """Whether some ids vary along a dimension."""
    return any(dim in varying(t) for t in ids)


def multiply_constants(call: Call) -> list[Constant | None]:
    bias = call.args[0] if call.op.overloadpacket is aten.addmm else None
    a, b = call.args[-2:]
    if a.is_real or not b.is_real:
        return [None]
    value, known = (c.view(1, 1, -1) for c in channel_constant(a, 1, a.size(1)))
    return [contract_constant(b.held.t()[None, :, :, None], value, known, bias, 0)]


def look_up(table: IdTable, call: Call) -> list[Ids]:
    """Follow an embedding: its columns are channels, its rows are the vocabulary."""
    weight, index = call.args[:2]
    table.pin(index.ids, "a table of indexes")
    columns, _ = take_channels(table, weight, 1, set(), "an embedding's rows are chosen by its input")
    return [(columns.view([1] * (call.outputs[0].dim() - 1) + [-1]),)]


def contracted_dim(table: IdTable, weight: ShadowTensor, columns: Tensor) -> int | None:
    """The dimension of the parameter behind a matrix that is contracted: `linear` reads it transposed.

    None where it is no single one, as for an einsum over two of them at once.
    """
    ids = table.parameters.get(str(weight.source), ())
    matching = [varying(t)[0] for t in ids if torch.equal(t.reshape(-1), columns)]
    return matching[0] if matching else None


def contract_constant(kernel: Tensor, value: Tensor, known: Tensor, bias: Any, spatial: int) -> Constant | None:
    """Sum constants over a kernel [groups, rows, columns, positions]; a zero weight hides an unknown input."""
    certain = find_certain(kernel, known).reshape(-1)
    if not certain.any():
        return None
    total = (kernel.sum(3, dtype=torch.float64) * torch.where(known, value, 0.0)).sum(2).reshape(-1)
    if isinstance(bias, ShadowTensor):
        total = total + bias.held.double()
    shape = [1, -1] + [1] * spatial
    return Constant(torch.where(certain, total, 0.0).view(shape), certain.view(shape))


def find_certain(kernel: Tensor, known: Tensor) -> Tensor:
    """The rows of a kernel that are zero wherever the input is unknown, bool [groups, rows]."""
    few = slice(0, None, 1 + kernel.size(2) // 64)  # columns, which rule out nearly every row of nearly every weight
    certain = ~((kernel[:, :, few] != 0).any(3) & ~known[:, :, few]).any(2)
    group, row = certain.nonzero(as_tuple=True)
    certain[group, row] = ~((kernel[group, row] != 0).any(2) & ~known[group, 0]).any(1)
    return certain


def add_reader(
    table: IdTable, weight: ShadowTensor, columns: Tensor, inputs: Tensor, rows: Tensor, kernel: Tensor,
    constant: Constant, dim: int, border: bool,
) -> None:  # fmt: skip
    """Note a contraction, with the weight's values where no input of the model reaches it.

    `dim` is the weight's own contracted dimension, whose ids are `columns`; the parameter's may be another.
    """
    assert table.node is not None
    real = kernel if weight.is_real else None
    shaped = Constant(*(c.view_as(inputs) for c in constant))
    own = dim if len(columns) == 1 else contracted_dim(table, weight, columns)
    dim = dim if own is None else own
    note_weight(table, weight, 1 - dim)
    source = None if own is None else weight.source
    table.readers.append(Reader(table.node, source, inputs, rows, real, dim, shaped, border))


def note_weight(table: IdTable, weight: ShadowTensor, rows: int) -> None:
    """Note a parameter that is the weight of a contraction."""
    if weight.source is not None:
        table.weights[weight.source] = rows


def pointwise_dims(call: Call) -> set[int]:
    """The dimensions along which a convolution works position by position, so that channels may lie along them."""
    sizes = zip(call.args[1].shape[2:], call.argument("stride"), call.argument("padding"), strict=False)
    return {dim for dim, (kernel, stride, padding) in enumerate(sizes, 2) if (kernel, stride, padding) == (1, 1, 0)}


def neighbour_dims(call: Call) -> set[int]:
    """The dimensions along which a convolution takes in neighbours and gives one result for each position.

    Channels that lie along them, as in efficient channel attention (ECA), keep their places: see `Mender.spread`.
    """
    x, weight = call.args[:2]
    out = call.outputs[0]
    if call.argument("transposed"):
        return set()
    alike = (d for d in range(2, x.dim()) if weight.size(d) > 1 and out.size(d) == x.size(d))
    return {d for d in alike if call.argument("stride")[d - 2] == 1}


def mixes_border(call: Call) -> bool:
    """Whether zeros outside of the input are summed in, so that a constant input gives no constant output."""
    return bool(call.argument("transposed")) or any(p > 0 for p in call.argument("padding"))

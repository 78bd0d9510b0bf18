"""What contractions do to the shadows: units are summed away along the contracted dimension, and united across it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxprune.shadow.channels import channel_constant, channel_ids, pin_other
from fxprune.shadow.elements import pin_inputs
from fxprune.shadow.ids import IdTable, Reader
from fxprune.shadow.tensor import Call, Constant, Ids, ShadowTensor, varying

aten = torch.ops.aten


def convolve(table: IdTable, call: Call) -> list[Ids]:
    """Follow every kind of convolution: groups lose the same index each, depthwise ones whole groups."""
    x, weight, bias = call.args[:3]
    transposed, groups = call.argument("transposed"), call.argument("groups")
    pin_other(table, x.ids, {0, 1}, "convolution mixes a dimension of channels")
    pin_other(table, weight.ids, {0, 1}, "a kernel has no channels along its height and width")
    inputs = channel_ids(x.ids, 1, x.size(1)).view(groups, -1)
    if transposed:
        columns = channel_ids(weight.ids, 0, weight.size(0)).view(groups, -1)
        rows = channel_ids(weight.ids, 1, weight.size(1)).repeat(groups).view(groups, -1)
        if groups > 1 and 1 in (columns.size(1), rows.size(1)):  # whole groups go, and with each its outputs
            table.pin(rows, "the outputs of a transposed convolution's group are removed as a whole")
            rows = columns[:, :1].expand_as(rows)
        kernel = weight.held.flatten(2).unflatten(0, (groups, -1)).transpose(1, 2)
    else:
        columns = channel_ids(weight.ids, 1, weight.size(1)).expand(groups, -1)
        rows = channel_ids(weight.ids, 0, weight.size(0)).view(groups, -1)
        kernel = weight.held.flatten(2).unflatten(0, (groups, -1))
    if groups > 1 and 1 in (inputs.size(1), rows.size(1)):
        table.unite(inputs, rows[:, :1])
        table.unite(rows, rows[:, :1])
        note_weight(table, weight, 1 if transposed else 0)
        if inputs.size(1) > 1:
            table.pin(columns[0], "a group with one output is removed as a whole")
    else:
        table.unite(inputs, columns)
        table.unite(columns, columns[:1])
        table.unite(rows, rows[:1])
        constant = channel_constant(x, 1, inputs.numel())
        add_reader(table, weight, inputs, rows, kernel, constant, 0 if transposed else 1, mixes_border(call))
    output = rows.reshape(-1)
    if isinstance(bias, ShadowTensor):
        table.unite(output, channel_ids(bias.ids, 0, bias.size(0)))
    batch = [t for t in x.ids if varying(t) == [0]]
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


def multiply_matrices(table: IdTable, call: Call) -> list[Ids]:
    """Follow mm and addmm, activation times weight; two activations, or a weight at the left, pin."""
    bias = call.args[0] if call.op.overloadpacket is aten.addmm else None
    a, b = call.args[-2:]
    if a.is_real or not b.is_real:
        return pin_inputs(table, call)
    inputs, columns = channel_ids(a.ids, 1, a.size(1)), channel_ids(b.ids, 0, b.size(0))
    rows = channel_ids(b.ids, 1, b.size(1))
    pin_other(table, a.ids, {0, 1}, "a matrix product mixes a dimension of channels")
    table.unite(inputs, columns)
    kernel = b.held.t()[None, :, :, None]
    constant = channel_constant(a, 1, a.size(1))
    add_reader(table, b, inputs[None], rows[None], kernel, constant, contracted_dim(b, columns), False)
    if isinstance(bias, ShadowTensor):
        table.unite(rows, channel_ids(bias.ids, bias.dim() - 1, bias.size(-1)))
    return [(rows.view(1, -1), *[t for t in a.ids if varying(t) == [0]])]


def multiply_batches(table: IdTable, call: Call) -> list[Ids]:
    """Follow bmm where the same weight is repeated over the batch, as `linear` does it for some memory layouts."""
    a, b = call.args
    if a.is_real or not b.is_real or b.held.stride(0) != 0:
        return pin_inputs(table, call)
    inputs, columns = channel_ids(a.ids, 2, a.size(2)), channel_ids(b.ids, 1, b.size(1))
    rows = channel_ids(b.ids, 2, b.size(2))
    pin_other(table, a.ids, {1, 2}, "a matrix product mixes a dimension of channels")
    table.unite(inputs, columns)
    constant = channel_constant(a, 2, a.size(2))
    kernel = b.held[0].t()[None, :, :, None]
    add_reader(table, b, inputs[None], rows[None], kernel, constant, contracted_dim(b, columns), False)
    return [(rows.view(1, 1, -1), *[t for t in a.ids if varying(t) == [1]])]


def multiply_constants(call: Call) -> list[Constant | None]:
    bias = call.args[0] if call.op.overloadpacket is aten.addmm else None
    a, b = call.args[-2:]
    if a.is_real or not b.is_real:
        return [None]
    value, known = (c.view(1, 1, -1) for c in channel_constant(a, 1, a.size(1)))
    return [contract_constant(b.held.t()[None, :, :, None], value, known, bias, 0)]


def look_up(table: IdTable, call: Call) -> list[Ids]:
    """Follow an embedding: its columns are channels, its rows are the vocabulary."""
    weight = call.args[0]
    pin_other(table, weight.ids, {1}, "an embedding's rows are chosen by its input")
    columns = channel_ids(weight.ids, 1, weight.size(1))
    return [(columns.view([1] * (call.outputs[0].dim() - 1) + [-1]),)]


def contracted_dim(weight: ShadowTensor, columns: Tensor) -> int:
    """The dimension of the parameter behind a matrix whose rows are contracted: `linear` reads it transposed."""
    root = weight
    while root.view_of is not None:
        root = root.view_of.parent
    matching = [varying(t)[0] for t in root.ids if len(varying(t)) == 1 and torch.equal(t.reshape(-1), columns)]
    return matching[0] if matching else 0


def contract_constant(kernel: Tensor, value: Tensor, known: Tensor, bias: Any, spatial: int) -> Constant | None:
    """Sum constants over a kernel [groups, rows, columns, positions]; a zero weight hides an unknown input."""
    touched = (kernel != 0).any(3) & ~known
    certain = ~touched.any(2).reshape(-1)
    if not certain.any():
        return None
    total = (kernel.sum(3, dtype=torch.float64) * torch.where(known, value, 0.0)).sum(2).reshape(-1)
    if isinstance(bias, ShadowTensor):
        total = total + bias.held.double()
    shape = [1, -1] + [1] * spatial
    return Constant(torch.where(certain, total, 0.0).view(shape), certain.view(shape))


def add_reader(
    table: IdTable, weight: ShadowTensor, inputs: Tensor, rows: Tensor, kernel: Tensor,
    constant: Constant, dim: int, border: bool,
) -> None:  # fmt: skip
    """Note a contraction, with the weight's values where no input of the model reaches it."""
    assert table.node is not None
    real = kernel if weight.is_real else None
    shaped = Constant(*(c.view_as(inputs) for c in constant))
    note_weight(table, weight, 1 - dim)
    table.readers.append(Reader(table.node, weight.source, inputs, rows, real, dim, shaped, border))


def note_weight(table: IdTable, weight: ShadowTensor, rows: int) -> None:
    """Note a parameter that is the weight of a contraction."""
    if weight.source is not None:
        table.weights[weight.source] = rows


def mixes_border(call: Call) -> bool:
    """Whether zeros outside of the input are summed in, so that a constant input gives no constant output."""
    return bool(call.argument("transposed")) or any(p > 0 for p in call.argument("padding"))

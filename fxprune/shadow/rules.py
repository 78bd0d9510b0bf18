"""What each ATen op does to the two shadows: THE table, and the families of rules that it names.

A rule has two halves. `ids(table, call)` returns the ids of each output and tells the table what the
op unites, reads or pins; `constants(call)` returns what is known of each output whatever the input.
An op that is not in the table is element-wise if PyTorch tags it so; anything else pins its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fxprune.shadow.ids import IdTable, Norm, Reader
from fxprune.shadow.tensor import Call, Constant, Ids, ShadowTensor, compress, constant_of, varying

aten = torch.ops.aten


class Rule(NamedTuple):
    """What an op does to ids and to constants, and whether it only moves elements."""

    ids: Callable[[IdTable, Call], list[Ids]]
    constants: Callable[[Call], list[Constant | None]]
    moves: bool = False


def find_rule(op: Any) -> Rule:
    """Look up the rule of an ATen op; an in-place op follows the rule of its functional form."""
    packet = op.overloadpacket
    if packet not in TABLE and packet.__name__.endswith("_"):
        packet = getattr(aten, packet.__name__[:-1], packet)
    if packet in TABLE:
        return TABLE[packet]
    if torch.Tag.pointwise in op.tags:
        return ELEMENTWISE
    return UNKNOWN


# Element-wise: position by position.


def tie_elements(table: IdTable, call: Call) -> list[Ids]:
    """Unite the operands' ids position by position; what is broadcast along a dimension takes no part there."""
    rank = max((out.dim() for out in call.outputs), default=0)
    operands = [([align(i, rank) for i in t.ids], align_shape(t.shape, rank)) for t in call.tensors]
    return [tie_operands(table, operands, call.op.overloadpacket.__name__)] * len(call.outputs)


def tie_operands(table: IdTable, operands: list[tuple[list[Tensor], list[int]]], name: str) -> Ids:
    """Unite the ids of aligned operands, (ids, shape) each, and return those of the result."""
    result: list[Tensor] = []
    for i, (ids, _) in enumerate(operands):
        for t in ids:
            dims = set(varying(t))
            if not dims and len(operands) > 1:
                table.pin(t, f"{name} broadcasts one channel over several")
            for other_ids, other_shape in operands[:i] + operands[i + 1 :]:
                covered = {d for o in other_ids for d in varying(o)}
                if any(other_shape[d] > 1 and d not in covered for d in dims):
                    table.pin(t, f"{name} combines channels with a dimension that has none")
            for o in [o for other_ids, _ in operands[:i] for o in other_ids]:
                if dims & set(varying(o)):
                    table.unite(t, o)
            if all(set(varying(r)) != dims for r in result):
                result.append(t)
    table.make_rectangular(tuple(result))
    return tuple(result)


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


def overwrite(table: IdTable, call: Call) -> list[Ids]:
    """Follow `copy_`: the source is broadcast over the destination, and both are tied."""
    return tie_elements(table, call)


def copy_constant(call: Call) -> list[Constant | None]:
    return [constant_of(call.args[1])]


def restride(table: IdTable, call: Call) -> list[Ids]:
    """Follow as_strided where only the memory layout changes, as pooling of channels_last images does it."""
    same = call.outputs[0].shape == call.tensors[0].shape
    return keep_first(table, call) if same else pin_inputs(table, call)


def fill_like(call: Call) -> list[Constant | None]:
    """Give the value of zeros_like and its kin, known whatever the input; `empty` and random kin are unknown."""
    name = call.op.overloadpacket.__name__
    value = {"zeros_like": 0.0, "ones_like": 1.0, "zero": 0.0}.get(name)
    if value is None and name in ("full_like", "fill"):
        value = call.args[1] if isinstance(call.args[1], (int, float)) else None
    if value is None:
        return unknown(call)
    return [Constant(torch.tensor(value, dtype=torch.float64), torch.ones((), dtype=torch.bool))]


def unknown(call: Call) -> list[Constant | None]:
    """Nothing is known."""
    return [None] * len(call.outputs)


# Data movement: the same op on the ids.


def move(call: Call, tensors: list[Tensor]) -> list[list[Tensor]]:
    """Run a movement op of one tensor on full tensors of its shape; return for each its compressed outputs."""
    source = call.tensors[0]

    def run(t: Tensor) -> list[Tensor]:
        swap = lambda leaf: t if leaf is source else leaf.inner  # noqa: E731
        args, kwargs = tree_map_only(ShadowTensor, swap, (call.args, call.kwargs))
        kwargs = {key: value for key, value in kwargs.items() if key not in ("memory_format", "dtype", "device")}
        result = functional_op(call.op)(*args, **kwargs)
        return [compress(r) for r in ([result] if isinstance(result, Tensor) else result)]

    return [run(t.expand(source.shape)) for t in tensors]


def functional_op(op: Any) -> Any:
    """Use reshape for view: ids held with stride 0 cannot always be viewed."""
    return {aten.view: torch.reshape, aten._unsafe_view: torch.reshape}.get(op.overloadpacket, op)


def move_ids(table: IdTable, call: Call) -> list[Ids]:
    if any(not t.is_real for t in call.tensors[1:]):
        return pin_inputs(table, call)
    moved = move(call, list(call.tensors[0].ids))
    return [tuple(m[i] for m in moved) for i in range(len(call.outputs))]


def move_constants(call: Call) -> list[Constant | None]:
    constant = constant_of(call.tensors[0])
    if constant is None or any(not t.is_real for t in call.tensors[1:]):
        return unknown(call)
    value = torch.where(constant.known, constant.value, torch.zeros((), dtype=constant.value.dtype))
    moved = move(call, [value, constant.known])
    return [Constant(v, k) for v, k in zip(*moved, strict=True)]


def keep_constant(call: Call) -> list[Constant | None]:
    return [constant_of(call.tensors[0])] * len(call.outputs)


def concatenate(table: IdTable, call: Call) -> list[Ids]:
    """Follow cat and stack: ids that vary along the same other dimensions are one tensor of ids."""
    tensors, dim, stacked = joined(call)
    rank = call.outputs[0].dim()
    rows: list[dict[frozenset[int], Tensor]] = []
    for t in tensors:
        ids = [align(i, t.dim()) for i in t.ids]
        ids = [i.unsqueeze(dim) for i in ids] if stacked else ids
        rows.append({frozenset(varying(i)) - {dim}: i for i in ids})
    result = []
    for key in dict.fromkeys(key for row in rows for key in row):
        parts = [row.get(key, torch.zeros([1] * rank, dtype=torch.int64)) for row in rows]
        result.append(join_parts(parts, tensors, dim, stacked))
    return [tuple(result)]


def concatenate_constants(call: Call) -> list[Constant | None]:
    tensors, dim, stacked = joined(call)
    known = [constant_of(t) for t in tensors]
    if all(k is None for k in known):
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
    result = []
    for t in source.ids:
        t = align(t, source.dim())
        kept = [p if t.size(-1 - i // 2) > 1 else 0 for i, p in enumerate(pads)]
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
    value = torch.where(known, value, torch.zeros((), dtype=value.dtype))
    return [Constant(compress(F.pad(value, pads, value=fill)), compress(F.pad(known, pads, value=True)))]


# Contractions: united along the contracted dimension.


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
        kernel = weight.inner.flatten(2).unflatten(0, (groups, -1)).transpose(1, 2)
    else:
        columns = channel_ids(weight.ids, 1, weight.size(1)).expand(groups, -1)
        rows = channel_ids(weight.ids, 0, weight.size(0)).view(groups, -1)
        kernel = weight.inner.flatten(2).unflatten(0, (groups, -1))
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


def convolve_constants(call: Call) -> list[Constant | None]:
    """A filter whose weights are zero wherever its input is unknown leaves a constant, at the least its bias."""
    x, weight, bias = call.args[:3]
    if not weight.is_real or call.argument("transposed"):
        return [None]
    groups = call.argument("groups")
    kernel = weight.inner.double().flatten(2).unflatten(0, (groups, -1))  # [groups, rows, columns, positions]
    value, known = (c.view(groups, 1, -1) for c in channel_constant(x, 1, x.size(1)))
    if mixes_border(call):
        known = known & (value == 0)
    return [contract_constant(kernel, value, known, bias, x.dim() - 2)]


def contract_constant(kernel: Tensor, value: Tensor, known: Tensor, bias: Any, spatial: int) -> Constant | None:
    """Sum constants over a kernel [groups, rows, columns, positions]; a zero weight hides an unknown input."""
    touched = (kernel != 0).any(3) & ~known
    certain = ~touched.any(2).reshape(-1)
    if not certain.any():
        return None
    total = (kernel.sum(3) * torch.where(known, value, 0.0)).sum(2).reshape(-1)
    if isinstance(bias, ShadowTensor):
        total = total + bias.inner.double()
    shape = [1, -1] + [1] * spatial
    return Constant(torch.where(certain, total, 0.0).view(shape), certain.view(shape))


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
    kernel = b.inner.t()[None, :, :, None]
    constant = channel_constant(a, 1, a.size(1))
    add_reader(table, b, inputs[None], rows[None], kernel, constant, contracted_dim(b, columns), False)
    if isinstance(bias, ShadowTensor):
        table.unite(rows, channel_ids(bias.ids, bias.dim() - 1, bias.size(-1)))
    return [(rows.view(1, -1), *[t for t in a.ids if varying(t) == [0]])]


def contracted_dim(weight: ShadowTensor, columns: Tensor) -> int:
    """The dimension of the parameter behind a matrix whose rows are contracted: `linear` reads it transposed."""
    return 1 if weight.view_of is not None and weight.stride(0) == 1 else 0


def multiply_constants(call: Call) -> list[Constant | None]:
    bias = call.args[0] if call.op.overloadpacket is aten.addmm else None
    a, b = call.args[-2:]
    if a.is_real or not b.is_real:
        return [None]
    value, known = (c.view(1, 1, -1) for c in channel_constant(a, 1, a.size(1)))
    return [contract_constant(b.inner.double().t()[None, :, :, None], value, known, bias, 0)]


# Pooling, normalisation, reduction.


def pool(table: IdTable, call: Call) -> list[Ids]:
    """Keep the ids of batch and channels; those along the pooled dimensions are pinned."""
    x = call.tensors[0]
    free = {d for d in range(x.dim()) if d < x.dim() - spatial_rank(call)}
    pin_other(table, x.ids, free, f"{call.op.overloadpacket.__name__} mixes a dimension of channels")
    return [tuple(t for t in x.ids if set(varying(t)) <= free)] * len(call.outputs)


def spatial_rank(call: Call) -> int:
    """How many trailing dimensions a pooling or resampling op works on: 2 for `max_pool2d`."""
    name = call.op.overloadpacket.__name__
    return next((n for n in (1, 2, 3) if f"{n}d" in name), call.tensors[0].dim() - 2)


def pool_constants(call: Call) -> list[Constant | None]:
    """A uniform channel stays as it is, unless zeros at the border are counted in."""
    constant = uniform(call.tensors[0], call.tensors[0].dim() - spatial_rank(call))
    if constant is None:
        return unknown(call)
    if call.op.overloadpacket in (aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d):
        padded = any(p > 0 for p in call.argument("padding")) and call.argument("count_include_pad", True)
        if padded or call.argument("ceil_mode") or call.argument("divisor_override") is not None:
            constant = Constant(constant.value, constant.known & (constant.value == 0))
    return [constant] + [None] * (len(call.outputs) - 1)


def uniform(t: ShadowTensor, dims: int) -> Constant | None:
    """What is known of a tensor that does not vary beyond its first `dims` dimensions."""
    constant = constant_of(t)
    if constant is None:
        return None
    if any(d >= dims for c in constant for d in varying(align(c, t.dim()))):
        value, known = (c.expand(t.shape).flatten(dims) for c in constant)
        same = known.all(-1) & (value == value[..., :1]).all(-1)
        shape = [*t.shape[:dims], *([1] * (t.dim() - dims))]
        return Constant(value[..., 0].reshape(shape), same.reshape(shape))
    return Constant(*(align(c, t.dim()) for c in constant))


def normalise_batch(table: IdTable, call: Call) -> list[Ids]:
    """Tie scale, shift and running statistics to the channel."""
    x = call.args[0]
    channels = channel_ids(x.ids, 1, x.size(1))
    for t in call.tensors[1:]:
        table.unite(channels, channel_ids(t.ids, 0, t.size(0)))
    pin_other(table, x.ids, {1}, "batch norm mixes a dimension of channels")
    return [(channels.view([1, -1] + [1] * (x.dim() - 2)),)] + [()] * (len(call.outputs) - 1)


def normalise_batch_constants(call: Call) -> list[Constant | None]:
    """In eval mode an affine map; in training mode a constant channel becomes another, which is not ours to keep."""
    names = ("running_mean", "running_var", "weight", "bias")
    mean, var, weight, bias = (call.argument(name) for name in names)
    constant = constant_of(call.args[0])
    trains = call.argument("training", False) or call.argument("train", False)
    if constant is None or trains or mean is None or var is None:
        return unknown(call)
    shape = [1, -1] + [1] * (call.args[0].dim() - 2)
    read = lambda t: t.inner.double().view(shape)  # noqa: E731
    value = (constant.value - read(mean)) / torch.sqrt(read(var) + call.argument("eps"))
    value = value * read(weight) if weight is not None else value
    value = value + read(bias) if bias is not None else value
    return [Constant(value, constant.known)] + [None] * (len(call.outputs) - 1)


def normalise_layer(table: IdTable, call: Call) -> list[Ids]:
    """Tie scale and shift to the channels of the last dimension, and note that the statistics count them."""
    x, shape = call.args[0], call.args[1]
    last = x.dim() - 1
    if len(shape) > 1:
        return pin_inputs(table, call)
    channels = channel_ids(x.ids, last, x.size(last))
    for t in call.tensors[1:]:
        table.unite(channels, channel_ids(t.ids, 0, t.size(0)))
    assert table.node is not None
    table.norms.append(Norm(table.node, channels))
    return [x.ids] + [()] * (len(call.outputs) - 1)


def reduce(table: IdTable, call: Call) -> list[Ids]:
    """Keep the ids of the dimensions that stay; those of a reduced one are pinned."""
    x = call.tensors[0]
    dims = reduced_dims(call)
    pin_other(table, x.ids, set(range(x.dim())) - dims, f"{call.op.overloadpacket.__name__} reduces over channels")
    kept = [t for t in x.ids if not dims & set(varying(t))]
    if call.outputs[0].dim() < x.dim():
        kept = [align(t, x.dim()).squeeze(sorted(dims)) for t in kept]
    return [tuple(kept)] * len(call.outputs)


def reduce_constants(call: Call) -> list[Constant | None]:
    """Mean, maximum and minimum of a uniform constant are that constant."""
    x = call.tensors[0]
    dims = sorted(reduced_dims(call))
    constant = constant_of(x)
    if constant is None or call.op.overloadpacket not in (aten.mean, aten.amax, aten.amin):
        return unknown(call)
    aligned = [align(c, x.dim()) for c in constant]
    if any(set(varying(c)) & set(dims) for c in aligned):
        return unknown(call)
    if call.outputs[0].dim() < x.dim():
        aligned = [c.squeeze(dims) for c in aligned]
    return [Constant(*aligned)] * len(call.outputs)


def reduced_dims(call: Call) -> set[int]:
    """The dimensions over which a reduction or a scan goes; all if none are named."""
    x = call.tensors[0]
    dim = call.argument("dim", None)
    dims = [dim] if isinstance(dim, int) else list(dim or range(x.dim()))
    return {d % x.dim() for d in dims} if x.dim() else set()


def scan(table: IdTable, call: Call) -> list[Ids]:
    """Follow softmax, cumsum, sort and their kin: the shape stays, ids along the dimension are pinned."""
    x = call.tensors[0]
    dims = reduced_dims(call)
    pin_other(table, x.ids, set(range(x.dim())) - dims, f"{call.op.overloadpacket.__name__} runs over channels")
    return [tuple(t for t in x.ids if not dims & set(varying(t)))] * len(call.outputs)


def look_up(table: IdTable, call: Call) -> list[Ids]:
    """Follow an embedding: its columns are channels, its rows are the vocabulary."""
    weight = call.args[0]
    pin_other(table, weight.ids, {1}, "an embedding's rows are chosen by its input")
    columns = channel_ids(weight.ids, 1, weight.size(1))
    return [(columns.view([1] * (call.outputs[0].dim() - 1) + [-1]),)]


def pin_inputs(table: IdTable, call: Call) -> list[Ids]:
    """Anything else: correct, merely unpruned, and named in the report."""
    for t in call.tensors:
        table.pin(t.ids, f"no rule for {call.op}")
    return [()] * len(call.outputs)


# Small helpers of the rules.


def align(t: Tensor, to: int) -> Tensor:
    """View a compressed tensor as one of `to` dimensions, aligned at the right."""
    return t.reshape([1] * (to - t.dim()) + list(t.shape))


def align_shape(shape: torch.Size, rank: int) -> list[int]:
    return [1] * (rank - len(shape)) + list(shape)


def channel_ids(ids: Ids, dim: int, size: int) -> Tensor:
    """The ids along one dimension, [size]; 0 (not a channel) where there are none."""
    for t in ids:
        if varying(t) == [dim]:
            return t.reshape(-1)
    return torch.zeros(size, dtype=torch.int64)


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


def pin_other(table: IdTable, ids: Ids, free: set[int], reason: str) -> None:
    """Pin the ids that vary along any dimension but the free ones, or along two at once."""
    for t in ids:
        dims = set(varying(t))
        if not dims <= free or len(dims) != 1:
            table.pin(t, reason)


ELEMENTWISE = Rule(tie_elements, compute_elements)
SAME = Rule(keep_first, keep_constant)
MOVE = Rule(move_ids, move_constants, moves=True)
JOIN = Rule(concatenate, concatenate_constants, moves=True)
PAD = Rule(pad_ids, pad_constants, moves=True)
POOL = Rule(pool, pool_constants)
REDUCE = Rule(reduce, reduce_constants)
SCAN = Rule(scan, unknown)
BATCH_NORM = Rule(normalise_batch, normalise_batch_constants)
LIKE = Rule(keep_first, fill_like)
UNKNOWN = Rule(pin_inputs, unknown)

FAMILIES: list[tuple[Rule, str]] = [
    (Rule(convolve, convolve_constants), "convolution _convolution"),
    (Rule(multiply_matrices, multiply_constants), "mm addmm"),
    (Rule(keep_first, keep_constant, moves=True), "clone contiguous detach alias lift_fresh lift _to_copy to"),
    (MOVE, "view _unsafe_view reshape permute transpose t expand slice select split split_with_sizes chunk unbind"),
    (MOVE, "squeeze unsqueeze flip roll index index_select pixel_shuffle pixel_unshuffle channel_shuffle repeat"),
    (MOVE, "diagonal movedim unflatten flatten narrow unfold"),
    (JOIN, "cat stack"),
    (PAD, "constant_pad_nd"),
    (Rule(overwrite, copy_constant), "copy"),
    (LIKE, "zeros_like ones_like full_like empty_like rand_like randn_like zero fill new_empty_like bernoulli"),
    (Rule(keep_first, unknown), "native_dropout uniform normal random"),
    (Rule(restride, keep_constant), "as_strided"),
    (ELEMENTWISE, "hardswish hardsigmoid masked_fill _prelu_kernel prelu triu tril hardtanh relu6 where clamp"),
    (POOL, "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d"),
    (POOL, "avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_max_pool1d"),
    (POOL, "adaptive_max_pool2d adaptive_max_pool3d reflection_pad1d reflection_pad2d reflection_pad3d"),
    (POOL, "replication_pad1d replication_pad2d replication_pad3d upsample_nearest1d upsample_nearest2d"),
    (POOL, "upsample_nearest3d _upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d upsample_trilinear3d"),
    (POOL, "upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"),
    (REDUCE, "mean sum amax amin var var_mean std std_mean prod any all norm linalg_vector_norm logsumexp max min"),
    (REDUCE, "argmax argmin nansum median"),
    (SCAN, "_softmax _log_softmax softmax log_softmax cumsum cumprod sort topk logcumsumexp"),
    (BATCH_NORM, "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training batch_norm"),
    (BATCH_NORM, "cudnn_batch_norm miopen_batch_norm _batch_norm_with_update _batch_norm_no_update"),
    (Rule(normalise_layer, unknown), "native_layer_norm"),
    (Rule(look_up, unknown), "embedding"),
]

TABLE: dict[Any, Rule] = {}
for _rule, _names in FAMILIES:
    for _name in _names.split():
        if not hasattr(aten, _name):
            continue  # an op of another version of PyTorch
        if getattr(aten, _name) in TABLE:
            raise ValueError(f"two rules for aten.{_name}")
        TABLE[getattr(aten, _name)] = _rule

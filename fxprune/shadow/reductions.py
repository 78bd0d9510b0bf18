"""What pooling, normalisation and reduction do to the shadows: channels that stay, and channels that are mixed."""

from __future__ import annotations

import torch
from torch import Tensor

from fxprune.shadow.channels import align, channel_ids, take_channels
from fxprune.shadow.elements import pin_inputs, tie_operands, unknown
from fxprune.shadow.ids import IdTable
from fxprune.shadow.tensor import Call, Constant, Ids, ShadowTensor, constant_of, varying

aten = torch.ops.aten

SOFTMAX = (aten._softmax, aten._log_softmax, aten._safe_softmax)


def pool(table: IdTable, call: Call) -> list[Ids]:
    """Keep the ids of batch and channels; those along the pooled dimensions are pinned."""
    x = call.tensors[0]
    free = {d for d in range(x.dim()) if d < x.dim() - spatial_rank(call)}
    kept = table.collapse_all(x.ids, free, f"{call.op.overloadpacket.__name__} mixes a dimension of channels")
    return [kept] * len(call.outputs)


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


def normalise_batch(table: IdTable, call: Call) -> list[Ids]:
    """Tie scale, shift and running statistics to the channel; statistics of a weight's rows count its columns."""
    x = call.args[0]
    free = set() if call.argument("running_mean") is not None else {d for d in range(x.dim()) if d != 1}
    reason = "batch norm mixes a dimension of channels"
    channels, rest = take_channels(table, x, 1, free, reason)
    for t in call.tensors[1:]:
        table.unite(channels, channel_ids(table, t.ids, 0, t.size(0)))
    for ids in rest:
        table.mix(ids.reshape(-1), reason)
    return [(channels.view([1, -1] + [1] * (x.dim() - 2)), *rest)] + [()] * (len(call.outputs) - 1)


def normalise_batch_constants(call: Call) -> list[Constant | None]:
    """In eval mode an affine map; in training mode a constant channel becomes another, which is not ours to keep."""
    names = ("running_mean", "running_var", "weight", "bias")
    mean, var, weight, bias = (call.argument(name) for name in names)
    constant = constant_of(call.args[0])
    trains = call.argument("training", False) or call.argument("train", False)
    if constant is None or trains or mean is None or var is None:
        return unknown(call)
    shape = [1, -1] + [1] * (call.args[0].dim() - 2)

    def read(t: ShadowTensor) -> Tensor:
        return t.held.double().view(shape)

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
    free = set(range(last))
    rest = table.collapse_all(tuple(t for t in x.ids if varying(t) != [last]), free, "a norm over its inner channels")
    channels = channel_ids(table, x.ids, last, x.size(last))
    for t in call.tensors[1:]:
        table.unite(channels, channel_ids(table, t.ids, 0, t.size(0)))
    table.mix(channels, "a norm over channels")
    return [(*(t for t in x.ids if varying(t) == [last]), *rest)] + [()] * (len(call.outputs) - 1)


def normalise_groups(table: IdTable, call: Call) -> list[Ids]:
    """Tie scale and shift to the channels, and of these whole groups or the same one of each, whichever is finer.

    A group that goes leaves the others' statistics alone; one channel of each group less changes all.
    """
    x, groups = call.args[0], call.argument("group")
    channels, rest = take_channels(table, x, 1, {0}, "group norm mixes a dimension of channels")
    for t in (call.argument("weight"), call.argument("bias")):
        if isinstance(t, ShadowTensor):
            table.unite(channels, channel_ids(table, t.ids, 0, t.size(0)))
    grouped = channels.view(groups, -1)
    if groups >= grouped.size(1):
        table.unite(grouped, grouped[:, :1])
    else:
        table.unite(grouped, grouped[:1])
        table.mix(channels, "a norm over channels")
    return [(channels.view([1, -1] + [1] * (x.dim() - 2)), *rest)] + [()] * (len(call.outputs) - 1)


def reduce(table: IdTable, call: Call) -> list[Ids]:
    """Keep the ids of the dimensions that stay; that a reduced one counts all its channels is noted."""
    x = call.tensors[0]
    dims = reduced_dims(call)
    name = call.op.overloadpacket.__name__
    kept: list[Tensor] = []
    for t in x.ids:
        over = dims & set(varying(t))
        if over == set(varying(t)) and over:
            along = table.collapse(t, {min(over)}, f"{name} reduces over channels")
            if along is not None:
                table.mix(along.reshape(-1), f"{name} reduces over channels")
        else:
            kept += table.collapse_all((t,), set(range(x.dim())) - dims, f"{name} reduces over channels")
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


def scan(table: IdTable, call: Call) -> list[Ids]:
    """Follow softmax, cumsum, sort and their kin: the shape stays, ids along the dimension are pinned."""
    x = call.tensors[0]
    dims = reduced_dims(call)
    reason = f"{call.op.overloadpacket.__name__} runs over channels"
    if call.op.overloadpacket in SOFTMAX:
        for t in x.ids:
            if varying(t) and set(varying(t)) <= dims:
                table.mix(t.reshape(-1), reason)
        return [x.ids]
    kept = table.collapse_all(x.ids, set(range(x.dim())) - dims, reason)
    return [kept] * len(call.outputs)


def gather_patches(table: IdTable, call: Call) -> list[Ids]:
    """Follow im2col: each channel becomes as many as the kernel has positions."""
    x = call.tensors[0]
    channels, batch = take_channels(table, x, x.dim() - 3, set(range(x.dim() - 3)), "im2col mixes channels")
    out = call.outputs[0]
    repeated = channels.repeat_interleave(out.size(-2) // x.size(-3))
    return [(repeated.view([1] * (out.dim() - 2) + [-1, 1]), *[t.squeeze(-1) for t in batch])]


def add_patches(table: IdTable, call: Call) -> list[Ids]:
    """Follow col2im: the positions of a kernel are added into one channel."""
    x, out = call.tensors[0], call.outputs[0]
    channels, batch = take_channels(table, x, x.dim() - 2, set(range(x.dim() - 2)), "col2im mixes channels")
    grouped = channels.view(out.size(-3), -1)
    table.unite(grouped, grouped[:, :1])
    return [(grouped[:, 0].view([1] * (out.dim() - 3) + [-1, 1, 1]), *[t.unsqueeze(-1) for t in batch])]


def cut_triangle(table: IdTable, call: Call) -> list[Ids]:
    """Follow triu and tril, which tell the last two dimensions' indexes apart."""
    x = call.tensors[0]
    return [table.collapse_all(x.ids, set(range(x.dim() - 2)), "a triangle of a matrix")]


def gate_half(table: IdTable, call: Call) -> list[Ids]:
    """Follow glu: the first half of the channels is gated by the second, index by index."""
    x = call.tensors[0]
    dim = call.argument("dim") % x.dim()
    kept = []
    for t in x.ids:
        first, second = t.chunk(2, dim) if t.size(dim) > 1 else (t, t)
        table.unite(first, second)
        kept.append(first)
    return [tuple(kept)]


def transform(table: IdTable, call: Call) -> list[Ids]:
    """Follow a Fourier transform: it mixes what lies along its dimensions, and leaves what lies along others apart."""
    x = call.tensors[0]
    free = set(range(x.dim())) - {d % x.dim() for d in call.argument("dim")}
    return [table.collapse_all(x.ids, free, "a Fourier transform mixes a dimension of channels")]


def join_parts_of_complex(table: IdTable, call: Call) -> list[Ids]:
    """Follow `view_as_complex`: the last dimension holds both parts of a number."""
    x = call.tensors[0]
    kept = table.collapse_all(x.ids, set(range(x.dim() - 1)), "both parts of a complex number are one")
    return [tuple(align(t, x.dim()).squeeze(-1) for t in kept)]


def split_complex(table: IdTable, call: Call) -> list[Ids]:
    """Follow `view_as_real`: both parts of a number are what it is."""
    x = call.tensors[0]
    return [tuple(align(t, x.dim()).unsqueeze(-1) for t in x.ids)]


def sample_grid(table: IdTable, call: Call) -> list[Ids]:
    """Keep the ids of batch and channels; heads in the batch sample at places of their own, which go with them."""
    x, grid = call.tensors[:2]
    beyond = [1] * (x.dim() - 2)
    kept = table.collapse_all(x.ids, {0, 1}, "grid_sample mixes a dimension of channels")
    places = table.collapse_all(grid.ids, {0}, "a grid to sample at")
    operands = [(list(kept), [*x.shape[:2], *beyond]), (list(places), [grid.size(0), 1, *beyond])]
    return [tie_operands(table, operands, "grid_sample")]


def spatial_rank(call: Call) -> int:
    """How many trailing dimensions a pooling or resampling op works on: 2 for `max_pool2d`."""
    name = call.op.overloadpacket.__name__
    return next((n for n in (1, 2, 3) if f"{n}d" in name), call.tensors[0].dim() - 2)


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


def reduced_dims(call: Call) -> set[int]:
    """The dimensions over which a reduction or a scan goes; all if none are named."""
    x = call.tensors[0]
    dim = call.argument("dim", None)
    dims = [dim] if isinstance(dim, int) else list(dim or range(x.dim()))
    return {d % x.dim() for d in dims} if x.dim() else set()

"""What pooling, normalisation and reduction do to the shadows: channels that stay, and channels that are mixed."""

from __future__ import annotations

import torch
from torch import Tensor

from fxprune.shadow.channels import align, channel_ids, pin_other
from fxprune.shadow.elements import pin_inputs, unknown
from fxprune.shadow.ids import IdTable, Norm
from fxprune.shadow.tensor import Call, Constant, Ids, ShadowTensor, constant_of, varying

aten = torch.ops.aten


def pool(table: IdTable, call: Call) -> list[Ids]:
    """Keep the ids of batch and channels; those along the pooled dimensions are pinned."""
    x = call.tensors[0]
    free = {d for d in range(x.dim()) if d < x.dim() - spatial_rank(call)}
    pin_other(table, x.ids, free, f"{call.op.overloadpacket.__name__} mixes a dimension of channels")
    return [tuple(t for t in x.ids if set(varying(t)) <= free)] * len(call.outputs)


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


def scan(table: IdTable, call: Call) -> list[Ids]:
    """Follow softmax, cumsum, sort and their kin: the shape stays, ids along the dimension are pinned."""
    x = call.tensors[0]
    dims = reduced_dims(call)
    pin_other(table, x.ids, set(range(x.dim())) - dims, f"{call.op.overloadpacket.__name__} runs over channels")
    return [tuple(t for t in x.ids if not dims & set(varying(t)))] * len(call.outputs)


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

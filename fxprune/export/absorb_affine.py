"""Which nodes of an ONNX graph can take a multiplication and an addition a channel into their constants, and how?

With s = scale and t = shift along the channels (dimension 1 of a tensor):

    Conv, ConvTranspose, Gemm    s (W u + b) + t = (s W) u + (s b + t)
    MatMul of matrices           s (W u) + t     = (s W) u + t, which makes it a Gemm
    Add of a constant            s (x + c) + t   = s x + (s c + t)
    Add of two tensors           s (x + y) + t   = (s x + t) + s y
    Concat of channels           each part takes its share of s and t
    Gather of all channels       s and t in the order of what is gathered

`find_absorbers` only looks, `absorb_affine` only changes. All of it is computed in float64
and stored in the constant's own type. To add a node type, add a function to the two tables.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from onnxscript import ir

from fxprune.export.graph_constants import (
    Array,
    add_constant,
    get_input,
    read_constant,
    read_float,
    read_int,
    replace_constant,
)


class Affine(NamedTuple):
    """A multiplication and an addition a channel, in float64."""

    scale: Array  # [channels]
    shift: Array  # [channels]


class Absorber(NamedTuple):
    """A node, and the affine map that its constants can take."""

    node: ir.Node
    affine: Affine


class NotAbsorbed(Exception):
    """Why an affine map stays a node of its own."""


def find_absorbers(value: ir.Value | None, affine: Affine) -> list[Absorber]:
    """List the nodes that together turn `value` into scale * value + shift; change nothing.

    Raises NotAbsorbed, with the reason, if there are none.
    """
    node = None if value is None else value.producer()
    if value is None or node is None:
        raise NotAbsorbed("its input is computed by no node")
    if node.domain != "" or node.op_type not in _FINDERS:
        raise NotAbsorbed(f"its input is computed by {node.op_type}")
    if len(value.uses()) != 1 or value.is_graph_output():
        raise NotAbsorbed(f"{value.name} has another consumer")
    return _FINDERS[node.op_type](node, affine)


def absorb_affine(absorber: Absorber) -> None:
    """Change the node's constants, so that its output is scale * output + shift."""
    _ABSORBERS[absorber.node.op_type](absorber.node, absorber.affine)


def _find_in_product(node: ir.Node, affine: Affine) -> list[Absorber]:
    weight, bias = read_constant(get_input(node, 1)), get_input(node, 2)
    if weight is None or (bias is not None and read_constant(bias) is None):
        raise NotAbsorbed(f"the weight or bias of {node.name} is not a constant")
    if _count_channels(node, weight) != len(affine.scale):
        raise NotAbsorbed(f"{node.name} has its channels along another dimension")
    return [Absorber(node, affine)]


def _count_channels(node: ir.Node, weight: Array) -> int | None:
    """Return the size of the output's dimension 1, or None where the weight's rows are not it."""
    if node.op_type == "Conv":
        return int(weight.shape[0])
    if node.op_type == "ConvTranspose":
        return int(weight.shape[1]) * read_int(node, "group", 1)
    if node.op_type == "Gemm":
        return int(weight.shape[0 if read_int(node, "transB", 0) else 1])
    return int(weight.shape[1]) if weight.ndim == 2 and _get_rank(node.inputs[0]) == 2 else None


def _find_in_add(node: ir.Node, affine: Affine) -> list[Absorber]:
    left, right = node.inputs
    scale_only = Affine(affine.scale, np.zeros_like(affine.shift))
    if read_constant(left) is not None:
        left, right = right, left
    constant = read_constant(right)
    if constant is not None and constant.ndim <= _get_rank(left):
        return [*find_absorbers(left, scale_only), Absorber(node, affine)]
    if _get_rank(left) != _get_rank(right):
        raise NotAbsorbed(f"{node.name} adds tensors of different rank")
    return find_absorbers(left, affine) + find_absorbers(right, scale_only)


def _find_in_concat(node: ir.Node, affine: Affine) -> list[Absorber]:
    if read_int(node, "axis", 0) not in (1, 1 - _get_rank(node.outputs[0])):
        raise NotAbsorbed(f"{node.name} concatenates along another dimension than the channels")
    absorbers: list[Absorber] = []
    start = 0
    for part in node.inputs:
        channels = part.shape[1] if part is not None and part.shape is not None else None
        if not isinstance(channels, int):
            raise NotAbsorbed(f"{node.name} concatenates parts of unknown width")
        share = slice(start, start + channels)
        absorbers += find_absorbers(part, Affine(affine.scale[share], affine.shift[share]))
        start += channels
    return absorbers


def _find_in_gather(node: ir.Node, affine: Affine) -> list[Absorber]:
    order = read_constant(get_input(node, 1))
    if read_int(node, "axis", 0) not in (1, 1 - _get_rank(node.inputs[0])) or order is None or order.ndim != 1:
        raise NotAbsorbed(f"{node.name} picks along another dimension than the channels")
    source = node.inputs[0]
    width = source.shape[1] if source is not None and source.shape is not None else None
    if width != len(order) or sorted(order) != list(range(len(order))):
        raise NotAbsorbed(f"{node.name} picks not each channel once")
    places = order.argsort()
    return find_absorbers(source, Affine(affine.scale[places], affine.shift[places]))


_FINDERS: dict[str, Callable[[ir.Node, Affine], list[Absorber]]] = {
    "Conv": _find_in_product,
    "ConvTranspose": _find_in_product,
    "Gemm": _find_in_product,
    "MatMul": _find_in_product,
    "Add": _find_in_add,
    "Concat": _find_in_concat,
    "Gather": _find_in_gather,
}


def _absorb_in_conv(node: ir.Node, affine: Affine) -> None:
    weight = _read_weight(node)  # [out, in/groups, *kernel]
    replace_constant(node, 1, weight * affine.scale.reshape(-1, *[1] * (weight.ndim - 1)))
    _absorb_in_bias(node, affine)


def _absorb_in_conv_transpose(node: ir.Node, affine: Affine) -> None:
    weight = _read_weight(node)  # [in, out/groups, *kernel], one group after the other along the first dimension
    groups = read_int(node, "group", 1)
    scale = affine.scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    scaled = weight.reshape(groups, -1, *weight.shape[1:]) * scale
    replace_constant(node, 1, scaled.reshape(weight.shape))
    _absorb_in_bias(node, affine)


def _absorb_in_gemm(node: ir.Node, affine: Affine) -> None:
    weight = _read_weight(node)  # [out, in] if transB, else [in, out]
    replace_constant(node, 1, weight * (affine.scale[:, None] if read_int(node, "transB", 0) else affine.scale))
    _absorb_in_bias(node, affine, factor=read_float(node, "beta", 1.0))
    node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)


def _absorb_in_matmul(node: ir.Node, affine: Affine) -> None:
    replace_constant(node, 1, _read_weight(node) * affine.scale)  # [in, out]
    if affine.shift.any():
        _absorb_in_bias(node, affine)
        node.op_type = "Gemm"


def _absorb_in_bias(node: ir.Node, affine: Affine, factor: float = 1.0) -> None:
    bias, weight = read_constant(get_input(node, 2)), node.inputs[1]
    assert weight is not None
    if bias is None:
        add_constant(node, 2, affine.shift, name=f"{weight.name}_bias", like=weight)
    else:
        replace_constant(node, 2, bias * factor * affine.scale + affine.shift)


def _absorb_in_add(node: ir.Node, affine: Affine) -> None:
    index = 1 if read_constant(node.inputs[0]) is None else 0
    constant = read_constant(node.inputs[index])
    assert constant is not None
    shape = (1, -1, *[1] * (_get_rank(node.outputs[0]) - 2))
    replace_constant(node, index, constant * affine.scale.reshape(shape) + affine.shift.reshape(shape))


_ABSORBERS: dict[str, Callable[[ir.Node, Affine], None]] = {
    "Conv": _absorb_in_conv,
    "ConvTranspose": _absorb_in_conv_transpose,
    "Gemm": _absorb_in_gemm,
    "MatMul": _absorb_in_matmul,
    "Add": _absorb_in_add,
}


def _read_weight(node: ir.Node) -> Array:
    weight = read_constant(node.inputs[1])
    assert weight is not None
    return weight


def _get_rank(value: ir.Value | None) -> int:
    if value is None or value.shape is None:
        raise NotAbsorbed(f"the shape of {'an input' if value is None else value.name} is not known")
    return len(value.shape)

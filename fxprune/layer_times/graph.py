"""Which small ONNX graph is timed for a layer?

A layer alone would start and end in the plain layout, which its neighbours in a network need not: ONNX Runtime computes
convolutions in blocks of channels and keeps them so from layer to layer. So each graph is

    input with one channel -> point-wise layer -> ReLU -> the layer, each part with its ReLU -> mean over positions

and the *frame*, the same without the layer, is timed beside it and taken off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET, IR_VERSION = 18, 10

SCALE = 0.05
"""The size of the random weights, at which no activation overflows or vanishes."""


class Convolution(NamedTuple):
    """A convolution of any number of spatial dimensions; `pads` as in ONNX, begins then ends, negative ones crop."""

    filters: int
    kernel: tuple[int, ...]
    pads: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1


class Linear(NamedTuple):
    """A linear layer along the last dimension."""

    features: int


@dataclass(frozen=True)
class LayerGraph:
    """A layer on an input of this shape: the ops of one part are summed, the parts are joined along the channels.

    Channels are the second dimension for convolutions and the last one for linear layers. `reordered`: the joined
    channels are put in another order. No parts: the frame alone.
    """

    shape: tuple[int, ...]
    parts: tuple[tuple[Convolution | Linear, ...], ...]
    reordered: bool = False

    @property
    def frame(self) -> LayerGraph:
        """The graph without the layer."""
        return replace(self, parts=(), reordered=False)

    @property
    def is_linear(self) -> bool:
        """Whether the channels are the last dimension."""
        return any(isinstance(op, Linear) for part in self.parts for op in part)


def build_graph(layer: LayerGraph, is_linear: bool) -> onnx.ModelProto:
    """Build the ONNX model of a layer, with random weights, between the two ends of the frame.

    Its input `x` has one channel. `is_linear` says of which kind the frame is.
    """
    builder = _Builder()
    axis = len(layer.shape) - 1 if is_linear else 1
    channels = layer.shape[axis]
    spatial = len(layer.shape) - 2
    pointwise = Convolution(channels, (1,) * spatial, (0, 0) * spatial, (1,) * spatial, (1,) * spatial)
    value = builder.add_layer("x", 1, Linear(channels) if is_linear else pointwise, len(layer.shape))
    value = builder.add("Relu", [value])
    joined = [builder.add("Relu", [builder.add_sum(value, channels, part, len(layer.shape))]) for part in layer.parts]
    if joined:
        value = joined[0] if len(joined) == 1 else builder.add("Concat", joined, axis=axis)
    if layer.reordered:
        width = sum(part[0].features if isinstance(part[0], Linear) else part[0].filters for part in layer.parts)
        order = builder.store(builder.draw.permutation(width).astype(np.int64))
        value = builder.add("Gather", [value, order], axis=axis)
    if not is_linear:
        value = builder.add("GlobalAveragePool", [value])
    sizes = [1 if dim == axis else size for dim, size in enumerate(layer.shape)]
    graph = helper.make_graph(
        builder.nodes, "layer",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, [None] * len(layer.shape))],
        builder.stored,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


class _Builder:
    """Nodes and initializers, each under a name of its own."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []
        self.draw = np.random.default_rng(0)

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def store(self, values: np.ndarray) -> str:
        name = f"stored_{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(values, name))
        return name

    def draw_weight(self, *sizes: int) -> str:
        return self.store(self.draw.standard_normal(sizes, dtype=np.float32) * np.float32(SCALE))

    def add_sum(self, value: str, channels: int, part: tuple[Convolution | Linear, ...], dims: int) -> str:
        names = [self.add_layer(value, channels, op, dims) for op in part]
        total = names[0]
        for name in names[1:]:
            total = self.add("Add", [total, name])
        return total

    def add_layer(self, value: str, channels: int, op: Convolution | Linear, dims: int) -> str:
        if isinstance(op, Linear):
            weight, bias = self.draw_weight(channels, op.features), self.draw_weight(op.features)
            if dims == 2:
                return self.add("Gemm", [value, weight, bias])
            return self.add("Add", [self.add("MatMul", [value, weight]), bias])
        pads = op.pads
        if min(pads, default=0) < 0:  # no convolution crops
            none = [0, 0]
            half = len(pads) // 2
            sides = self.store(np.array([*none, *pads[:half], *none, *pads[half:]], np.int64))
            value, pads = self.add("Pad", [value, sides]), (0,) * len(pads)
        weight = self.draw_weight(op.filters, channels // op.groups, *op.kernel)
        return self.add(
            "Conv", [value, weight, self.draw_weight(op.filters)], kernel_shape=op.kernel, pads=pads,
            strides=op.stride, dilations=op.dilation, group=op.groups,
        )  # fmt: skip

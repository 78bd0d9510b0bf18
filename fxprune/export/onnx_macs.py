"""How many multiply-accumulates does each node of an ONNX graph take, by its shapes?"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import onnx
from onnx import helper
from onnxscript import ir, optimizer

from fxprune.errors import ExportError
from fxprune.export.graph_constants import read_int

Shape = tuple[int, ...]

SMALL = 1024
"""Elements of a stored tensor above which it is a weight, whose values no shape depends on."""


class Work(NamedTuple):
    """A node that multiplies and adds."""

    node: ir.Node
    weight: str | None  # the stored tensor that it multiplies with, None if both operands are computed
    shapes: tuple[Shape, ...]  # of both operands, the weight second, and of the output
    macs: int  # multiply-accumulates of one run

    @property
    def name(self) -> str:
        """Return the node's name."""
        return self.node.name or ""

    @property
    def op(self) -> str:
        """Return the kind of operation."""
        return self.node.op_type

    @property
    def output(self) -> str:
        """Return the name of the node's first output."""
        return self.node.outputs[0].name or ""


def count_macs(model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]) -> list[Work]:
    """Count the multiply-accumulates of convolutions, matrix products, einsums and recurrent layers, node by node.

    `inputs` are the shapes of the graph's inputs; the model stays as it is. Bodies of loops and
    branches are left out. Weights are not read: they may be missing.

    Raises ExportError if the shapes of such a node do not follow from those of the inputs.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    origins: dict[str | None, str] = {name: name for name in stored}  # of a quantised weight: what it is made of
    found = []
    for node in fold_shapes(model, inputs).graph:
        name = next((origins[value.name] for value in node.inputs if value is not None and value.name in origins), None)
        if node.op_type in ("DequantizeLinear", "Cast", "Transpose", "Identity") and name is not None:
            origins[node.outputs[0].name] = name
        if node.domain != "" or node.op_type not in _RULES:
            continue
        first, second = _get_operands(node)
        shapes = tuple(_read_shape(value, node) for value in (first, second, node.outputs[0]))
        macs = _RULES[node.op_type](node, *shapes)
        found.append(Work(node, origins.get(second.name), shapes, macs))
    return found


def fold_shapes(model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]) -> ir.Model:
    """Return a graph without its large weights in which all shapes are known that follow from those of the inputs.

    Raises ExportError if the graph contradicts itself.
    """
    graph = onnx.GraphProto(name=model.graph.name, node=model.graph.node)
    for value in model.graph.input:
        if value.name in inputs:
            dtype = value.type.tensor_type.elem_type
            graph.input.append(helper.make_tensor_value_info(value.name, dtype, list(inputs[value.name])))
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= SMALL and tensor.data_location != onnx.TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
        else:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    for output in model.graph.output:
        graph.output.append(helper.make_tensor_value_info(output.name, output.type.tensor_type.elem_type, None))
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=graph)
    light.functions.extend(model.functions)
    try:
        folded = ir.from_proto(light)
        optimizer.inline(folded)
        optimizer.fold_constants(folded, onnx_shape_inference=True)
    except (ValueError, TypeError, KeyError, RuntimeError, onnx.shape_inference.InferenceError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"the shapes of the graph do not follow from those of its inputs: {reason}.") from error
    return folded


def _get_operands(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """Return the two tensors that a node multiplies; integer forms have scales and zero points between them."""
    second = 3 if node.op_type.startswith("QLinear") else 1 if len(node.inputs) > 1 else 0
    left, right = node.inputs[0], node.inputs[second]
    if left is None or right is None:
        raise ExportError(f"{node.op_type} {node.name} lacks an operand.")
    return left, right


def _read_shape(value: ir.Value, node: ir.Node) -> Shape:
    if value.shape is None or not value.shape.is_static():
        raise ExportError(f"the shape of {value.name} at {node.name or node.op_type} does not follow from the inputs.")
    return tuple(value.shape.numpy())


def _count_convolution(_: ir.Node, __: Shape, weight: Shape, output: Shape) -> int:
    return math.prod(output) * math.prod(weight[1:])


def _count_transposed(_: ir.Node, x: Shape, weight: Shape, __: Shape) -> int:
    return math.prod(x) * math.prod(weight[1:])


def _count_gemm(node: ir.Node, left: Shape, _: Shape, output: Shape) -> int:
    return math.prod(output) * left[0 if read_int(node, "transA", 0) else 1]


def _count_matmul(_: ir.Node, left: Shape, __: Shape, output: Shape) -> int:
    return math.prod(output) * left[-1]


def _count_einsum(node: ir.Node, left: Shape, right: Shape, _: Shape) -> int:
    """Count one operation for each combination of indexes, as a plain loop over all of them has it."""
    terms = node.attributes["equation"].as_string().replace(" ", "").partition("->")[0].split(",")
    if len(terms) != 2 or any(len(term) != len(shape) for term, shape in zip(terms, (left, right), strict=True)):
        raise ExportError(f"{node.name}: an einsum of other than two operands, or with an ellipsis, is not counted.")
    return math.prod({**dict(zip(terms[0], left, strict=True)), **dict(zip(terms[1], right, strict=True))}.values())


def _count_recurrent(node: ir.Node, x: Shape, weight: Shape, _: Shape) -> int:
    """Count the input's products and the hidden ones: x [steps, batch, in], weight [directions, gates, in]."""
    hidden = node.inputs[2]
    assert hidden is not None
    return x[0] * x[1] * (math.prod(weight) + math.prod(_read_shape(hidden, node)))


_RULES: dict[str, Callable[[ir.Node, Shape, Shape, Shape], int]] = {
    "Conv": _count_convolution,
    "ConvInteger": _count_convolution,
    "QLinearConv": _count_convolution,
    "ConvTranspose": _count_transposed,
    "Gemm": _count_gemm,
    "MatMul": _count_matmul,
    "MatMulInteger": _count_matmul,
    "QLinearMatMul": _count_matmul,
    "Einsum": _count_einsum,
    "LSTM": _count_recurrent,
    "GRU": _count_recurrent,
    "RNN": _count_recurrent,
}

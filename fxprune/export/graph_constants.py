"""How are constants, attributes and nodes of an ONNX graph read, replaced and taken out?"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxscript import ir

Array = NDArray[Any]


def get_input(node: ir.Node, index: int) -> ir.Value | None:
    """Return an input of a node, or None where an optional one is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def read_constant(value: ir.Value | None) -> Array | None:
    """Return a constant in float64, or None if the value is left out or depends on the graph's inputs."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy().astype(np.float64)


def read_int(node: ir.Node, name: str, default: int) -> int:
    """Return an integer attribute."""
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.as_int())


def read_float(node: ir.Node, name: str, default: float) -> float:
    """Return a float attribute."""
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.as_float())


def replace_constant(node: ir.Node, index: int, array: Array) -> None:
    """Give one constant input of a node a new value, in the old one's type; other users of the old one keep it."""
    old = node.inputs[index]
    assert old is not None
    is_private = old.is_initializer() and len(old.uses()) == 1 and not old.is_graph_output()
    if is_private:
        _get_graph(node).initializers.pop(str(old.name))
    name = str(old.name) if is_private else f"{old.name}_{node.name}"
    node.replace_input_with(index, _register(node, name, array, like=old))


def add_constant(node: ir.Node, index: int, array: Array, name: str, like: ir.Value) -> None:
    """Give a node a constant input that it did not have, in the type of another constant."""
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, _register(node, name, array, like))


def bypass(node: ir.Node) -> None:
    """Take a node out, so that its first input stands for its output, under the output's name."""
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    name = output.name
    output.replace_all_uses_with(source, replace_graph_outputs=True)
    _get_graph(node).remove(node, safe=True)
    source.name = name


def _register(node: ir.Node, name: str, array: Array, like: ir.Value) -> ir.Value:
    constant = ir.convenience.get_const_tensor(like)
    assert constant is not None
    initializers = _get_graph(node).initializers
    while name in initializers:
        name += "_folded"
    tensor = ir.tensor(array.astype(constant.numpy().dtype), dtype=constant.dtype, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(constant.dtype), const_value=tensor)
    initializers[name] = value
    return value


def _get_graph(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph

"""How does a graph become code that runs? With its layers called as layers, so that whoever listens to them hears them.

The analysis needs layers open, as functions of their parameters: `F.conv2d(x, weight, bias, ...)`. Where such a
function is given exactly what a layer of the model holds, the code calls the layer, with its hooks: tools that count
operations or collect activations rely on them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import fx, nn

from fxprune.layer_functions import INPUTS, LAYERS, find_kind

GRAPH_FILE = "<fxprune graph>"
"""What stands for a file in the tracebacks of compiled graphs."""


class GraphCode(NamedTuple):
    """A function of the model that owns the parameters and of the graph's inputs, its source, and what it calls."""

    run: Callable[..., Any]
    source: str
    layers: Mapping[str, str]  # the paths of the layers that are called, by the names of the nodes
    modules: Mapping[str, str]  # what the other modules were that are called, by their paths


def compile_graph(graph: fx.Graph, model: nn.Module, known: GraphCode | None = None) -> GraphCode:
    """Turn a graph over the parameters of a model into code.

    A copy of a model calls the layers that the model calls, as its code is `known`, whatever became of them since.
    """
    layers = find_layers(graph, model) if known is None else known.layers
    modules = describe_called(graph, model) if known is None else known.modules
    code = call_layers(graph, layers).python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, GRAPH_FILE, "exec"), namespace)
    return GraphCode(namespace["forward"], code.src, layers, modules)


def find_layers(graph: fx.Graph, model: nn.Module) -> dict[str, str]:
    """Find the functions that take exactly what layers of the model hold: paths by the names of the nodes."""
    found = {node.name: find_called(node, model) for node in graph.nodes}
    return {name: path for name, path in found.items() if path is not None}


def describe_called(graph: fx.Graph, model: nn.Module) -> dict[str, str]:
    """Describe what the modules compute that the graph calls itself, by their paths."""
    paths = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    return {path: describe(model.get_submodule(path)) for path in paths}


def describe(module: nn.Module) -> str:
    """Name a module's kind and the settings that decide what it computes, without what lies inside of it."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return type(module).__name__
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return f"{module._get_name()}({module.num_features}, eps={module.eps})"
    name = find_kind(module).__name__ if hasattr(module, "parametrizations") else module._get_name()
    return f"{name}({module.extra_repr()})"


def call_layers(graph: fx.Graph, layers: Mapping[str, str]) -> fx.Graph:
    """Copy a graph, with calls of layers in the place of these nodes, under their names."""
    called = copy_graph(graph)
    for node in list(called.nodes):
        if node.name in layers:
            with called.inserting_before(node):
                inputs = node.args[: INPUTS[node.target]]
                call = called.call_module(layers[node.name], tuple(each for each in inputs if each is not None))
            node.replace_all_uses_with(call)
            name = node.name
            called.erase_node(node)
            call.name = name
    for node in reversed(called.nodes):
        if node.op == "get_attr" and not node.users:
            called.erase_node(node)
    return called


def find_called(node: fx.Node, model: nn.Module) -> str | None:
    """Find the path of the layer that computes what a function in a graph computes."""
    if node.op != "call_function" or not node.args or node.kwargs:
        return None
    read = [argument for argument in node.args[1:] if isinstance(argument, fx.Node) and argument.op == "get_attr"]
    path = str(read[-1].target).rpartition(".")[0] if read else ""
    module = model.get_submodule(path)
    layer = LAYERS.get(type(module))
    if layer is None or node.target is not layer.function or "forward" in vars(module):
        return None
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return None
    held = [None if getattr(module, name) is None else f"{path}.{name}" for name in layer.list_parameters(module)]
    inputs = node.args[: layer.inputs]
    given = [str(a.target) if isinstance(a, fx.Node) and a in read else a for a in node.args[layer.inputs :]]
    for training in (False, True):
        wanted = layer.list_arguments(module, inputs, held, training)[layer.inputs :]
        if list(map(plain, given)) == list(map(plain, wanted)):
            return path
    return None


def plain(value: Any) -> Any:
    """Write a list as a tuple, so that both are equal."""
    return tuple(value) if isinstance(value, list) else value


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """Copy a graph node by node; names, metadata and code generation stay."""
    copied = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        nodes[node] = copied.node_copy(node, lambda n: nodes[n])
        nodes[node].name = node.name
    copied._codegen = copy.deepcopy(graph._codegen)
    return copied

"""How does a graph become code that runs? With its layers called as layers, so that whoever listens to them hears them.

The analysis needs layers open, as functions of their parameters: `F.conv2d(x, weight, bias, ...)`. Where such a
function is given exactly what a layer of the model holds, the code calls the layer, with its hooks: tools that count
operations or collect activations rely on them. Where it is given something else, a masked weight say, the code
computes the function, and the layer's hooks run around it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import fx, nn
from torch.nn.modules import module as calls
from torch.utils.hooks import BackwardHook

from fxprune.find_module import find_module
from fxprune.layer_functions import INPUTS, LAYERS, find_kind

GRAPH_FILE = "<fxprune graph>"
"""What stands for a file in the tracebacks of compiled graphs."""


class LayerCall(NamedTuple):
    """The layer that a node of a graph was, and whether the node takes exactly what the layer holds."""

    path: str
    is_own: bool


class GraphCode(NamedTuple):
    """A function of the model that owns the parameters and of the graph's inputs, its source, and what it calls."""

    run: Callable[..., Any]
    source: str
    layers: Mapping[str, LayerCall]  # by the names of the nodes
    modules: Mapping[str, str]  # what the other modules were that are called, by their paths

    @property
    def heard(self) -> set[str]:
        """The paths of the modules whose hooks run."""
        return {call.path for call in self.layers.values()} | set(self.modules)


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


def find_layers(graph: fx.Graph, model: nn.Module) -> dict[str, LayerCall]:
    """Find the functions that were layers of the model, by the names of the nodes."""
    paths = {node.name: (node, str(node.meta["layer"])) for node in graph.nodes if "layer" in node.meta}
    return {name: LayerCall(path, takes_own(node, path, model)) for name, (node, path) in paths.items()}


def describe_called(graph: fx.Graph, model: nn.Module) -> dict[str, str]:
    """Describe what the modules compute that the graph calls itself, by their paths."""
    paths = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    return {path: describe(find_module(model, path)) for path in paths}


def describe(module: nn.Module) -> str:
    """Name a module's kind and the settings that decide what it computes, without what lies inside of it."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return type(module).__name__
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return f"{module._get_name()}({module.num_features}, eps={module.eps})"
    name = find_kind(module).__name__ if hasattr(module, "parametrizations") else module._get_name()
    return f"{name}({module.extra_repr()})"


def call_layers(graph: fx.Graph, layers: Mapping[str, LayerCall]) -> fx.Graph:
    """Copy a graph, with calls of layers in the place of these nodes, under their names."""
    called = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    own = {node for node in graph.nodes if node.name in layers and layers[node.name].is_own}
    given: set[fx.Node] = set()
    for node in own:
        fx.node.map_arg(layer_inputs(node), given.add)
    for node in graph.nodes:
        if node.op == "get_attr" and node not in given and own.issuperset(node.users):
            continue  # the layers hold it
        layer = layers.get(node.name)
        if layer is None:
            copies[node] = called.node_copy(node, copies.__getitem__)
        else:
            copies[node] = call_layer(called, node, layer, copies)
        copies[node].name = node.name
    called._codegen = copy.deepcopy(graph._codegen)
    return called


def call_layer(called: fx.Graph, node: fx.Node, layer: LayerCall, copies: dict[fx.Node, fx.Node]) -> fx.Node:
    """Add the call of the layer that a node was to the copy of its graph."""
    inputs = fx.node.map_arg(layer_inputs(node), copies.__getitem__)
    if layer.is_own:
        return called.call_module(layer.path, inputs)
    count = count_inputs(node)
    rest, options = fx.node.map_arg((node.args[count:], node.kwargs), copies.__getitem__)
    held = called.get_attr(layer.path)  # read by the next line alone, so that a later node may have its name
    return called.call_function(with_hooks(node.target, count), (held, inputs, rest, options))


def layer_inputs(node: fx.Node) -> tuple[Any, ...]:
    """What the layer is given that a node was."""
    return tuple(each for each in node.args[: count_inputs(node)] if each is not None)


def count_inputs(node: fx.Node) -> int:
    """How many of a node's first arguments are inputs of the layer that it was."""
    return INPUTS.get(node.target, 1)  # type: ignore[arg-type]


@functools.cache
def with_hooks(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """Make a function that takes the place of a layer of so many inputs, whose hooks run as if it were the layer's."""

    def run(layer: nn.Module, inputs: tuple[Any, ...], rest: tuple[Any, ...], options: dict[str, Any]) -> Any:
        def compute(*given: Any, **named: Any) -> Any:
            given = (*given, *named.values())
            return function(*given, *[None] * (count - len(given)), *rest, **options)

        return call_with_hooks(layer, compute, inputs) if is_heard(layer) else compute(*inputs)

    run.__name__ = f"{function.__name__}_with_hooks"
    return run


def call_with_hooks(layer: nn.Module, compute: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Call a function as torch calls the forward of a layer: between hooks, those of all modules first."""
    given: dict[str, Any] = {}
    for number, hook in (*calls._global_forward_pre_hooks.items(), *layer._forward_pre_hooks.items()):
        if number in layer._forward_pre_hooks_with_kwargs:
            args, given = hook(layer, args, given) or (args, given)
        else:
            changed = hook(layer, args)
            args = args if changed is None else changed if isinstance(changed, tuple) else (changed,)
    after, old = layer._get_backward_hooks()
    before = layer._get_backward_pre_hooks()
    backward = BackwardHook(layer, after, before) if after or before else None
    args = args if backward is None else backward.setup_input_hook(args)
    result = compute(*args, **given)
    for number, hook in (*calls._global_forward_hooks.items(), *layer._forward_hooks.items()):
        named = number in layer._forward_hooks_with_kwargs or number in calls._global_forward_hooks_with_kwargs
        changed = hook(layer, args, given, result) if named else hook(layer, args, result)
        result = result if changed is None else changed
    result = result if backward is None else backward.setup_output_hook(result)
    for hook in old:  # of before torch 1.8
        result.grad_fn.register_hook(calls._WrappedHook(hook, layer))
    return result


def is_heard(layer: nn.Module) -> bool:
    """Whether somebody listens to the calls of this module, or of all."""
    return bool(
        count_hooks(layer)
        or calls._global_forward_hooks
        or calls._global_forward_pre_hooks
        or calls._global_backward_hooks
        or calls._global_backward_pre_hooks
    )


def count_hooks(module: nn.Module) -> int:
    """Count who listens to this module's calls."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return sum(map(len, hooks))


def takes_own(node: fx.Node, path: str, model: nn.Module) -> bool:
    """Whether a function in a graph takes what its layer holds, so that the layer computes the same."""
    module = find_module(model, path)
    layer = LAYERS.get(type(module))
    if layer is None or node.kwargs or node.target is not layer.function or "forward" in vars(module):
        return False
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return False
    held = [None if getattr(module, name) is None else f"{path}.{name}" for name in layer.list_parameters(module)]
    if not any(held) and hasattr(module, "num_features"):  # no parameter tells its width after a conversion
        return False
    inputs = node.args[: layer.inputs]
    given = [read_name(argument) for argument in node.args[layer.inputs :]]
    for training in (False, True):
        wanted = layer.list_arguments(module, inputs, held, training)[layer.inputs :]
        if list(map(plain, given)) == list(map(plain, wanted)):
            return True
    return False


def read_name(argument: Any) -> Any:
    """Give the name of what a graph reads, and anything else as it is."""
    return str(argument.target) if isinstance(argument, fx.Node) and argument.op == "get_attr" else argument


def inherit(node: fx.Node) -> dict[str, Any]:
    """Give the metadata of a node that is made beside another one: all but which layer that was."""
    return {name: value for name, value in node.meta.items() if name != "layer"}


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

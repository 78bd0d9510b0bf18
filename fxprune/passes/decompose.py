"""How composite steps of a graph are written out: layers become functions of their parameters.

After this pass a convolution, linear layer or layer norm is `get_attr weight -> F.conv2d`, so masks can
stand between the two and literals lie open; the modules stay where they are and hold the parameters.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxprune.compile_graph import copy_graph, count_hooks
from fxprune.find_module import find_module
from fxprune.layer_functions import LAYERS, PADDING, find_layer, has_dropout
from fxprune.model import TracedModel, read_tensor

EXPANDS = ("expand", "expand_as")

JOINING = (
    operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div,
    "add", "sub", "mul", "div",
)  # fmt: skip
"""Functions and methods of two operands that broadcast."""


def decompose(model: TracedModel) -> None:
    """Write out the layers of both graphs, in place; a layer with hooks stays one step, and is pinned."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}  # one name for tied ones
    for region in model.graphs.regions:
        if region.train is region.eval and any(has_dropout(module) for module in called_modules(model, region.eval)):
            region.train = copy_graph(region.eval)
        for graph in region:
            open_graph(model, graph, names, training=graph is not region.eval)
    model.set_graphs(model.graphs)


def open_graph(model: TracedModel, graph: fx.Graph, names: dict[int, str], training: bool) -> None:
    """Write out the layers of the graph of one mode."""
    for node in list(graph.nodes):
        if node.op == "call_module":
            open_layer(graph, node, find_module(model, node.target), names, training)
        elif node.target is F.normalize:
            divide_by_norm(graph, node)
        elif node.target in EXPANDS and node.users and all(broadcasts(user, node) for user in node.users):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.lint()


def divide_by_norm(graph: fx.Graph, node: fx.Node) -> None:
    """Write out F.normalize, which would repeat the norm to the full size: x / max(|x|_p, eps)."""
    given = {"p": 2.0, "dim": 1, "eps": 1e-12} | dict(zip(("input", "p", "dim", "eps"), node.args, strict=False))
    given |= node.kwargs
    with graph.inserting_before(node):
        norm = graph.call_function(torch.linalg.vector_norm, (given["input"], given["p"], given["dim"], True))
        least = graph.call_function(torch.clamp_min, (norm, given["eps"]))
    for each in (norm, least):
        each.meta = dict(node.meta)
    node.target, node.args, node.kwargs = torch.div, (given["input"], least), {}


def broadcasts(user: fx.Node, expanded: fx.Node) -> bool:
    """Whether a node joins a tensor position by position to one that has the full shape already."""
    others = [n for n in user.all_input_nodes if n is not expanded]
    shapes = [n.meta.get("shape") for n in others if n.op != "get_attr"]
    return user.target in JOINING and expanded.meta.get("shape") is not None and expanded.meta["shape"] in shapes


def called_modules(model: TracedModel, graph: fx.Graph) -> Iterator[nn.Module]:
    """Go through the modules that a graph calls."""
    return (find_module(model, str(node.target)) for node in graph.nodes if node.op == "call_module")


def open_layer(graph: fx.Graph, node: fx.Node, module: Any, names: dict[int, str], training: bool) -> None:
    """Replace a call of a layer by a call of its function, under the same name."""
    layer = find_layer(module)
    if layer is None or count_hooks(module) or node.kwargs or not 1 <= len(node.args) <= LAYERS[layer].inputs:
        return
    if getattr(module, "track_running_stats", False):
        return
    known, (x, *others) = LAYERS[layer], node.args
    padded = getattr(module, "padding_mode", "zeros") != "zeros"
    with graph.inserting_before(node):
        if padded:
            padding = tuple(module._reversed_padding_repeated_twice)
            x = graph.call_function(F.pad, (x, padding), {"mode": module.padding_mode})
            x.meta = dict(node.meta)
        parameters = [get_parameter(graph, node, module, name, names) for name in known.list_parameters(module)]
        arguments = known.list_arguments(module, [x, *others], parameters, training)
        if padded:
            arguments[PADDING] = (0,) * len(module.kernel_size)  # it may be a word
        opened = graph.call_function(known.function, tuple(arguments))
    opened.meta = node.meta if padded else node.meta | {"layer": str(node.target)}
    node.replace_all_uses_with(opened)
    name = node.name
    graph.erase_node(node)
    opened.name = name


def get_parameter(graph: fx.Graph, before: fx.Node, module: nn.Module, name: str, names: dict[int, str]) -> Any:
    """Read a parameter of the called module in the graph, once a graph."""
    value = read_tensor(module, name)
    if value is None:
        return None
    target = names.get(id(value), f"{before.target}.{name}")
    for node in graph.nodes:
        if node is before:
            break
        if node.op == "get_attr" and node.target == target:
            return node
    made = graph.get_attr(target)
    made.meta["where"] = before.meta.get("where", "")
    return made

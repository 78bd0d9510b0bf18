"""How composite steps of a graph are written out: layers become functions of their parameters.

After this pass a convolution, linear layer or layer norm is `get_attr weight -> F.conv2d`, so masks can
stand between the two and literals lie open; the modules stay where they are and hold the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from fxprune.model import TracedModel

_OPTIONS = ("stride", "padding", "dilation", "groups")
_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")

LAYERS: dict[type[nn.Module], tuple[Callable[..., Any], tuple[str, ...]]] = {
    nn.Conv1d: (F.conv1d, _OPTIONS),
    nn.Conv2d: (F.conv2d, _OPTIONS),
    nn.Conv3d: (F.conv3d, _OPTIONS),
    nn.ConvTranspose1d: (F.conv_transpose1d, _TRANSPOSED),
    nn.ConvTranspose2d: (F.conv_transpose2d, _TRANSPOSED),
    nn.ConvTranspose3d: (F.conv_transpose3d, _TRANSPOSED),
    nn.Linear: (F.linear, ()),
    nn.LayerNorm: (F.layer_norm, ("eps",)),
}
"""Layer types, the function that computes each from (input, weight, bias), and its options in order."""


def decompose(model: TracedModel) -> None:
    """Write out the layers of both graphs, in place; a layer with hooks stays one step, and is pinned."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}  # one name for tied ones
    for graph in model.graphs:
        for node in list(graph.nodes):
            if node.op == "call_module":
                open_layer(graph, node, model.get_submodule(node.target), names)
        graph.lint()
    model.set_graphs(model.graphs)


def open_layer(graph: fx.Graph, node: fx.Node, module: Any, names: dict[int, str]) -> None:
    """Replace a call of a layer by a call of its function, under the same name."""
    layer = find_layer(module)
    if layer is None or has_hooks(module) or len(node.args) != 1 or node.kwargs:
        return
    function, option_names = LAYERS[layer]
    options = [getattr(module, name) for name in option_names]
    with graph.inserting_before(node):
        x = node.args[0]
        if getattr(module, "padding_mode", "zeros") != "zeros":
            padding = tuple(module._reversed_padding_repeated_twice)
            x = graph.call_function(F.pad, (x, padding), {"mode": module.padding_mode})
            x.meta = dict(node.meta)
            options[1] = (0,) * len(module.padding)
        weight, bias = (get_parameter(graph, node, module, name, names) for name in ("weight", "bias"))
        shape = (tuple(module.normalized_shape),) if layer is nn.LayerNorm else ()
        opened = graph.call_function(function, (x, *shape, weight, bias, *options))
    opened.meta = dict(node.meta)
    node.replace_all_uses_with(opened)
    name = node.name
    graph.erase_node(node)
    opened.name = name


def find_layer(module: nn.Module) -> type[nn.Module] | None:
    """The layer type that computes this module: its own, or, with parametrizations, the one before them."""
    kinds = [type(module), type(module).__bases__[0]] if hasattr(module, "parametrizations") else [type(module)]
    return next((kind for kind in kinds if kind in LAYERS), None)


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody listens to this module's calls."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def get_parameter(graph: fx.Graph, before: fx.Node, module: nn.Module, name: str, names: dict[int, str]) -> Any:
    """Read a parameter of the called module in the graph, once a graph."""
    value = getattr(module, name)
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

"""How do smaller convolutions come into the place of one, in the module tree and in the graphs?"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxprune.model import TracedModel, find_tensor
from fxprune.stripes.lowering import Lowering
from fxprune.stripes.module import StripeConv2d
from fxprune.stripes.reading import Options

PARAMETERS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
DEFAULTS: dict[str, Any] = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def replace_layers(model: TracedModel, lowerings: Mapping[str, Lowering]) -> None:
    """Put smaller convolutions into the places of those with these weights, in place."""
    convolutions = find_convolutions(model)
    for name, lowering in lowerings.items():
        replace_convolution(model, name, convolutions[name], lowering)
    model.set_graphs(model.graphs)


def find_convolutions(model: TracedModel) -> dict[str, list[fx.Node]]:
    """Find the weights that two-dimensional convolutions alone read, and those."""
    found: dict[str, list[fx.Node]] = {}
    other: set[str] = set()
    for node in (node for graph in model.graphs for node in graph.nodes):
        if node.op == "get_attr":
            name = str(node.target)
            readers = [user for user in node.users if user.target is F.conv2d and arguments(user)["weight"] is node]
            readers = [user for user in readers if list(arguments(user).values()).count(node) == 1]
            found.setdefault(name, []).extend(readers)
            if len(readers) < len(node.users) or not is_plain(readers):
                other.add(name)
    return {name: nodes for name, nodes in found.items() if nodes and name not in other}


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a convolution by name."""
    return DEFAULTS | dict(zip(PARAMETERS, node.args, strict=False)) | node.kwargs


def is_plain(nodes: list[fx.Node]) -> bool:
    """Whether convolutions have numbers for options and a parameter or nothing for bias, all the same."""
    options = [{name: arguments(node)[name] for name in PARAMETERS[3:]} for node in nodes]
    biases = [arguments(node)["bias"] for node in nodes]
    symbolic = any(isinstance(leaf, fx.Node) for node in nodes for leaf in node.all_input_nodes[3:])
    stored = all(bias is None or (isinstance(bias, fx.Node) and bias.op == "get_attr") for bias in biases)
    names = {str(bias.target) if isinstance(bias, fx.Node) else None for bias in biases}
    return not symbolic and stored and len(names) == 1 and all(each == options[0] for each in options)


def replace_convolution(model: TracedModel, name: str, nodes: list[fx.Node], lowering: Lowering) -> None:
    """Put the smaller convolutions into the place of one, in the module tree and in all graphs."""
    weight, bias = find_tensor(model, name), arguments(nodes[0])["bias"]
    options = read_options(nodes[0], (weight.size(2), weight.size(3)))
    module = StripeConv2d(weight, find_tensor(model, str(bias.target)) if bias is not None else None, lowering, options)
    path = place(model, name, str(bias.target) if bias is not None else None, module)
    for node in nodes:
        rewrite(node, module, path, options)


def place(model: TracedModel, name: str, bias: str | None, module: StripeConv2d) -> str:
    """Put the module where the convolution was; where the weight is no convolution's own, beside it."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if isinstance(owner, nn.Conv2d) and leaf == "weight" and bias in (None, f"{path}.bias"):
        model.set_submodule(path, module.train(owner.training))
        return path
    setattr(owner, leaf, None)
    beside = f"{path}.{leaf}_stripes" if path else f"{leaf}_stripes"
    owner.add_module(f"{leaf}_stripes", module.train(owner.training))
    return beside


def read_options(node: fx.Node, kernel: tuple[int, int]) -> Options:
    """Read the options of a convolution, whatever their spelling."""
    given = arguments(node)
    stride, dilation = pair(given["stride"]), pair(given["dilation"])
    padding = given["padding"]
    if padding == "same":  # what is odd goes to the end
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
    else:
        down, right = (0, 0) if padding == "valid" else pair(padding)
        sides = (down, down, right, right)
    return Options(stride, sides, dilation, int(given["groups"]))


def pair(value: Any) -> tuple[int, int]:
    """Write one number, or a list of one, as two."""
    numbers = [value] if isinstance(value, int) else list(value)
    return (int(numbers[0]), int(numbers[-1]))


def rewrite(node: fx.Node, module: StripeConv2d, path: str, options: Options) -> None:
    """Write the smaller convolutions into a graph in the place of one."""
    graph, x = node.graph, node.args[0] if node.args else node.kwargs["input"]

    def emit(function: Any, *args: Any) -> fx.Node:
        made = graph.call_function(function, args)
        made.meta = {"where": node.meta.get("where", node.name)}
        return made

    with graph.inserting_before(node):
        outputs: list[fx.Node] = []
        for k, (part, readings) in enumerate(zip(module.convolutions(), module.readings, strict=True)):
            total: fx.Node | None = None
            for r, (own, reading) in enumerate(zip(part, readings, strict=True)):
                layer = f"{path}.parts.{k}.{r}"
                weight = graph.get_attr(f"{layer}.weight")
                bias = graph.get_attr(f"{layer}.bias") if own.bias is not None else None
                padded = x if reading.pad is None else emit(F.pad, x, reading.pad)
                sizes = (options.stride, reading.padding, reading.dilation, options.groups)
                result = emit(F.conv2d, padded, weight, bias, *sizes)
                result.meta["layer"] = layer
                total = result if total is None else emit(operator.add, total, result)
            assert total is not None
            outputs.append(total)
        joined = outputs[0] if len(outputs) == 1 else emit(torch.cat, outputs, -3)
        if module.order is not None:
            joined = emit(torch.index_select, joined, -3, graph.get_attr(f"{path}.order"))
    read = [n for n in node.all_input_nodes if n.op == "get_attr"]
    node.replace_all_uses_with(joined)
    graph.erase_node(node)
    for each in read:
        if not each.users:
            graph.erase_node(each)
    graph.lint()

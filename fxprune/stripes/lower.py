"""How do dead stripes leave a model? Each convolution that has some becomes smaller ones, where that is cheaper."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxprune.api import find_inputs, trace_source
from fxprune.errors import ExactnessError, FxpruneError
from fxprune.model import Inputs, PreparedModel, TracedModel, find_tensor
from fxprune.passes.analyse import Channels, Shadow, analyse
from fxprune.passes.check_exact import is_rounding
from fxprune.stripes.choose import Layer, Lowering, choose, find_patterns
from fxprune.stripes.cost import CPU, CostModel
from fxprune.stripes.free_order import find_free, permute_units
from fxprune.stripes.module import Options, StripeConv2d

PARAMETERS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
DEFAULTS: dict[str, Any] = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def lower_stripes(model: nn.Module, example_inputs: Any = None, *, cost: CostModel = CPU) -> TracedModel:
    """Return a copy of `model` in which convolutions with dead stripes are smaller dense convolutions.

    A stripe is dead where all weights of a filter at one position of its kernel are zero, as `convert` leaves them at
    stripe granularity. For each convolution the cheapest is chosen among: as it is, one smaller kernel, several
    smaller convolutions over groups of filters that are joined, sums of such, and mixtures. The result trains on and
    exports with stock ops; its `lowered` says what became of which weight. `model` stays as it was.

    Args:
        model: a converted model, or any other that can be traced.
        example_inputs: as for `prepare`; a converted model brings its own.
        cost: what convolutions cost on the runtime.

    Raises:
        FxpruneError: the model has masks still.
        ExactnessError: the outputs differ by more than rounding.
    """
    if isinstance(model, PreparedModel):
        raise FxpruneError("the model has masks still: convert it first, then lower its stripes")
    inputs = find_inputs(model, example_inputs)
    source = model if isinstance(model, TracedModel) else trace_source(model, inputs)
    lowered = copy.deepcopy(source)
    channels = analyse(lowered, constants=False)
    convolutions = find_convolutions(lowered)
    chosen = choose_layers(lowered, channels, convolutions, cost)
    for name, lowering in chosen.items():
        replace(lowered, name, convolutions[name], lowering)
    lowered.set_graphs(lowered.graphs)
    check_lowered(source, lowered, inputs)
    lowered.steps = ()
    lowered.lowered = {name: [part.rectangles for part in each.parts] for name, each in chosen.items()}  # type: ignore[assignment]
    return lowered.compile_graphs()


def choose_layers(
    model: TracedModel, channels: Channels, convolutions: dict[str, list[fx.Node]], cost: CostModel
) -> dict[str, Lowering]:
    """Choose how each convolution is computed; where that needs another order of channels, permute them.

    The costly ones come first: of convolutions that are added up, one alone can have its order.
    """
    layers = {name: measure_layer(model, channels, nodes) for name, nodes in convolutions.items()}
    chosen: dict[str, Lowering] = {}
    taken = torch.zeros(len(channels.units), dtype=torch.bool)
    size = lambda name: -layers[name].rows * layers[name].columns * layers[name].positions  # noqa: E731
    for name in sorted(layers, key=size):
        layer = layers[name]
        patterns = find_patterns(find_tensor(model, name))
        if all(len(pattern) == layer.kernel[0] * layer.kernel[1] for pattern in patterns):
            continue
        units = find_free(channels, name)
        if units is not None and bool(taken[units].any()):
            units = None
        lowering = choose(layer, patterns, cost, units is not None)
        if not lowering.parts:
            continue
        if units is not None and lowering.order != sorted(lowering.order):
            taken[units] = True
            permute_units(model, channels, units, lowering.order)
            lowering = lowering.in_order()
        chosen[name] = lowering
    return chosen


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
    """Whether convolutions have numbers for options, all the same, and a parameter or nothing for bias."""
    options = [{name: arguments(node)[name] for name in PARAMETERS[3:]} for node in nodes]
    biases = [arguments(node)["bias"] for node in nodes]
    symbolic = any(isinstance(leaf, fx.Node) for node in nodes for leaf in node.all_input_nodes[3:])
    stored = all(bias is None or (isinstance(bias, fx.Node) and bias.op == "get_attr") for bias in biases)
    return not symbolic and stored and all(each == options[0] for each in options)


def measure_layer(model: TracedModel, channels: Channels, nodes: list[fx.Node]) -> Layer:
    """The sizes of a convolution, with its outputs over all of its calls in the eval graphs."""
    weight = find_tensor(model, str(arguments(nodes[0])["weight"].target))
    groups = int(arguments(nodes[0])["groups"])
    positions = 0
    evaluated = {region.eval for region in model.graphs.regions}
    for values in channels.values:
        for node in nodes:
            if node in values and node.graph in evaluated and isinstance(values[node], Shadow):
                shape = values[node].shape
                positions += torch.Size(shape).numel() // weight.size(0)
    return Layer(weight.size(0), weight.size(1), (weight.size(2), weight.size(3)), groups, positions)


def replace(model: TracedModel, name: str, nodes: list[fx.Node], lowering: Lowering) -> None:
    """Put the smaller convolutions into the place of one, in the module tree and in all graphs."""
    given = arguments(nodes[0])
    weight = find_tensor(model, name)
    bias = given["bias"]
    options = read_options(given, (weight.size(2), weight.size(3)))
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


def read_options(given: dict[str, Any], kernel: tuple[int, int]) -> Options:
    """Read the options of a convolution, whatever their spelling."""
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
                weight = graph.get_attr(f"{path}.parts.{k}.{r}.weight")
                bias = graph.get_attr(f"{path}.parts.{k}.{r}.bias") if own.bias is not None else None
                padded = x if reading.pad is None else emit(F.pad, x, reading.pad)
                sizes = (options.stride, reading.padding, reading.dilation, options.groups)
                result = emit(F.conv2d, padded, weight, bias, *sizes)
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


def check_lowered(source: TracedModel, lowered: TracedModel, inputs: Inputs) -> None:
    """Compare the model before and after; raises ExactnessError where they differ by more than rounding."""
    for region in lowered.graphs.regions:
        given = region.inputs if region.path else inputs
        if not is_rounding(source, lowered, region.path, given):
            raise ExactnessError(
                "the model computes something else once its stripes are smaller convolutions "
                f"(in {region.path or 'the whole'}); this is a bug in fxprune: please report it with the model"
            )

"""Whether the user's own class can hold the smaller model: a copy of the original with other sizes, checked by running.

Tensors and the sizes of layers are taken over by name. Numbers in the code of a forward that conversion has changed
(`view(b, n, 12, 64)` became `view(b, n, 7, 64)`) have to come from attributes: the original is traced once more with
integers that know which attribute they are, so that a literal of the graph leads back to `attn.num_heads`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from fxprune.errors import IntoError
from fxprune.layer_functions import find_layer
from fxprune.model import Graphs, Inputs, Step, TracedModel, in_eval_mode, named_tensors, tensors_in
from fxprune.passes.check_exact import DOUBLE, SINGLE, compare, entries, run_nodes
from fxprune.passes.mend import ARITHMETIC
from fxprune.passes.replay import check_structure
from fxprune.passes.source_lines import find_error
from fxprune.passes.trace import copy_model, trace_region
from fxprune.run_alone import all_threads

Model = TypeVar("Model", bound=nn.Module)

Attribute = tuple[str, str, int | None]
"""The path of a module, the name of its attribute, and the index inside where that is a tuple or list."""


class NamedInteger(int):
    """A whole number that knows which attribute it is."""

    source: Attribute


class Literal(NamedTuple):
    """A number among the arguments of a node that is another one in the smaller graph."""

    node: fx.Node
    source: Attribute
    value: int


def resize_original(model: Model, compact: TracedModel, inputs: Inputs) -> Model:
    """Return a copy of `model`, of which `compact` was made, with its own code and the sizes of `compact`.

    Raises:
        PlanError: `compact` was made of another model.
        IntoError: the class has no place for what conversion put in, or its code computes something else with these
            sizes; the first node of which that is true is named.
    """
    check_structure(compact.steps[-1], model)
    refuse_additions(model, compact)
    resized = copy_model(model)
    take_tensors(resized, compact)
    take_sizes(resized, compact)
    set_attributes(resized, find_changed_literals(model, compact))
    check_equal(resized, compact, inputs)
    return resized  # type: ignore[return-value]


def refuse_additions(model: nn.Module, compact: TracedModel) -> None:
    """Refuse tensors that conversion added, but for biases of layers that can hold one."""
    for node in (node for graph in compact.graphs for node in graph.nodes if node.op == "get_attr"):
        owner, _, leaf = str(node.target).rpartition(".")
        module = model.get_submodule(owner)
        if leaf in getattr(module, "parametrizations", ()):
            raise IntoError(
                f"{node.target} is computed by a parametrization; remove it before prepare "
                "(torch.nn.utils.parametrize.remove_parametrizations), or use the compact model itself"
            )
        is_constant = not owner and leaf in compact._non_persistent_buffers_set  # made by the code
        if isinstance(getattr(module, leaf, None), Tensor) or is_constant:
            continue
        if leaf != "bias" or find_layer(module) is None:
            reader = next(iter(node.users), node)
            raise cannot_hold(compact, f"{describe(reader)} needs {node.target}, for which it has no place")


def take_tensors(resized: nn.Module, compact: TracedModel) -> None:
    """Take over all parameters and buffers that both have, and biases that were added."""
    for name, value in named_tensors(compact):
        owner, _, leaf = name.rpartition(".")
        module = resized.get_submodule(owner)
        tensor = getattr(module, leaf, None)
        if isinstance(tensor, Tensor):
            tensor.data, tensor.grad = value.detach().clone(), None
        elif isinstance(value, nn.Parameter):
            module.register_parameter(leaf, nn.Parameter(value.detach().clone(), value.requires_grad))


def take_sizes(resized: nn.Module, compact: TracedModel) -> None:
    """Let the attributes of layers say what those of the compact model say: in_channels, num_features, groups."""
    for path, module in compact.named_modules():
        if path and find_layer_attributes(module):
            other = resized.get_submodule(path)
            for name, value in find_layer_attributes(module).items():
                if name in vars(other) and vars(other)[name] != value:
                    setattr(other, name, value)


def find_layer_attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if type(value) in (int, tuple)}


def find_changed_literals(model: nn.Module, compact: TracedModel) -> Iterator[Literal]:
    """Find the attributes of the original whose values stand in its graphs where conversion put other numbers."""
    named = copy_model(model)
    for path, module in named.named_modules():
        if not type(module).__module__.startswith("torch.nn.") or any(True for _ in module.children()):
            vars(module).update({name: mark(value, path, name) for name, value in vars(module).items()})
    smaller = {region.path: region for region in compact.graphs.regions}
    step = compact.steps[-1]
    assert isinstance(step, Step)
    for path, inputs in step.traced.items():
        region = trace_region(named, path, inputs)
        for before, after in ((region.eval, smaller[path].eval), (region.train, smaller[path].train)):
            nodes = {node.name: node for node in after.nodes}
            for node in before.nodes:
                if node.name in nodes:
                    yield from compare_arguments(node, (node.args, node.kwargs), arguments_of(nodes[node.name]))


def mark(value: Any, path: str, name: str, index: int | None = None) -> Any:
    """Let a whole number, or those of a tuple or list, know where they stand."""
    if type(value) is int:
        marked = NamedInteger(value)
        marked.source = (path, name, index)
        return marked
    if type(value) in (tuple, list) and index is None:
        return type(value)(mark(item, path, name, i) for i, item in enumerate(value))
    return value


def arguments_of(node: fx.Node) -> tuple[Any, Any]:
    return node.args, node.kwargs


def compare_arguments(node: fx.Node, before: Any, after: Any) -> Iterator[Literal]:
    """Go through the numbers among a node's arguments that come from an attribute and have changed."""
    if isinstance(before, NamedInteger) and type(after) is int and after != before:
        yield Literal(node, before.source, after)
    elif isinstance(before, slice) and isinstance(after, slice):
        for part in ("start", "stop", "step"):
            yield from compare_arguments(node, getattr(before, part), getattr(after, part))
    elif isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() & after.keys():
            yield from compare_arguments(node, before[key], after[key])
    elif isinstance(before, fx.Node) and isinstance(after, fx.Node):
        if before.target in ARITHMETIC and before.target is after.target and before.name != after.name:
            yield from compare_arguments(node, before.args, after.args)  # computed anew, of other numbers
    elif isinstance(before, (tuple, list)) and isinstance(after, (tuple, list)):
        for old, new in zip(before, after, strict=False):
            yield from compare_arguments(node, old, new)


def set_attributes(resized: nn.Module, literals: Iterator[Literal]) -> None:
    """Give each attribute the number that the smaller graph has in its place, which must be one everywhere."""
    done: dict[Attribute, int] = {}
    for node, source, value in literals:
        path, name, index = source
        where = f"{path}.{name}" if path else name
        if done.setdefault(source, value) != value:
            raise IntoError(
                f"{describe(node)} needs {value} for {where}, which is {done[source]} elsewhere; use the compact model "
                "itself (convert without `into`)"
            )
        module = resized.get_submodule(path)
        held = vars(module)[name]
        setattr(module, name, value if index is None else type(held)((*held[:index], value, *held[index + 1 :])))


def check_equal(resized: nn.Module, compact: TracedModel, inputs: Inputs) -> None:
    """Compare both models in eval mode on several inputs, and in training mode where that is another graph."""
    precision = next((p.dtype for p in compact.parameters()), torch.float32)
    for path, given in entries(compact, inputs):
        try:
            with torch.random.fork_rng(devices=[]):
                error = compare(compact.get_submodule(path), resized.get_submodule(path), given)
        except Exception as failure:
            reason = f"its code fails with these sizes, {find_error(failure)}: {failure}"
            raise cannot_hold(compact, reason) from failure
        if not error <= (DOUBLE if precision is torch.float64 else SINGLE):
            where = find_difference(resized, compact, path, given)
            raise cannot_hold(compact, f"{where} gives something else with its code, {error:.1e} of the outputs' range")
    if any(region.train is not region.eval for region in compact.graphs.regions):
        check_training(resized, compact, inputs)


@torch.no_grad()
def check_training(resized: nn.Module, compact: TracedModel, inputs: Inputs) -> None:
    """Compare copies of both models in training mode, under one seed."""
    ours = run_training(compact, inputs)
    try:
        theirs = run_training(resized, inputs)
    except Exception as failure:
        reason = f"in training mode its code fails with these sizes, {find_error(failure)}: {failure}"
        raise cannot_hold(compact, reason) from failure
    if len(ours) != len(theirs) or not all(
        a.shape == b.shape and torch.allclose(a, b, 1e-4, 1e-5, equal_nan=True)
        for a, b in zip(ours, theirs, strict=True)
    ):
        raise cannot_hold(compact, "its code computes something else in training mode")


@all_threads()
def run_training(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The outputs of a copy of the model in training mode."""
    args, kwargs = tree_map_only(Tensor, torch.clone, inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tensors_in(copy.deepcopy(model).train()(*args, **kwargs))


@torch.no_grad()
def find_difference(resized: nn.Module, compact: TracedModel, path: str, inputs: Inputs) -> str:
    """Name the node where the code, traced with the new sizes, first gives something else than the smaller graph."""
    smaller = next(region.eval for region in compact.graphs.regions if region.path == path)
    root = copy_model(resized)
    region = trace_region(root, path, inputs)
    own = TracedModel(root, Graphs([region]))
    with in_eval_mode(compact), in_eval_mode(own):
        wanted, got = run_nodes(compact, smaller, inputs), run_nodes(own, region.eval, inputs)
    for node in smaller.nodes:
        if node.name in wanted and node.name in got:
            a, b = wanted[node.name], got[node.name]
            if a.shape != b.shape or not torch.allclose(a.double(), b.double(), 1e-4, 1e-5, equal_nan=True):
                return describe(node)
    return "the output"


def describe(node: fx.Node) -> str:
    return f"{node.name} ({node.meta.get('where', 'no line known')})"


def cannot_hold(compact: TracedModel, reason: str) -> IntoError:
    """The error of a class that cannot be what the compact model is."""
    return IntoError(
        f"{compact.class_name} itself cannot hold the converted model: {reason}; use the compact model (convert "
        "without `into`), which computes the same"
    )

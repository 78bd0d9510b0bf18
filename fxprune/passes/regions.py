"""What of a model can be traced: the whole, or else the parts of it that can, each swapped in place.

Where code decides by the values of tensors (a detector's heads, a loop that runs until it converges) no one
graph computes the model. Its own Python code then goes on running, and each module inside that can be traced
by itself is one region: its graph takes the place of its forward, its inputs and outputs stay as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from fxprune.errors import FxpruneError, TraceError
from fxprune.model import Graphs, Inputs, Region, TracedModel, in_eval_mode, tensors_in
from fxprune.passes.trace import cannot_run, copy_model, trace, trace_region
from fxprune.passes.watch import Calls, kept_state, sizes_in, watch_calls
from fxprune.passes.written_weights import kept_weights, writes_weights
from fxprune.run_alone import all_threads

ROUGH = 0.02
"""How far a graph may be from the code it was made of, in shares of the largest output: bfloat16 rounds by 0.004."""


def trace_regions(model: nn.Module, inputs: Inputs, check: bool = True) -> TracedModel:
    """Trace a copy of `model`, or those of its modules that can be traced; what could not is in `untraced`.

    Where it is to be checked, the user's code is run beside the graph of the whole; a graph of parts always is.

    Raises:
        TraceError: nothing of the model that holds two layers can be traced, or it does not run on the inputs.
    """
    try:
        traced = trace(model, inputs)
        if check:
            compare_code(model, traced, inputs)
        return traced
    except TraceError as error:
        root = copy_model(model)
        try:
            with all_threads(), kept_weights(root, model):
                calls = watch_calls(root, inputs)
        except TraceError:
            raise error from None  # it says more
        try:
            return trace_parts(model, root, inputs, calls, error)
        except TraceError:
            hooked = {name for name, each in calls.items() if each.has_hooks}
            if not hooked:
                raise
            return trace_parts(model, copy_model(model), inputs, calls, error, hooked)


@all_threads()
def trace_parts(
    model: nn.Module, root: nn.Module, inputs: Inputs, calls: dict[str, Calls], error: TraceError,
    hooked: Collection[str] = (),
) -> TracedModel:  # fmt: skip
    """Trace the modules inside of `root`, a copy of a model that as a whole cannot be traced, for this `error`.

    Those that are `hooked` stay modules: what their hooks are given, they may pass on past all graphs.
    """
    search = Search(root, calls, hooked)
    search.refuse("", error)
    with kept_weights(root, model):
        search.visit_children("")
    if not search.regions:
        raise error
    traced = TracedModel(root, Graphs(search.regions), inputs=inputs, untraced=search.untraced)
    traced.train(model.training)
    for name, module in model.named_modules():
        traced.get_submodule(name).training = module.training
    compare_code(model, traced, inputs)
    return traced


@all_threads()
def compare_code(model: nn.Module, traced: TracedModel, inputs: Inputs) -> None:
    """Run the user's code beside the graph that was made of it; raises TraceError where they differ.

    So code is found out that tells what it is traced with from tensors, calls a layer past its module, or leaves a
    result in an attribute.
    """
    code = copy_model(model, share_weights=not writes_weights(traced))
    quiet = torch.random.fork_rng(devices=[])
    kept = kept_weights(traced, model)
    with torch.no_grad(), quiet, in_eval_mode(code), in_eval_mode(traced), kept_state(traced), kept:
        before = read_attributes(code)
        try:
            wanted = floats_of(code, inputs)
        except Exception as error:
            raise cannot_run(code, error) from error
        left = [name for name, value in read_attributes(code).items() if before.get(name) is not value]
        if are_alike(wanted, floats_of(traced, inputs)):
            if left:
                compare_second_call(code, traced, inputs, left)
            return
        if not are_alike(wanted, floats_of(code, inputs)):
            return  # random outputs cannot be compared
    raise TraceError(
        f"what was traced of {type(model).__name__} gives other outputs than its code, which must tell a traced value "
        "from a tensor (by type(x) instead of isinstance), use the weights of a layer past the layer, or let a module "
        "leave something in an attribute that code outside of it reads"
    )


def read_attributes(model: nn.Module) -> dict[str, Any]:
    """Read all plain attributes of a model's modules, by their names."""
    return {
        f"{path}.{name}".strip("."): value
        for path, part in model.named_modules()
        for name, value in vars(part).items()
        if not name.startswith("_") and name != "training"
    }


def compare_second_call(code: nn.Module, traced: TracedModel, inputs: Inputs, left: list[str]) -> None:
    """Run code and graph once more, where the code has left something in attributes, which it may go by."""
    wanted = floats_of(code, inputs)
    if not are_alike(wanted, floats_of(traced, inputs)):
        raise TraceError(
            f"what was traced of {type(code).__name__} gives other outputs than its code in the second call: it goes "
            f"by what the first one has left in {', '.join(left[:3])}; register that as a buffer, which the graph "
            "reads and writes, or keep it out of the model that is prepared"
        )


def floats_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Run a model on copies of the inputs, and list the outputs that are no whole numbers."""
    args, kwargs = tree_map_only(Tensor, torch.clone, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what code has to say, it says where its owner runs it
        outputs = tensors_in(model(*args, **kwargs))
    return [t.double() for t in outputs if t.is_floating_point() and t.numel()]


def are_alike(wanted: list[Tensor], found: list[Tensor]) -> bool:
    """Whether outputs are the same but for rounding, at a glance."""
    limits = [ROUGH * float(t.abs().nan_to_num().max()) for t in wanted]
    same = zip(wanted, found, limits, strict=False)
    return len(wanted) == len(found) and all(
        a.shape == b.shape and torch.allclose(a, b, 0, limit, equal_nan=True) for a, b, limit in same
    )


class Search:
    """The search for the largest modules that can be traced, from the whole model down."""

    def __init__(self, root: nn.Module, calls: dict[str, Calls], hooked: Collection[str] = ()) -> None:
        self.root, self.calls, self.hooked = root, calls, hooked
        self.regions: list[Region] = []
        self.untraced: dict[str, str] = {}

    def visit(self, path: str) -> None:
        """Trace a module, or else the modules inside."""
        if count_layers(self.root.get_submodule(path)) < 2:
            return  # a single layer between two interfaces has nothing to lose
        try:
            self.regions.append(self.trace(path))
        except FxpruneError as error:
            self.refuse(path, error)
            self.visit_children(path)

    def visit_children(self, path: str) -> None:
        for name, _ in self.root.get_submodule(path).named_children():
            self.visit(f"{path}.{name}" if path else name)

    def refuse(self, path: str, error: FxpruneError) -> None:
        """Note why a module stays outside."""
        if not (path and type(self.root.get_submodule(path)).forward is nn.Module.forward):
            self.untraced[path or "the whole model"] = str(error)

    def trace(self, path: str) -> Region:
        """Trace a module on its first call, and try the graph on all others."""
        calls = self.calls[path]
        if not calls.inputs:
            raise TraceError("it is not called with the example inputs")
        for name in sorted(name for name in self.hooked if name.startswith(f"{path}.") and self.is_block(name)):
            raise TraceError(f"{name} inside of it has hooks, which hand on what they are given")
        for name in sorted(calls.called_outside):
            raise TraceError(f"{name} inside of it is also called from outside")
        for name, line in calls.read_outside.items():
            raise TraceError(f"{name} inside of it is also read from outside ({line})")
        if any(t.numel() == 0 for t in tree_leaves(calls.inputs) if isinstance(t, Tensor)):
            raise TraceError("it is called with empty tensors, of which nothing can be learnt")
        if [sizes_in(inputs) for inputs in calls.inputs] != calls.held:
            raise TraceError("its code leaves tensors in an object that it is called with, such as a cache")
        used = copy_model(self.root)  # code that was left halfway leaves its objects in any state
        region = trace_region(used, path, calls.inputs[0])
        take_constants(region, used, self.root)
        compare_calls(self.root, region, calls)
        return region

    def is_block(self, name: str) -> bool:
        """Whether a module holds others, so that a graph does not call it, and its hooks do not run."""
        return any(True for _ in self.root.get_submodule(name).children())


def take_constants(region: Region, used: nn.Module, root: nn.Module) -> None:
    """Give the model the tensors that its code makes of nothing, which the tracer put into the module that it used."""
    for node in (node for graph in region for node in graph.nodes if node.op == "get_attr"):
        owner, _, leaf = str(node.target).rpartition(".")
        if not hasattr(root.get_submodule(owner), leaf):
            setattr(root.get_submodule(owner), leaf, getattr(used.get_submodule(owner), leaf))


def compare_calls(root: nn.Module, region: Region, calls: Calls) -> None:
    """Run a region's graph on every kind of call that was seen; raises where it gives another result than the code."""
    shell = nn.Module()
    shell._modules, shell._parameters, shell._buffers = root._modules, root._parameters, root._buffers
    module = root.get_submodule(region.path)
    own = TracedModel(shell, Graphs([region]))
    run = vars(module).pop("forward")
    with torch.no_grad(), torch.random.fork_rng(devices=[]), in_eval_mode(own), kept_state(root):
        for inputs in calls.inputs:
            (args, kwargs), (same, alike) = (tree_map_only(Tensor, torch.clone, inputs) for _ in range(2))
            wanted = tensors_in(module(*args, **kwargs))
            try:
                got = tensors_in(run(*same, **alike))
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                raise TraceError(f"its graph does not take all the calls that the code makes: {error}") from error
            same_shapes = [t.shape for t in wanted] == [t.shape for t in got]
            if not (same_shapes and all(map(partial(torch.allclose, equal_nan=True), wanted, got))):
                raise TraceError("its graph gives something else than its code, which must keep a state somewhere")


def count_layers(module: nn.Module) -> int:
    """Count the layers that have a matrix of weights."""
    return sum(any(p.dim() > 1 for p in part.parameters(recurse=False)) for part in module.modules())

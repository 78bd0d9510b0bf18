"""How a model's Python code becomes a graph: symbolic tracing with proxies that carry example values.

Each proxy holds the value that the example input gives it, so Python logic on shapes runs as it
would, while every number derived from a shape stays symbolic. Only a truth value, a loop bound, an
index or a formatted text needs the number itself: it is then noted in the graph as a guard, which
raises where another input would have taken another way.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves, tree_map_only

from fxprune.arguments import read_arguments
from fxprune.copy_modules import deep_copy
from fxprune.errors import GuardViolated, TraceError
from fxprune.find_module import find_module
from fxprune.model import Graphs, Inputs, Region, TracedModel, in_eval_mode, named_tensors
from fxprune.passes.left_behind import forget_proxies, kept_chance, store_buffers
from fxprune.passes.memoised import Memoised, computing_anew
from fxprune.passes.proxies import symbolic_numbers
from fxprune.passes.source_lines import find_error
from fxprune.passes.stand_ins import standing_in
from fxprune.passes.tracer import Asked, TraceMode, ValueTracer
from fxprune.passes.watch import kept_state
from fxprune.passes.written_weights import kept_weights
from fxprune.run_alone import all_threads
from fxprune.shadow.shapes import ShapeTensor


def trace(model: nn.Module, inputs: Inputs) -> TracedModel:
    """Trace a copy of `model` in both modes on example `inputs`.

    The result has the model's submodules, parameter names and state dict, takes every batch and
    image size that the model takes, and is in the mode of `model`, which stays as it was.

    Raises:
        TraceError: the model does not run on the inputs, or its code decides by the values of tensors.
    """
    try:
        root = copy_model(model)
        with kept_weights(root, model):
            region = trace_region(root, "", inputs, values=False)
    except (TraceError, GuardViolated):  # code that was left halfway leaves its objects in any state
        root = copy_model(model)
        with kept_weights(root, model), all_threads():
            region = trace_region(root, "", inputs)
    return TracedModel(root, Graphs([region]), inputs=inputs)


def trace_region(root: nn.Module, path: str, inputs: Inputs, values: bool = True) -> Region:
    """Trace one module of `root` in both modes; the graphs name its parts as `root` does.

    Without `values` only the shapes are computed of what depends on an input: faster, and not always enough. Where
    code makes plain numbers of sizes, by `int(n)` and `float(n)`, it is traced again with what leaves them symbolic,
    and where it calls memoised functions with sizes, without their memory.
    """
    try:
        region, asked = trace_modes(root, path, inputs, values)
    except Memoised as call:
        with computing_anew(call.places):
            return trace_region(root, path, inputs, values)
    numbers = [code for code in asked.numbers if not str(code.get("__name__")).startswith("torch.")]
    if numbers:
        with suppress(TraceError, GuardViolated, Memoised), symbolic_numbers(numbers):
            return trace_modes(root, path, inputs, values)[0]
    return region


def trace_modes(root: nn.Module, path: str, inputs: Inputs, values: bool) -> tuple[Region, Asked]:
    """Trace one module in both modes, and give what its code asks."""
    module = find_module(root, path)
    arguments = read_arguments(type(module).forward, inputs)
    modes = {part: part.training for part in module.modules()}
    try:
        earlier: dict[str, tuple[fx.Node, Any]] = {}
        given = inputs if values else tree_map_only(Tensor, lambda t: ShapeTensor(t, t.device), inputs)
        train, asked = trace_mode(module.train(True), given, earlier)
        evaluated = train
        if asked.modes or any(changes_with_mode(part) for part in modes):
            evaluated, also = trace_mode(module.train(False), given, earlier)
            asked = Asked(asked.modes + also.modes, asked.rank or also.rank, asked.numbers + also.numbers)
    finally:
        for part, mode in modes.items():
            part.training = mode
    for node in (node for graph in {train, evaluated} for node in graph.nodes):
        if path and node.op in ("call_module", "get_attr"):
            node.target = f"{path}.{node.target}"
    same = train is evaluated or describe(train) == describe(evaluated)
    arguments = arguments.with_ranks(inputs) if asked.rank else arguments
    askers = {id(part) for part in asked.modes}
    asking = tuple(f"{path}.{name}".strip(".") for name, part in module.named_modules() if id(part) in askers)
    return Region(path, evaluated if same else train, evaluated, inputs, arguments, asking), asked


def changes_with_mode(module: nn.Module) -> bool:
    """Whether a module does more than to note its mode when it is switched, as one that fuses its branches does."""
    kind = type(module)
    return kind.train is not nn.Module.train or kind.eval is not nn.Module.eval


def copy_model(model: nn.Module, share_weights: bool = False) -> nn.Module:
    """Copy the model, or say why that is impossible; a copy that only runs in eval mode may share the parameters."""
    for name, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule) and named_tensors(part):
            raise TraceError(
                f"{name or 'the model'} is a scripted module with weights, of which torch makes no copy that can be "
                "trained; pass the Python module that it was made of, and script the model that convert returns"
            )
    try:
        return deep_copy(model, {id(p): p for p in model.parameters()} if share_weights else {})  # type: ignore[no-any-return]
    except (RuntimeError, TypeError, AttributeError) as error:
        refuse_computed(model)
        raise TraceError(
            f"{type(model).__name__} cannot be copied ({error}); fxprune works on a copy so that your model stays "
            "as it was: keep no open handles and no tensors with gradients in its attributes"
        ) from error


def refuse_computed(model: nn.Module) -> None:
    """Name a weight that a hook computes before each call, as torch's older normalisations of weights do."""
    for name, part in model.named_modules():
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                raise TraceError(
                    f"{name or 'the model'} is pruned by torch.nn.utils.prune, which computes its {hook._tensor_name} "
                    f"anew in each call: call torch.nn.utils.prune.remove(module, {hook._tensor_name!r}) first"
                )
            norm = {WeightNorm: "weight_norm", SpectralNorm: "spectral_norm"}.get(type(hook))
            if norm is not None:
                raise TraceError(
                    f"the weight of {name or 'the model'} is computed by torch.nn.utils.{norm}, of which torch makes "
                    f"no copy; use torch.nn.utils.parametrizations.{norm} instead"
                )


def trace_mode(root: nn.Module, inputs: Inputs, earlier: dict[str, tuple[fx.Node, Any]]) -> tuple[fx.Graph, Asked]:
    """Trace the mode that `root` is in, and tell what its code asks.

    Buffers that the forward pass changes are put back.

    `earlier` holds, by name, the nodes of the other mode and their values, and gets those of this one.
    """
    tracer = ValueTracer(inputs, earlier)
    proxies = tracer.proxies
    buffers = dict(root.named_buffers())
    kept = (kept_state(root), kept_chance(), torch.random.fork_rng(devices=[]), standing_in(tracer), TraceMode(tracer))
    try:
        with ExitStack() as stack:
            for each in kept:
                stack.enter_context(each)
            graph = tracer.trace(root)
            tracer.recording = False
            store_buffers(graph, root, buffers)
            constants = {name: value for name, value in vars(root).items() if name.startswith("_tensor_constant")}
        vars(root).update(constants)  # what else code leaves is no tensor but a proxy
        if tracer.failed and any(isinstance(leaf, ShapeTensor) for leaf in tree_leaves(inputs)):
            raise TraceError("it may be for want of values that an op has failed")
        if tracer.failures:
            raise TraceError(
                f"{tracer.failures[0]}: the code goes on after this has failed, and might not for another input; "
                "decide by the shape instead, or keep it out of the model that is prepared"
            )
    except (TraceError, GuardViolated):
        raise
    except Exception as error:
        explain = cannot_run if find_failure(root, inputs) else cannot_trace
        raise explain(root, error) from error
    finally:
        forget_proxies(proxies)
    for node in graph.nodes:  # `self.relu(x)` that writes to x, the result left unused
        module = find_module(root, node.target) if node.op == "call_module" else None
        inplace = getattr(module, "inplace", False) or node.kwargs.get("inplace", False)
        node.meta["writes"] = bool(inplace) and not node.users
    asked = tracer.asked
    vars(tracer).clear()  # it lies in circles, which would hold the weights until Python looks for circles
    tracer.recording = False  # what stands in for functions asks
    return graph, asked


def cannot_run(model: nn.Module, error: Exception) -> TraceError:
    """The error of a model that does not take its example inputs."""
    mode = "training" if model.training else "eval"
    first = (str(error) or type(error).__name__).splitlines()[0]
    return TraceError(
        f"{model._get_name()} does not run on the example inputs in {mode} mode: {first} ({find_error(error)}); "
        "pass example_inputs that the model takes, as a tensor, a tuple, or a dict of keyword arguments"
    )


def cannot_trace(model: nn.Module, error: Exception) -> TraceError:
    """The error of a model that takes its example inputs, but whose code fails on what stands for tensors."""
    first = (str(error) or type(error).__name__).splitlines()[0]
    return TraceError(
        f"{model._get_name()} runs on the example inputs, but its code fails when it is traced: {first} "
        f"({find_error(error)}); what it does there with a tensor or a size, do by torch's functions, or keep it out "
        "of the model that is prepared"
    )


def find_failure(model: nn.Module, inputs: Inputs) -> Exception | None:
    """What a model raises on inputs, in the mode that it is in; neither keeps a trace of it."""
    args, kwargs = tree_map_only(Tensor, torch.clone, inputs)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), kept_state(model):
        try:
            model(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  # whatever its code raises
            return error
    return None


@all_threads()
def require_runs(model: nn.Module, inputs: Inputs) -> None:
    """Raise TraceError where a model does not take these inputs in eval mode."""
    with in_eval_mode(model):
        error = find_failure(model, inputs)
        if error is not None:
            raise cannot_run(model, error) from error


def describe(graph: fx.Graph) -> str:
    """Write a graph as text that is equal for graphs which compute the same."""
    return graph.python_code("self").src

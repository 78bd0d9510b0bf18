"""How do dead stripes leave a model? Each convolution that has some becomes smaller ones, where that is faster."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from fxprune.api import convert, find_inputs, fit_inputs
from fxprune.check_unchanged import check_layers
from fxprune.errors import ExactnessError, FxpruneError
from fxprune.export.pin_cores import require_cores
from fxprune.export.runtimes.interface import Runtime
from fxprune.export.runtimes.registry import find_runtime
from fxprune.inspection.costs import batch_of
from fxprune.model import Inputs, PreparedModel, TracedModel, describe_tensors, find_tensor
from fxprune.passes.analyse import Channels, Shadow, analyse
from fxprune.passes.check_exact import is_rounding
from fxprune.passes.trace import require_runs
from fxprune.stripes.cost import CPU, CostModel
from fxprune.stripes.free_order import find_free, permute_units
from fxprune.stripes.lowering import KINDS, Kind, Layer, Lowering
from fxprune.stripes.propose import find_patterns, propose
from fxprune.stripes.race import race, time_lowerings, write_network
from fxprune.stripes.rectangles import Pattern
from fxprune.stripes.replay import record
from fxprune.stripes.rewrite import arguments, find_convolutions, read_options, replace_layers
from fxprune.stripes.step import LoweredLayer, StripeStep

GAIN = 0.98
"""A measured lowering is chosen where it takes at most this share of the time: what is nearly equal is noise."""


def lower_stripes(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    runtime: str | Runtime | None = None,
    threads: int = 1,
    cost: CostModel = CPU,
    kinds: Collection[Kind] = KINDS,
) -> TracedModel:
    """Return a copy of `model` in which convolutions with dead stripes are smaller dense convolutions.

    A stripe is dead where all weights of a filter at one position of its kernel are zero, as `convert` leaves them at
    stripe granularity. For each convolution the cheapest is chosen among: as it is, one smaller kernel, several
    smaller convolutions over groups of filters that are joined, sums of such, and mixtures. The result trains on,
    exports with stock ops, and is saved; `print(lowered.lowered)` shows what became of each layer. `model` stays as it
    was.

    With a `runtime` the best few ways of each layer are timed there in float32, at the size of the example inputs, and
    the times kept in the user's cache folder. Then the whole network is timed in turns with the one that it was made
    from; as long as it is slower, the half of its layers that gain least go back to what they were.

    Args:
        model: a converted model; any other is converted first.
        example_inputs: as for `prepare`; a converted model brings its own.
        runtime: what is to run the model, by its name, such as "ort-cpu", or a runtime; None goes by `cost`.
        threads: of the runtime.
        cost: what convolutions cost.
        kinds: what may be chosen, of "crop", "groups", "sums" and "mixtures".

    Raises:
        FxpruneError: the model has masks still, a layer was made into another one since its conversion, or an argument
            is of the wrong kind.
        TraceError: the model does not run on the inputs.
        ExactnessError: the outputs differ by more than rounding.
        ExportError: the runtime cannot run the model, or there are more threads than cores.
    """
    check_arguments(model, runtime, threads, kinds)
    inputs = find_inputs(model, example_inputs)
    if isinstance(model, TracedModel):
        check_layers(model, "lower_stripes")
        require_runs(model, inputs)
    source = model if isinstance(model, TracedModel) else convert(model, example_inputs)
    used = find_runtime(runtime) if isinstance(runtime, str) else runtime
    choice = Choice(cost, tuple(kinds), used, threads)
    lowered, step = lower_once(source, inputs, choice, set())
    if used is not None:
        lowered, step = win_race(source, inputs, choice, lowered, step, used)
    return record(lowered, step)


def check_arguments(model: object, runtime: object, threads: int, kinds: Collection[Kind]) -> None:
    """Refuse arguments of the wrong kind before any work."""
    if not isinstance(model, nn.Module):
        raise FxpruneError(f"lower_stripes takes a module, not {model!r}")
    if isinstance(model, PreparedModel):
        raise FxpruneError("the model has masks still: convert it first, then lower its stripes")
    if isinstance(kinds, str) or not set(kinds) <= set(KINDS):
        raise FxpruneError(f"kinds={kinds!r}: give some of {', '.join(map(repr, KINDS))}, such as ('crop', 'groups')")
    if runtime is not None and not isinstance(runtime, str | Runtime):
        raise FxpruneError(f"runtime={runtime!r}: give the name of a runtime, such as 'ort-cpu', or a runtime")
    require_cores([threads])


@dataclass(frozen=True)
class Choice:
    """How lowerings are chosen: by the model of the costs, or by time where there is a runtime."""

    cost: CostModel
    kinds: tuple[Kind, ...]
    runtime: Runtime | None = None
    threads: int = 1

    def choose(self, layer: Layer, patterns: list[Pattern], is_free: bool) -> LoweredLayer:
        """Choose the lowering of one convolution; `is_free`: whether the order of its output channels may change."""
        proposals = propose(layer, patterns, self.cost, is_free, self.kinds)
        dense = proposals[0]
        best, measured = min(proposals, key=lambda proposal: proposal.cost), None
        if self.runtime is not None and len(proposals) > 1:
            lowerings = [proposal.lowering for proposal in proposals]
            times = time_lowerings(layer, lowerings, is_free, self.runtime, self.threads)
            fastest = min(times[1:])
            best = proposals[times.index(fastest)] if fastest < GAIN * times[0] else dense
            measured = (times[0], fastest if best is not dense else times[0])
        living = [[sum((i, j) in p for p in patterns) for j in range(layer.kernel[1])] for i in range(layer.kernel[0])]
        return LoweredLayer(
            layer.rows, layer.kernel, tuple(map(tuple, living)), best.lowering, best.cost / dense.cost, measured
        )  # fmt: skip


def win_race(
    source: TracedModel, inputs: Inputs, choice: Choice, lowered: TracedModel, step: StripeStep, runtime: Runtime
) -> tuple[TracedModel, StripeStep]:
    """Give the lowered model, or while it is slower than `source` on the runtime, one with fewer lowered layers."""
    kept: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "dense.onnx"), Path(folder, "lowered.onnx")
        write_network(source, inputs, before)
        while gains := find_gains(step):
            write_network(lowered, inputs, after)
            result = race(before, after, batch_of(inputs), runtime, choice.threads)
            if result.ratio <= 1:
                return lowered, replace(step, race=result)
            kept |= set(sorted(gains, key=gains.__getitem__)[: (len(gains) + 1) // 2])
            lowered, step = lower_once(source, inputs, choice, kept)
    return lowered, step


def find_gains(step: StripeStep) -> dict[str, float]:
    """The milliseconds that each lowered layer gains alone, by its weight."""
    times = {name: layer.measured for name, layer in step.layers.items() if layer.lowering.parts}
    return {name: measured[0] - measured[1] for name, measured in times.items() if measured is not None}


def lower_once(source: TracedModel, inputs: Inputs, choice: Choice, kept: set[str]) -> tuple[TracedModel, StripeStep]:
    """Lower a copy of a model, and say what was done; the weights in `kept` stay as they are."""
    lowered = copy.deepcopy(source)
    fit_inputs(lowered, inputs, floats=False)  # at their sizes its layers are to be fast
    layers = choose_layers(lowered, analyse(lowered, constants=False), choice, kept)
    replace_layers(lowered, {name: layer.lowering for name, layer in layers.items() if layer.lowering.parts})
    check_lowered(source, lowered, inputs)
    return lowered, StripeStep(source.class_name, describe_tensors(source), layers, None)


def choose_layers(model: TracedModel, channels: Channels, choice: Choice, kept: set[str]) -> dict[str, LoweredLayer]:
    """Choose how each convolution is computed; where that needs another order of channels, permute them.

    The costly ones come first: of convolutions that are added up, one alone can have its order.
    """
    layers = {name: measure_layer(model, channels, nodes) for name, nodes in find_convolutions(model).items()}
    chosen: dict[str, LoweredLayer] = {}
    taken = torch.zeros(len(channels.units), dtype=torch.bool)
    size = lambda name: -layers[name].rows * layers[name].columns * layers[name].positions  # noqa: E731
    for name in sorted(layers, key=size):
        layer = layers[name]
        patterns = find_patterns(find_tensor(model, name))
        if all(len(pattern) == layer.whole.taps for pattern in patterns):
            continue
        units = find_free(channels, name)
        if units is not None and bool(taken[units].any()):
            units = None
        found = choice.choose(layer, patterns, units is not None)
        if name in kept:
            found = replace(found, lowering=Lowering(()), predicted=1.0)
        if units is not None and not found.lowering.is_ordered:
            taken[units] = True
            permute_units(model, channels, units, found.lowering.order)
            found = replace(found, lowering=found.lowering.in_order())
        chosen[name] = found
    return {name: chosen[name] for name in layers if name in chosen}


def measure_layer(model: TracedModel, channels: Channels, nodes: list[fx.Node]) -> Layer:
    """The sizes of a convolution, with its inputs and outputs over all of its calls in the eval graphs."""
    weight = find_tensor(model, str(arguments(nodes[0])["weight"].target))
    kernel = (weight.size(2), weight.size(3))
    positions, inputs = 0, []
    evaluated = {region.eval for region in model.graphs.regions}
    for values in channels.values:
        for node in nodes:
            if node in values and node.graph in evaluated and isinstance(values[node], Shadow):
                positions += torch.Size(values[node].shape).numel() // weight.size(0)
                read = values[arguments(node)["input"]].shape
                inputs.append((1,) * (4 - len(read)) + tuple(read))
    options = read_options(nodes[0], kernel)
    return Layer(weight.size(0), weight.size(1), kernel, options, positions, tuple(inputs))


def check_lowered(source: TracedModel, lowered: TracedModel, inputs: Inputs) -> None:
    """Compare the model before and after; raises ExactnessError where they differ by more than rounding."""
    for region in lowered.graphs.regions:
        given = region.inputs if region.path else inputs
        if not is_rounding(source, lowered, region.path, given):
            raise ExactnessError(
                "the model computes something else once its stripes are smaller convolutions "
                f"(in {region.path or 'the whole'}); this is a bug in fxprune: please report it with the model"
            )

"""How long does a layer take on the runtime at hand?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx

from fxprune.export.runtimes.interface import Array, Runtime
from fxprune.export.runtimes.ort_cpu import OrtCpu
from fxprune.export.turns import Timer, time_in_turns
from fxprune.layer_times.cache import Machine, add_times, read_times
from fxprune.layer_times.graph import LayerGraph, build_graph

ROUNDS = 5


def time_layers(
    layers: Iterable[LayerGraph], *, runtime: Runtime | None = None, threads: int = 1, seconds: float = 0.1
) -> dict[LayerGraph, float]:
    """Give the milliseconds that each layer takes, its surroundings taken off.

    Layers of one input shape are timed in turns, about `seconds` each; what counts is the median over the rounds of the
    fastest run of each, since what else the machine does only adds. What was timed before on this runtime, processor
    and number of threads comes from a cache on disk; where one layer of a shape is new, all of that shape are timed
    again, so that what is compared comes from one run. The runtime is ONNX Runtime on the CPU unless given.

    Raises:
        ExportError: the runtime refuses a layer.
    """
    runtime = runtime or OrtCpu()
    machine = Machine(runtime.name, threads)
    known = read_times(machine)
    alike: dict[tuple[tuple[int, ...], bool], list[LayerGraph]] = {}
    for layer in dict.fromkeys(layers):
        alike.setdefault((layer.shape, layer.is_linear), []).append(layer)
    found: dict[LayerGraph, float] = {}
    for (_, is_linear), beside in alike.items():
        if not all(repr(layer) in known for layer in beside):
            times = time_beside(beside, is_linear, runtime, threads, seconds)
            known |= {repr(layer): milliseconds for layer, milliseconds in times.items()}
            add_times(machine, {repr(layer): known[repr(layer)] for layer in beside})
        found |= {layer: known[repr(layer)] for layer in beside}
    return found


def time_beside(
    layers: list[LayerGraph], is_linear: bool, runtime: Runtime, threads: int, seconds: float
) -> dict[LayerGraph, float]:
    """Time layers of one input shape, and their frame, in turns."""
    frame = layers[0].frame
    runs = {layer: load_layer(layer, is_linear, runtime, threads) for layer in [frame, *layers]}
    measured = time_in_turns(runs, seconds, ROUNDS)
    medians = {layer: float(np.median([each.min() for each in times])) for layer, times in measured.items()}
    return {layer: max(medians[layer] - medians[frame], 0.0) for layer in layers}


def load_layer(layer: LayerGraph, is_linear: bool, runtime: Runtime, threads: int) -> Timer:
    """Load the graph of a layer, and give what times one run of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "layer.onnx")
        onnx.save(build_graph(layer, is_linear), path)
        session = runtime.load(path, threads)
    sizes = tuple(size or 1 for size in session.inputs[0].shape)
    feed: dict[str, Array] = {"x": np.random.default_rng(0).standard_normal(sizes, dtype=np.float32)}
    return session.bind(feed)

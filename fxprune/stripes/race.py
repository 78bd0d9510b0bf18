"""Which of several ways to compute a layer, or a network, is faster on the runtime at hand?"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fxprune.export.loads import compare_loads, time_loads
from fxprune.export.onnx import to_onnx
from fxprune.export.random_inputs import draw_inputs
from fxprune.export.runtimes.interface import Runtime
from fxprune.export.turns import Timer
from fxprune.layer_times.measure import time_layers
from fxprune.model import Inputs, TracedModel
from fxprune.stripes.lowering import Layer, Lowering, list_graphs
from fxprune.stripes.step import Race

SECONDS, PRECISION = 3.0, 0.02


def time_lowerings(
    layer: Layer, lowerings: list[Lowering], is_free: bool, runtime: Runtime, threads: int
) -> list[float]:
    """Give the milliseconds that a convolution takes in each of these ways, over all of its calls."""
    graphs = [list_graphs(layer, lowering, is_free) for lowering in lowerings]
    times = time_layers([graph for each in graphs for graph in each], runtime=runtime, threads=threads)
    return [sum(times[graph] for graph in each) for each in graphs]


def write_network(model: TracedModel, inputs: Inputs, path: Path) -> None:
    """Write a network as an ONNX file of the sizes of its inputs."""
    args, kwargs = inputs
    examples = dict(model.forward_signature.bind(*args, **kwargs).arguments)
    to_onnx(model, examples, path, dynamic_batch=False, verify=False)


def race(dense: Path, lowered: Path, batch_size: int, runtime: Runtime, threads: int) -> Race:
    """Time two files in turns."""
    feed = draw_inputs(runtime.load(dense, threads).inputs, batch_size, {})

    def load(path: Path) -> Timer:
        return runtime.load(path, threads).bind(feed)

    times = time_loads({path: partial(load, path) for path in (dense, lowered)}, SECONDS, PRECISION)
    return Race(runtime.name, threads, batch_size, *compare_loads(times[lowered], times[dense]))

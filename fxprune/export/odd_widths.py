"""Which widths cost more than their share on a runtime, because they are no multiple of its vectors?"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fxprune.export.graph_constants import read_int
from fxprune.export.layer_profile import name_layer
from fxprune.export.onnx_macs import Work
from fxprune.export.runtimes.interface import Runtime
from fxprune.layer_times.graph import Convolution, LayerGraph, Linear
from fxprune.layer_times.measure import time_layers
from fxprune.vector_width import VECTOR

MOST = 20
"""Layers that are timed, those with the most multiply-accumulates first: each takes about a second."""

SIGNIFICANT = 1.05
"""How many times more than in proportion to its width a layer has to cost."""


class Odd(NamedTuple):
    """A layer whose width costs more than its share, and what the next narrower multiple was measured to bring."""

    layer: str
    width: int
    narrower: int
    speedup: float


def find_odd_widths(works: Sequence[Work], runtime: Runtime, threads: int) -> list[Odd]:
    """Time the widest layers of odd width alone on a runtime, each beside itself at the next narrower multiple of 16.

    `works` are a file's layers, at the batch size that counts. Layers in groups are left out.

    Raises ExportError if the runtime refuses a layer.
    """
    by_size = sorted(works, key=lambda work: -work.macs)
    graphs = [(name_layer(work), *pair) for work in by_size for pair in _build_pair(work)][:MOST]
    times = time_layers([graph for _, *pair in graphs for graph in pair], runtime=runtime, threads=threads)
    odd = []
    for layer, wide, narrow in graphs:
        width, narrower = _get_width(wide), _get_width(narrow)
        if times[wide] > times[narrow] * SIGNIFICANT * width / narrower > 0:
            odd.append(Odd(layer, width, narrower, times[wide] / times[narrow]))
    return odd


def _build_pair(work: Work) -> Iterator[tuple[LayerGraph, LayerGraph]]:
    """Give the graphs of a layer and of its narrower self, if its width is odd and its kind can be timed alone."""
    left, weight, output = work.shapes
    width = output[1] if work.op == "Conv" else output[-1]
    narrower = width // VECTOR * VECTOR
    if work.weight is None or narrower in (0, width) or work.node.outputs[0].is_graph_output():
        return
    if work.op in ("Gemm", "MatMul") and len(weight) == 2 and not read_int(work.node, "transA", 0):
        shape = (math.prod(left[:-1]), left[-1])
        yield LayerGraph(shape, ((Linear(width),),)), LayerGraph(shape, ((Linear(narrower),),))
    if work.op == "Conv" and read_int(work.node, "group", 1) == 1 and not _pads_by_itself(work):
        whole = _describe_convolution(work, width)
        yield LayerGraph(left, ((whole,),)), LayerGraph(left, ((whole._replace(filters=narrower),),))


def _pads_by_itself(work: Work) -> bool:
    """Whether a convolution's padding follows from the size of its input."""
    attribute = work.node.attributes.get("auto_pad")
    return attribute is not None and attribute.as_string() != "NOTSET"


def _describe_convolution(work: Work, filters: int) -> Convolution:
    _, weight, _ = work.shapes
    kernel = weight[2:]
    ones, none = (1,) * len(kernel), (0,) * 2 * len(kernel)
    pads, strides, dilations = (
        tuple(work.node.attributes[name].as_ints()) if name in work.node.attributes else default
        for name, default in (("pads", none), ("strides", ones), ("dilations", ones))
    )
    return Convolution(filters, kernel, pads, strides, dilations)


def _get_width(graph: LayerGraph) -> int:
    ((op,),) = graph.parts
    return op.features if isinstance(op, Linear) else op.filters

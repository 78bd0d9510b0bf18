"""Which layers take the time on ONNX Runtime, and which lose what fewer multiply-accumulates should bring?

ONNX Runtime's profiler names a fused node after the node that it began with, or after its output ("relu_1_nchwc" for
the convolution in front of that activation). From there the graph of the file leads to the layer and its weight.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from fxprune.export.onnx_file import read_file
from fxprune.export.onnx_macs import Work, count_macs
from fxprune.export.runtimes.interface import Array
from fxprune.export.runtimes.ort_session import create_session, make_options

WARM_UPS, RUNS = 3, 20

_PRODUCTS = ("Conv", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN")
"""What the names of operations that multiply and add contain, fused ones too."""

_FUSED = ("Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Add", "Mul")
"""What ONNX Runtime computes within the layer in front of it."""


@dataclass
class LayerCost:
    """What one layer, or all operations of one kind that are no layer, take in one run."""

    op: str
    macs: int = 0
    milliseconds: float = field(default=0.0)


def profile_layers(path: Path, feed: Mapping[str, Array], threads: int) -> dict[str, LayerCost]:
    """Return what each layer of a file takes on ONNX Runtime's CPU kernels: the median of 20 runs.

    Layers are named after their weights, without ".weight"; what is no layer, or has no stored
    weight, by its kind: "[Add]".

    Raises ExportError if the file is refused, or its shapes do not follow from the inputs.
    """
    model = read_file(path, weights=False)
    works = count_macs(model, {name: array.shape for name, array in feed.items()})
    costs: dict[str, LayerCost] = {}
    for work in works:
        costs.setdefault(name_layer(work), LayerCost(work.op)).macs += work.macs
    finder = _LayerFinder(model.graph, works)
    for (event, op), milliseconds in _profile_nodes(path, feed, threads).items():
        found = finder.find(event) if any(product in op for product in _PRODUCTS) else None
        costs.setdefault(f"[{op}]" if found is None else name_layer(found), LayerCost(op)).milliseconds += milliseconds
    return costs


def name_layer(work: Work) -> str:
    """Return the name of a layer: that of its weight, or its kind where none is stored."""
    return f"[{work.op}]" if work.weight is None else work.weight.removesuffix(".weight")


class _LayerFinder:
    """Finds the layer that a name in the profile stands for."""

    def __init__(self, graph: onnx.GraphProto, works: Sequence[Work]) -> None:
        self._by_name = {work.name: work for work in works}
        self._by_output = {work.output: work for work in works}
        self._producers = {output: node for node in graph.node for output in node.output}

    def find(self, event: str) -> Work | None:
        """Return the layer, None if the name leads to none."""
        name = event.removesuffix("_nchwc").removeprefix("fused ").split("/")[0]
        return self._by_name.get(name) or self._find_before(name)

    def _find_before(self, tensor: str) -> Work | None:
        if tensor in self._by_output:
            return self._by_output[tensor]
        node = self._producers.get(tensor)
        if node is None or node.op_type not in _FUSED:
            return None
        return next((work for name in node.input if (work := self._find_before(name)) is not None), None)


def _profile_nodes(path: Path, feed: Mapping[str, Array], threads: int) -> dict[tuple[str, str], float]:
    """Return the median milliseconds of each node by its name in the profile and its operation."""
    with tempfile.TemporaryDirectory() as folder:
        options = make_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = create_session(path, options, [("CPUExecutionProvider", {})])
        for _ in range(WARM_UPS + RUNS):
            session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    durations: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]
            durations[key].append(event["dur"] / 1e3)
    return {key: float(np.median(found[-RUNS:])) for key, found in durations.items()}

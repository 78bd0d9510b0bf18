"""Which node of an ONNX file is the first that computes something else than the model?

torch's exporter names the values of a file after the nodes of its program, and what fxprune does to the graph keeps
the names. So the program is run node by node in torch, the file with all its values as outputs and without the
runtime's own rewrites, and values of the same name are compared. From an output that differs the search goes back to
values that differ, too, until all that a node reads agrees: a value that was only scaled, because a batch norm behind
a sum was folded into it, is not on that way.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, fx, nn

from fxprune.errors import ExportError
from fxprune.export.check_outputs import check_output
from fxprune.export.interface import Inputs
from fxprune.export.runtimes.interface import Array
from fxprune.export.runtimes.ort_session import ORT_ERRORS, make_options
from fxprune.export.translate import Axes, silence, translate
from fxprune.onnx_choices import OPSET

REFUSALS: tuple[type[Exception], ...] = (*ORT_ERRORS, ExportError, RuntimeError, ValueError)
"""What says that values cannot be compared."""


def find_first_difference(
    model: nn.Module, path: Path, names: Sequence[str], inputs: Inputs, tolerance: float
) -> str | None:
    """Name the node from which on a file differs from a model that is in eval mode, and the weights that it reads.

    `names` are the file's names of the model's inputs. None if no value differs once every one of them is kept, or if
    values cannot be compared: the file does not have torch's names, because another exporter wrote it.
    """
    try:
        proto = onnx.load(path)
        axes = _read_open_axes(proto, dict(zip(names, inputs.names, strict=True)))
        tensors = (
            inputs.resize_batch(max(2, inputs.batch)) if any(0 in own for own in axes.values()) else inputs.tensors
        )
        labels = [value.name for value in proto.graph.output]
        expected = _run_program(model, inputs, tensors, labels, axes)
        feed = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        found = _run_file(proto, set(expected), feed)
    except REFUSALS:
        return None
    batch = len(tensors[0]) if tensors[0].ndim else 1
    wrong = {name for name in found if not _agree(name, expected[name], found[name], batch, tolerance)}
    producers = {name: node for node in proto.graph.node for name in node.output}
    constants = {tensor.name for tensor in proto.graph.initializer if not tensor.name.startswith("val_")}
    is_foreign = not set(found) - set(labels)
    name = next((label for label in labels if label in wrong and not is_foreign), None)
    while name is not None:
        values, weights = _find_sources(name, producers, set(found), constants)
        earlier = next((value for value in values if value in wrong), None)
        if earlier is None:
            return f"{producers[name].op_type} {name}" + (f", which reads {' and '.join(weights)}" if weights else "")
        name = earlier
    return None


def _read_open_axes(proto: onnx.ModelProto, names: Mapping[str, str]) -> dict[str, dict[int, str]]:
    """Return the open dimensions of a file, by the model's names of its inputs."""
    axes: dict[str, dict[int, str]] = {name: {} for name in names.values()}
    for value in proto.graph.input:
        for dim, size in enumerate(value.type.tensor_type.shape.dim):
            if not size.HasField("dim_value"):
                axes[names[value.name]][dim] = size.dim_param
    return axes


def _run_program(
    model: nn.Module, inputs: Inputs, tensors: Sequence[Tensor], labels: Sequence[str], axes: Axes
) -> dict[str, Array]:
    """Run what torch's exporter makes of the model node by node; return all values by their names in files."""
    program = translate(model, inputs, labels, OPSET, axes)
    values: dict[str, Array] = {}

    class Keeping(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                values[n.name] = value.numpy(force=True).copy()
            return value

    assert program.exported_program is not None
    with silence():
        outputs = Keeping(program.exported_program.module()).run(*tensors)
    return values | {label: output.numpy(force=True) for label, output in zip(labels, outputs, strict=True)}


def _run_file(proto: onnx.ModelProto, names: set[str], feed: Mapping[str, Array]) -> dict[str, Array]:
    """Run a file so that nothing is fused and every value of these names comes out."""
    kept = onnx.ModelProto()
    kept.CopyFrom(proto)
    given = {value.name for value in proto.graph.output}
    wanted = [name for node in proto.graph.node for name in node.output if name in names]
    kept.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in given)
    options = make_options(torch.get_num_threads())
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(kept.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(wanted, session.run(wanted, dict(feed)), strict=True))


def _agree(name: str, want: Array, have: Array, batch: int, tolerance: float) -> bool:
    return check_output(name, [want], [have.astype(want.dtype)], [batch]).is_within(tolerance)


def _find_sources(
    name: str, producers: Mapping[str, onnx.NodeProto], compared: set[str], constants: set[str]
) -> tuple[list[str], list[str]]:
    """Find the nearest values before one that were compared, and the constants that are read on the way."""
    found: dict[str, None] = {}
    queue = list(producers[name].input)
    while queue:
        value = queue.pop(0)
        if value in found:
            continue
        found[value] = None
        if value in producers and value not in compared:
            queue += producers[value].input
    return [value for value in found if value in compared], [value for value in found if value in constants]

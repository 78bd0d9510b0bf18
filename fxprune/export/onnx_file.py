"""What does an ONNX file say about itself, before any runtime has read it?"""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from fxprune.errors import ExportError
from fxprune.export.check_file import check_file
from fxprune.export.runtimes.interface import TensorInfo


def read_file(path: Path, *, weights: bool) -> onnx.ModelProto:
    """Read an ONNX file; without `weights`, those that lie in files beside it are left there.

    Raises ExportError if the file is missing, damaged, or no ONNX file.
    """
    check_file(path)
    return onnx.load(str(path), load_external_data=weights)


def measure_size(path: Path, model: onnx.ModelProto) -> int:
    """Return the bytes of a file and of those beside it that hold its weights."""
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
    beside = {path.parent / entry.value for entry in entries if entry.key == "location"}
    return sum(file.stat().st_size for file in (path, *beside) if file.is_file())


def describe_inputs(graph: onnx.GraphProto) -> tuple[TensorInfo, ...]:
    """Describe the inputs of a graph, without those that have a stored value."""
    stored = {tensor.name for tensor in graph.initializer}
    return tuple(_describe(value) for value in graph.input if value.name not in stored)


def describe_outputs(graph: onnx.GraphProto) -> tuple[TensorInfo, ...]:
    """Describe the outputs of a graph."""
    return tuple(_describe(value) for value in graph.output)


def _describe(value: onnx.ValueInfoProto) -> TensorInfo:
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    try:
        return TensorInfo(value.name, shape, np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)))
    except (KeyError, TypeError) as error:
        raise ExportError(f"{value.name} is of type {tensor.elem_type}, which has no NumPy type.") from error

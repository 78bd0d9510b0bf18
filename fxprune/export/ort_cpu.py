"""How does ONNX Runtime run a file on the CPU?"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from fxprune.errors import ExportError
from fxprune.export.runtime import Array, TensorInfo

ORT_ERRORS: tuple[type[Exception], ...] = (
    errors.EPFail,
    errors.EngineError,
    errors.Fail,
    errors.InvalidArgument,
    errors.InvalidGraph,
    errors.InvalidProtobuf,
    errors.NoModel,
    errors.NoSuchFile,
    errors.NotImplemented,
    errors.RuntimeException,
)
"""What ONNX Runtime raises; its errors have no base class of their own."""

_NUMPY_NAMES = {"float": "float32", "double": "float64"}


@dataclass(frozen=True)
class OrtCpu:
    """ONNX Runtime's CPU kernels."""

    @property
    def name(self) -> str:
        """Return the name and version."""
        return f"ONNX Runtime {onnxruntime.__version__} CPU"

    def load(self, path: Path, threads: int) -> "OrtCpuSession":
        """Load a file, with `threads` threads in an operator and operators one after the other.

        Raises ExportError if the file is missing, is no ONNX file, or holds what the runtime lacks.
        """
        if not path.is_file():
            raise ExportError(f"there is no file {path}.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4  # fatal: what goes wrong arrives as an exception
        # Idle threads of one session would otherwise spin while another session is being timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except ORT_ERRORS as error:
            raise ExportError(f"{path} is no file that {self.name} runs: {_shorten(error)}") from error
        return OrtCpuSession(session)


class OrtCpuSession:
    """A file loaded by ONNX Runtime."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs = tuple(_read_info(node) for node in session.get_inputs())
        self.outputs = tuple(_read_info(node) for node in session.get_outputs())

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """Return all outputs; raises ExportError if the runtime refuses the inputs or fails."""
        try:
            return list(self._session.run(None, dict(feed)))
        except ORT_ERRORS as error:
            shapes = {name: array.shape for name, array in feed.items()}
            raise ExportError(f"ONNX Runtime failed on inputs of shapes {shapes}: {_shorten(error)}") from error


def _shorten(error: Exception) -> str:
    """Return the first line of a message without its codes and without the path, which the caller names."""
    line = str(error).strip().splitlines()[0]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .* failed: ?)?", "", line)


def _read_info(node: Any) -> TensorInfo:
    element = node.type.removeprefix("tensor(").removesuffix(")")
    try:
        dtype = np.dtype(_NUMPY_NAMES.get(element, element))
    except TypeError as error:
        raise ExportError(f"{node.name} is a {node.type}, which has no NumPy type; export it as float32.") from error
    return TensorInfo(node.name, tuple(size if isinstance(size, int) else None for size in node.shape), dtype)

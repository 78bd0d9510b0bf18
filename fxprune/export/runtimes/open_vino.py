"""How does OpenVINO run a file on the CPU?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fxprune.errors import ExportError, RuntimeUnavailable
from fxprune.export.check_file import check_file
from fxprune.export.runtimes.interface import Array, Session, TensorInfo


@dataclass(frozen=True)
class OpenVino:
    """OpenVINO's CPU plugin, in single precision and set up for latency."""

    @property
    def name(self) -> str:
        """Return the name and version; raises RuntimeUnavailable if it is not installed."""
        openvino = _import_openvino()
        # The plugin counts the cores once, when it is first asked: this must be before the process is held to some.
        openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")
        return f"OpenVINO {openvino.__version__.split('-')[0]} CPU"

    def load(self, path: Path, threads: int) -> "OpenVinoSession":
        """Load a file; raises RuntimeUnavailable if OpenVINO is not installed, and ExportError if it refuses it."""
        openvino = _import_openvino()
        check_file(path)
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",  # bf16 by itself on some processors, which would be another network
            "ENABLE_CPU_PINNING": False,  # the benchmark itself says where threads run
        }
        try:
            return OpenVinoSession(openvino.Core().compile_model(str(path), "CPU", settings))
        except RuntimeError as error:
            raise ExportError(f"{path} is no file that {self.name} runs: {_shorten(error)}") from error


class OpenVinoSession(Session):
    """A file compiled by OpenVINO."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self.inputs = tuple(_read_info(port) for port in compiled.inputs)
        self.outputs = tuple(_read_info(port) for port in compiled.outputs)
        self.threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """Return all outputs; raises ExportError if OpenVINO refuses the inputs or fails."""
        try:
            found = self._request.infer(dict(feed), share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            shapes = {name: array.shape for name, array in feed.items()}
            raise ExportError(f"OpenVINO failed on inputs of shapes {shapes}: {_shorten(error)}") from error
        return [np.array(found[index]) for index in range(len(self.outputs))]


def _import_openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise RuntimeUnavailable(f"OpenVINO is not installed ({error}); pip install openvino.") from error
    return openvino


def _read_info(port: Any) -> TensorInfo:
    shape = tuple(size.get_length() if size.is_static else None for size in port.partial_shape)
    return TensorInfo(port.any_name, shape, np.dtype(port.element_type.to_dtype()))


def _shorten(error: Exception) -> str:
    """Return the last line of a message, behind the places in OpenVINO's own source."""
    return str(error).strip().splitlines()[-1].lstrip("- ").rstrip()

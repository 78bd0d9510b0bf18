"""How does ONNX Runtime run a file on the CPU?"""

from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from fxprune.export.runtimes.ort_session import OrtSession, create_session, make_options


@dataclass(frozen=True)
class OrtCpu:
    """ONNX Runtime's CPU kernels."""

    @property
    def name(self) -> str:
        """Return the name and version."""
        return f"ONNX Runtime {onnxruntime.__version__} CPU"

    def load(self, path: Path, threads: int) -> OrtSession:
        """Load a file, with `threads` threads in an operator and operators one after the other.

        Raises ExportError if the file is missing, is no ONNX file, or holds what the runtime lacks.
        """
        return OrtSession(create_session(path, make_options(threads), [("CPUExecutionProvider", {})]))

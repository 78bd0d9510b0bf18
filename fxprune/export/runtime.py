"""What does the rest of the package ask of a runtime that executes ONNX files?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a file: a dimension that may vary is None."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]


class Session(Protocol):
    """A file that is loaded and ready to run."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """Return all outputs, in the file's order, for inputs by name."""
        ...


class Runtime(Protocol):
    """Something that loads ONNX files."""

    @property
    def name(self) -> str:
        """Return the name and version, as it stands in reports."""
        ...

    def load(self, path: Path, threads: int) -> Session:
        """Load a file; raises ExportError if it is missing or refused."""
        ...

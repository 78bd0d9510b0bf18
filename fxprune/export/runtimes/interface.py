"""What does the rest of the package ask of a runtime?"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a network: a dimension that may vary is None."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.name} ({', '.join('any' if size is None else str(size) for size in self.shape)}) of {self.dtype}"


class Session(ABC):
    """A network that is loaded and ready to run."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    threads: int  # as the runtime itself reports them
    device: str = "cpu"

    @abstractmethod
    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """Return all outputs, in the network's order, for inputs by name.

        Raises ExportError if the runtime refuses the inputs or fails.
        """

    def bind(self, feed: Mapping[str, Array]) -> Callable[[], float]:
        """Return a call that runs the network once on these inputs and returns the seconds that it took.

        The time is from inputs on the session's device to outputs on it, all work done.
        """

        def time_run() -> float:
            start = time.perf_counter()
            self.run(feed)
            return time.perf_counter() - start

        return time_run


@runtime_checkable
class Runtime(Protocol):
    """Something that loads ONNX files."""

    @property
    def name(self) -> str:
        """Return the name and version, as it stands in reports; raises RuntimeUnavailable."""
        ...

    def load(self, path: Path, threads: int) -> Session:
        """Load a file, to be run with that many threads.

        Raises RuntimeUnavailable where the runtime is not installed or has no device, and
        ExportError if the file is missing or refused.
        """
        ...

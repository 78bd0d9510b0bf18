"""How does ONNX Runtime run a file on an NVIDIA GPU?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from fxprune.errors import RuntimeUnavailable
from fxprune.export.runtimes.cuda_events import time_on_stream
from fxprune.export.runtimes.interface import Array
from fxprune.export.runtimes.ort_session import (
    OrtSession,
    Provider,
    create_session,
    make_options,
    require_provider,
)

CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True)
class OrtCuda:
    """ONNX Runtime's CUDA kernels; nodes without one (sizes of shapes, as a rule) run on the CPU."""

    @property
    def name(self) -> str:
        """Return the name, the version and the card; raises RuntimeUnavailable without them."""
        require_card(CUDA)
        return f"ONNX Runtime {onnxruntime.__version__} CUDA, {torch.cuda.get_device_name()}"

    def load(self, path: Path, threads: int) -> "OrtCudaSession":
        """Load a file onto the first card; raises RuntimeUnavailable and ExportError."""
        require_card(CUDA)
        stream = torch.cuda.Stream()
        return OrtCudaSession(create_session(path, make_options(threads), [on_stream(CUDA, stream)]), stream)


class OrtCudaSession(OrtSession):
    """A file loaded by ONNX Runtime onto a card, whose work runs on a stream of its own."""

    device = "cuda"

    def __init__(self, session: Any, stream: torch.cuda.Stream) -> None:
        super().__init__(session)
        self._stream = stream

    def bind(self, feed: Mapping[str, Array]) -> Callable[[], float]:
        """Return a call that runs on inputs that lie on the card and leaves the outputs there, timed by events."""
        binding = self._session.io_binding()
        for name, array in feed.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
        for info in self.outputs:
            binding.bind_output(info.name, "cuda", 0)
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")  # the events wait instead
        return time_on_stream(lambda: self._session.run_with_iobinding(binding, options), self._stream)


def require_card(provider: str) -> None:
    """Raise RuntimeUnavailable without that execution provider, or without a card that torch, who keeps time, sees."""
    require_provider(provider)
    if not torch.cuda.is_available():
        raise RuntimeUnavailable(f"torch {torch.__version__} sees no CUDA device here; it takes the time on the card.")


def on_stream(provider: str, stream: torch.cuda.Stream) -> Provider:
    """Return the provider with the option to run on that stream of the first card."""
    return provider, {"device_id": "0", "user_compute_stream": str(stream.cuda_stream)}

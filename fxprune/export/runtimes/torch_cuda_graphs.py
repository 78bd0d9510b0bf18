"""How does PyTorch run a module whose kernels were recorded as one CUDA graph?"""

from dataclasses import dataclass
from typing import Any

import torch

from fxprune.export.runtimes.torch_eager import TorchEager
from fxprune.export.runtimes.torch_session import Run

WARM_UPS = 3
"""Runs on a stream of their own before the recording, as PyTorch's notes on CUDA graphs ask for."""


@dataclass(frozen=True)
class TorchCudaGraphs(TorchEager):
    """PyTorch's eager kernels on a card, recorded once for each shape and replayed without Python."""

    device: str = "cuda"

    @property
    def mode(self) -> str:
        """Return how the operations of a module are run."""
        return "CUDA graphs"

    def capture(self, run: Run) -> Run:
        """Record what `run` launches; the result replays it, into the same outputs."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = run()

        def replay() -> Any:
            graph.replay()
            return outputs

        return replay

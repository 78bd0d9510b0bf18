"""How does ONNX Runtime run a file with TensorRT?"""

from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch

from fxprune.export.runtimes.ort_cuda import CUDA, OrtCudaSession, on_stream, require_card
from fxprune.export.runtimes.ort_session import create_session, make_options

TENSORRT = "TensorrtExecutionProvider"


@dataclass(frozen=True)
class OrtTensorrt:
    """TensorRT through ONNX Runtime; nodes that it does not take run on ONNX Runtime's CUDA kernels."""

    @property
    def name(self) -> str:
        """Return the name, the version and the card; raises RuntimeUnavailable without them."""
        require_card(TENSORRT)
        return f"ONNX Runtime {onnxruntime.__version__} TensorRT, {torch.cuda.get_device_name()}"

    def load(self, path: Path, threads: int) -> OrtCudaSession:
        """Load a file onto the first card; its engines are built in the warm-up of each batch size.

        Raises RuntimeUnavailable and ExportError.
        """
        require_card(TENSORRT)
        stream = torch.cuda.Stream()
        providers = [on_stream(TENSORRT, stream), on_stream(CUDA, stream)]
        return OrtCudaSession(create_session(path, make_options(threads), providers), stream)

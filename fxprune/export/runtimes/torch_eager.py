"""How does PyTorch run a module, operation by operation?"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fxprune.errors import RuntimeUnavailable
from fxprune.export.evaluation import copy_for_evaluation, no_trace
from fxprune.export.interface import ExampleInputs, Inputs, flatten_outputs, read_inputs
from fxprune.export.runtimes.interface import TensorInfo
from fxprune.export.runtimes.onnx_to_torch import convert_file
from fxprune.export.runtimes.torch_session import Callee, Run, TorchSession

OPTIONS: dict[str, dict[str, Any]] = {
    "cuda": {"device": "cuda"},
    "channels-last": {"channels_last": True},
    "bf16": {"autocast": "bfloat16"},
    "fp16": {"autocast": "float16"},
}
"""What may stand behind the name of a runtime of PyTorch, after a colon, and the field that it sets."""


@dataclass(frozen=True)
class TorchEager:
    """PyTorch as it is, on the CPU or on a card.

    `channels_last` is the memory format of weights and images, `autocast` ("bfloat16" or
    "float16") the type under which operations run that can.
    """

    device: str = "cpu"
    channels_last: bool = False
    autocast: str | None = None

    @property
    def name(self) -> str:
        """Return the name, the version, the device and the options; raises RuntimeUnavailable without a device."""
        self.require_device()
        device = "CPU" if self.device == "cpu" else torch.cuda.get_device_name()
        options = ["channels last"] * self.channels_last + [f"autocast to {self.autocast}"] * bool(self.autocast)
        return ", ".join([f"PyTorch {torch.__version__} {self.mode} {device}", *options])

    @property
    def mode(self) -> str:
        """Return how the operations of a module are run."""
        return "eager"

    def load(self, path: Path, threads: int) -> TorchSession:
        """Load an ONNX file as a module.

        Raises RuntimeUnavailable if onnx2torch is not installed or there is no device, and
        ExportError if the file is missing, is no ONNX file, or holds an op that onnx2torch lacks.
        """
        self.require_device()
        module, example_inputs, inputs, outputs = convert_file(path)
        return self._load(module, example_inputs, inputs, outputs, threads)

    def load_module(self, model: nn.Module, example_inputs: ExampleInputs, threads: int) -> TorchSession:
        """Load a copy of a module in eval mode, which is named and fed like its ONNX file.

        Raises RuntimeUnavailable if there is no device, and ExportError if the module cannot be copied or run.
        """
        self.require_device()
        found = read_inputs(model, example_inputs)
        module = copy_for_evaluation(model)
        with no_trace():
            args, kwargs = found.rebuild([tensor.clone() for tensor in found.tensors])
            names, tensors = flatten_outputs(module(*args, **kwargs))
        outputs = tuple(
            TensorInfo(name, (None,) * tensor.ndim, tensor.float().numpy(force=True).dtype)
            for name, tensor in zip(names, tensors, strict=True)
        )
        return self._load(module, found, _describe_inputs(found), outputs, threads)

    def compile(self, module: nn.Module) -> Callable[..., Any]:
        """Return what is called in place of the module."""
        return module

    def capture(self, run: Run) -> Run:
        """Return what does the same as `run`, on the same tensors."""
        return run

    def require_device(self) -> None:
        """Raise RuntimeUnavailable if there is no such device."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise RuntimeUnavailable(f"torch {torch.__version__} sees no CUDA device here.")

    def _load(
        self,
        module: nn.Module,
        example_inputs: Inputs,
        inputs: tuple[TensorInfo, ...],
        outputs: tuple[TensorInfo, ...],
        threads: int,
    ) -> TorchSession:
        module = module.to(self.device)
        if self.channels_last:
            module = module.to(memory_format=torch.channels_last)
        return TorchSession(Callee(self.compile(module), example_inputs, inputs, outputs), self, threads)


def _describe_inputs(inputs: Inputs) -> tuple[TensorInfo, ...]:
    """Describe a module's inputs as its ONNX file does: the batch is open."""
    return tuple(
        TensorInfo(
            name,
            (None, *tensor.shape[1:]) if inputs.is_batched(index) else tuple(tensor.shape),
            np.dtype(tensor.numpy().dtype),
        )
        for index, (name, tensor) in enumerate(zip(inputs.names, inputs.tensors, strict=True))
    )

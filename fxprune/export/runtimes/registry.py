"""Which runtime has which name?

To add one, write a file with a class that has `name` and `load`, and add a line here.
"""

import difflib
from collections.abc import Callable

from fxprune.errors import ExportError
from fxprune.export.runtimes.interface import Runtime
from fxprune.export.runtimes.open_vino import OpenVino
from fxprune.export.runtimes.ort_cpu import OrtCpu
from fxprune.export.runtimes.ort_cuda import OrtCuda
from fxprune.export.runtimes.ort_tensorrt import OrtTensorrt
from fxprune.export.runtimes.torch_compile import TorchCompile
from fxprune.export.runtimes.torch_cuda_graphs import TorchCudaGraphs
from fxprune.export.runtimes.torch_eager import OPTIONS, TorchEager

RUNTIMES: dict[str, Callable[[], Runtime]] = {
    "ort-cpu": OrtCpu,
    "ort-cuda": OrtCuda,
    "ort-tensorrt": OrtTensorrt,
    "openvino": OpenVino,
}

TORCH_RUNTIMES: dict[str, Callable[..., TorchEager]] = {
    "torch": TorchEager,
    "torch-compile": TorchCompile,
    "torch-cuda-graphs": TorchCudaGraphs,
}
"""PyTorch's, whose names may go on with options: "torch:channels-last", "torch-compile:cuda:fp16"."""


def find_runtime(text: str) -> Runtime:
    """Return the runtime of that name, installed or not; raises ExportError for an unknown name or option."""
    name, *options = text.split(":")
    if name in RUNTIMES and not options:
        return RUNTIMES[name]()
    if name in RUNTIMES:
        raise ExportError(f"runtime {text!r}: {name} takes no options; they are for {', '.join(TORCH_RUNTIMES)}.")
    if name not in TORCH_RUNTIMES:
        raise ExportError(f"runtime {text!r} is not known{_suggest(name)}; there are {', '.join(list_names())}.")
    unknown = [option for option in options if option not in OPTIONS]
    if unknown:
        raise ExportError(f"runtime {text!r}: {name} has the options {', '.join(OPTIONS)}, not {unknown[0]!r}.")
    fields = {field: value for option in options for field, value in OPTIONS[option].items()}
    return TORCH_RUNTIMES[name](**fields)


def list_names() -> list[str]:
    """Return the names of all runtimes, without options."""
    return [*RUNTIMES, *TORCH_RUNTIMES]


def _suggest(name: str) -> str:
    close = difflib.get_close_matches(name, list_names(), n=1)
    return f"; did you mean {close[0]}?" if close else ""

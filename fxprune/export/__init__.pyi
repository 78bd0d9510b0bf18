"""The public names of `fxprune.export` and nothing else."""

from .benchmark import benchmark
from .cost import count
from .onnx import to_onnx
from .quantize import quantize
from .report import report
from .verify import verify

__all__ = ["benchmark", "count", "quantize", "report", "to_onnx", "verify"]

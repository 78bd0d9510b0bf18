"""Which functions turn a model into a checked ONNX file and measure it?"""

from fxprune.export.benchmark import benchmark
from fxprune.export.cost import count
from fxprune.export.onnx import to_onnx
from fxprune.export.verify import verify

__all__ = ["benchmark", "count", "to_onnx", "verify"]

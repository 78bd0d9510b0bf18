"""Which functions turn a model into a checked ONNX file and measure it?"""

from fxprune.export.benchmark import benchmark
from fxprune.export.cost import count
from fxprune.export.onnx import to_onnx
from fxprune.export.quantize import quantize
from fxprune.export.verify import verify

__all__ = ["benchmark", "count", "quantize", "to_onnx", "verify"]

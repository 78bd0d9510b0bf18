"""Which functions turn a model into a checked ONNX file, measure it, and report?"""

from fxprune.export.benchmark import benchmark
from fxprune.export.cost import count
from fxprune.export.onnx import to_onnx
from fxprune.export.quantize import quantize
from fxprune.export.verify import verify
from fxprune.reporting.collect import report

__all__ = ["benchmark", "count", "quantize", "report", "to_onnx", "verify"]

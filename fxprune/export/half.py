"""How does a graph compute in half precision, while its inputs and outputs stay what they are?"""

from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxscript import ir

from fxprune.export.translate import silence


def convert_to_half(model: ir.Model) -> ir.Model:
    """Return a graph whose weights and values are float16, between casts of the inputs and outputs.

    Ops that have no half precision in ONNX or its runtimes stay in float32, between casts of their own.
    """
    with silence():
        converted: ir.Model = ir.from_proto(convert_float_to_float16(ir.to_proto(model), keep_io_types=True))
    converted.graph.sort()  # the converter puts casts of the inputs at the end
    return converted

"""What can be chosen of an ONNX file, and what is written unless told otherwise? Without torch, for a quick help."""

from typing import Literal

OPSET = 18
"""The opset that torch's translations are written in: nothing is converted, and every runtime reads it."""

Precision = Literal["fp32", "fp16"]

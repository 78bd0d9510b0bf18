"""How does an ONNX file become a module of PyTorch? By onnx2torch, which reads opsets up to 17."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import torch
from onnx import version_converter
from torch import nn

from fxprune.errors import ExportError, RuntimeUnavailable
from fxprune.export.interface import Inputs, read_inputs
from fxprune.export.onnx_file import describe_inputs, describe_outputs, read_file
from fxprune.export.runtimes.interface import TensorInfo

NEWEST_OPSET = 17
HIDDEN = "fxprune.hidden"


class Converted(NamedTuple):
    """A file as a module, and the interface of the file."""

    module: nn.Module
    example_inputs: Inputs
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


def convert_file(path: Path) -> Converted:
    """Convert an ONNX file to a module.

    Raises RuntimeUnavailable if onnx2torch is not installed, and ExportError if the file is
    missing, is no ONNX file, or holds an op that onnx2torch lacks.
    """
    onnx2torch = _import_onnx2torch()
    model = read_file(path, weights=True)
    inputs = describe_inputs(model.graph)
    try:
        module = onnx2torch.convert(_lower(model)).eval().requires_grad_(False)
    except (NotImplementedError, RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportError(
            f"onnx2torch cannot make a module of {path}: {reason}; time the module itself, not its file."
        ) from error
    examples = [
        torch.from_numpy(torch.zeros([size or 1 for size in info.shape]).numpy().astype(info.dtype)) for info in inputs
    ]
    example_inputs = dataclasses.replace(read_inputs(module, examples), names=tuple(info.name for info in inputs))
    return Converted(module, example_inputs, inputs, describe_outputs(model.graph))


def _import_onnx2torch() -> Any:
    try:
        import onnx2torch
    except ImportError as error:
        raise RuntimeUnavailable(
            f"PyTorch runs modules, and ONNX files only where onnx2torch is installed ({error}); "
            "pass modules, or pip install onnx2torch."
        ) from error
    return onnx2torch


def _lower(model: onnx.ModelProto) -> onnx.ModelProto:
    """Translate a graph to the newest opset that onnx2torch reads."""
    if any(entry.domain == "" and entry.version > NEWEST_OPSET for entry in model.opset_import):
        for node in (node for node in model.graph.node if node.op_type == "Pad" and len(node.input) < 4):
            node.domain = HIDDEN  # without axes it is what it was before 18, but the converter does not know that
        model.opset_import.append(onnx.helper.make_opsetid(HIDDEN, 1))
        model = version_converter.convert_version(model, NEWEST_OPSET)
        for node in (node for node in model.graph.node if node.domain == HIDDEN):
            node.domain = ""
    for node in model.graph.node:
        if node.op_type == "Reshape":  # `allowzero` is about sizes of 0 in the shape, and refused by onnx2torch
            kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)
    return model

"""Does the runtime describe a file, and refuse what is none?"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fxprune.errors import ExportError
from fxprune.export import to_onnx
from fxprune.export.runtimes.interface import TensorInfo
from fxprune.export.runtimes.ort_cpu import OrtCpu


def test_inputs_and_outputs_are_described(tmp_path: Path) -> None:
    path = to_onnx(nn.Linear(4, 3), torch.randn(2, 4), tmp_path / "linear.onnx", verify=False).path
    session = OrtCpu().load(path, threads=1)
    assert session.inputs == (TensorInfo("input", (None, 4), np.dtype("float32")),)
    assert session.outputs == (TensorInfo("output", (None, 3), np.dtype("float32")),)
    with pytest.raises(ExportError, match="failed on inputs of shapes"):
        session.run({"input": np.zeros((2, 5), np.float32)})


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="there is no file"):
        OrtCpu().load(tmp_path / "missing.onnx", threads=1)


def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.onnx"
    path.write_text("not a model")
    with pytest.raises(ExportError, match=r"notes.onnx is no valid ONNX file: Unable to parse"):
        OrtCpu().load(path, threads=1)

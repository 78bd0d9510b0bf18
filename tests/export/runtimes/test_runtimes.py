"""Does every runtime compute what the file says, or say why it cannot run here?"""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from fxprune.errors import ExportError, RuntimeUnavailable
from fxprune.export import to_onnx
from fxprune.export.runtimes import ort_session
from fxprune.export.runtimes.registry import find_runtime

X = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def block() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Dropout())


@pytest.fixture(scope="module")
def path(block: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_onnx(block, torch.randn(2, 3, 8, 8), tmp_path_factory.mktemp("runtimes") / "block.onnx").path


@pytest.mark.parametrize("name", ["ort-cpu", "openvino", "torch", "torch:channels-last", "torch:bf16", "torch-compile"])
def test_a_file_gives_what_its_model_gives(name: str, path: Path, block: nn.Module) -> None:
    if name == "openvino":
        pytest.importorskip("openvino")
    if name.startswith("torch"):
        pytest.importorskip("onnx2torch")
    runtime = find_runtime(name)
    session = runtime.load(path, 1)
    assert runtime.name
    assert session.threads == 1
    assert [(info.name, info.shape) for info in session.inputs] == [("input", (None, 3, 8, 8))]
    (found,) = session.run({"input": X})
    with torch.no_grad():
        expected = block.eval()(torch.from_numpy(X)).numpy()
    tolerance = 0.05 if name.endswith("bf16") else 1e-5
    assert np.abs(found - expected).max() <= tolerance * np.ptp(expected)
    assert 0 < session.bind({"input": X})() < 60


def test_a_module_is_run_as_it_is_called(block: nn.Module) -> None:
    was_training = block.training
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    session = find_runtime("torch:channels-last").load_module(block, {"input": torch.randn(2, 3, 8, 8)}, 1)
    assert [(info.name, info.shape) for info in session.inputs] == [("input", (None, 3, 8, 8))]
    (found,) = session.run({"input": X})
    assert block.training == was_training
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    assert np.allclose(found, block.eval()(torch.from_numpy(X)).detach(), atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
@pytest.mark.parametrize(
    "name", ["ort-cuda", "ort-tensorrt", "torch:cuda", "torch-compile:cuda:fp16", "torch-cuda-graphs"]
)
def test_without_a_card_the_reason_is_said(name: str, path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match=r"is built without \w+ExecutionProvider|sees no CUDA device"):
        find_runtime(name).load(path, 1)


def test_a_provider_that_did_not_start_is_not_replaced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: session)
    with pytest.raises(RuntimeUnavailable, match="could not start CUDAExecutionProvider and took CPUExecutionProvider"):
        ort_session.create_session(path, None, [("CUDAExecutionProvider", {})])


@pytest.mark.parametrize(("name", "module"), [("openvino", "openvino"), ("torch", "onnx2torch")])
def test_what_is_not_installed_is_said(name: str, module: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RuntimeUnavailable, match=f"pip install {module}"):
        find_runtime(name).load(path, 1)


def test_an_op_that_the_converter_lacks_is_said(tmp_path: Path) -> None:
    pytest.importorskip("onnx2torch")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("CastLike", ["x", "x"], ["y"])], "graph", values[:1], values[1:])
    path = tmp_path / "like.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(ExportError, match=r"onnx2torch cannot make a module .* time the module itself"):
        find_runtime("torch").load(path, 1)


def test_a_pad_of_a_newer_opset_runs(tmp_path: Path) -> None:
    pytest.importorskip("onnx2torch")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, size]) for name, size in (("x", 4), ("y", 3))]
    pads = helper.make_tensor("pads", TensorProto.INT64, [4], [0, -2, 0, 1])
    graph = helper.make_graph([helper.make_node("Pad", ["x", "pads"], ["y"])], "graph", values[:1], values[1:], [pads])
    path = tmp_path / "pad.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    expected = np.concatenate([x[:, 2:], np.zeros((2, 1), np.float32)], 1)
    np.testing.assert_array_equal(find_runtime("torch").load(path, 1).run({"x": x})[0], expected)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ExportError, match="did you mean openvino"):
        find_runtime("openvin")
    with pytest.raises(ExportError, match="takes no options"):
        find_runtime("ort-cpu:fp16")
    with pytest.raises(ExportError, match="not 'int8'"):
        find_runtime("torch:int8")


def test_wrong_inputs_are_refused(path: Path) -> None:
    for name in ("openvino", "torch"):
        pytest.importorskip({"openvino": "openvino", "torch": "onnx2torch"}[name])
        with pytest.raises(ExportError, match="failed on inputs of shapes"):
            find_runtime(name).load(path, 1).run({"input": X[:, :2]})

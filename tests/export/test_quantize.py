"""Is a file in 8 bits smaller, close to what it was made from, and honest about what that costs?"""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fxprune.errors import ExportError
from fxprune.export import quantize, to_onnx
from fxprune.export.check_file import DIGEST, check_file


@pytest.fixture
def model() -> nn.Module:
    layers = nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(64, 10)).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(64, 3, 10, 10)


@pytest.fixture
def file(model: nn.Module, images: Tensor, tmp_path: Path) -> Path:
    return to_onnx(model, images[:2], tmp_path / "m.onnx", verify=False).path


def test_the_cost_is_measured_on_the_labels(model: nn.Module, images: Tensor, file: Path) -> None:
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[:16] = (labels[:16] + 1) % 10  # of which the file gets a quarter wrong
    loader = DataLoader(TensorDataset(images, labels), batch_size=16)
    done = quantize(file, loader, file.with_name("int8.onnx"))
    assert done.samples == 64
    assert done.accuracy_before == 0.75
    assert done.agreement > 0.6
    assert done.accuracy is not None
    assert abs(done.accuracy - done.accuracy_before) <= 1 - done.agreement
    assert done.size == done.path.stat().st_size < 0.6 * done.size_before
    assert "same argmax in" in str(done)
    assert "75.0% before" in str(done)
    ops = [node.op_type for node in onnx.load(done.path).graph.node]
    assert "QuantizeLinear" in ops
    scales = [tensor for tensor in onnx.load(done.path).graph.initializer if tensor.name == "2.weight_scale"]
    assert list(scales[0].dims) == [64]


def test_without_labels_only_the_agreement_is_known(images: Tensor, file: Path) -> None:
    done = quantize(file, [images[:32], (images[32:],)], file.with_name("int8.onnx"))
    assert done.accuracy is done.accuracy_before is None
    assert str(done).endswith("of 64 samples")


def test_what_it_writes_has_a_digest_of_its_own(images: Tensor, file: Path) -> None:
    path = quantize(file, [images], file.with_name("int8.onnx")).path
    check_file(path)
    metadata = {entry.key for entry in onnx.load(path).metadata_props}
    assert {DIGEST, "fxprune.version", "fxprune.model"} <= metadata
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(blob)
    with pytest.raises(ExportError, match="is damaged"):
        check_file(path)
    with pytest.raises(ExportError, match="is damaged"):
        quantize(path, [images], file.with_name("again.onnx"))


def test_batches_that_do_not_fit_are_refused(images: Tensor, file: Path) -> None:
    target = file.with_name("int8.onnx")
    with pytest.raises(ExportError, match=r"a batch of the loader holds 0 tensors, and the file takes \['input'\]"):
        quantize(file, [()], target)
    with pytest.raises(ExportError, match=r"pass a list or a loader"):
        quantize(file, iter([images]), target)
    with pytest.raises(ExportError, match=r"there is no folder"):
        quantize(file, [images], file / "missing" / "int8.onnx")
    with pytest.raises(ExportError) as refused:
        quantize(file, [images[:, :2]], target)
    assert len(str(refused.value).splitlines()) == 1
    for words in (f"cannot quantise {file} on these batches (Got invalid dim", "input (any, 3, 10, 10) of float32"):
        assert words in str(refused.value)
    assert sorted(each.name for each in file.parent.iterdir()) == ["m.onnx"]


def test_what_is_no_longer_in_single_precision_is_refused(model: nn.Module, images: Tensor, file: Path) -> None:
    path = quantize(file, [images], file.with_name("int8.onnx")).path
    with pytest.raises(ExportError, match=r"int8\.onnx computes in 8 bits already, by QuantizeLinear; give the file"):
        quantize(path, [images], file.with_name("again.onnx"))
    half = to_onnx(model, images[:2], file.with_name("half.onnx"), precision="fp16").path
    with pytest.raises(ExportError, match=r"half\.onnx computes in half precision.*float32"):
        quantize(half, [images], file.with_name("again.onnx"))


def test_the_file_itself_is_not_overwritten(images: Tensor, file: Path) -> None:
    content = file.read_bytes()
    with pytest.raises(ExportError, match="is the file to quantise; give another one"):
        quantize(file, [images], file.parent / "." / file.name)
    assert file.read_bytes() == content

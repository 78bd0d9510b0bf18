"""Is the node named from which on a file is wrong?"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from fxprune.errors import ExactnessError
from fxprune.export import fold_batchnorm, to_onnx, verify
from fxprune.export.check_file import DIGEST


class Residual(nn.Module):
    """Two convolutions around a sum, a batch norm behind the sum that is folded into both, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.norm(self.left(x) + self.right(x)))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def model(randomise: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return randomise(Residual())


def corrupt(path: Path, name: str) -> None:
    """Change the numbers of one tensor, as a tool might that leaves no digest."""
    proto = onnx.load(path)
    proto.producer_name = "other"
    del proto.metadata_props[:]
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), name))
    path.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize("name", ["stem.weight", "left.weight", "right.bias", "head.weight", "head.bias"])
def test_a_corrupted_weight_is_named(tmp_path: Path, model: nn.Module, name: str) -> None:
    images = torch.randn(2, 3, 8, 8)
    path = to_onnx(model, images, tmp_path / "m.onnx").path
    assert verify(model, path, images).first_difference is None
    corrupt(path, name)
    found = verify(model, path, images)
    assert not found.passed
    assert found.first_difference is not None
    assert name in found.first_difference
    assert f"the first node that differs is {found.first_difference}" in str(found)
    assert DIGEST not in found.first_difference


def test_a_wrong_pass_is_named_before_anything_is_written(
    tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = fold_batchnorm.read_affine
    monkeypatch.setattr(fold_batchnorm, "read_affine", lambda node: right(node)._replace(shift=right(node).shift * 2))
    with pytest.raises(ExactnessError, match=r"the first node that differs is (Conv|Add) \w+.*; nothing was written"):
        to_onnx(model, torch.randn(2, 3, 8, 8), tmp_path / "m.onnx")


def test_files_of_other_exporters_have_no_names_in_common(tmp_path: Path, model: nn.Module) -> None:
    images = torch.randn(2, 3, 8, 8)
    path = to_onnx(model, images, tmp_path / "m.onnx").path
    corrupt(path, "left.weight")
    proto = onnx.load(path)
    for node in proto.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name not in ("x", "output") and name not in {tensor.name for tensor in proto.graph.initializer}:
                    names[index] = f"renamed/{name}"
    path.write_bytes(proto.SerializeToString())
    found = verify(model, path, images)
    assert not found.passed
    assert found.first_difference is None

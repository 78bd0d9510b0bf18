"""Do parts whose size depends on the batch come out of the file right?"""

from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from fxprune.export import to_onnx


class Pair(nn.Module):
    """Two batches go through one layer as one, as RAFT's images do."""

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        return torch.chunk(torch.cat([first, second]).relu(), 2)


class Halves(nn.Module):
    """A split into parts of a constant size."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.split(x, 3, dim=1)


def list_kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_chunks_of_a_dynamic_batch_become_slices(tmp_path: Path) -> None:
    file = to_onnx(Pair(), (torch.randn(2, 3), torch.randn(2, 3)), tmp_path / "pair.onnx")
    kinds = list_kinds(file.path)
    assert kinds.count("Slice") == 2
    assert not any("Sequence" in kind for kind in kinds)
    first, second = torch.randn(5, 3), torch.randn(5, 3)
    session = onnxruntime.InferenceSession(str(file.path), providers=["CPUExecutionProvider"])
    written = session.run(None, {"first": first.numpy(), "second": second.numpy()})
    assert torch.equal(torch.from_numpy(written[0]), first.relu())
    assert torch.equal(torch.from_numpy(written[1]), second.relu())


def test_a_constant_split_stays_a_split(tmp_path: Path) -> None:
    file = to_onnx(Halves(), torch.randn(2, 5), tmp_path / "halves.onnx")
    kinds = list_kinds(file.path)
    assert "Split" in kinds
    assert "Slice" not in kinds

"""Does a file have the multiply-accumulates that its model has?"""

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from fxprune.errors import ExportError
from fxprune.export import count, to_onnx
from fxprune.export.onnx_macs import count_macs


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4, 3))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bi,ijk->bjk", input, self.weight)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (
            nn.Sequential(nn.Conv2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 1)),
            (2, 4, 9, 9),
        ),
        (nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2), (2, 4, 5, 5)),
        (nn.Sequential(nn.Conv2d(3, 40, 3), nn.Flatten(), nn.Linear(40 * 16, 5)), (3, 3, 6, 6)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 7, 8)),
        (Einsum(), (3, 5)),
    ],
)
def test_a_file_counts_as_its_model(model: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    x = torch.randn(shape)
    path = to_onnx(model, x, tmp_path / "model.onnx", verify=False).path
    graph = onnx.load(path)
    name = graph.graph.input[0].name
    works = count_macs(graph, {name: shape})
    assert sum(work.macs for work in works) == count(model, x).macs * shape[0]
    assert sum(work.macs for work in count_macs(graph, {name: (5, *shape[1:])})) == count(model, x).macs * 5


def test_layers_are_named_by_their_weights(block: nn.Module, tmp_path: Path) -> None:
    path = to_onnx(block, torch.randn(2, 3, 8, 8), tmp_path / "block.onnx", verify=False).path
    works = count_macs(onnx.load(path), {"input": (1, 3, 8, 8)})
    assert [(work.weight, work.macs) for work in works] == [("0.weight", 8 * 36 * 27), ("3.weight", 4 * 36 * 8)]


def test_shapes_that_follow_from_nothing_are_refused() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Cast", ["places"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["floats", "w"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xwy"]
    graph = helper.make_graph(nodes, "graph", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(ExportError, match="the shape of floats at MatMul does not follow from the inputs"):
        count_macs(model, {"x": (3, 3), "w": (4, 2)})

"""Is the time of a network led back to its layers? (Never: how long do they take?)"""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from fxprune.export import benchmark, to_onnx
from fxprune.export.layer_profile import profile_layers
from fxprune.export.measurements import Benchmark
from fxprune.export.odd_widths import find_odd_widths
from fxprune.export.onnx_macs import Work, count_macs
from fxprune.export.runtimes.ort_cpu import OrtCpu

SHAPE = (1, 16, 12, 12)


class Residual(nn.Module):
    """Convolutions that ONNX Runtime fuses with what follows: an activation, a sum, both."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, width, 3, padding=1)
        self.second = nn.Conv2d(width, 16, 3, padding=1)
        self.third = nn.Conv2d(16, 16, 1)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x + self.second(torch.relu(self.first(x))))
        return self.last(torch.sigmoid(self.third(x)).mean((2, 3)))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("profile")
    return {
        name: to_onnx(Residual(width), torch.randn(2, *SHAPE[1:]), folder / f"{name}.onnx", verify=False).path
        for name, width in (("dense", 64), ("compact", 33))
    }


def test_every_layer_is_found_by_its_weight(paths: dict[str, Path]) -> None:
    costs = profile_layers(paths["dense"], {"x": np.ones(SHAPE, np.float32)}, 1)
    layers = {name: cost.macs for name, cost in costs.items() if not name.startswith("[")}
    assert layers == {"first": 64 * 16 * 9 * 144, "second": 64 * 16 * 9 * 144, "third": 16 * 16 * 144, "last": 64}
    assert all(costs[name].milliseconds > 0 for name in layers)
    assert not any(name.startswith(("[Conv", "[Gemm")) for name in costs)


def test_layers_of_both_files_stand_beside_each_other(paths: dict[str, Path]) -> None:
    result = benchmark(paths, batch_sizes=(2,), seconds=0.01, layers=True)
    (first,) = (layer for layer in result.layers if layer.layer == "first")
    assert (first.name, first.first_macs, first.macs) == ("compact", 64 * 16 * 9 * 144, 33 * 16 * 9 * 144)
    assert first.efficiency == pytest.approx(first.first_milliseconds / first.milliseconds * 33 / 64)
    assert first.lost == pytest.approx(first.milliseconds - first.first_milliseconds * 33 / 64)
    assert [layer.lost for layer in result.layers] == sorted((layer.lost for layer in result.layers), reverse=True)
    assert "where time is lost" in str(result)
    assert Benchmark.from_json(result.to_json()) == result


def test_a_width_is_odd_if_it_costs_more_than_its_share(
    paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    works: list[Work] = count_macs(onnx.load(paths["compact"]), {"x": SHAPE})
    costs = {33: 3.0, 32: 2.0}
    monkeypatch.setattr(
        "fxprune.export.odd_widths.time_layers",
        lambda layers, **_: {layer: costs[layer.parts[0][0].filters] for layer in layers},
    )
    assert find_odd_widths(works, OrtCpu(), 1) == [("first", 33, 32, 1.5)]
    costs[33] = 2.1
    assert find_odd_widths(works, OrtCpu(), 1) == []
    assert find_odd_widths(count_macs(onnx.load(paths["dense"]), {"x": SHAPE}), OrtCpu(), 1) == []


def test_odd_widths_are_timed_on_the_runtime(paths: dict[str, Path]) -> None:
    found = find_odd_widths(count_macs(onnx.load(paths["compact"]), {"x": SHAPE}), OrtCpu(), 1)
    assert [(odd.layer, odd.width, odd.narrower) for odd in found] in ([], [("first", 33, 32)])

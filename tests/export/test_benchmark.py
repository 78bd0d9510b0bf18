"""Is a measurement complete, fair and readable? (Never: how fast is it?)"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fxprune.errors import ExportError
from fxprune.export import benchmark, to_onnx
from fxprune.export.benchmark import Benchmark, bootstrap_median
from fxprune.export.runtimes.interface import Array, TensorInfo


@pytest.fixture
def path(block: nn.Module, tmp_path: Path) -> Path:
    return to_onnx(block, torch.randn(2, 3, 8, 8), tmp_path / "block.onnx", verify=False).path


def test_a_file_beside_itself_is_measured_completely(path: Path) -> None:
    result = benchmark({"one": path, "two": path}, batch_sizes=(1, 4), seconds=0.05, rounds=5)
    assert [(timing.name, timing.batch_size) for timing in result.timings] == [
        ("one", 1),
        ("two", 1),
        ("one", 4),
        ("two", 4),
    ]
    for timing in result.timings:
        assert timing.size == path.stat().st_size
        assert timing.runs >= 5
        assert 0 < timing.lower_quartile <= timing.median <= timing.upper_quartile <= timing.p95
        assert timing.throughput == pytest.approx(timing.batch_size / timing.median * 1e3)
        assert timing.speedup_low <= timing.speedup <= timing.speedup_high
    assert {timing.speedup for timing in result.timings if timing.name == "one"} == {1.0}


def test_json_round_trip_and_table(path: Path) -> None:
    result = benchmark({"one": path}, batch_sizes=(2,), seconds=0.01, rounds=2)
    assert Benchmark.from_json(result.to_json()) == result
    assert "speed-up" in str(result)
    assert "1 thread, 2 rounds" in str(result)


class Recorder:
    """A runtime that notes who runs when."""

    name = "recorder"

    def __init__(self) -> None:
        self.log: list[str] = []

    def load(self, path: Path, threads: int) -> "RecorderSession":
        return RecorderSession(self, path.stem)


class RecorderSession:
    inputs = (TensorInfo("x", (None, 2), np.dtype("float32")),)
    outputs = ()

    def __init__(self, runtime: Recorder, name: str) -> None:
        self.runtime, self.name = runtime, name

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        self.runtime.log.append(self.name)
        return []


def test_files_take_turns_in_alternating_order(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).touch()
    runtime = Recorder()
    paths = {"a": tmp_path / "a.onnx", "b": tmp_path / "b.onnx"}
    benchmark(paths, batch_sizes=(1,), seconds=1e-12, rounds=4, runtime=runtime)
    assert runtime.log == [*"aaabbb", *"abbaabba"]


def test_bad_input_is_refused(path: Path, tmp_path: Path) -> None:
    bilinear = nn.Bilinear(4, 4, 3)
    other = to_onnx(bilinear, (torch.randn(2, 4), torch.randn(2, 4)), tmp_path / "two.onnx", verify=False).path
    with pytest.raises(ExportError, match=r"two takes the inputs \['input1', 'input2'\], block takes \['input'\]"):
        benchmark({"block": path, "two": other}, batch_sizes=(1,), seconds=0.01, rounds=1)
    with pytest.raises(ExportError, match="there is no file"):
        benchmark({"missing": tmp_path / "missing.onnx"})
    with pytest.raises(ExportError, match="there is no file to time"):
        benchmark({})
    with pytest.raises(ExportError, match="batch_sizes="):
        benchmark({"block": path}, batch_sizes=(0,))
    with pytest.raises(ExportError, match="have to be positive"):
        benchmark({"block": path}, threads=0)


def test_bootstrap_interval_holds_the_median_and_narrows() -> None:
    generator = np.random.default_rng(0)
    few, many = generator.normal(2, 0.1, 10), generator.normal(2, 0.1, 1000)
    low, high = bootstrap_median(many)
    assert low < np.median(many) < high
    assert high - low < bootstrap_median(few)[1] - bootstrap_median(few)[0]
    assert bootstrap_median(np.ones(5)) == (1.0, 1.0)

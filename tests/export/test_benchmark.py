"""Is a measurement complete, fair and readable? (Never: how fast is it?)"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fxprune.errors import ExportError
from fxprune.export import benchmark, count, to_onnx
from fxprune.export.loads import bootstrap_median, compare_loads, time_loads
from fxprune.export.measurements import Benchmark
from fxprune.export.runtimes.interface import Array, Session, TensorInfo


@pytest.fixture
def path(block: nn.Module, tmp_path: Path) -> Path:
    return to_onnx(block, torch.randn(2, 3, 8, 8), tmp_path / "block.onnx", verify=False).path


def test_a_file_beside_itself_is_measured_completely(path: Path) -> None:
    result = benchmark({"one": path, "two": path}, batch_sizes=(1, 4), seconds=0.02)
    assert [(timing.name, timing.batch_size) for timing in result.timings] == [
        ("one", 1),
        ("two", 1),
        ("one", 4),
        ("two", 4),
    ]
    for timing in result.timings:
        assert timing.size == path.stat().st_size
        assert timing.macs == 8 * 6 * 6 * 3 * 9 + 4 * 6 * 6 * 8
        assert timing.runs >= timing.rounds == 2 * timing.loads >= 8
        assert 0 < timing.lower_quartile <= timing.median <= timing.upper_quartile <= timing.p95
        assert timing.throughput == pytest.approx(timing.batch_size / timing.median * 1e3)
        assert timing.speedup_low <= timing.speedup <= timing.speedup_high
        assert timing.efficiency == pytest.approx(timing.speedup)
    assert {timing.speedup for timing in result.timings if timing.name == "one"} == {1.0}


def test_json_round_trip_and_table(path: Path) -> None:
    result = benchmark({"one": path}, runtimes=["ort-cpu", "torch:cuda"], batch_sizes=(2,), seconds=0.01)
    assert Benchmark.from_json(result.to_json()) == result
    assert "speed-up" in str(result)
    assert "torch:cuda was not measured: torch" in str(result)


def test_what_no_runtime_measures_is_an_error_with_all_reasons(path: Path) -> None:
    with pytest.raises(ExportError, match="sees no CUDA device"):
        benchmark({"one": path}, runtimes=["torch:cuda"], seconds=0.01)
    with pytest.raises(ExportError, match=r"(?s)torch:cuda was not measured.*torch-cuda-graphs was not measured"):
        benchmark({"one": path}, runtimes=["torch:cuda", "torch-cuda-graphs"], seconds=0.01)


def test_threads_are_set_and_read_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.export.pin_cores.count_cores", lambda: 2)
    result = benchmark({"one": path}, runtimes=["ort-cpu", "torch"], batch_sizes=(1,), threads=(1, 2), seconds=0.01)
    assert [(t.runtime, t.threads) for t in result.timings] == [
        (runtime, n) for runtime in ("ort-cpu", "torch") for n in (1, 2)
    ]
    assert torch.get_num_threads() == 1


def test_modules_are_timed_as_modules_and_as_files(block: nn.Module) -> None:
    slim = nn.Conv2d(3, 4, 3)
    networks = {"dense": block, "slim": slim}
    inputs = torch.randn(2, 3, 8, 8)
    result = benchmark(networks, runtimes=["ort-cpu", "torch"], batch_sizes=(1,), seconds=0.01, example_inputs=inputs)
    assert [(t.runtime, t.name) for t in result.timings] == [(r, n) for r in ("ort-cpu", "torch") for n in networks]
    assert [t.macs for t in result.timings][:2] == [count(model, inputs).macs for model in networks.values()]
    with pytest.raises(ExportError, match="slim is a module; pass example_inputs"):
        benchmark({"slim": slim})


class Recorder:
    """A runtime that notes who runs when."""

    name = "recorder"

    def __init__(self) -> None:
        self.log: list[str] = []

    def load(self, path: Path, threads: int) -> "RecorderSession":
        self.log.append(path.stem.upper())
        return RecorderSession(self, path.stem)


class RecorderSession(Session):
    inputs = (TensorInfo("input", (None, 2), np.dtype("float32")),)
    outputs = ()
    threads = 1

    def __init__(self, runtime: Recorder, name: str) -> None:
        self.runtime, self.name = runtime, name

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        self.runtime.log.append(self.name)
        return []


@pytest.fixture
def copies(tmp_path: Path) -> dict[str, Path]:
    model = nn.Linear(2, 3)
    return {name: to_onnx(model, torch.randn(2, 2), tmp_path / f"{name}.onnx", verify=False).path for name in "ab"}


def test_what_loads_slowly_is_loaded_once() -> None:
    loads: list[str] = []

    def load(name: str) -> Callable[[], float]:
        loads.append(name)
        time.sleep(0.05)
        return lambda: 1e-3

    times = time_loads({name: partial(load, name) for name in "ab"}, seconds=0.005, precision=0.02)
    assert loads == ["a", "b"]
    assert [len(rounds) for rounds in times["a"]] == [8]


def test_the_interval_is_over_loads_that_differ() -> None:
    speeds = iter([1.0, 1.02, 0.98, 1.01, 0.99] * 20)
    times = time_loads({"a": lambda: lambda: 1.0, "b": lambda: cycle([next(speeds)]).__next__}, 12.0, 0.001)
    middle, low, high = compare_loads(times["a"], times["b"])
    assert low < 0.995 < middle < 1.005 < high
    alone = [[runs for rounds in times[name] for runs in rounds] for name in "ab"]
    assert compare_loads([alone[0]], [alone[1]])[2] < high  # rounds of one load alone would be more certain


class Clock(Recorder):
    """A runtime whose networks take the times that they are told, over and over."""

    def __init__(self, **seconds: list[float]) -> None:
        super().__init__()
        self.seconds = {name: cycle(times) for name, times in seconds.items()}

    def load(self, path: Path, threads: int) -> "ClockSession":
        self.log.append(path.stem.upper())
        return ClockSession(self, path.stem)


class ClockSession(RecorderSession):
    runtime: Clock

    def bind(self, feed: Mapping[str, Array]) -> Callable[[], float]:
        def take_time() -> float:
            self.run(feed)
            return next(self.runtime.seconds[self.name])

        return take_time


def test_files_are_loaded_anew_and_take_turns_in_alternating_order(copies: dict[str, Path]) -> None:
    runtime = Clock(a=[1.0], b=[1.0])
    benchmark(copies, batch_sizes=(1,), seconds=8, runtimes=[runtime])
    load, another, memory = "ABaabbabba", "BAbbaabaab", "AaaBbb"
    assert "".join(runtime.log) == load + another + load + another + memory


def test_rounds_go_on_until_the_interval_is_narrow(copies: dict[str, Path]) -> None:
    steady = benchmark(copies, batch_sizes=(1,), seconds=900, runtimes=[Clock(a=[2.0], b=[1.0])]).timings[1]
    assert (steady.loads, steady.speedup, steady.speedup_low, steady.speedup_high) == (10, 2.0, 2.0, 2.0)
    assert (steady.median, steady.efficiency) == (1000.0, 2.0)
    spread = [0.96, 0.98, 1.0, 1.03, 1.04, 0.97, 1.02]
    noisy = benchmark(copies, batch_sizes=(1,), seconds=900, runtimes=[Clock(a=spread, b=[1.0])]).timings[1]
    assert 20 < noisy.rounds < 900
    assert noisy.speedup_high - noisy.speedup_low <= 0.02 * noisy.speedup
    cut_off = benchmark(copies, batch_sizes=(1,), seconds=20, runtimes=[Clock(a=spread, b=[1.0])]).timings[1]
    assert cut_off.rounds == pytest.approx(20, abs=2)


def test_bad_input_is_refused(path: Path, tmp_path: Path) -> None:
    bilinear = nn.Bilinear(4, 4, 3)
    other = to_onnx(bilinear, (torch.randn(2, 4), torch.randn(2, 4)), tmp_path / "two.onnx", verify=False).path
    with pytest.raises(ExportError, match=r"two takes the inputs \['input1', 'input2'\], block takes \['input'\]"):
        benchmark({"block": path, "two": other}, batch_sizes=(1,), seconds=0.01)
    with pytest.raises(ExportError, match="there is no file"):
        benchmark({"missing": tmp_path / "missing.onnx"})
    with pytest.raises(ExportError, match="there is no file to time"):
        benchmark({})
    with pytest.raises(ExportError, match="batch_sizes="):
        benchmark({"block": path}, batch_sizes=(0,))
    with pytest.raises(ExportError, match="have to be positive"):
        benchmark({"block": path}, threads=0)
    with pytest.raises(ExportError, match="wait for each other"):
        benchmark({"block": path}, threads=9999)
    with pytest.raises(ExportError, match="did you mean ort-cuda"):
        benchmark({"block": path}, runtimes=["ort-cude"])


def test_bootstrap_interval_holds_the_median_and_narrows() -> None:
    generator = np.random.default_rng(0)
    few, many = generator.normal(2, 0.1, 10), generator.normal(2, 0.1, 1000)
    low, high = bootstrap_median(many)
    assert low < np.median(many) < high
    assert high - low < bootstrap_median(few)[1] - bootstrap_median(few)[0]
    assert bootstrap_median(np.ones(5)) == (1.0, 1.0)

"""Are layers timed in turns, once, and remembered for this machine only? (Never: how long do they take?)"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from fxprune.export.runtimes.interface import Array, Session, TensorInfo
from fxprune.layer_times.cache import Machine, add_times, find_file, read_times
from fxprune.layer_times.graph import Convolution, LayerGraph, Linear
from fxprune.layer_times.measure import ROUNDS, time_layers

SHAPE = (1, 4, 6, 6)
WIDE, NARROW = (LayerGraph(SHAPE, ((Convolution(n, (3, 3), (1,) * 4, (1, 1), (1, 1)),),)) for n in (8, 4))
ROWS = LayerGraph((5, 4), ((Linear(7),),))


class Recorder:
    """A runtime that notes how many weights the graph that runs has."""

    def __init__(self, name: str = "recorder") -> None:
        self.name = name
        self.log: list[int] = []

    def load(self, path: Path, threads: int) -> "RecorderSession":
        return RecorderSession(self, onnx.load(path))


class RecorderSession(Session):
    outputs = ()

    def __init__(self, runtime: Recorder, model: onnx.ModelProto) -> None:
        self.runtime = runtime
        self.weights = sum(int(np.prod(t.dims)) for t in model.graph.initializer)
        sizes = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)
        self.inputs = (TensorInfo("x", sizes, np.dtype("float32")),)

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        assert feed["x"].shape == self.inputs[0].shape
        self.runtime.log.append(self.weights)
        return []


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_layers_of_one_shape_take_turns_with_their_frame() -> None:
    runtime = Recorder()
    times = time_layers([WIDE, NARROW, WIDE], runtime=runtime, seconds=1e-12)
    assert set(times) == {WIDE, NARROW}
    assert all(milliseconds >= 0 for milliseconds in times.values())
    frame, wide, narrow = 8, 8 + 8 * 36 + 8, 8 + 4 * 36 + 4
    forwards = [frame, wide, narrow]
    turns = [forwards if turn % 2 == 0 else forwards[::-1] for turn in range(ROUNDS)]
    assert runtime.log == [each for one in forwards for each in [one] * 2] + [each for turn in turns for each in turn]


def test_what_was_timed_is_remembered_for_its_runtime_and_threads_alone(folder: Path) -> None:
    first = time_layers([WIDE, ROWS], runtime=Recorder(), seconds=1e-12)
    again = Recorder()
    assert time_layers([ROWS, WIDE], runtime=again, seconds=1e-12) == first
    assert not again.log
    for other in (Recorder("another"), Recorder()):
        time_layers([WIDE], runtime=other, threads=1 if other.name == "another" else 2, seconds=1e-12)
        assert other.log
    assert find_file(Machine("recorder", 1)).is_relative_to(folder / "fxprune")


def test_a_new_layer_is_compared_with_those_of_its_shape_in_one_run() -> None:
    time_layers([WIDE, ROWS], runtime=Recorder(), seconds=1e-12)
    runtime = Recorder()
    time_layers([WIDE, NARROW, ROWS], runtime=runtime, seconds=1e-12)
    assert len(set(runtime.log)) == 3  # the frame and both, not the linear layer


@pytest.mark.parametrize("text", ["", "{", "[]", '{"times": 3}', '{"times": {"a": "b"}}'])
def test_a_damaged_cache_is_written_anew(text: str) -> None:
    machine = Machine("recorder", 1)
    time_layers([WIDE], runtime=Recorder(), seconds=1e-12)
    find_file(machine).write_text(text)
    assert read_times(machine) == {}
    runtime = Recorder()
    time_layers([WIDE], runtime=runtime, seconds=1e-12)
    assert runtime.log
    assert list(read_times(machine)) == [repr(WIDE)]
    assert list(find_file(machine).parent.iterdir()) == [find_file(machine)]  # nothing half-written stays


def test_a_folder_that_cannot_be_made_keeps_no_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    add_times(Machine("recorder", 1), {"layer": 1.0})
    assert read_times(Machine("recorder", 1)) == {}
    assert time_layers([WIDE], runtime=Recorder(), seconds=1e-12)[WIDE] >= 0


def test_the_runtime_at_hand_is_timed() -> None:
    assert time_layers([WIDE], seconds=0.001)[WIDE] >= 0

"""Is the machine held still, measured and left as it was?"""

import os
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fxprune.errors import ExportError
from fxprune.export import to_onnx
from fxprune.export.environment import describe_environment, note_moment
from fxprune.export.peak_memory import MemoryMeter
from fxprune.export.pin_cores import choose_cores, hold_to_cores, require_cores
from fxprune.export.runtimes.ort_cpu import OrtCpu


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no affinity")
def test_all_threads_are_held_to_the_cores_and_freed_again() -> None:
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("there is one core")
    done, inside = threading.Event(), threading.Event()
    other = threading.Thread(target=lambda: (inside.set(), done.wait()))
    other.start()
    inside.wait()
    try:
        with suppress(RuntimeError), hold_to_cores(1) as cores:
            assert len(cores) == 1
            assert os.sched_getaffinity(0) == set(cores)
            assert os.sched_getaffinity(other.native_id) == set(cores)
            os.sched_setaffinity(0, before)  # as a runtime may do
            raise RuntimeError
        assert os.sched_getaffinity(0) == before
        assert os.sched_getaffinity(other.native_id) == before
    finally:
        done.set()
        other.join()
    with hold_to_cores(len(before)) as cores:
        assert cores == ()
        assert os.sched_getaffinity(0) == before


def test_physical_cores_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.export.pin_cores._read_siblings", lambda core: str(core % 4))
    assert choose_cores(list(range(8)), 3) == (5, 6, 7)
    assert choose_cores([0, 1, 4, 5], 2) == (4, 5)
    assert choose_cores([0, 1, 4, 5], 3) == (1, 4, 5)


def test_more_threads_than_cores_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.export.pin_cores.count_cores", lambda: 2)
    require_cores([1, 2])
    with pytest.raises(ExportError, match=r"threads=99: this process may use 2 cores.*give 2 at most"):
        require_cores([1, 99])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell")
def test_memory_is_that_of_weights_and_activations(tmp_path: Path) -> None:
    wide = nn.Sequential(nn.Linear(16, 500_000), nn.ReLU(), nn.Linear(500_000, 2))  # 38 MB, 2 MB a sample
    path = to_onnx(wide, torch.randn(2, 16), tmp_path / "wide.onnx", verify=False).path
    del wide
    meter = MemoryMeter()
    feeds = [{"input": np.zeros((size, 16), np.float32)} for size in (1, 8)]
    small, large = meter.measure(OrtCpu().load(path, 1), feeds)
    assert small is not None
    assert large is not None
    assert 35e6 < small < 130e6
    assert 10e6 < large - small < 80e6


def test_the_machine_is_described() -> None:
    before = note_moment()
    found = describe_environment(before, note_moment())
    assert found.date == before.date
    assert found.cores >= 1
    assert found.versions["torch"] == torch.__version__.partition("+")[0]
    assert found.processor in str(found)

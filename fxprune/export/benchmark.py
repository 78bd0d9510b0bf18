"""How much faster is one ONNX file than another?"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from fxprune.errors import ExportError
from fxprune.export.random_inputs import draw_inputs
from fxprune.export.runtimes.interface import Runtime, Session
from fxprune.export.runtimes.ort_cpu import OrtCpu
from fxprune.export.turns import time_in_turns

RESAMPLES = 2000
CONFIDENCE = 0.95
_HEADERS = ("model", "MB", "batch", "median ms", "quartiles", "p95", "samples/s", "speed-up", "95% interval")


@dataclass(frozen=True)
class Timing:
    """One file at one batch size; times are milliseconds a run over all rounds.

    `speedup` is the median over the rounds of the first file's median time divided by this
    one's, with its bootstrap interval; 1 for the first file itself.
    """

    name: str
    size: int  # bytes
    batch_size: int
    runs: int
    median: float
    lower_quartile: float
    upper_quartile: float
    p95: float
    throughput: float  # samples a second, at the median
    speedup: float
    speedup_low: float
    speedup_high: float


@dataclass(frozen=True)
class Benchmark:
    """Timings of several files, measured in turns."""

    runtime: str
    threads: int
    rounds: int
    timings: tuple[Timing, ...]

    def __str__(self) -> str:
        """Return a table, one line a file and batch size."""
        rows = [
            (
                timing.name,
                f"{timing.size / 1e6:.2f}",
                timing.batch_size,
                f"{timing.median:.3f}",
                f"{timing.lower_quartile:.3f} to {timing.upper_quartile:.3f}",
                f"{timing.p95:.3f}",
                f"{timing.throughput:.1f}",
                f"{timing.speedup:.2f}x",
                f"{timing.speedup_low:.2f} to {timing.speedup_high:.2f}",
            )
            for timing in self.timings
        ]
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        table = tabulate(rows, headers=_HEADERS, disable_numparse=True, colalign=["left"] + ["right"] * 8)
        return f"{self.runtime}, {threads}, {self.rounds} rounds in turns\n{table}"

    def to_json(self) -> str:
        """Return all fields as JSON, for `from_json`."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Benchmark":
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        timings = tuple(Timing(**timing) for timing in fields.pop("timings"))
        return cls(**fields, timings=timings)


def benchmark(
    paths: Mapping[str, str | os.PathLike[str]],
    *,
    batch_sizes: Sequence[int] = (1, 8),
    threads: int = 1,
    seconds: float = 5.0,
    rounds: int = 25,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    runtime: Runtime | None = None,
) -> Benchmark:
    """Time ONNX files by name beside each other; the first one is what the others are compared with.

    At each batch size every file gets about `seconds` of measurement after a warm-up of its
    own. The files take turns, in an order that alternates from round to round, so that a
    drift of the machine hits them alike. Inputs are random, and the same for all files.

    `input_shapes` gives shapes of one sample (without the batch) where a file leaves more
    than its first dimension open. The runtime is ONNX Runtime on the CPU unless given.

    Raises ExportError if a file is missing, is no ONNX file, takes other inputs than the
    first, or cannot be run at a batch size.
    """
    _check_settings(paths, batch_sizes, threads, seconds, rounds)
    runtime = runtime or OrtCpu()
    files = {name: Path(path) for name, path in paths.items()}
    sessions = {name: runtime.load(path, threads) for name, path in files.items()}
    _require_same_inputs(sessions)
    timings: list[Timing] = []
    for batch_size in batch_sizes:
        first = next(iter(sessions.values()))
        feed = draw_inputs(first.inputs, batch_size, input_shapes or {})
        runs = {name: partial(session.run, feed) for name, session in sessions.items()}
        measured = time_in_turns(runs, seconds, rounds)
        baseline = measured[next(iter(sessions))]
        for name, times in measured.items():
            timings.append(_summarise(name, files[name].stat().st_size, batch_size, times, baseline))
    return Benchmark(runtime.name, threads, rounds, tuple(timings))


def _check_settings(
    paths: Mapping[str, object], batch_sizes: Sequence[int], threads: int, seconds: float, rounds: int
) -> None:
    if not paths:
        raise ExportError("there is no file to time; pass {'dense': 'dense.onnx', 'compact': 'compact.onnx'}.")
    if not batch_sizes or min(batch_sizes) < 1:
        raise ExportError(f"batch_sizes={tuple(batch_sizes)}: at least one size, each 1 or more.")
    if threads < 1 or rounds < 1 or seconds <= 0:
        raise ExportError(f"threads={threads}, rounds={rounds}, seconds={seconds}: all of them have to be positive.")


def _require_same_inputs(sessions: Mapping[str, Session]) -> None:
    (first, reference), *others = sessions.items()
    for name, session in others:
        theirs, ours = [info.name for info in session.inputs], [info.name for info in reference.inputs]
        if theirs != ours:
            raise ExportError(
                f"{name} takes the inputs {theirs}, {first} takes {ours}; compare files of one interface."
            )


def _summarise(
    name: str,
    size: int,
    batch_size: int,
    times: list[NDArray[np.float64]],
    baseline: list[NDArray[np.float64]],
) -> Timing:
    runs = np.concatenate(times)
    lower, median, upper, p95 = (float(value) for value in np.percentile(runs, [25, 50, 75, 95]))
    ratios = np.array([np.median(base) / np.median(own) for base, own in zip(baseline, times, strict=True)])
    low, high = bootstrap_median(ratios)
    return Timing(
        name=name,
        size=size,
        batch_size=batch_size,
        runs=len(runs),
        median=median,
        lower_quartile=lower,
        upper_quartile=upper,
        p95=p95,
        throughput=batch_size / median * 1e3,
        speedup=float(np.median(ratios)),
        speedup_low=low,
        speedup_high=high,
    )


def bootstrap_median(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a median: 2000 resamples, 95%."""
    generator = np.random.default_rng(0)
    medians = np.median(generator.choice(values, size=(RESAMPLES, len(values))), axis=1)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(medians, [tail, 100 - tail])
    return float(low), float(high)

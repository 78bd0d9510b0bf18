"""How long do several runs take beside each other?"""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Key = TypeVar("Key", bound=Hashable)
Run = Callable[[], object]


def time_in_turns(runs: Mapping[Key, Run], seconds: float, rounds: int) -> dict[Key, list[NDArray[np.float64]]]:
    """Return each run's times in milliseconds, one array a round.

    Each gets about `seconds` in all, after a warm-up of its own. They take turns, in an order that alternates from
    round to round, so that a drift of the machine hits them alike.
    """
    slot = seconds / rounds
    counts = {key: max(1, round(slot / _warm_up(run, slot))) for key, run in runs.items()}
    times: dict[Key, list[NDArray[np.float64]]] = {key: [] for key in runs}
    for turn in range(rounds):
        for key in list(runs) if turn % 2 == 0 else list(runs)[::-1]:
            times[key].append(np.array([_time_run(runs[key]) * 1e3 for _ in range(counts[key])]))
    return times


def _warm_up(run: Run, seconds: float) -> float:
    """Run at least three times and for `seconds`; return the fastest time in seconds."""
    durations = [_time_run(run) for _ in range(3)]
    while sum(durations) < seconds:
        durations.append(_time_run(run))
    return min(durations)


def _time_run(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start

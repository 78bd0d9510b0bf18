"""How long do several runs take beside each other?"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Key = TypeVar("Key", bound=Hashable)
Timer = Callable[[], float]
"""A call that runs something once and returns the seconds that it took."""


def time_in_turns(timers: Mapping[Key, Timer], seconds: float, rounds: int) -> dict[Key, list[NDArray[np.float64]]]:
    """Return each run's times in milliseconds, one array a round.

    Each gets about `seconds` in all, after a warm-up of its own, in rounds as `take_turns` has them.
    """
    times: dict[Key, list[NDArray[np.float64]]] = {key: [] for key in timers}
    for found in islice(take_turns(timers, seconds / rounds), rounds):
        for key, milliseconds in found.items():
            times[key].append(milliseconds)
    return times


def take_turns(timers: Mapping[Key, Timer], slot: float) -> Iterator[dict[Key, NDArray[np.float64]]]:
    """Warm every run up, then give round after round, without end, each run's times in milliseconds.

    A run gets about `slot` seconds a round, at least one run. They take turns, in an order that alternates from round
    to round, so that a drift of the machine hits them alike.
    """
    counts = {key: max(1, round(slot / _warm_up(timer, slot))) for key, timer in timers.items()}
    forwards = list(timers)
    while True:
        for order in (forwards, forwards[::-1]):
            yield {key: np.array([timers[key]() * 1e3 for _ in range(counts[key])]) for key in order}


def _warm_up(timer: Timer, seconds: float) -> float:
    """Run at least twice and for `seconds`; return the fastest time in seconds."""
    durations = [timer() for _ in range(2)]
    spent = sum(durations)
    while spent < seconds:
        durations.append(timer())
        spent += durations[-1]
    return min(durations)

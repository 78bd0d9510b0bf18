"""How long do networks take beside each other, if each is loaded several times?

Where a runtime puts a network's weights and buffers differs from load to load, and so does its speed: two sessions of
one file by up to 2% on a processor, either way, for as long as they live. Rounds with the same sessions, however many,
do not see that. So networks are loaded anew before every pair of rounds, and an interval is that over the loads.
"""

import time
from collections.abc import Callable, Mapping
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray

from fxprune.export.turns import Key, Timer, take_turns

FEWEST_LOADS, SURE_LOADS = 4, 10
"""Loads that are made whatever time they take, and before their spread is asked whether it is small enough."""

ROUNDS = 2
"""Of each load: all networks forwards, and backwards."""

MOST_PREPARING = 2
"""Times as long as measuring: what loading and warming up may take before networks are loaded no more."""

SLOT = 0.2
"""Seconds of a network's turn, if not a single run takes longer."""

RESAMPLES = 2000
CONFIDENCE = 0.95

Rounds = list[NDArray[np.float64]]
"""The times of one network in milliseconds, one array a round."""


def time_loads(
    loaders: Mapping[Key, Callable[[], Timer]], seconds: float, precision: float
) -> dict[Key, list[Rounds]]:  # fmt: skip
    """Return the rounds of each network by its loads. A loader loads a network anew and gives what times a run.

    It goes on until the intervals of all ratios to the first network are narrower than `precision` times the ratio,
    and for `seconds` a network at the most (for four loads at the least). Where loading takes much longer than
    measuring (engines that are built, code that is compiled), rounds go on with what is loaded.
    """
    times: dict[Key, list[Rounds]] = {key: [] for key in loaders}
    slot = min(SLOT, seconds / SURE_LOADS / ROUNDS)
    start = time.perf_counter()
    for number in count(1):
        preparing = time.perf_counter() - start - sum_spent(times)
        if number == 1 or preparing <= MOST_PREPARING * seconds * len(loaders):
            order = list(loaders) if number % 2 else list(loaders)[::-1]  # what comes first may lie better, or find
            turns = take_turns({key: loaders[key]() for key in order}, slot)  # the caches fuller
            for loads in times.values():
                loads.append([])
        for found in islice(turns, ROUNDS):
            for key, milliseconds in found.items():
                times[key][-1].append(milliseconds)
        if number >= FEWEST_LOADS and sum_spent(times) >= seconds * len(loaders):
            return times
        if number >= SURE_LOADS and is_narrow(times, precision):
            return times
    raise AssertionError("unreachable")


def sum_spent(times: Mapping[Key, list[Rounds]]) -> float:
    """Return the seconds that all runs took together."""
    return sum(float(runs.sum()) for loads in times.values() for rounds in loads for runs in rounds) / 1e3


def is_narrow(times: Mapping[Key, list[Rounds]], precision: float) -> bool:
    """Say whether the intervals of all ratios to the first network are narrow."""
    baseline, *others = times.values()
    ratios = [compare_loads(baseline, own) for own in others]
    return all(high - low <= precision * middle for middle, low, high in ratios)


def compare_loads(baseline: list[Rounds], own: list[Rounds]) -> tuple[float, float, float]:
    """Return how many times as fast a network is as the baseline, and the bootstrap interval of that.

    The ratio of a round is that of both median times, that of a load the median over its rounds, and the result the
    median over the loads. The interval is over the loads, too; over the rounds where there is but one load.
    """
    by_load = [
        np.array([np.median(base) / np.median(mine) for base, mine in zip(*rounds, strict=True)])
        for rounds in zip(baseline, own, strict=True)
    ]
    ratios = by_load[0] if len(by_load) == 1 else np.array([np.median(each) for each in by_load])
    return float(np.median(ratios)), *bootstrap_median(ratios)


def bootstrap_median(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a median: 2000 resamples, 95%."""
    generator = np.random.default_rng(0)
    medians = np.median(generator.choice(values, size=(RESAMPLES, len(values))), axis=1)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(medians, [tail, 100 - tail])
    return float(low), float(high)

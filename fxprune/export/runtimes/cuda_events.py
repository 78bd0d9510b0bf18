"""How long does work take that a card does on a stream?"""

from collections.abc import Callable

import torch


def time_on_stream(launch: Callable[[], object], stream: torch.cuda.Stream) -> Callable[[], float]:
    """Return a call that launches work on a stream and returns the seconds between the events around it.

    The card is idle when the first event is recorded, and the second one is waited for.
    """

    def time_run() -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            start.record(stream)
            launch()
            end.record(stream)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return time_run

"""How much memory does a network take while it runs?"""

import ctypes
import gc
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from fxprune.export.runtimes.interface import Array, Session

STATUS = Path("/proc/self/status")
RESET_PEAK = "5"
"""What is written to clear_refs so that the peak of the resident memory starts anew (proc(5))."""


class MemoryMeter:
    """Measures how much more memory there is in use than when the meter was made, before a network is loaded."""

    def __init__(self) -> None:
        _give_back_freed()
        self._resident = _read_status("VmRSS")
        self._used = _read_card()

    def measure(self, session: Session, feeds: Sequence[Mapping[str, Array]]) -> list[int | None]:
        """Return, for each input, the bytes in use at the peak of a second run: weights, buffers and activations.

        On a card it is what the card has in use then. None where the system does not tell.
        """
        return [self._measure_run(session, feed) for feed in feeds]

    def _measure_run(self, session: Session, feed: Mapping[str, Array]) -> int | None:
        run = session.bind(feed)
        run()
        if session.device == "cuda":
            used = _read_card()
            return None if used is None or self._used is None else used - self._used
        _give_back_freed()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text(RESET_PEAK)
            run()
            peak = _read_status("VmHWM")
            return None if peak is None or self._resident is None else max(0, peak - self._resident)
        return None


def _give_back_freed() -> None:
    """Return what was freed to the system, so that it does not count as in use."""
    gc.collect()
    with suppress(OSError, AttributeError):  # other C libraries than glibc have no such call
        ctypes.CDLL(None).malloc_trim(0)


def _read_status(field: str) -> int | None:
    text = STATUS.read_text() if STATUS.is_file() else ""
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    return None if found is None else int(found[1]) * 1024


def _read_card() -> int | None:
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return total - free

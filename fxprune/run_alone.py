"""How passes run: one call at a time, in one thread, with Python not looking for circles among what they make.

They compute with many small tensors, which threads only wait for: on two cores a third of the processor's time went
into that, and none of it was faster. What runs a model, to compare it say, has `all_threads`.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

ONE_AT_A_TIME = threading.RLock()
"""Tracing changes how all modules of the process are called while it lasts, so a second thread waits."""

given: list[int] = []
"""The numbers of threads that PyTorch had before each call that is running, the first one's first."""


@contextmanager
def run_alone() -> Iterator[None]:
    """Let other threads wait that prepare or convert, use one, and look for no circles meanwhile.

    To look for circles takes a tenth to a sixth of the time, and the passes leave none.
    """
    with ONE_AT_A_TIME:
        was_enabled = gc.isenabled()
        gc.disable()
        given.append(torch.get_num_threads())
        try:
            with threads(1), plain_attention():
                yield
        finally:
            given.pop()
            if was_enabled:
                gc.enable()


@contextmanager
def all_threads() -> Iterator[None]:
    """Run a model in as many threads as its owner lets PyTorch use."""
    with threads(given[0] if given else torch.get_num_threads()):
        yield


@contextmanager
def plain_attention() -> Iterator[None]:
    """Let attention compute as its code says: torch's fast path in eval mode gives zeros where keys are padding."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let PyTorch use so many threads for a while."""
    before = torch.get_num_threads()
    if number != before:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if number != before:
            torch.set_num_threads(before)

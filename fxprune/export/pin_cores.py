"""How is a process held to certain cores while something is timed?"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fxprune.errors import ExportError
from fxprune.is_number import is_whole


def count_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_cores(threads: Sequence[int]) -> None:
    """Refuse to time with no thread, and with more than there are cores, on which they would wait for each other.

    Raises ExportError.
    """
    for number in threads:
        if not is_whole(number, 1):
            raise ExportError(f"threads={number!r}: give a whole number, 1 or more.")
    cores, most = count_cores(), max(threads)
    if most > cores:
        raise ExportError(
            f"threads={most}: this process may use {cores} core{'s' if cores > 1 else ''}, where so many threads would "
            f"wait for each other; give {cores} at most."
        )


@contextmanager
def hold_to_cores(count: int) -> Iterator[tuple[int, ...]]:
    """Hold all threads of this process, and those that they start, to `count` cores; give the cores.

    They are the last ones that the process may use (the first serves interrupts), one thread of
    a physical core before a second one of any. Afterwards every thread may run where it could
    before. Gives () and holds nothing where the system has no such call, or there are no more
    than `count` cores.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield ()
        return
    allowed = os.sched_getaffinity(0)
    before = {}
    for thread in _list_threads():
        with suppress(OSError):  # it has ended since
            before[thread] = os.sched_getaffinity(thread)
    cores = choose_cores(sorted(allowed), count) if count < len(allowed) else ()
    _hold(dict.fromkeys(before, cores) if cores else {})
    try:
        yield cores
    finally:
        _hold({thread: before.get(thread, allowed) for thread in _list_threads()})  # runtimes, too, may have moved some


def choose_cores(allowed: list[int], count: int) -> tuple[int, ...]:
    """Choose the last `count` cores, of different physical cores as far as there are any."""
    backwards = allowed[::-1]
    siblings = [_read_siblings(core) for core in backwards]
    firsts = [core for index, core in enumerate(backwards) if siblings[index] not in siblings[:index]]
    seconds = [core for core in backwards if core not in firsts]
    return tuple(sorted([*firsts, *seconds][:count]))


def _hold(cores: Mapping[int, Collection[int]]) -> None:
    """Hold each thread to its cores."""
    for thread, own in cores.items():
        with suppress(OSError):  # it has ended since
            os.sched_setaffinity(thread, own)


def _list_threads() -> list[int]:
    folder = Path("/proc/self/task")
    return [int(entry.name) for entry in folder.iterdir()] if folder.is_dir() else [0]


def _read_siblings(core: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    return path.read_text() if path.is_file() else str(core)

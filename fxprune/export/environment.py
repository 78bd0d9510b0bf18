"""On what, and beside what, was something measured?"""

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from fxprune.export.pin_cores import count_cores

CLOCK = Path("/sys/devices/system/cpu/cpu0/cpufreq")


@dataclass(frozen=True)
class Environment:
    """The machine while something was measured on it; what it does not tell is None.

    `load` are the numbers of processes that wanted a core, averaged over a minute, and `clock`
    the frequencies of the first core in MHz, before and after.
    """

    date: str  # UTC, ISO 8601, of the beginning
    platform: str
    processor: str
    cores: int  # that this process may use
    governor: str | None
    clock: tuple[float | None, float | None]
    load: tuple[float | None, float | None]
    versions: dict[str, str]  # of Python, fxprune, torch, onnx

    def __str__(self) -> str:
        """Return two lines."""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        clock = f"clock {_join(self.clock, '.0f')} MHz, governor {self.governor or 'unknown'}"
        cores = f"{self.cores} core{'s' if self.cores > 1 else ''}"
        head = f"{self.date}, {self.processor}, {cores}, {clock}, load {_join(self.load, '.2f')}"
        return f"{head}\n{versions}, {self.platform}"


@dataclass(frozen=True)
class Moment:
    """What changes on a machine while it is measured on."""

    date: str
    clock: float | None
    load: float | None


def note_moment() -> Moment:
    """Note the time, the clock and the load."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return Moment(datetime.now(UTC).isoformat(timespec="seconds"), _read_clock(), load)


def describe_environment(before: Moment, after: Moment) -> Environment:
    """Describe the machine between two moments."""
    versions = {name: version(name) for name in ("fxprune", "torch", "onnx")}
    return Environment(
        date=before.date,
        platform=platform.platform(),
        processor=name_processor(),
        cores=count_cores(),
        governor=_read_text(CLOCK / "scaling_governor"),
        clock=(before.clock, after.clock),
        load=(before.load, after.load),
        versions={"Python": platform.python_version(), **versions},
    )


def name_processor() -> str:
    """Return the processor's name, as the system gives it."""
    named = _find_in_cpuinfo("model name")
    return named or platform.processor() or platform.machine()


def _read_clock() -> float | None:
    kilohertz = _read_text(CLOCK / "scaling_cur_freq")
    megahertz = _find_in_cpuinfo("cpu MHz")
    if kilohertz is not None:
        return float(kilohertz) / 1e3
    return None if megahertz is None else float(megahertz)


def _find_in_cpuinfo(field: str) -> str | None:
    lines = (_read_text(Path("/proc/cpuinfo")) or "").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), None)


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _join(pair: tuple[float | None, float | None], form: str) -> str:
    return " to ".join("unknown" if value is None else format(value, form) for value in pair)

"""Run the zoo: one process a model, with limits of time and memory; a line of JSON for each, and a table of all.

    python -m tests.zoo.run --family timm --only 'conv*' --out runs/coverage.jsonl --table docs/coverage.md

A model that stands in the file already is left out, so a run that was broken off goes on where it stopped.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import warnings
from collections import deque
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated

import typer

from tests.zoo.lists import FAMILIES, ON_DEMAND, get_family
from tests.zoo.measure import measure_model
from tests.zoo.result import Result, read_results
from tests.zoo.table import describe_result, write_table

GIB = 1 << 20  # KiB
"""One GiB in the units of /proc."""

SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
"""The environment in which models are measured."""

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["tests.zoo.measure", "tests.zoo.torchvision_models", "tests.zoo.timm_models"])
"""Makes the processes: each is forked from one that has the libraries loaded, which takes as long as small models."""


@dataclass(frozen=True)
class Limits:
    """What one model may take."""

    seconds: float
    memory: float  # GiB of resident memory


class Job:
    """The process that measures one model."""

    def __init__(self, family: str, name: str, folder: Path) -> None:
        self.family, self.name = family, name
        self.path = folder / f"{family}-{name}.json"
        self.errors = self.path.with_suffix(".err")
        self.started = time.monotonic()
        self.process = FORKING.Process(target=measure_alone, args=(family, name, self.path, self.errors))
        self.process.start()

    def poll(self, limits: Limits) -> Result | None:
        """Return the result when the process has ended; end it where it goes beyond the limits."""
        if self.process.exitcode is not None:
            return self.read_result(None)
        if time.monotonic() - self.started > limits.seconds:
            return self.kill("Timeout", f"beyond {limits.seconds:g} s")
        if read_memory(self.process.pid) > limits.memory * GIB:
            return self.kill("OutOfMemory", f"beyond {limits.memory:g} GiB")
        return None

    def kill(self, error: str, message: str) -> Result:
        """End the process, and say why."""
        self.process.kill()
        self.process.join()
        return self.read_result((error, message))

    def read_result(self, killed: tuple[str, str] | None) -> Result:
        """Read what the process had written when it ended, and add why it ended early."""
        written = list(read_results(self.path).values())
        result = written[0] if written else Result(self.family, self.name)
        if result.stage != "done":
            result.fail(result.stage, *(killed or self.explain_exit()))
            result.total_seconds = round(time.monotonic() - self.started, 2)
        return result

    def explain_exit(self) -> tuple[str, str]:
        """Name the signal that ended the process and the innermost lines of Python, or give its last words."""
        code = self.process.exitcode or 0
        lines = self.errors.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
        if code >= 0:
            return f"Exit{code}", lines[-1]
        return signal.Signals(-code).name, "; ".join(line.strip() for line in lines if line.startswith("  File"))


def measure_alone(family: str, name: str, path: Path, errors: Path) -> None:
    """Measure one model in a process of its own, whose last words go to a file."""
    with errors.open("w", encoding="utf-8") as words:
        os.dup2(words.fileno(), sys.stderr.fileno())
    faulthandler.enable()
    warnings.simplefilter("ignore")
    measure_model(family, name, path)


def read_memory(pid: int) -> int:
    """The resident memory of a process in KiB; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)


def run_all(wanted: list[tuple[str, str]], jobs: int, limits: Limits, out: Path) -> None:
    """Measure models, `jobs` at a time, and append a line for each as it ends."""
    waiting, running, total = deque(wanted), list[Job](), len(wanted)
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(Job(*waiting.popleft(), Path(folder)))
                time.sleep(0.1)
                for job in list(running):
                    result = job.poll(limits)
                    if result is None:
                        continue
                    running.remove(job)
                    with out.open("a", encoding="utf-8") as lines:
                        lines.write(result.to_json() + "\n")
                    typer.echo(f"{total - len(waiting) - len(running)}/{total} {describe_result(result)}")
        finally:
            for job in running:
                job.kill("Interrupted", "the run was broken off")


def choose(families: list[str], patterns: list[str]) -> list[tuple[str, str]]:
    """The models of families whose names match a pattern; without patterns, all."""
    names = [(family, name) for family in families for name in get_family(family).list_names()]
    return [(f, n) for f, n in names if not patterns or any(fnmatch(n, pattern) for pattern in patterns)]


def main(
    family: Annotated[str, typer.Option(help=f"{', '.join((*FAMILIES, *ON_DEMAND))}, or all, which is {FAMILIES}.")]
    = "all",
    only: Annotated[list[str] | None, typer.Option(help="Globs over the models' names.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes beside each other, a thread each.")] = 2,
    timeout: Annotated[float, typer.Option(help="Seconds a model.")] = 300,
    memory: Annotated[float, typer.Option(help="GiB a model.")] = 10,
    out: Annotated[Path, typer.Option(help="The file of JSON lines.")] = Path("runs/coverage.jsonl"),
    table: Annotated[Path | None, typer.Option(help="The table to write of all that stands in the file.")] = None,
    again: Annotated[bool, typer.Option(help="Measure anew what stands in the file.")] = False,
) -> None:  # fmt: skip
    """Measure models of the zoo."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the processes on the way out
    os.environ.update(SETTINGS)
    families = list(FAMILIES) if family == "all" else [family]
    out.parent.mkdir(parents=True, exist_ok=True)
    known = {} if again else read_results(out)
    run_all([each for each in choose(families, only or []) if each not in known], jobs, Limits(timeout, memory), out)
    if table is not None:
        write_table(list(read_results(out).values()), table)


if __name__ == "__main__":
    typer.run(main)

"""What accuracy does each method keep, and what does the converted network cost? One table, over seeds.

    python benchmarks/methods.py --dataset cifar10 --epochs 20 --seeds 0 1 2 --table docs/results.md
    python benchmarks/methods.py --only "Feather*" dense --shares 0.5 --epochs 1 -- --train-limit 2000 --test-limit 1000

The table is written anew after every run, with the rows whose runs are all there.

Each run is one call of examples/train.py with the same recipe, so all methods see the same network, images,
augmentation and number of epochs in all: those that prune between two trainings share them between these, LRR between
its cycles. What stands behind `--` goes to each run. A line for each finished run is added to the results file, and
what is there already is not run again; so a table that was broken off goes on, and more seeds or epochs add to it.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime
import torch
from json_lines import add_line, read_lines
from tabulate import tabulate

TRAIN = Path(__file__).parent.parent / "examples" / "train.py"
SHARES = {"weight": (0.5, 0.75, 0.9, 0.95, 0.98), "stripe": (0.5, 0.75, 0.9), "channel": (0.5, 0.75, 0.9)}
ALL = ("weight", "stripe", "channel")
METHODS: dict[str, tuple[str, ...]] = {
    "Feather()": ALL,
    "ST3()": ALL,
    "ST3(sigma=True)": ALL,
    "GMP(sticky=True)": ALL,
    "GMP(sticky=False)": ("weight",),
    "ProbMask(lr_ratio=1000)": ("weight",),  # decides in a few epochs what the published rate takes hundreds for
    "LRR(rate=0.2)": ("weight",),
    "STR(start=-8.0)": ("weight",),
    "FilterSkeleton(delta=None)": ("stripe",),
    "RNI(strength=1e-4, shift=0)": ("channel",),
    "NetworkSlimming(strength=1e-4)": ("channel",),
    "UCS()": ("channel",),
}
"""Every method at every granularity where it makes sense."""

TEXT = """\
# Every method, the same training

{settings}. Each run has {epochs} epochs in all, whatever its phases (LRR at least one a cycle); seeds {seeds}, of which
the mean and the standard deviation are given. {runs} runs took {hours:.1f} hours together, on torch {torch}.

Accuracy is the final model's on all test images, after the last epoch. The columns beside it are taken right before and
right after conversion, and "same class" counts the test images to which both models give the same class, by the seed
where they are fewest. RNI, slimming and UCS are converted between their two trainings, so their final accuracy is
another one. Latency: {runtime}; the speed-up is over the dense network at batch 8, measured in turns.

{table}

Made by `python benchmarks/methods.py`.
"""

TWO_PHASES = ("RNI", "NetworkSlimming", "UCS")


class Case(NamedTuple):
    """A row of the table; a share of None is what the method itself arrives at."""

    method: str
    granularity: str
    share: float | None

    def options(self, epochs: int) -> list[str]:
        """Give the options that make `examples/train.py` train this row, for so many epochs in all."""
        if self.method == "dense":
            return ["--method", "none", "--epochs", str(epochs)]
        target = "none" if self.share is None else f"Sparsity({self.share})"
        options = ["--method", self.method, "--granularity", self.granularity, "--target", target]
        first, prunings, later = self._split(epochs)
        options += ["--epochs", str(first), "--prunings", str(prunings), "--tune-epochs", str(later)]
        return [*options, "--tune-compact"] if self.method.startswith(TWO_PHASES) else options

    def _split(self, epochs: int) -> tuple[int, int, int]:
        if self.method.startswith("LRR") and self.share is not None:
            cycles = math.ceil(math.log(1 - self.share) / math.log(1 - 0.2))
            later = max(1, epochs // (cycles + 1))
            return max(1, epochs - cycles * later), cycles, later
        if self.method.startswith(TWO_PHASES):
            later = max(1, epochs // 2)
            return max(1, epochs - later), 1, later
        return epochs, 0, 0


def main() -> None:
    options, passed_on = read_options()
    cases = [case for case in list_cases(options.shares) if is_wanted(case, options.only)]
    common = ["--recipe", options.recipe, "--dataset", options.dataset, "--model", options.model, *passed_on]
    wanted = {case: [run_options(case, common, options.epochs, seed) for seed in options.seeds] for case in cases}
    results = read_results(options.results)
    missing = [run for runs in wanted.values() for run in runs if key_of(run) not in results]
    for number, run in enumerate([] if options.table_only else missing, 1):
        print(f"{number} of {len(missing)}: {' '.join(run)}", flush=True)
        results[key_of(run)] = result = train(run, options.seconds)
        add_line(options.results, {"run": run, "result": result})
        write_table(wanted, results, options, passed_on)
    print(write_table(wanted, results, options, passed_on))


def read_options() -> tuple[argparse.Namespace, list[str]]:
    """Read the options, and apart from them what stands behind `--`."""
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="feather-cifar10", help="what all runs share; see examples/recipes.py")
    parser.add_argument("--dataset", default="cifar10", help="as for examples/train.py")
    parser.add_argument("--model", default="resnet20", help="as for examples/train.py")
    parser.add_argument("--epochs", type=int, default=20, help="of each run, all its phases together")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--only", nargs="*", default=["*"], help="globs over names such as 'dense' or 'Feather() weight'"
    )
    parser.add_argument("--shares", type=float, nargs="*", help="only these shares")
    parser.add_argument("--seconds", type=float, default=3.0, help="measuring time of the latency")
    parser.add_argument("--results", type=Path, default=Path("runs/methods.jsonl"), help="a line for each finished run")
    parser.add_argument("--table", type=Path, default=Path("runs/methods.md"), help="the Markdown to write")
    parser.add_argument("--table-only", action="store_true", help="run nothing: write the table of what is there")
    options = parser.parse_args(arguments[:end])
    return options, arguments[end + 1 :]


def list_cases(shares: list[float] | None) -> Iterable[Case]:
    """Give all rows, the dense one first."""
    yield Case("dense", "", None)
    for method, granularities in METHODS.items():
        for granularity in granularities:
            if method.startswith("STR"):
                yield Case(method, granularity, None)
                continue
            for share in SHARES[granularity]:
                if shares is None or share in shares:
                    yield Case(method, granularity, share)


def is_wanted(case: Case, globs: list[str]) -> bool:
    return any(fnmatch.fnmatch(f"{case.method} {case.granularity}".strip(), glob) for glob in globs)


def run_options(case: Case, common: list[str], epochs: int, seed: int) -> list[str]:
    return [*common, *case.options(epochs), "--seed", str(seed)]


def key_of(run: list[str]) -> str:
    return json.dumps(run)


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Read the results of all finished runs, by their options."""
    return {key_of(found["run"]): found["result"] for found in read_lines(path)}


def train(run: list[str], seconds: float) -> dict[str, Any]:
    """Do one run in a process of its own; give what it found."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(TRAIN), *run, "--seconds", str(seconds), "--out", folder, "--quiet"]
        subprocess.run(command, check=True)
        result: dict[str, Any] = json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))
    return result


def write_table(
    wanted: dict[Case, list[list[str]]], results: dict[str, Any], options: argparse.Namespace, passed_on: list[str]
) -> str:
    """Write the table of what is there so far, and return it."""
    there = {case: runs for case, runs in wanted.items() if all(key_of(run) in results for run in runs)}
    text = describe(there, results, options, passed_on)
    options.table.parent.mkdir(parents=True, exist_ok=True)
    options.table.write_text(text, encoding="utf-8")
    return text


def describe(
    wanted: dict[Case, list[list[str]]], results: dict[str, Any], options: argparse.Namespace, passed_on: list[str]
) -> str:
    """Say in Markdown what was run, and put the rows below."""
    found = {case: [results[key_of(run)] for run in runs] for case, runs in wanted.items()}
    seconds = sum(result["seconds"] for of_case in found.values() for result in of_case)
    rows = [make_row(case, of_case) for case, of_case in found.items()]
    headers = ["method", "gates", "masked", "accuracy", "before conversion", "after", "same class"]
    headers += ["parameters", "not zero", "MACs", "ms at batch 1", "ms at batch 8", "speed-up"]
    more = " ".join(Path(each).name for each in passed_on)  # no folders of this machine
    settings = f"{options.model} on {Path(options.dataset).name}, recipe {options.recipe} {more}".strip()
    return TEXT.format(
        settings=settings,
        epochs=options.epochs,
        seeds=", ".join(map(str, options.seeds)),
        runs=len(found) * len(options.seeds),
        hours=seconds / 3600,
        runtime=f"ONNX Runtime {onnxruntime.__version__}, CPU ({platform.machine()}), one thread",
        torch=torch.__version__,
        table=tabulate(rows, headers, tablefmt="github", disable_numparse=True),
    )


def make_row(case: Case, results: list[dict[str, Any]]) -> list[str]:
    """Make one line of the table, over seeds."""
    conversions = [result["conversion"] for result in results if result["conversion"] is not None]
    worst = min(conversions, key=lambda conversion: conversion["agreeing"] / conversion["images"], default=None)
    median = {batch: [result["latency"].get(batch) for result in results] for batch in ("1", "8")}
    return [
        case.method,
        case.granularity,
        "" if case.share is None else f"{case.share:.0%}",
        format_percents([result["correct"] / result["images"] for result in results]),
        format_percents([conversion["before"] / conversion["images"] for conversion in conversions]),
        format_percents([conversion["after"] / conversion["images"] for conversion in conversions]),
        "" if worst is None else f"{worst['agreeing']:,} of {worst['images']:,}",
        *(f"{statistics.mean(result[name] for result in results):,.0f}" for name in ("parameters", "nonzero", "macs")),
        *("" if None in times else f"{statistics.mean(times):.3f}" for times in median.values()),
        *([f"{statistics.mean(r['speedup']['8'] for r in results):.2f}x"] if None not in median["8"] else [""]),
    ]


def format_percents(values: list[float]) -> str:
    """Format the mean, and the standard deviation where there are several."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2%}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2%}{spread}"


if __name__ == "__main__":
    main()

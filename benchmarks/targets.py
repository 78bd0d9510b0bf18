"""Is a target met by what is really left, in any model? Whole model zoos lose half of their cost in one go.

    python benchmarks/targets.py --cost parameters --families torchvision timm transformers
    python benchmarks/targets.py --cost multiply-accumulates

Each model of the zoo (random weights, small inputs) is prepared for half of its parameters, or of its multiply-
accumulates, with whole heads and with inner ones, pruned at once by magnitude, and converted without the check, which
the zoo's own run makes. What the compact model has is then counted, by `numel` of its parameters and by PyTorch's own
counter of operations, and compared with what was asked for: 1% more is the most that it may be. Where it is more, the
report's reason stands beside it.

A line for each finished run is added to the results file, and what is there already is not run again.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from json_lines import add_line, read_lines

import fxprune
from fxprune.errors import FxpruneError
from tests.zoo.cases import cast, make_case
from tests.zoo.lists import FAMILIES, get_family

ASKED = 0.5
MOST = ASKED * 1.01
TARGETS = {"parameters": fxprune.Params, "multiply-accumulates": fxprune.Macs}


class Run(NamedTuple):
    """One model, and what of its attention is a unit."""

    family: str
    name: str
    heads: str
    cost: str


def measure(run: Run) -> dict[str, Any]:
    """Prune one model at once; say what is left of it, and why it is more than was asked for."""
    case = make_case(get_family(run.family).source, run.name)
    args, kwargs = cast(case.draw(2, case.size, 0), torch.float32)
    inputs, target = kwargs or args, TARGETS[run.cost](remaining=ASKED)
    try:
        prepared = fxprune.prune(case.model, inputs, method=fxprune.GMP(), target=target, heads=run.heads)
        compact = fxprune.convert(prepared, check=False)
    except FxpruneError as error:
        return run._asdict() | {"error": str(error)[:300]}
    before, after = (fxprune.export.count(model.eval(), inputs) for model in (case.model, compact))
    left = after.parameters / before.parameters if run.cost == "parameters" else after.macs / before.macs
    return run._asdict() | {"left": round(left, 4), "kept": compact.report.kept}


def list_runs(cost: str, families: list[str], only: list[str]) -> Iterator[Run]:
    """Go through the models whose names match, with whole heads and with inner ones."""
    for family in families:
        for name in get_family(family).list_names():
            if any(fnmatch(name, pattern) for pattern in only):
                yield from (Run(family, name, heads, cost) for heads in ("whole", "inner"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cost", default="parameters", choices=TARGETS)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of model names")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/targets.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    done = {Run(*(record[field] for field in Run._fields)): record for record in read_lines(options.out)}
    runs = list(list_runs(options.cost, options.families, options.only))
    for run in runs:
        if run not in done:
            done[run] = measure(run)
            add_line(options.out, done[run])
            gc.collect()
        print(
            f"{run.family:12} {run.name:44} {run.heads:6} {done[run].get('left', done[run].get('error'))}", flush=True
        )
    missed = [run for run in runs if not done[run].get("left", 1.0) <= MOST]
    print(f"{len(runs) - len(missed)} of {len(runs)} have {MOST:.3f} of their {options.cost} left, or fewer")
    for run in missed:
        print(
            f"  {run.name} ({run.heads}): {done[run].get('left', done[run].get('error'))} {done[run].get('kept', '')}"
        )


if __name__ == "__main__":
    main()

"""Is a target met by what is really left, in any model? Whole model zoos lose half of their parameters in one go.

    python benchmarks/targets.py --families torchvision timm --out runs/targets.jsonl

Each model of the zoo (random weights, small inputs) is prepared for Params(remaining=0.5) with whole heads and with
inner ones, pruned at once by magnitude and converted without the check, which the zoo's own run makes. The share of
its parameters that is left is compared with the half that was asked for: 1% of it, or one unit, is the most that may
be missing. A unit of a group counts with all that its going takes along. Where a share lies elsewhere, the report's
own reason stands beside it: what no gate closes (a detector's heads, say), or what conversion could not take out.

A line for each finished model is added to the results file, and what is there already is not run again.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from json_lines import add_line, read_lines

import fxprune
from fxprune.errors import FxpruneError
from tests.zoo.cases import make_case
from tests.zoo.lists import FAMILIES, get_family

ASKED = 0.5
NEAR = 0.01


def measure(family: str, name: str, heads: str) -> dict[str, Any]:
    """Prune one model at once; say what is left of it, and why it is more than was asked for."""
    record: dict[str, Any] = {"family": family, "name": name, "heads": heads}
    case = make_case(get_family(family).source, name)
    args, kwargs = case.draw(2, case.size, 0)
    inputs = kwargs or torch.utils._pytree.tree_map_only(torch.Tensor, to_single, args)
    inputs = torch.utils._pytree.tree_map_only(torch.Tensor, to_single, inputs)
    target = fxprune.Params(remaining=ASKED)
    try:
        prepared = fxprune.prune(case.model, inputs, method=fxprune.GMP(), target=target, heads=heads)
        report = fxprune.convert(prepared, check=False).report
    except FxpruneError as error:
        return record | {"error": str(error)[:300]}
    left = report.parameters_after / report.parameters_before
    return record | {"left": round(left, 4), "masked": round(report.masked, 4), "kept": report.kept}


def to_single(t: torch.Tensor) -> torch.Tensor:
    return t.float() if t.is_floating_point() else t


def list_runs(families: list[str], only: list[str]) -> Iterator[tuple[str, str, str]]:
    """Go through the models whose names match, with whole heads and with inner ones."""
    for family in families:
        for name in get_family(family).list_names():
            if any(fnmatch(name, pattern) for pattern in only):
                yield from ((family, name, heads) for heads in ("whole", "inner"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of model names")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/targets.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    done = {(r["family"], r["name"], r["heads"]): r for r in read_lines(options.out)}
    for run in list_runs(options.families, options.only):
        if run not in done:
            done[run] = measure(*run)
            add_line(options.out, done[run])
            gc.collect()
        r = done[run]
        print(f"{r['family']:12} {r['name']:44} {r['heads']:6} {r.get('left', r.get('error'))}", flush=True)
    found = [done[run] for run in list_runs(options.families, options.only)]
    reached = [r for r in found if "left" in r and r["left"] <= ASKED * (1 + NEAR)]
    print(f"{len(reached)} of {len(found)} have {ASKED * (1 + NEAR):.3f} of their parameters left, or fewer")
    for r in found:
        if r not in reached:
            print(f"  {r['name']} ({r['heads']}): {r.get('left', r.get('error'))} {r.get('kept', '')}")


if __name__ == "__main__":
    main()

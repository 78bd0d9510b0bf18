"""Whether the benchmark finds no difference where there is none: a file against itself.

    python benchmarks/against_itself.py [FILE.onnx] [--runtime ort-cpu] [--batch 1] [--threads 1] [--repeats 5]

Without a file, torchvision's ResNet-18 at 64 x 64. Each repeat loads the file anew, twice, and times both in turns.
What must hold: the interval of the ratio contains 1 and is narrower than 3%. Intervals are of 95%, so one repeat in
twenty may miss. Exits with 1 where a repeat does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
import torchvision

import fxprune

NARROW = 0.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--runtime", default="ort-cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="most measuring time of each, a repeat")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or export_resnet18(Path(folder, "resnet18.onnx"))
        held = [is_alike(path, options) for _ in range(options.repeats)]
    print(f"{sum(held)} of {len(held)} repeats hold")
    sys.exit(0 if all(held) else 1)


def export_resnet18(path: Path) -> Path:
    model = torchvision.models.resnet18(weights=None)
    return fxprune.export.to_onnx(model, torch.randn(2, 3, 64, 64), path, verify=False).path


def is_alike(path: Path, options: argparse.Namespace) -> bool:
    """Time a file beside itself, print the ratio, and say whether its interval holds 1 and is narrow."""
    result = fxprune.export.benchmark(
        {"one": path, "other": path}, runtimes=[options.runtime], batch_sizes=(options.batch,),
        threads=options.threads, seconds=options.seconds,
    )  # fmt: skip
    other = result.timings[1]
    width = other.speedup_high - other.speedup_low
    holds = other.speedup_low <= 1 <= other.speedup_high and width < NARROW
    interval = f"{other.speedup:.4f} ({other.speedup_low:.4f} to {other.speedup_high:.4f})"
    print(f"{interval}, {width:.2%} wide, {other.rounds} rounds, {'holds' if holds else 'FAILS'}", flush=True)
    return holds


if __name__ == "__main__":
    main()

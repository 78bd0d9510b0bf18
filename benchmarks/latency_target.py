"""Whether `Latency(remaining=0.5)` lands: what was asked for, predicted, and measured afterwards beside the dense file.

    python benchmarks/latency_target.py [--models resnet50 mobilenet_v2] [--remaining 0.5 0.25] [--threads 1 2]

Networks of torchvision with random weights, whose units `fxprune.prune` closes in one go. Both networks are written by
the same exporter and timed in turns afterwards, with more rounds than the library takes. `first` is what a network took
that was pruned by the tables of layers alone, before any correction. With `--out` a table in Markdown is written, too.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import torch
import torchvision
from tabulate import tabulate

import fxprune
from fxprune.errors import TargetError

HEADERS = (
    "model", "threads", "asked", "first: predicted", "measured", "trials", "s", "afterwards", "95% interval", "off by",
    "MACs left", "ms",
)  # fmt: skip


def measure(name: str, remaining: float, threads: int, options: argparse.Namespace, folder: Path) -> list[str]:
    """Prune one network for one target, and give its line of the table."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    x = torch.randn(2, 3, options.size, options.size)
    target = fxprune.Latency(
        remaining=remaining, runtime=options.runtime, threads=threads, batch_size=options.batch, align=options.align
    )
    start = time.perf_counter()
    head = [name, str(threads), f"{remaining:.0%}"]
    try:
        pruned = fxprune.prune(model, x, target=target)
    except TargetError as refusal:
        return [*head, str(refusal)]
    seconds = time.perf_counter() - start
    compact = fxprune.convert(pruned)
    files = {"dense": folder / "dense.onnx", "compact": folder / "compact.onnx"}
    for network, path in zip((model, compact), files.values(), strict=True):
        fxprune.export.to_onnx(network, x, path)
    timed = fxprune.export.benchmark(
        files, runtimes=(options.runtime,), batch_sizes=(options.batch,), threads=threads, seconds=options.seconds,
        precision=0.01,
    )  # fmt: skip
    dense, own = timed.timings
    share, low, high = (1 / speedup for speedup in (own.speedup, own.speedup_high, own.speedup_low))
    first, cost = pruned.latency[0], fxprune.export.count(compact, x).macs / fxprune.export.count(model, x).macs
    return [
        *head, f"{first.predicted:.1%}", f"{first.measured:.1%}", str(len(pruned.latency)), f"{seconds:.0f}",
        f"{share:.1%}", f"{low:.1%} to {high:.1%}", f"{share / remaining - 1:+.1%}", f"{cost:.1%}",
        f"{own.median:.2f} of {dense.median:.2f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50", "mobilenet_v2"])
    parser.add_argument("--remaining", nargs="+", type=float, default=[0.5, 0.25])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--runtime", default="ort-cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--align", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each network, at the most, afterwards")
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args()
    rows = []
    for name, threads, remaining in itertools.product(options.models, options.threads, options.remaining):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, remaining, threads, options, Path(folder)))
        print(tabulate(rows[-1:], disable_numparse=True, tablefmt="plain"), flush=True)
    table = tabulate(rows, headers=HEADERS, tablefmt="github", disable_numparse=True)
    print(table)
    if options.out is not None:
        options.out.write_text(table + "\n")


if __name__ == "__main__":
    main()

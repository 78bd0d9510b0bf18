"""How long analysis and conversion take, beside one forward pass of the same model.

    python benchmarks/speed.py [--threads 2] [MODEL ...]

`analysis` is everything from the user's model to its channels: tracing both modes, decomposing, one shadow run.
The ratio is analysis over one eager forward pass at batch 8, both medians of interleaved runs. `prepare` and
`convert` are whole calls, `convert` with its check, half of the units closed at random.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tabulate import tabulate
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

import fxprune
from fxprune.passes.analyse import analyse
from fxprune.passes.decompose import decompose
from fxprune.passes.trace import trace
from tests.exactness import close_units
from tests.zoo.networks import PRUNABLE, build


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(name: str, runs: int) -> list[object]:
    size = {"inception_v3": 299, "resnet20": 32}.get(name, 224)
    model = build(name).eval()
    one, eight = torch.randn(1, 3, size, size), torch.randn(8, 3, size, size)

    def analysis() -> None:
        traced = trace(model, ((one,), {}))
        decompose(traced)
        analyse(traced, ((one,), {}), constants=False)

    def forward() -> None:
        with torch.no_grad():
            model(eight)

    forward(), analysis()
    pairs = [(seconds(analysis), seconds(forward)) for _ in range(runs)]
    analysed, forwarded = (statistics.median(times) for times in zip(*pairs, strict=True))
    prepared = fxprune.prepare(model, one)
    preparing = seconds(lambda: fxprune.prepare(model, one))
    close_units(prepared, 0.5)
    converting = seconds(lambda: fxprune.convert(prepared))
    ratio = statistics.median(a / f for a, f in pairs)
    return [name, analysed, forwarded, ratio, preparing, converting, preparing + converting]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(PRUNABLE))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [measure(name, options.runs) for name in tqdm(options.models or list(PRUNABLE), leave=False)]
    headers = ["model", "analysis s", "forward x8 s", "ratio", "prepare s", "convert s", "both s"]
    print(tabulate(rows, headers, floatfmt=".2f"))


if __name__ == "__main__":
    main()

"""How long pruning half of the channels takes, beside Torch-Pruning, over torchvision's classifiers.

    python benchmarks/beside_torch_pruning.py [--only resnet50] [--threads 2] [--size 224]

For each model both are timed in turns, in one process: Torch-Pruning builds its graph and makes one step of
`MagnitudePruner` (half of the channels, the last layer left out, as its own examples do); fxprune prepares,
closes half of the units, and converts, without and with its checks. Models that Torch-Pruning refuses, or whose
result does not run, are counted apart. A line each, then medians and the slowest tenth.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch_pruning as tp
import torchvision
from torch import Tensor, nn

import fxprune


class Times(NamedTuple):
    """Seconds of one model; None where the other tool does not manage it."""

    name: str
    theirs: float | None
    ours: float
    checked: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=["*"], help="globs over the names of models")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=224, help="height and width of the image")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    names = torchvision.models.list_models(module=torchvision.models)
    names = [n for n in names if any(fnmatch.fnmatch(n, glob) for glob in options.only)]
    measure("resnet18", options.size)  # imports and caches
    times = []
    for name in names:
        times.append(measure(name, options.size))
        print(describe(times[-1]), flush=True)
    summarise(times)


def measure(name: str, size: int) -> Times:
    """Time both tools on one model."""
    image = torch.randn(1, 3, size, size)
    model = build(name)
    theirs = time_other(model, image)
    ours, _ = timed(lambda: prune_half(model, image, check=False))
    checked, _ = timed(lambda: prune_half(model, image, check=True))
    return Times(name, theirs, ours, checked)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **options).eval()


def prune_half(model: nn.Module, image: Tensor, check: bool) -> nn.Module:
    """Prepare a model, close half of its units at random, and convert it."""
    prepared = fxprune.prepare(model, image, check=check)
    gates = (torch.rand(prepared.fxprune.gates.shape) < 0.5).to(prepared.fxprune.gates)
    prepared.fxprune.set_gates(gates)
    return fxprune.convert(prepared, check=check)


def time_other(model: nn.Module, image: Tensor) -> float | None:
    """Time Torch-Pruning on a copy; None where it raises, or where its result does not run."""
    copied = copy.deepcopy(model)
    last = [m for m in copied.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]

    def prune() -> None:
        pruner = tp.pruner.MagnitudePruner(
            copied, image, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=0.5, ignored_layers=[last]
        )
        pruner.step()

    try:
        seconds, _ = timed(prune)
        with torch.no_grad():
            copied(image)
    except Exception:  # noqa: BLE001  # whatever its reason, it does not manage this model
        return None
    return seconds


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Give the processor seconds that a call takes (others on the machine do not change them), and its result."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def describe(times: Times) -> str:
    theirs = "fails" if times.theirs is None else f"{times.theirs:.2f} s"
    ratio = "" if times.theirs is None else f"{times.theirs / times.ours:5.1f} times faster"
    ours = f"{times.ours:.2f} s, checked {times.checked:.2f} s"
    return f"{times.name:22} Torch-Pruning {theirs:>8}  fxprune {ours}  {ratio}"


def summarise(times: list[Times]) -> None:
    """Print how many models each manages, the median ratio, and that of the other's slowest tenth."""
    both = sorted((t for t in times if t.theirs is not None), key=lambda t: t.theirs or 0.0)
    ratios = [(t.theirs or 0.0) / t.ours for t in both]
    slowest = ratios[-max(1, len(ratios) // 10) :]
    longest = max(times, key=lambda t: t.checked)
    print(f"Torch-Pruning manages {len(both)} of {len(times)} models, fxprune {len(times)}")
    print(f"without its check fxprune is {statistics.median(ratios):.2f} times as fast at the median")
    print(f"and {statistics.median(slowest):.2f} times on the {len(slowest)} that take Torch-Pruning longest")
    print(f"the longest with its check: {longest.name}, {longest.checked:.1f} s")


if __name__ == "__main__":
    main()

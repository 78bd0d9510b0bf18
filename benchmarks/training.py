"""What a prepared model's training step costs beside the dense one's, in time and in memory.

    python benchmarks/training.py [--method Feather] [--model resnet50] [--batch 16] [--size 224] [--threads 2]
        [--rounds 5]

One step is forward, penalty, backward, and the optimizer's step with, in the prepared model, whatever the method does
before and after it: for most a new threshold selected over all magnitudes. `--method` names a method, or a granularity
with it; without it Feather and ST-3 are measured. Dense and prepared steps take turns in one process; the ratio is
the median over rounds, of the time that passes and of the processor's, which others on the machine disturb less. Memory
is the peak resident size of a fresh process that does three steps, less the dense one's, in copies of the weights.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torchvision
from tabulate import tabulate
from torch import nn

import fxprune
from fxprune.masks import GRANULARITIES

METHODS = {
    "Feather": fxprune.Feather(),
    "ST3": fxprune.ST3(),
    "ST3-sigma": fxprune.ST3(sigma=True),
    "FilterSkeleton": fxprune.FilterSkeleton(),
    "RNI": fxprune.RNI(),
    "NetworkSlimming": fxprune.NetworkSlimming(),
    "UCS": fxprune.UCS(),
    "GMP": fxprune.GMP(),
    "GMP-free": fxprune.GMP(sticky=False),
    "STR": fxprune.STR(),
    "ProbMask": fxprune.ProbMask(),
    "LRR": fxprune.LRR(),
}
KINDS = {
    f"{granularity}, {name}": (granularity, method)
    for name, method in METHODS.items()
    for granularity in GRANULARITIES
    if granularity in method.granularities
}
USUAL = ("channel, Feather", "weight, Feather", "channel, ST3", "weight, ST3")


def make_step(kind: str, model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """Return a function that does one training step of the dense (kind "dense") or the prepared model."""
    if kind != "dense":
        granularity, method = KINDS[kind]
        target = fxprune.Sparsity(0.9) if method.takes_target else None
        model = fxprune.prepare(model, x[:1], method=method, granularity=granularity, target=target)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    if kind != "dense":
        fxprune.Scheduler(model, optimizer, total_steps=40)  # so that thresholds move at every step here
    labels = torch.zeros(len(x), dtype=torch.long)

    def step() -> None:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        (loss if kind == "dense" else loss + fxprune.penalty(model)).backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds that a step takes, and those of the processor."""
    start, processor = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - start, time.process_time() - processor


def peak_memory(kind: str, options: argparse.Namespace) -> float:
    """Peak resident bytes of a fresh process that does three steps."""
    arguments = [
        "--only",
        kind,
        "--threads",
        str(options.threads),
        "--model",
        options.model,
        "--batch",
        str(options.batch),
        "--size",
        str(options.size),
    ]
    large_blocks_go_back = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # or freed memory would count as used
    environment = {**os.environ, **large_blocks_go_back}
    command = [sys.executable, __file__, *arguments]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--method", action="append", help=f"any of: {', '.join(METHODS)}")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    kinds = [kind for kind in KINDS if kind in USUAL]
    if options.method:
        kinds = [kind for kind in KINDS if {kind, kind.split(", ")[1]} & set(options.method)]
    torch.set_num_threads(options.threads)
    x = torch.randn(options.batch, 3, options.size, options.size)
    if options.only:
        step = make_step(options.only, torchvision.models.get_model(options.model, weights=None), x)
        for _ in range(3):
            step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    # first of all: a process starts with its parent's size as its peak
    memory = {kind: peak_memory(kind, options) for kind in ("dense", *kinds)}
    model = torchvision.models.get_model(options.model, weights=None)
    copy_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    dense = make_step("dense", model, x)
    rows = []
    for kind in kinds:
        prepared = make_step(kind, model, x)
        dense(), prepared(), prepared()
        pairs = [(seconds(dense), seconds(prepared)) for _ in range(options.rounds)]
        ratios = sorted(p[0] / d[0] for d, p in pairs)
        processor = statistics.median(p[1] / d[1] for d, p in pairs)
        copies = (memory[kind] - memory["dense"]) / copy_bytes
        row = [kind, statistics.median(d[0] for d, _ in pairs), statistics.median(p[0] for _, p in pairs)]
        rows.append([*row, statistics.median(ratios), ratios[0], ratios[-1], processor, copies])
        del prepared
    headers = [
        "prepared",
        "dense s",
        "prepared s",
        "ratio",
        "lowest",
        "highest",
        "processor",
        "more memory (copies of the weights)",
    ]
    print(tabulate(rows, headers, floatfmt=".3f"))


if __name__ == "__main__":
    main()

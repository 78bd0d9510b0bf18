"""What a prepared model's training step costs beside the dense one's, in time and in memory.

    python benchmarks/training.py [--model resnet50] [--batch 16] [--size 224] [--threads 2] [--rounds 5]

One step is forward, backward, and the optimizer's step with, in the prepared model, a new threshold selected over all
magnitudes after every step. Dense and prepared steps take turns in one process; the ratio is the median over rounds.
Memory is the peak resident size of a fresh process that does three steps, less the dense one's, in copies of the
weights.
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

KINDS = {
    "channel, Feather": ("channel", fxprune.Feather()),
    "weight, Feather": ("weight", fxprune.Feather()),
    "channel, ST-3": ("channel", fxprune.ST3()),
    "weight, ST-3": ("weight", fxprune.ST3()),
}


def make_step(kind: str, model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """Return a function that does one training step of the dense (kind "dense") or the prepared model."""
    if kind != "dense":
        granularity, method = KINDS[kind]
        target = fxprune.Sparsity(0.9)
        model = fxprune.prepare(model, x[:1], method=method, granularity=granularity, target=target)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    if kind != "dense":
        fxprune.Scheduler(model, optimizer, total_steps=100)
    labels = torch.zeros(len(x), dtype=torch.long)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


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
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    x = torch.randn(options.batch, 3, options.size, options.size)
    if options.only:
        step = make_step(options.only, torchvision.models.get_model(options.model, weights=None), x)
        for _ in range(3):
            step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    # first of all: a process starts with its parent's size as its peak
    memory = {kind: peak_memory(kind, options) for kind in ("dense", *KINDS)}
    model = torchvision.models.get_model(options.model, weights=None)
    copy_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    dense = make_step("dense", model, x)
    rows = []
    for kind in KINDS:
        prepared = make_step(kind, model, x)
        dense(), prepared(), prepared()
        pairs = [(seconds(dense), seconds(prepared)) for _ in range(options.rounds)]
        ratios = sorted(p / d for d, p in pairs)
        copies = (memory[kind] - memory["dense"]) / copy_bytes
        row = [kind, statistics.median(d for d, _ in pairs), statistics.median(p for _, p in pairs)]
        rows.append([*row, statistics.median(ratios), ratios[0], ratios[-1], copies])
        del prepared
    headers = ["prepared", "dense s", "prepared s", "ratio", "lowest", "highest", "more memory (copies of the weights)"]
    print(tabulate(rows, headers, floatfmt=".3f"))


if __name__ == "__main__":
    main()

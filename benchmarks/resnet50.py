"""Whether half of the multiply-accumulates is half of the time: ResNet-50 on ONNX Runtime CPU.

    python benchmarks/resnet50.py [--share 0.5] [--align 16] [--threads 1] [--batch 1] [--out runs/resnet50]

Gates are closed evenly: every group of units keeps the same fraction, rounded to multiples of `align`, the fraction
chosen so that the wanted share of multiply-accumulates remains. Dense and compact are exported by the same exporter
and timed in turns in one run. Efficiency is (dense time / compact time) / (dense MACs / compact MACs).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torchvision
from tabulate import tabulate

import fxprune
from fxprune.model import PreparedModel


def close_evenly(prepared: PreparedModel, fraction: float, align: int) -> None:
    """Keep `fraction` of the units of each group, a multiple of `align`."""
    masks = prepared.fxprune
    group = torch.arange(masks.gates.numel())
    for place in masks.slices:  # units that share a dimension of a parameter share a group
        units = place.index[place.index >= 0]
        group[units] = group[units].min()
        group = group[group]
    gates = torch.zeros_like(masks.gates)
    for name in group.unique():
        units = (group == name).nonzero().reshape(-1)
        keep = max(align, round(len(units) * fraction / align) * align)
        gates[units[:keep]] = 1
    masks.set_gates(gates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--align", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("runs/resnet50"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = torchvision.models.get_model(options.model, weights=None).eval()
    x = torch.randn(1, 3, 224, 224)
    dense = fxprune.export.count(model, x)
    prepared = fxprune.prepare(model, x)
    low, high = 0.0, 1.0
    for _ in range(12):  # bisect the fraction of units that leaves the wanted share
        fraction = (low + high) / 2
        close_evenly(prepared, fraction, options.align)
        compact = fxprune.convert(prepared, check=False)
        share = fxprune.export.count(compact, x).macs / dense.macs
        low, high = (fraction, high) if share < options.share else (low, fraction)
        if abs(share - options.share) < 0.005:
            break
    compact = fxprune.convert(prepared)
    cost = fxprune.export.count(compact, x)
    files = {"dense": options.out / "dense.onnx", "compact": options.out / "compact.onnx"}
    fxprune.export.to_onnx(model, x, files["dense"])
    fxprune.export.to_onnx(compact, x, files["compact"])
    timed = fxprune.export.benchmark(
        files, batch_sizes=(options.batch,), threads=options.threads, seconds=options.seconds,
        input_shapes={"x": (3, 224, 224)},
    )  # fmt: skip
    print(timed)
    compact_time = next(t for t in timed.timings if t.name == "compact")
    saved = dense.macs / cost.macs
    rows = [
        ["share of multiply-accumulates", cost.macs / dense.macs],
        ["share of the time", 1 / compact_time.speedup],
        ["time over multiply-accumulates", saved / compact_time.speedup],
        ["efficiency", compact_time.speedup / saved],
        ["efficiency, lower bound", compact_time.speedup_low / saved],
        ["largest difference of the conversion", compact.report.error],
    ]
    print(tabulate(rows, floatfmt=".3g"))


if __name__ == "__main__":
    main()

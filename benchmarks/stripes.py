"""How much faster are networks that lost stripes, on ONNX Runtime's CPU kernels?

    python benchmarks/stripes.py [--only vgg16_bn] [--reductions 0.5 0.7 0.8] [--threads 1] [--batch 1] [--seconds 4]

Each network has random weights and masks: *rectangles*, a few shapes a layer, each for a block of filters; or *free*,
single stripes at random. Dense and lowered are timed in turns in one run. Efficiency is the speed-up over the reduction
of multiply-accumulates, here over the convolutional part.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

import fxprune

SHAPES = [(range(3), range(3)), (range(1, 2), range(3)), (range(3), range(1, 2)), (range(1, 2), range(1, 2))]
"""The whole kernel, its middle row and column, and its centre."""

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vgg16_bn": (lambda: torchvision.models.vgg16_bn(weights=None).features, 224),
    "resnet18": (lambda: nn.Sequential(*list(torchvision.models.resnet18(weights=None).children())[:-2]), 224),
    "vgg16_bn_32": (lambda: torchvision.models.vgg16_bn(weights=None).features, 32),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    parser.add_argument("--masks", nargs="*", default=["rectangles", "free"])
    parser.add_argument("--reductions", nargs="*", type=float, default=[0.5, 0.7, 0.8])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    print("| network | masks | multiply-accumulates left | lowered | speed-up | efficiency |")
    print("|---|---|---|---|---|---|")
    for name in options.only:
        for masks in options.masks:
            for reduction in options.reductions:
                print(measure(name, masks, reduction, options), flush=True)


def measure(name: str, masks: str, reduction: float, options: argparse.Namespace) -> str:
    """Time one network, dense and lowered, and give its line."""
    torch.manual_seed(0)
    make, size = NETWORKS[name]
    model = make().eval()
    x = torch.randn(options.batch, 3, size, size)
    dense_macs = fxprune.export.count(model, x).macs
    with tempfile.TemporaryDirectory() as folder:
        dense, small = Path(folder, "dense.onnx"), Path(folder, "lowered.onnx")
        fxprune.export.to_onnx(model, x, dense)
        for layer in (m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)):
            mask_layer(layer, masks, reduction)
        lowered = fxprune.lower_stripes(model, x)
        fxprune.export.to_onnx(lowered, x, small)
        result = fxprune.export.benchmark(
            {"dense": dense, "lowered": small}, batch_sizes=(options.batch,), threads=options.threads,
            seconds=options.seconds,
        )  # fmt: skip
    timing = next(t for t in result.timings if t.name == "lowered")
    count = sum(bool(layer.lowering.parts) for layer in lowered.lowered.layers.values())
    left = fxprune.export.count(lowered, x).macs / dense_macs
    interval = f"{timing.speedup:.2f} ({timing.speedup_low:.2f} to {timing.speedup_high:.2f})"
    return f"| {name} | {masks} | {left:.0%} | {count} | {interval} | {timing.speedup * left:.2f} |"


@torch.no_grad()
def mask_layer(layer: nn.Conv2d, masks: str, reduction: float) -> None:
    """Set stripes of a layer of 3 x 3 kernels to zero, so that this share of its multiply-accumulates could go."""
    filters = layer.out_channels
    kept = torch.rand(filters, 3, 3) >= reduction if masks == "free" else draw_rectangles(filters, reduction)
    layer.weight.mul_(kept[:, None])


def draw_rectangles(filters: int, reduction: float) -> Tensor:
    """Give blocks of filters one of four shapes each, so that the mean number of positions is as asked."""
    whole = (
        max(0.0, (1 - reduction) * 9 - 2.6) / 6.4
    )  # the others have 2.6 positions, 2/5 rows, 2/5 columns, 1/5 centres
    shares = [whole, 0.4 * (1 - whole), 0.4 * (1 - whole), 0.2 * (1 - whole)]
    if (1 - reduction) * 9 < 2.6:
        lines = ((1 - reduction) * 9 - 1) / 2
        shares = [0.0, lines / 2, lines / 2, 1 - lines]
    bounds = (torch.tensor(shares).cumsum(0) * filters / 16).round().mul(16).int().tolist()
    kept = torch.zeros(filters, 3, 3, dtype=torch.bool)
    start = 0
    for (rows, columns), stop in zip(SHAPES, [*bounds[:-1], filters], strict=True):
        kept[start:stop, rows.start : rows.stop, columns.start : columns.stop] = True
        start = max(start, stop)
    return kept[torch.randperm(filters)]


if __name__ == "__main__":
    main()

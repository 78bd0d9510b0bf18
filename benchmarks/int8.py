"""What 8 bits cost and gain: accuracy and latency of one network in fp32 and INT8, dense and compact, in one table.

    python benchmarks/int8.py --model squeezenet1_1 --images images.npz --weights weights.safetensors
    python benchmarks/int8.py --model resnet18 --size 224
    python benchmarks/int8.py --files dense.onnx compact.onnx --images test.npz

`images.npz` holds `x` (uint8, [samples, height, width, 3]) and `y` (labels), and, where those are not ImageNet's, the
`mean` and `deviation` of the colours, from 0 to 1; without it images are random, and only
latency and agreement mean something. The compact network loses `--sparsity` of its channels by `fxprune.prune`,
without training after it; or both are files, such as examples/train.py leaves. A quarter of the images calibrates, all
of them are compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torchvision
from tabulate import tabulate
from torch import Tensor

import fxprune

COLOURS = {"mean": [0.485, 0.456, 0.406], "deviation": [0.229, 0.224, 0.225]}


def read_images(path: Path | None, size: int, count: int) -> tuple[Tensor, Tensor]:
    """Read and normalise images and labels, or draw random ones."""
    if path is None:
        return torch.randn(count, 3, size, size), torch.randint(1000, (count,))
    data = np.load(path)
    pick = np.linspace(0, len(data["x"]) - 1, count).astype(int)
    mean, deviation = (torch.tensor(data.get(name, default)).float() for name, default in COLOURS.items())
    images = (torch.from_numpy(data["x"][pick]) / 255 - mean) / deviation
    return images.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(data["y"][pick]).long()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", help="a classifier of torchvision")
    parser.add_argument("--files", type=Path, nargs=2, metavar=("DENSE", "COMPACT"), help="ONNX files of two networks")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--size", type=int, default=224, help="of random images")
    parser.add_argument("--sparsity", type=float, default=0.25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=Path("runs/int8"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    images, labels = read_images(options.images, options.size, options.count)
    batches = list(zip(images.split(16), labels.split(16), strict=True))
    files: dict[str, Path] = {}
    costs = []
    for name, path in zip(("dense", "compact"), options.files or write_files(options, images[:2]), strict=True):
        files[name] = path
        files[f"{name} INT8"] = options.out / f"{name}.int8.onnx"
        done = fxprune.export.quantize(
            files[name], batches, files[f"{name} INT8"], calibration_batches=max(1, len(batches) // 4)
        )
        costs += [(done.accuracy_before, 1.0), (done.accuracy, done.agreement)]
    timed = fxprune.export.benchmark(files, batch_sizes=(1,), threads=options.threads, seconds=options.seconds)
    rows = [
        [each.name, f"{each.size / 1e6:.2f}", f"{accuracy:.1%}" if options.images else "", f"{agreement:.1%}",
         f"{each.median:.2f}", f"{each.speedup:.2f}x", f"{each.speedup_low:.2f} to {each.speedup_high:.2f}"]
        for each, (accuracy, agreement) in zip(timed.timings, costs, strict=True)
    ]  # fmt: skip
    head = ["network", "MB", "accuracy", "agrees with its fp32", "ms", "speed-up", "95% interval"]
    print(tabulate(rows, headers=head, disable_numparse=True))


def write_files(options: argparse.Namespace, example: Tensor) -> list[Path]:
    """Export the model as it is, and pruned."""
    model = torchvision.models.get_model(options.model, weights=None).eval()
    if options.weights is not None:
        model.load_state_dict(safetensors.torch.load_file(options.weights))
    target = fxprune.Sparsity(options.sparsity, align=16)
    compact = fxprune.convert(fxprune.prune(model, example, target=target))
    networks = {"dense": model, "compact": compact}
    return [fxprune.export.to_onnx(n, example, options.out / f"{name}.onnx").path for name, n in networks.items()]


if __name__ == "__main__":
    main()

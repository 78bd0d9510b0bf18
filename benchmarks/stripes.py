"""How much faster are networks that lost stripes, on the runtime at hand?

    python benchmarks/stripes.py [--only vgg16_bn] [--masks rectangles] [--reductions 0.5 0.7 0.8] [--threads 1 2]
        [--batch 1 8] [--runtime ort-cpu] [--seconds 4] [--ablation] [--trained compact.safetensors]

Each network has random weights and masks: *rectangles*, a few shapes a layer, each for a block of filters; or *free*,
single stripes at random, at least one a filter. With `--trained`, the network of `--only` has the weights and masks of
a file that `fxprune.save` wrote of it. Lowerings are chosen by measurement; dense and lowered are timed in turns in one
run. *Efficiency* is the speed-up over the reduction of multiply-accumulates. `--ablation` times beside each other what
each kind of lowering adds. Finished cases are kept in `--results` and not run again; the table shows all of them.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from json_lines import add_line, read_lines
from tabulate import tabulate
from torch import Tensor, nn

import fxprune
from fxprune.stripes.lowering import KINDS, Kind

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import models

SHAPES = [(range(3), range(3)), (range(1, 2), range(3)), (range(3), range(1, 2)), (range(1, 2), range(1, 2))]
"""The whole kernel, its middle row and column, and its centre."""

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vgg16_bn": (lambda: torchvision.models.vgg16_bn(weights=None).features, 224),
    "resnet18": (lambda: nn.Sequential(*list(torchvision.models.resnet18(weights=None).children())[:-2]), 224),
    "vgg16_bn whole": (lambda: torchvision.models.vgg16_bn(weights=None), 224),
    "resnet18 whole": (lambda: torchvision.models.resnet18(weights=None), 224),
    "vgg16 224": (lambda: models.vgg16(classes=10), 224),
    "resnet18 224": (lambda: torchvision.models.resnet18(num_classes=10), 224),
    "vgg16 32": (lambda: models.vgg16(classes=10), 32),
    "resnet56 32": (lambda: models.resnet56(classes=10), 32),
    "resnet56 32 padded": (lambda: models.resnet56(shortcut="padding", classes=10), 32),
}
"""The convolutional parts at 224, whole networks, those that examples/train.py makes at 224, and at 32."""

STAGES: dict[str, tuple[Kind, ...]] = {
    "+ crop": ("crop",),
    "+ groups": ("crop", "groups"),
    "+ sums, mixtures": KINDS,
}
"""What an ablation adds, one after the other."""

HEADERS = ["network", "masks", "threads", "batch", "kinds", "MACs left", "layers", "speed-up", "95%", "efficiency", ""]


@dataclass(frozen=True)
class Case:
    """One network with one kind of masks, at one setting of the runtime."""

    network: str
    masks: str
    reduction: float  # of the multiply-accumulates of 3 x 3 convolutions; 0 for trained masks
    threads: int
    batch: int
    runtime: str
    ablation: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--masks", nargs="*", default=["rectangles", "free"], choices=["rectangles", "free"])
    parser.add_argument("--reductions", nargs="*", type=float, default=[0.5, 0.7, 0.8])
    parser.add_argument("--threads", nargs="*", type=int, default=[1])
    parser.add_argument("--batch", nargs="*", type=int, default=[1])
    parser.add_argument("--runtime", default="ort-cpu")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--trained", type=Path, help="what fxprune.save wrote of a network, which --only names")
    parser.add_argument("--results", type=Path, default=Path("runs/stripes.jsonl"))
    options = parser.parse_args()
    if options.trained is not None and len(options.only) != 1:
        parser.error("--trained takes --only with the network that was trained")
    done = read_lines(options.results)
    for case in list_cases(options):
        if any(line["case"] == asdict(case) for line in done):
            continue
        rows = measure(case, options.trained, options.seconds)
        done.append({"case": asdict(case), "rows": rows})
        add_line(options.results, done[-1])
        print(show([done[-1]]), file=sys.stderr, flush=True)
    print(show(done))


def list_cases(options: argparse.Namespace) -> Iterator[Case]:
    """List what was asked for."""
    masks = list(itertools.product(options.masks, options.reductions))
    if options.trained is not None:
        masks = [(str(options.trained), 0.0)]
    for network, (kind, reduction), threads, batch in itertools.product(
        options.only, masks, options.threads, options.batch
    ):
        yield Case(network, kind, reduction, threads, batch, options.runtime, options.ablation)


def measure(case: Case, trained: Path | None, seconds: float) -> list[dict[str, Any]]:
    """Time one network, dense and lowered, in turns."""
    torch.manual_seed(0)
    make, size = NETWORKS[case.network]
    model = make().eval()
    x = torch.randn(case.batch, 3, size, size)
    stages = STAGES if case.ablation else {"all": KINDS}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, f"{number}.onnx") for number, name in enumerate(["dense", *stages])}
        fxprune.export.to_onnx(model, x, files["dense"], dynamic_batch=False, verify=False)
        dense_macs = fxprune.export.count(model, x).macs
        if trained is not None:
            model = fxprune.load(model, trained)
        else:
            for layer in (m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)):
                mask_layer(layer, case.masks, case.reduction)
        rows = {}
        for name, kinds in stages.items():
            lowered = fxprune.lower_stripes(model, x, runtime=case.runtime, threads=case.threads, kinds=kinds)
            fxprune.export.to_onnx(lowered, x, files[name], dynamic_batch=False)
            count = sum(bool(layer.lowering.parts) for layer in lowered.lowered.layers.values())
            rows[name] = {"kinds": name, "layers": count, "left": fxprune.export.count(lowered, x).macs / dense_macs}
        result = fxprune.export.benchmark(
            files, batch_sizes=(case.batch,), threads=case.threads, seconds=seconds, runtimes=(case.runtime,)
        )
    for timing in result.timings[1:]:
        rows[timing.name] |= {
            "dense ms": result.timings[0].median,
            "speed-up": timing.speedup,
            "low": timing.speedup_low,
            "high": timing.speedup_high,
        }
    return list(rows.values())


def show(lines: list[dict[str, Any]]) -> str:
    """Make a Markdown table; what is slower than dense beyond doubt is marked."""
    rows = [show_row(line["case"], row) for line in lines for row in line["rows"]]
    return tabulate(rows, HEADERS, tablefmt="github", disable_numparse=True)


def show_row(case: dict[str, Any], row: dict[str, Any]) -> list[Any]:
    """Write one line of the table."""
    masks = (
        f"{case['masks']} {case['reduction']:.0%}"
        if case["reduction"]
        else f"trained: {Path(case['masks']).parent.name}"
    )
    speed = [f"{row['speed-up']:.2f}", f"{row['low']:.2f} to {row['high']:.2f}", f"{row['speed-up'] * row['left']:.2f}"]
    setting = [
        case["network"],
        masks,
        case["threads"],
        case["batch"],
        row["kinds"],
        f"{row['left']:.0%}",
        row["layers"],
    ]
    return [*setting, *speed, "slower" if 1 / row["high"] > 1.02 else ""]


@torch.no_grad()
def mask_layer(layer: nn.Conv2d, masks: str, reduction: float) -> None:
    """Set stripes of a layer of 3 x 3 kernels to zero, so that this share of its multiply-accumulates could go."""
    filters = layer.out_channels
    if masks == "rectangles":
        kept = draw_rectangles(filters, reduction)
    else:
        kept = torch.rand(filters, 3, 3) >= reduction
        kept[:, 1, 1] |= ~kept.flatten(1).any(1)
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

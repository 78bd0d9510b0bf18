"""Whether half of the multiply-accumulates is half of the time, on ONNX Runtime CPU, beside what else one could do.

    python benchmarks/deploy.py [--only resnet50 vit_b_16] [--shares 0.5 0.25] [--scope layer] [--out runs/deploy.jsonl]

Each case is one model at one share. Timed in turns in one run, exported by the same exporter: the dense network;
`fxprune.prune` with `Macs(share, align=16)`, with `--scope layer` the same share of every layer; the uniformly narrower
dense network of as many multiply-accumulates; and Torch-Pruning's MagnitudePruner at the ratio that leaves as many,
with its default widths and with `round_to=16`.
Weights are random. A case that stands in the file is not run again; the table at the end is made of all that do.

Efficiency is the speed-up over the reduction of multiply-accumulates.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_pruning
import torchvision
from json_lines import add_line, read_lines
from narrow_networks import BUILDERS, narrow
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

import fxprune
from fxprune.export.measurements import Benchmark
from fxprune.methods.targets import Scope

CONVOLUTIONAL = ("vgg16_bn",)
"""Networks of which the convolutions are timed: their linear layers read each weight once, at the speed of memory."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(BUILDERS), choices=list(BUILDERS))
    parser.add_argument("--shares", nargs="*", type=float, default=[0.5, 0.25])
    parser.add_argument("--scope", choices=["global", "layer"], default="global", help="of fxprune's target")
    parser.add_argument("--runtimes", nargs="*", default=["ort-cpu"])
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--size", type=int, default=224, help="height and width of the images (ViT takes 224 only)")
    parser.add_argument("--seconds", type=float, default=10.0, help="most measuring time, a network and setting")
    parser.add_argument("--layers", action="store_true", help="profile the layers, too; they stand in the file")
    parser.add_argument("--out", type=Path, default=Path("runs/deploy.jsonl"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    done = {(record["model"], record["share"], record["scope"]) for record in read_lines(options.out)}
    wanted = [(name, share) for name in options.only for share in options.shares]
    cases = [(name, share) for name, share in wanted if (name, share, options.scope) not in done]
    for name, share in tqdm(cases, leave=False):
        record = run_case(name, share, options)
        add_line(options.out, record)
        print(format_table([record]), flush=True)
    print(format_table(read_lines(options.out)))


def run_case(name: str, share: float, options: argparse.Namespace) -> dict[str, Any]:
    """Make all networks of a case, and time them in one run."""
    torch.manual_seed(0)
    image = torch.randn(1, 3, options.size, options.size)
    model = build_dense(name)
    makers: dict[str, Callable[[], nn.Module]] = {
        "dense": lambda: model,
        "fxprune": lambda: prune(model, image, share, options.scope),
        "narrower": lambda: take_part(name, narrow(name, share, image)),
        "Torch-Pruning": lambda: prune_with_other(model, image, share, None),
        "Torch-Pruning, 16": lambda: prune_with_other(model, image, share, 16),
    }
    networks, seconds, failed = {}, {}, {}
    for kind, make in makers.items():
        start = time.perf_counter()
        try:
            networks[kind] = make()
        except Exception as error:  # whatever its reason, it is told in the table
            if "Torch-Pruning" not in kind:
                raise
            failed[kind] = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        seconds[kind] = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            kind: fxprune.export.to_onnx(network, image, Path(folder, f"{i}.onnx")).path
            for i, (kind, network) in enumerate(networks.items())
        }
        timed = fxprune.export.benchmark(
            paths, runtimes=options.runtimes, batch_sizes=options.batch, threads=options.threads,
            seconds=options.seconds, layers=options.layers,
        )  # fmt: skip
    found = json.loads(timed.to_json())
    case = {"model": name, "share": share, "scope": options.scope, "size": options.size}
    return {**case, "made in": seconds, "failed": failed, "timed": found}


def build_dense(name: str) -> nn.Module:
    model = torchvision.models.get_model(name, weights=None)
    for module in model.modules():  # torchvision's ViT begins with a head of zeros, which would agree with anything
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.02)
    return take_part(name, model)


def take_part(name: str, model: nn.Module) -> nn.Module:
    """Return the part of a network that is timed."""
    part = model.features if name in CONVOLUTIONAL else model
    assert isinstance(part, nn.Module)
    return part.eval()


def prune(model: nn.Module, image: Tensor, share: float, scope: Scope) -> nn.Module:
    target = fxprune.Macs(remaining=share, align=16, scope=scope)
    return fxprune.convert(fxprune.prune(model, image, target=target)).eval()


def prune_with_other(model: nn.Module, image: Tensor, share: float, round_to: int | None) -> nn.Module:
    """Prune with Torch-Pruning by magnitude, at the ratio that leaves the share of multiply-accumulates."""
    wanted = share * fxprune.export.count(model, image).macs
    low, high, found = 0.0, 1.0, None
    for _ in range(8):
        ratio = (low + high) / 2
        pruned = prune_at_ratio(model, image, ratio, round_to)
        macs = fxprune.export.count(pruned, image).macs
        low, high = (ratio, high) if macs > wanted else (low, ratio)
        if found is None or abs(macs - wanted) < found[0]:
            found = abs(macs - wanted), pruned
    assert found is not None
    return found[1]


def prune_at_ratio(model: nn.Module, image: Tensor, ratio: float, round_to: int | None) -> nn.Module:
    copied = copy.deepcopy(model)
    last = [m for m in copied.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    heads = {m: m.num_heads for m in copied.modules() if isinstance(m, nn.MultiheadAttention)}
    pruner = torch_pruning.pruner.MagnitudePruner(
        copied, image, importance=torch_pruning.importance.MagnitudeImportance(p=2), pruning_ratio=ratio,
        ignored_layers=[last], round_to=round_to, num_heads=heads,
    )  # fmt: skip
    pruner.step()
    with torch.no_grad():
        copied(image)
    return copied.eval()


def format_table(records: list[dict[str, Any]]) -> str:
    """Format a line a network in Markdown: at each setting its speed-up, the interval of that, and its efficiency.

    Of the dense network it is the time of a run.
    """
    lines: dict[tuple[str, float, str], dict[str, str]] = {}
    for record in records:
        timings = Benchmark.from_json(json.dumps(record["timed"])).timings
        dense = timings[0].macs or 0
        for t in timings:
            alike = ", every layer alike" if t.name == "fxprune" and record["scope"] == "layer" else ""
            line = lines.setdefault((record["model"], record["share"], t.name + alike), {})
            line["MACs left"] = f"{(t.macs or 0) / dense:.1%}" if dense else "-"
            efficiency = "" if t.efficiency is None else f": {t.efficiency:.2f}"
            threads = f"{t.threads} thread{'s' if t.threads > 1 else ''}"
            setting = f"{t.runtime}, {threads}, batch {t.batch_size}"
            speedup = f"{t.speedup:.2f} ({t.speedup_low:.2f} to {t.speedup_high:.2f}){efficiency}"
            line[setting] = f"{t.median:.1f} ms" if t.name == timings[0].name else speedup
        for kind, why in record["failed"].items():
            lines[record["model"], record["share"], kind] = {"MACs left": why}
    rows = [{"model": m, "share": s, "network": n} | line for (m, s, n), line in sorted(lines.items(), key=order)]
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def order(line: tuple[tuple[str, float, str], dict[str, str]]) -> tuple[int, float]:
    """Order lines by network as they stand in the list, and by share; those of a case stay as they are."""
    (model, share, _), _ = line
    return list(BUILDERS).index(model), -share


if __name__ == "__main__":
    main()

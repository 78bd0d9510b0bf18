"""What do the threshold and the masks cost beside one pass over the memory?

Run `python benchmarks/threshold.py`. Times are the best of several, on the CPU with all its threads; `cold` is the
first selection over weights that nothing has touched lately, `warm` the best of those that follow.
"""

import time
from collections.abc import Callable

import torch
from tabulate import tabulate
from torch import Tensor

from fxprune.masks import Masks
from fxprune.methods.base import Method
from fxprune.methods.feather import Feather
from fxprune.methods.scores import Slice, unit_scores
from fxprune.methods.st3 import ST3
from fxprune.methods.targets import Sparsity
from fxprune.methods.threshold import select_threshold

STAGES = ((64, 256, 3), (128, 512, 4), (256, 1024, 6), (512, 2048, 3))  # width, output, blocks of a ResNet-50


def time_call(call: Callable[[], object], repeats: int) -> list[float]:
    """Give the milliseconds of each of so many calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return times


def make_resnet50_weights() -> dict[str, Tensor]:
    """Make the 25.5 million convolution and linear weights of a ResNet-50, of He's standard deviation."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7)]
    channels = 64
    for width, output, blocks in STAGES:
        shapes.append((output, channels, 1, 1))
        for _ in range(blocks):
            shapes += [(width, channels, 1, 1), (width, width, 3, 3), (output, width, 1, 1)]
            channels = output
    shapes.append((1000, 2048))
    weights = [torch.randn(shape) * (2 / shape[1:].numel()) ** 0.5 for shape in map(torch.Size, shapes)]
    return {f"layer{number}.weight": weight.requires_grad_() for number, weight in enumerate(weights)}


def measure_selection() -> None:
    """Print the time of one threshold over 1, 25.5 and 100 million weights."""
    rows = []
    for millions in (1.0, 25.5, 100.0):
        weights = {f"layer{layer}": torch.randn(int(millions * 20_000)) for layer in range(50)}
        one_pass = min(time_call(lambda given=weights: [weight.abs().sum() for weight in given.values()], 10))
        for sparsity in (0.5, 0.9):
            cold, *warm = time_call(lambda given=weights, share=sparsity: select_threshold(given, share), 12)
            rows.append([millions, sparsity, one_pass, cold, min(warm), cold / one_pass, min(warm) / one_pass])
    header = ["million weights", "sparsity", "abs().sum() ms", "cold ms", "warm ms", "cold / pass", "warm / pass"]
    print(tabulate(rows, header, floatfmt=".3g"))


def measure_masks() -> None:
    """Print the time of refreshing and of applying all masks of a ResNet-50, by method."""
    weights = make_resnet50_weights()
    total = sum(weight.numel() for weight in weights.values()) / 1e6
    upstream = {name: torch.randn_like(weight) for name, weight in weights.items()}
    methods: tuple[Method, ...] = (Feather(), Feather(p=1.0), ST3())
    rows = []
    for method in methods:
        masks = Masks(method, Sparsity(0.9), "weight")
        for name, weight in weights.items():
            masks.add_weight_mask(name, weight)
        refresh = min(time_call(lambda given=masks: given.refresh(weights, 0.9), 10))
        rows.append([str(method), refresh, *measure_step(masks, weights, upstream)])
    print(f"\nmasks of a ResNet-50, {total:.1f} million weights, 90% closed")
    print(tabulate(rows, ["method", "refresh ms", "forward ms", "backward ms", "plain backward ms"], floatfmt=".3g"))


def measure_step(masks: Masks, weights: dict[str, Tensor], upstream: dict[str, Tensor]) -> tuple[float, float, float]:
    """Give the best milliseconds of all masks' forward and backward, and of a backward without masks."""
    forward, backward, plain = [], [], []
    for _ in range(10):
        outputs: list[Tensor] = []
        for weight in weights.values():
            weight.grad = None
        applied = zip(masks.weight_masks.values(), weights.values(), strict=True)
        forward += time_call(lambda given=applied, out=outputs: out.extend(mask(weight) for mask, weight in given), 1)
        gradients = list(upstream.values())
        backward += time_call(lambda out=outputs, grads=gradients: torch.autograd.backward(out, grads), 1)
        for weight in weights.values():
            weight.grad = None
        views = [weight.view_as(weight) for weight in weights.values()]
        plain += time_call(lambda out=views, grads=gradients: torch.autograd.backward(out, grads), 1)
    return min(forward), min(backward), min(plain)


def measure_scores() -> None:
    """Print the time of scoring all units of a ResNet-50 by rows and columns."""
    weights = make_resnet50_weights()
    slices, units = [], 0
    for name, weight in weights.items():
        for dim in (0, 1):
            slices.append(Slice(name, dim, units + torch.arange(weight.shape[dim])))
            units += weight.shape[dim]
    best = min(time_call(lambda: unit_scores(weights, slices, units), 10))
    print(f"\nscores of {units} rows and columns: {best:.3g} ms")


if __name__ == "__main__":
    torch.manual_seed(0)
    measure_selection()
    measure_masks()
    measure_scores()

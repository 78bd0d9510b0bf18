"""What became of a trained model? Is it right to the last sample, what does it cost, and how fast is it?"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fxprune
from command_line import Place
from data import Batches, Images
from fxprune import export
from fxprune.export.measurements import Timing
from ranks import Ranks
from recipes import Recipe

BATCH_SIZES = (1, 8)
"""The batch sizes at which latency is measured."""


@dataclass(frozen=True)
class Conversion:
    """How many test images are read right before and after conversion, and how many are given the same class."""

    before: int
    after: int
    agreeing: int
    images: int

    @property
    def is_exact(self) -> bool:
        """Whether every single image is given the same class."""
        return self.agreeing == self.images

    def __str__(self) -> str:
        verdict = "the same" if self.is_exact else "NOT the same"
        return (
            f"accuracy before and after conversion is {verdict} to the last sample: {self.before:,} and {self.after:,} "
            f"of {self.images:,} right, {self.agreeing:,} given the same class"
        )


def convert_and_compare(
    prepared: nn.Module, images: Images, ranks: Ranks, align: int | None = None
) -> tuple[nn.Module, Conversion]:
    """Convert on the CPU, and run both models on all test images on the device."""
    compact = fxprune.convert(prepared.cpu(), align=align)
    models = [model.to(ranks.device).eval() for model in (prepared, compact)]
    precise = [copy.deepcopy(model).double() for model in models]
    sums = torch.zeros(4, dtype=torch.int64, device=ranks.device)
    for batch, labels in images.test():
        before, after = (predict(model, batch) for model in models)
        unsure = before != after
        if unsure.any():  # a tie within rounding, or a real difference: more digits tell
            before[unsure], after[unsure] = (predict(model, batch[unsure].double()) for model in precise)
        right = [(classes == labels).sum() for classes in (before, after)]
        sums += torch.stack([*right, (before == after).sum(), labels.new_tensor(len(labels))])
    return compact, Conversion(*ranks.add_up(sums).tolist())


def count_correct(model: nn.Module, batches: Batches, ranks: Ranks) -> tuple[int, int]:
    """Count the images that the model reads right, and all of them, over all ranks."""
    model.to(ranks.device).eval()
    sums = torch.zeros(2, dtype=torch.int64, device=ranks.device)
    for images, labels in batches:
        sums += torch.stack([(predict(model, images) == labels).sum(), labels.new_tensor(len(labels))])
    correct, count = ranks.add_up(sums).tolist()
    return correct, count


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Give each image its class, in full precision."""
    with full_precision():
        outputs = model(images)
    logits: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs  # auxiliary heads follow behind
    return logits.argmax(1)


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep convolutions on a GPU from rounding their inputs to ten bits."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@dataclass(frozen=True)
class Result:
    """One run: what it gets right, what it costs, and how fast it is beside the dense model."""

    recipe: dict[str, Any]
    correct: int  # of the final model
    images: int
    conversion: Conversion | None  # None for a dense run
    parameters: int
    nonzero: int  # parameters that are not zero
    macs: int  # multiply-accumulates a sample
    dense_parameters: int
    dense_macs: int
    latency: dict[str, float]  # median milliseconds of the final model, by batch size; empty if not measured
    speedup: dict[str, float]
    seconds: float

    def __str__(self) -> str:
        lines = [
            f"{self.correct / self.images:.2%} right ({self.correct:,} of {self.images:,})",
            f"parameters {self.parameters:,} of {self.dense_parameters:,}, {self.nonzero:,} of them not zero",
            f"multiply-accumulates {self.macs:,} of {self.dense_macs:,}",
        ]
        for batch in self.latency:
            lines.append(f"batch {batch}: {self.latency[batch]:.3f} ms, {self.speedup[batch]:.2f} times as fast")
        if self.conversion is not None:
            lines.append(str(self.conversion))
        return "\n".join([*lines, f"{self.seconds:.0f} s"])


def write_result(
    recipe: Recipe,
    place: Place,
    dense: nn.Module,
    model: nn.Module,
    example: Tensor,
    correct: tuple[int, int],
    conversion: Conversion | None,
    seconds: float,
) -> Result:
    """Export the dense and the final model, time them beside each other, and write the files and result.json."""
    model, dense = model.cpu().eval(), dense.cpu().eval()
    models = {"dense": dense} if conversion is None else {"dense": dense, "compact": model}
    if conversion is not None:
        fxprune.save(model, place.out / "compact.safetensors")
    timings = measure_latency(models, example, place) if place.seconds > 0 else {}
    cost, dense_cost = export.count(model, example), export.count(dense, example)
    result = Result(
        recipe=dataclasses.asdict(recipe),
        correct=correct[0],
        images=correct[1],
        conversion=conversion,
        parameters=cost.parameters,
        nonzero=sum(int(parameter.count_nonzero()) for parameter in model.parameters()),
        macs=cost.macs,
        dense_parameters=dense_cost.parameters,
        dense_macs=dense_cost.macs,
        latency={batch: timing.median for batch, timing in timings.items()},
        speedup={batch: timing.speedup for batch, timing in timings.items()},
        seconds=seconds,
    )
    (place.out / "result.json").write_text(json.dumps(dataclasses.asdict(result), indent=2) + "\n", encoding="utf-8")
    return result


def measure_latency(models: dict[str, nn.Module], example: Tensor, place: Place) -> dict[str, Timing]:
    """Export the models, time the files beside each other, and give the last one's timings by batch size."""
    files = {name: place.out / f"{name}.onnx" for name in models}
    for name, model in models.items():
        export.to_onnx(model, example, files[name])
    benchmark = export.benchmark(files, batch_sizes=BATCH_SIZES, seconds=place.seconds)
    return {str(timing.batch_size): timing for timing in benchmark.timings if timing.name == list(models)[-1]}

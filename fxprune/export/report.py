"""How does a report come from what preparing, converting, exporting and timing gave?"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import nn

from fxprune.conversion_report import Report
from fxprune.errors import ReportError
from fxprune.export.cost import Cost, count
from fxprune.export.environment import describe_environment, note_moment
from fxprune.export.interface import ExampleInputs
from fxprune.export.measurements import Benchmark
from fxprune.export.onnx import OnnxFile
from fxprune.export.quantize import QuantizedFile
from fxprune.reporting.comparison import Comparison, Network, TrainingPoint
from fxprune.reporting.layers import compare_layers


def report(
    models: Mapping[str, nn.Module],
    example_inputs: ExampleInputs,
    *,
    files: Mapping[str, OnnxFile | QuantizedFile] | None = None,
    benchmark: Benchmark | None = None,
    accuracy: Mapping[str, float] | None = None,
    training: str | Path | Iterable[TrainingPoint] = (),
    commands: Sequence[str] = (),
) -> Comparison:
    """Put networks beside each other, by name: what they cost, what was removed, how exact and how fast they are.

    The first model is what the others are compared with, layer by layer with the last one; that one's `report`, as
    `convert` leaves it, says what went and what stayed. The models stay as they were, random state included.

    Args:
        models: by name, such as {"dense": model, "compact": compact}.
        example_inputs: for counting the multiply-accumulates, as for `to_onnx`.
        files: what `to_onnx` and `quantize` returned, by the same names; a quantised file has one of its own.
        benchmark: what `benchmark` returned for networks of these names.
        accuracy: between 0 and 1, by name.
        training: sparsity by epoch, or a CSV file with the columns epoch, sparsity and, if known, accuracy.
        commands: what repeats all of it.

    Raises:
        ReportError: fewer than two models, names that fit nothing, or a log that cannot be read.
    """
    files, accuracy = files or {}, accuracy or {}
    if len(models) < 2:
        raise ReportError("a report compares models: give at least two, such as {'dense': model, 'compact': compact}")
    timed = {timing.name: timing.size for timing in benchmark.timings} if benchmark is not None else {}
    names = list(dict.fromkeys([*models, *files, *timed]))
    for name, share in accuracy.items():
        if name not in names:
            raise ReportError(f"accuracy names {name!r}; the networks are {', '.join(names)}")
        if not 0 <= share <= 1:
            raise ReportError(f"accuracy of {name!r} is {share}; give a share from 0 to 1, such as 0.91")
    costs = {name: count(model, example_inputs) for name, model in models.items()}
    (first, *_, last) = models.values()
    conversion = getattr(last, "report", None)
    moment = note_moment()
    return Comparison(
        model=getattr(first, "class_name", type(first).__name__),
        networks=tuple(
            describe(name, costs.get(name), files.get(name), timed.get(name), accuracy.get(name)) for name in names
        ),
        layers=compare_layers(first, last, example_inputs),
        conversion=conversion if isinstance(conversion, Report) else None,
        benchmark=benchmark,
        training=read_log(training) if isinstance(training, str | Path) else tuple(training),
        environment=benchmark.environment if benchmark is not None else describe_environment(moment, moment),
        commands=tuple(commands),
    )


def describe(
    name: str, cost: Cost | None, file: OnnxFile | QuantizedFile | None, timed_size: int | None, accuracy: float | None
) -> Network:
    """Put together what is known of one network; a quantised file brings its accuracy, where it was measured."""
    if accuracy is None and isinstance(file, QuantizedFile):
        accuracy = file.accuracy
    return Network(
        name=name,
        parameters=cost.parameters if cost is not None else None,
        macs=cost.macs if cost is not None else None,
        file_size=file.size if file is not None else timed_size,
        verification=file.verification if isinstance(file, OnnxFile) else None,
        accuracy=accuracy,
    )


def read_log(path: str | Path) -> tuple[TrainingPoint, ...]:
    """Read a training's log: CSV with the columns epoch, sparsity and perhaps accuracy.

    Where the epochs start anew, in a second phase, they are counted on.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        if not rows:
            raise ValueError("there is no epoch in it")
        points: list[TrainingPoint] = []
        offset = 0.0
        for row in rows:
            epoch = float(row["epoch"])
            if points and offset + epoch <= points[-1].epoch:
                offset = points[-1].epoch
            accuracy = float(row["accuracy"]) if row.get("accuracy") else None
            points.append(TrainingPoint(offset + epoch, float(row["sparsity"]), accuracy))
            wrong = next((each for each in (points[-1].sparsity, accuracy or 0.0) if not 0 <= each <= 1), None)
            if wrong is not None:
                raise ValueError(f"epoch {epoch:g} has {wrong:g} where shares lie between 0 and 1")
    except (OSError, csv.Error, KeyError, ValueError, TypeError) as error:
        reason = f"there is no column {error}" if isinstance(error, KeyError) else str(error)
        raise ReportError(f"{path}: {reason}; give a CSV file with the columns epoch and sparsity") from error
    return tuple(points)

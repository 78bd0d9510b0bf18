"""What did the demo find, as a table and as JSON?"""

import dataclasses
import json
from dataclasses import dataclass

from tabulate import tabulate

from fxprune.export.measurements import Benchmark, Timing

VACUOUS = 1e-3
"""A model whose logits vary by less over the images has learnt nothing."""


@dataclass(frozen=True)
class Row:
    """One model: what it gets right, what it costs, and how far its outputs are from the prepared model's."""

    name: str
    correct: int
    images: int
    parameters: int
    macs: int  # multiply-accumulates a sample
    onnx_bytes: int | None  # None for a model that is not exported
    difference: float | None  # largest over all test images and classes; None for the dense model, another one

    @property
    def accuracy(self) -> float:
        """The share of the test images that it reads right."""
        return self.correct / self.images


@dataclass(frozen=True)
class Layer:
    """How many output channels of a layer the conversion kept and removed."""

    name: str
    kept: int
    removed: int


@dataclass(frozen=True)
class Report:
    """One run of the demo. `agreeing` test images are classified alike before and after the conversion,
    `agreeing_file` by the prepared model and by the compact ONNX file on ONNX Runtime."""

    settings: str
    rows: tuple[Row, ...]
    layers: tuple[Layer, ...]
    benchmark: Benchmark
    variation: float  # how much an output of the prepared model varies over the images; differences are small beside it
    agreeing: int
    agreeing_file: int
    seconds: float  # the whole run

    def __str__(self) -> str:
        lines = [self.settings, "", format_table(self), "", format_agreement(self)]
        runtimes = ", ".join(self.benchmark.runtimes.values())
        return "\n".join([*lines, f"{runtimes}, {self.benchmark.timings[0].threads} thread; {self.seconds:.0f} s"])

    def to_json(self) -> str:
        """Return all fields as JSON, for `from_json`."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        rows = tuple(Row(**row) for row in fields.pop("rows"))
        layers = tuple(Layer(**layer) for layer in fields.pop("layers"))
        benchmark = Benchmark.from_json(json.dumps(fields.pop("benchmark")))
        return cls(**fields, rows=rows, layers=layers, benchmark=benchmark)


def format_table(report: Report) -> str:
    """Format one line a model; timings in milliseconds, "-" where a model is not exported."""
    batches = sorted({timing.batch_size for timing in report.benchmark.timings})
    headers = ["model", "accuracy", "parameters", "MACs", "ONNX bytes"]
    for batch in batches:
        headers += [f"ms at batch {batch}\n(quartiles)", "speed-up\n(95% interval)"]
    headers.append("largest output\ndifference")
    cells = [_format_row(report, row, batches) for row in report.rows]
    return tabulate(cells, headers=headers, disable_numparse=True, colalign=["left"] + ["right"] * (len(headers) - 1))


def _format_row(report: Report, row: Row, batches: list[int]) -> list[str]:
    size = "-" if row.onnx_bytes is None else f"{row.onnx_bytes:,}"
    cells = [row.name, f"{row.accuracy:.1%}", f"{row.parameters:,}", f"{row.macs:,}", size]
    for batch in batches:
        cells += _format_timing(find_timing(report.benchmark, row.name, batch))
    return [*cells, _format_difference(row.difference)]


def _format_difference(difference: float | None) -> str:
    if difference is None:
        return "-"
    return f"{difference:.1e}" if difference else "0"


def _format_timing(timing: Timing | None) -> list[str]:
    if timing is None:
        return ["-", "-"]
    spread = f"({timing.lower_quartile:.3f} to {timing.upper_quartile:.3f})"
    interval = f"({timing.speedup_low:.2f} to {timing.speedup_high:.2f})"
    return [f"{timing.median:.3f} {spread}", f"{timing.speedup:.2f}x {interval}"]


def find_timing(benchmark: Benchmark, name: str, batch_size: int) -> Timing | None:
    """Find the timing of one file at one batch size, None if it was not timed."""
    found = (t for t in benchmark.timings if t.name == name and t.batch_size == batch_size)
    return next(found, None)


def format_agreement(report: Report) -> str:
    """Say whether conversion and export left every prediction as it was, as computed."""
    rows = {row.name: row for row in report.rows}
    before, after, images = rows["prepared"], rows["compact"], rows["compact"].images
    verdict = "the same" if before.correct == after.correct and report.agreeing == images else "NOT the same"
    lines = [
        f"Accuracy before and after conversion is {verdict} to the last sample: "
        f"{before.correct} and {after.correct} of {images} right.",
        f"Predictions equal to the prepared model's: {report.agreeing} of {images} by the compact model, "
        f"{report.agreeing_file} of {images} by compact.onnx; its outputs vary by {report.variation:.2g}.",
    ]
    if report.variation < VACUOUS:
        lines.append("That shows little: the prepared model says the same of every image; give it more epochs.")
    return "\n".join(lines)

"""What is there to say about a dense model and what became of it? All of a report's data, read and written as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import cattrs

from fxprune.conversion_report import Report
from fxprune.errors import ReportError
from fxprune.export.environment import Environment
from fxprune.export.measurements import Benchmark
from fxprune.export.verify import Verification

FORMS = (".html", ".md", ".json")


@dataclass(frozen=True)
class Network:
    """One of the networks that are compared; what is not known of it is None."""

    name: str
    parameters: int | None
    macs: int | None  # multiply-accumulates a sample
    file_size: int | None  # bytes of the ONNX file
    verification: Verification | None  # of the file against the module
    accuracy: float | None  # between 0 and 1


@dataclass(frozen=True)
class LayerChange:
    """A weight that takes part in multiplications, in the first network and in the last."""

    name: str  # of the weight, without ".weight"
    kind: str  # such as "Conv2d 3x3"
    width_before: int  # output channels
    width_after: int | None  # 0 if the layer is gone; None if several smaller ones took its place
    weights_before: int
    weights_after: int
    macs_before: int  # a sample
    macs_after: int


@dataclass(frozen=True)
class TrainingPoint:
    """The model after an epoch of training."""

    epoch: float
    sparsity: float  # the share that is masked
    accuracy: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Networks beside each other; the first one is what the others are compared with.

    `print` it for a table; `write` makes a page, Markdown or JSON of it, by the name of the file.
    """

    model: str
    networks: tuple[Network, ...]
    layers: tuple[LayerChange, ...]
    conversion: Report | None
    benchmark: Benchmark | None
    training: tuple[TrainingPoint, ...]
    environment: Environment
    commands: tuple[str, ...]  # that make all of it again

    def __str__(self) -> str:
        from fxprune.reporting.markdown import write_text  # it shows what is defined here

        return write_text(self)

    def write(self, path: str | Path) -> None:
        """Write a self-contained page (.html), Markdown (.md) or all of the data (.json).

        Raises ReportError for another suffix, a file that cannot be written, or where matplotlib is missing (.html).
        """
        from fxprune.reporting.html import write_html
        from fxprune.reporting.markdown import write_markdown

        path = Path(path)
        require_form(path)
        writers = {".html": write_html, ".md": write_markdown, ".json": Comparison.to_json}
        text = writers[path.suffix](self)
        try:
            path.write_text(text.rstrip() + "\n", encoding="utf-8")
        except OSError as error:
            raise ReportError(f"{path} cannot be written ({error.strerror}); give another file") from error

    def to_json(self) -> str:
        """Return all fields as JSON, for `from_json`."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """Read what `to_json` wrote; raises ReportError for anything else."""
        try:
            return _CONVERTER.structure(json.loads(text), cls)
        except (ValueError, TypeError, AttributeError, cattrs.BaseValidationError) as error:
            reason = "; ".join(cattrs.transform_error(error)[:2]) if isinstance(error, ExceptionGroup) else str(error)
            raise ReportError(
                f"this is no JSON of a fxprune report ({reason}); `fxprune prune --json` and "
                "fxprune.export.report(...).to_json() make one"
            ) from error


_CONVERTER = cattrs.Converter(forbid_extra_keys=True)


def require_form(path: Path | None, *suffixes: str) -> None:
    """Refuse a file that could not be written for its suffix, or because a package is missing."""
    suffixes = suffixes or FORMS
    if path is not None and path.suffix not in suffixes:
        raise ReportError(f"{path}: its form follows from the suffix; give {' or '.join(suffixes)}")
    if path is not None and path.suffix == ".html" and find_spec("matplotlib") is None:
        raise ReportError("the page's figures need matplotlib; run: pip install 'fxprune[report]'")

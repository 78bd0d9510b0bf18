"""What is recorded of one model: a line of JSON, that is written again after every stage."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LONGEST = 300
"""Characters of an error's message that are kept."""


@dataclass(frozen=True)
class Failure:
    """What went wrong, and in which stage."""

    stage: str
    error: str  # the class
    message: str


@dataclass
class Result:
    """What was measured of one model; None is what was not reached."""

    family: str
    name: str
    size: int | None = None
    precision: str | None = None  # "double", "single", or "mixed": single precision inside
    left_out: int = 0  # blocks of a huge model, of rows that are alike
    traced: bool | None = None
    scope: str | None = None  # "whole", or how many regions
    untraced: dict[str, str] = field(default_factory=dict)  # what lies outside of the regions, five of it, and why
    rows: int | None = None  # of all weights of contractions
    gated: int | None = None  # rows whose unit has a gate
    outputs: int | None = None  # rows that are outputs of the model, which stay anyway
    pinned: dict[str, int] = field(default_factory=dict)  # rows that stay, by the five commonest reasons but outputs
    parameters_before: int | None = None
    parameters_after: int | None = None
    kept: dict[str, int] = field(default_factory=dict)  # closed units that stay, by reason
    variation: float | None = None  # of the outputs, relative to their size
    trace_error: float | None = None  # prepared, all gates open, beside the original
    error: float | None = None  # compact beside prepared, half of the gates closed
    other_batch: float | None = None  # both errors at another batch size, the larger one
    other_size: float | str | None = None  # the same at another image size; "fixed" where the original takes one
    onnx: float | None = None
    onnx_status: str | None = None  # "agrees", "fails", or "exporter cannot"
    refusal: str | None = None  # why the original cannot be exported either
    seconds: float | None = None  # to prepare and convert
    total_seconds: float | None = None
    stage: str = "start"
    failures: list[Failure] = field(default_factory=list)

    @property
    def share(self) -> float | None:
        """The share of rows that may go, of those that are no outputs; None where these were not counted."""
        if self.rows is None or self.gated is None or self.outputs is None:
            return None
        return min(1.0, self.gated / max(1, self.rows - self.outputs))  # outputs may be rows of no layer's weight

    def fail(self, stage: str, error: str, message: str) -> None:
        """Note a failure, its message in one line without paths of this machine."""
        self.failures.append(Failure(stage, error, shorten(message)))

    def find_failure(self, *stages: str) -> Failure | None:
        """The first failure of these stages."""
        return next((failure for failure in self.failures if failure.stage in stages), None)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Result:
        """Read what `to_json` wrote."""
        fields: dict[str, Any] = json.loads(line)
        failures = [Failure(**failure) for failure in fields.pop("failures")]
        return cls(**fields, failures=failures)


def shorten(message: str) -> str:
    """A message in one line without paths of this machine, and its beginning only."""
    return hide_folders(" ".join(message.split()))[:LONGEST]


def hide_folders(text: str) -> str:
    """Leave the names of a text's source files, without the folders of this machine."""
    return re.sub(r"(/[^\s/:]+)+/(?=[^\s/]+\.py)", "", text)


class Stopped(Exception):
    """A stage failed without which the next ones make no sense."""


@dataclass
class Record:
    """A result, and the file in which it stands after every stage."""

    result: Result
    path: Path

    def save(self) -> None:
        """Write the file anew, as a whole."""
        draft = self.path.with_suffix(".draft")
        draft.write_text(self.result.to_json() + "\n", encoding="utf-8")
        os.replace(draft, self.path)

    @contextmanager
    def stage(self, name: str, needed: bool = True) -> Iterator[None]:
        """Run a stage; if it fails, note why, and stop where the stage is `needed`."""
        self.result.stage = name
        self.save()
        try:
            yield
        except Exception as error:
            self.result.fail(self.result.stage, type(error).__name__, str(error))
            if needed:
                raise Stopped from error
        finally:
            self.save()


def read_results(path: Path) -> dict[tuple[str, str], Result]:
    """Read a file of lines; of a model that stands in it twice, the later line counts."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    results = [Result.from_json(line) for line in lines if line.strip()]
    return {(result.family, result.name): result for result in results}

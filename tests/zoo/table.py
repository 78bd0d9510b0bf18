"""The table of docs/coverage.md: what was measured of the zoo, counts for each family first, then a line a model."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from tabulate import tabulate

from tests.zoo.lists import FAMILIES
from tests.zoo.result import Failure, Result

PACKAGES = ("fxprune", "torch", "torchvision", "timm", "transformers", "onnxruntime")

HEAD = """\
# Coverage

Measured on {date} with {versions}; written by `{command}`.

Each model is built with random weights, with random scales, shifts and statistics, and prepared; half of its units
are closed at random, and it is converted. What the columns say:

- **traced**: whole, or in how many regions. Models of more than 700 million parameters are measured without the middle
  of their rows of blocks that are alike: two at each end stay.
- **prunable**: how many of the rows of its weights (filters, output features) a gate may close, of all rows but those
  which are the model's outputs.
- **error**: the largest difference between the compact model's outputs and the prepared one's, relative to how much
  they vary over the inputs, in double precision (*mixed*: the model computes in single precision inside; *single*: it
  does not run in double precision, or has more than 150 million parameters). Exact is below 1e-8, below 1e-4 with mixed
  or single precision, or in single precision below ten times what the model moves by when the last bit of every weight
  does.
- **other batch**, **other size**: the same at another batch size and another image size or length, and beside it the
  prepared model with all gates open against the original; *fixed* where the original takes one size only.
- **ONNX**: the compact model's file on ONNX Runtime against the model; *exporter cannot* where the original cannot be
  exported either.
- **seconds**: to prepare and convert, on one thread.
"""


def is_exact(result: Result) -> bool:
    """Whether the compact model was compared, and agreed, and the outputs depended on the inputs."""
    return result.error is not None and result.find_failure("trace", "convert", "exactness") is None


def agrees_elsewhere(result: Result, stage: str) -> bool:
    """Whether the models were compared at another batch or size, and agreed."""
    value = result.other_batch if stage == "other batch" else result.other_size
    return isinstance(value, float) and result.error is not None and result.find_failure(stage) is None


def lost_parameters(result: Result) -> float | None:
    """The share of parameters that went."""
    if result.parameters_before is None or result.parameters_after is None:
        return None
    return 1 - result.parameters_after / max(1, result.parameters_before)


COUNTS: dict[str, Callable[[Result], bool]] = {
    "models": lambda r: True,
    "traced": lambda r: bool(r.traced),
    "converted": lambda r: r.parameters_after is not None,
    "exact": is_exact,
    "lost parameters": lambda r: (lost_parameters(r) or 0) > 0,
    "another batch": lambda r: agrees_elsewhere(r, "other batch"),
    "another size": lambda r: agrees_elsewhere(r, "other size"),
    "size fixed": lambda r: r.other_size == "fixed",
    "ONNX agrees": lambda r: r.onnx_status == "agrees",
    "exporter cannot": lambda r: r.onnx_status == "exporter cannot",
}
"""What is counted for each family."""

EXPORTED = ("ONNX agrees", "exporter cannot")
"""The counts of models that were exported."""

COLUMNS = (
    "model",
    "traced",
    "prunable",
    "parameters lost",
    "error",
    "other batch",
    "other size",
    "ONNX",
    "seconds",
    "what failed",
)


def summarise(results: Sequence[Result]) -> str:
    """A table of counts, one line a family."""
    rows = []
    counted = [name for name in COUNTS if name not in EXPORTED or any(result.onnx_status for result in results)]
    for family in dict.fromkeys(result.family for result in results):
        own = [result for result in results if result.family == family]
        shares = [result.share for result in own if result.share is not None]
        counts = [sum(map(COUNTS[name], own)) for name in counted]
        rows.append([family, *counts, *([f"{median(shares):.1%}"] if shares else [])])
    headers = ["family", *counted, "median prunable"]
    return tabulate(rows, headers=headers[: max(map(len, rows), default=0)], tablefmt="pipe")


def list_models(results: Sequence[Result]) -> str:
    """A table of one line a model."""
    rows = [[*describe_columns(result), describe_failures(result)] for result in results]
    filled = [place for place in range(len(COLUMNS)) if any(row[place] for row in rows)]
    rows = [[row[place] for place in filled] for row in rows]
    return tabulate(rows, headers=[COLUMNS[place] for place in filled], tablefmt="pipe", disable_numparse=True)


def list_refusals(results: Sequence[Result]) -> str:
    """A table of the models that torch's exporter cannot do as they are, and its reasons."""
    rows = [[result.name, escape(result.refusal)] for result in results if result.refusal is not None]
    return tabulate(rows, headers=("model", "what the exporter says of the original"), tablefmt="pipe")


def describe_columns(result: Result) -> list[str]:
    """The cells of one model but the last."""
    error = show_error(result.error)
    lost = lost_parameters(result)
    scope = result.scope or ("no" if result.traced is False else "")
    return [
        result.name,
        f"{scope}, {result.left_out} blocks left out" if result.left_out else scope,
        "" if result.share is None else f"{result.share:.1%}",
        "" if lost is None else f"{lost:.0%}",
        f"{error} ({result.precision})" if error and result.precision != "double" else error,
        show_error(result.other_batch),
        show_error(result.other_size),
        show_error(result.onnx) or (result.onnx_status or ""),
        "" if result.seconds is None else f"{result.seconds:.1f}",
    ]


def describe_failures(result: Result) -> str:
    """The reasons, where something failed; one that the exporter alone is to blame for is left out."""
    blamed = [f for f in result.failures if f.stage != "onnx" or result.onnx_status != "exporter cannot"]
    return "; ".join(describe_failure(failure) for failure in blamed)


def describe_failure(failure: Failure, longest: int = 160) -> str:
    """One failure, short enough for a table's cell."""
    message = failure.message if len(failure.message) <= longest else f"{failure.message[: longest - 3]}..."
    return escape(f"{failure.stage}: {failure.error}: {message}")


def escape(text: str) -> str:
    """A text that may stand in a table's cell."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def describe_result(result: Result) -> str:
    """One line for the terminal."""
    cells = [cell for cell in describe_columns(result) if cell]
    return f"{result.family} {' '.join(cells)} {describe_failures(result)}".rstrip()


def show_error(error: float | str | None) -> str:
    """An error as a short number."""
    if error is None or isinstance(error, str):
        return error or ""
    return f"{error:.0e}"


def write_table(results: Sequence[Result], path: Path) -> None:
    """Write the page."""
    apart = {result.family.removesuffix("-all") for result in results if result.family not in FAMILIES}
    command = f"make coverage-{apart.pop()}" if len(apart) == 1 else "make coverage"
    date = datetime.date.today().isoformat()
    parts = [HEAD.format(date=date, versions=describe_versions(), command=command), summarise(results)]
    for family in dict.fromkeys(result.family for result in results):
        own = sorted((result for result in results if result.family == family), key=lambda result: result.name)
        parts += [f"\n## {family}\n", list_models(own)]
        if any(result.refusal is not None for result in own):
            parts += [f"\n### {family}: originals that cannot be exported\n", list_refusals(own)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def describe_versions() -> str:
    """The versions of all packages that matter and are installed."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)

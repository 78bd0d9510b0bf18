"""How one model fares: built, prepared, half of its units closed, converted, compared, exported.

    python -m tests.zoo.measure torchvision resnet18 result.json

`tests.zoo.run` does this for whole families, a process each.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fxprune
from fxprune.errors import ExactnessError, ExportError, TargetError, TraceError
from fxprune.model import Inputs, PreparedModel, TracedModel
from fxprune.passes.check_exact import MOST_ROUNDINGS, move_last_bits
from tests.exactness import close_units
from tests.zoo.cases import Case, cast, make_case
from tests.zoo.lists import get_family
from tests.zoo.meaning import compare, damp_branches, outputs_of, randomise, settle
from tests.zoo.result import LONGEST, Record, Result, Stopped, hide_folders, shorten
from tests.zoo.rows import OUTPUT, add_up, count_gated, count_rows

SHARE = 0.5
"""How many of the units are closed, where the outputs still vary then."""

DOUBLE, SINGLE = 1e-8, 1e-4
"""Errors that rounding explains, relative to the outputs' variation."""

LARGE = 150_000_000
"""Models of more parameters are measured in single precision, to spare memory."""

SETTLING = 4
"""How many samples set the statistics of batch norms."""


class Subject:
    """One model under measurement: the original, and its inputs in the precision in which it is measured."""

    def __init__(self, case: Case) -> None:
        self.model, self.draw = case.model, case.draw
        self.size, self.other = case.size, case.other
        self.precision = "single"
        self.dtype = torch.float32

    def inputs(self, batch: int, size: int, seed: int = 0) -> Inputs:
        return cast(self.draw(batch, size, seed), self.dtype)

    def places(self) -> dict[str, Inputs]:
        """Where models are compared, by stage."""
        return {
            "exactness": self.inputs(2, self.size, seed=1),
            "other batch": self.inputs(3, self.size, seed=2),
            "other size": self.inputs(2, self.other, seed=3),
        }

    @property
    def tolerance(self) -> float:
        return DOUBLE if self.precision == "double" else SINGLE


class SinglePrecisionWatch(TorchDispatchMode):
    """Notice whether a model in double precision computes in single precision inside."""

    seen: bool = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        casts = "_to_copy" in str(func) and isinstance(args[0], Tensor) and args[0].dtype == torch.float64
        self.seen |= casts and result.dtype == torch.float32
        return result


def measure_model(family: str, name: str, path: Path) -> None:
    """Measure one model and write the result to a file."""
    torch.set_num_threads(1)
    record = Record(Result(family, name), path)
    started = time.perf_counter()
    with suppress(Stopped):
        measure(record)
    record.result.total_seconds = round(time.perf_counter() - started, 2)
    record.result.stage = "done"
    record.save()


def measure(record: Record) -> None:
    """Go through all stages."""
    result = record.result
    with record.stage("build"):
        family = get_family(result.family)
        case = make_case(family.source, result.name)
        subject = set_up(case)
        result.size, result.precision, result.left_out = subject.size, subject.precision, case.left_out
        result.rows = count_rows(subject.model)
    started = time.perf_counter()
    with record.stage("prepare"):
        prepared = prepare(subject, result)
    prepared_after = time.perf_counter() - started
    compare_open(record, subject, prepared)
    with record.stage("prepare"):
        close_half(prepared, subject)
    started = time.perf_counter()
    with record.stage("convert"):
        compact = convert(prepared, result)
    result.seconds = round(prepared_after + time.perf_counter() - started, 2)
    report: Any = compact.report
    result.parameters_before, result.parameters_after = report.parameters_before, report.parameters_after
    result.kept = {hide_folders(reason): count for reason, count in list(report.kept.items())[:5]}
    compare_closed(record, subject, prepared, compact)
    if family.is_brief:
        return
    del prepared
    with record.stage("inspect", needed=False):
        inspect(subject, result)
    with record.stage("onnx", needed=False):
        check_onnx(result, subject, compact)


def set_up(case: Case) -> Subject:
    """Randomise a model, and bring it to double precision where it runs in that and is not too large.

    What is measured is a copy that has never run, as a model that its owner has just built has not.
    """
    subject, model = Subject(case), case.model
    subject.model = copy.deepcopy(model)
    if sum(p.numel() for p in model.parameters()) <= LARGE:
        subject.dtype, subject.precision = torch.float64, "double"
        model.double()
        with SinglePrecisionWatch() as watch:
            try:
                outputs_of(model, subject.inputs(2, subject.size))
            except (RuntimeError, TypeError, ValueError):  # tensors that its code makes are in single precision
                subject.dtype, subject.precision = torch.float32, "single"
                model.float()
        if watch.seen and subject.precision == "double":
            subject.precision = "mixed"
    randomise(model, SHARE)
    damp_branches(model, subject.inputs(2, subject.size))
    settle(model, subject.inputs(SETTLING, subject.size, seed=2))
    outputs_of(model, subject.inputs(2, subject.size))
    subject.model.to(subject.dtype).load_state_dict(model.state_dict())
    return subject


def prepare(subject: Subject, result: Result) -> PreparedModel:
    """Prepare the model, and count what may go."""
    args, kwargs = subject.inputs(2, subject.size)
    try:
        prepared = fxprune.prepare(subject.model, kwargs or args, target=fxprune.Sparsity(0.5, least=0))
    except TraceError:
        result.stage, result.traced = "trace", False
        raise
    except TargetError:
        result.traced, result.gated = True, 0
        raise
    result.traced = True
    result.scope = describe_scope(prepared)
    result.gated = count_gated(prepared)
    result.untraced = {path: hide_folders(why)[:LONGEST] for path, why in list(prepared.untraced.items())[:5]}
    return prepared


def describe_scope(prepared: PreparedModel) -> str:
    """Whether the model was traced as a whole, or in how many regions."""
    regions = prepared.graphs.regions
    return "whole" if [region.path for region in regions] == [""] else f"{len(regions)} regions"


def inspect(subject: Subject, result: Result) -> None:
    """Count the rows that stay as they are, by reason."""
    args, kwargs = subject.inputs(2, subject.size)
    pins = fxprune.inspect(subject.model, kwargs or args).pinned
    result.outputs = sum(pin.rows for pin in pins if pin.reason == OUTPUT)
    result.pinned = add_up({f"{pin.reason} ({pin.where})": pin.rows for pin in pins if pin.reason != OUTPUT})


def close_half(prepared: PreparedModel, subject: Subject) -> None:
    """Close a random half of the units; others, and then fewer, where the outputs no longer vary with the inputs."""
    inputs = subject.inputs(2, subject.size, seed=1)
    for share, seed in ((SHARE, 1), (SHARE, 2), (0.3, 1), (0.3, 2), (0.1, 1), (0.1, 2), (0.03, 1), (0.01, 1)):
        close_units(prepared, share, seed)
        settle(prepared, subject.inputs(SETTLING, subject.size, seed=2))
        outputs = outputs_of(prepared, inputs)
        if not compare(outputs, outputs).is_vacuous:
            return


def convert(prepared: PreparedModel, result: Result) -> TracedModel:
    """Convert with the check, or, where that finds a difference, without, so that all differences are measured."""
    try:
        return fxprune.convert(prepared)
    except ExactnessError as error:
        result.fail("convert", type(error).__name__, str(error))
        return fxprune.convert(prepared, check=False)


def compare_open(record: Record, subject: Subject, prepared: PreparedModel) -> None:
    """Compare the prepared model, all of its gates open, with the original."""
    result = record.result
    for stage, inputs in subject.places().items():
        try:
            expected = outputs_of(subject.model, inputs)
        except Exception:
            if stage == "exactness":
                raise
            # The original takes this size only.
            result.other_size = "fixed" if stage == "other size" else result.other_size
            continue
        with record.stage("trace" if stage == "exactness" else stage, needed=False):
            found = compare(expected, outputs_of(prepared, inputs))
            note(result, stage, "trace_error", found.error)
            if not (found.error <= subject.tolerance or is_rounding(subject, subject.model, found.error, inputs)):
                message = f"the prepared model, all gates open, differs from the original by {found.error:.1e}"
                result.fail(result.stage, "Differs", message)


def compare_closed(record: Record, subject: Subject, prepared: PreparedModel, compact: TracedModel) -> None:
    """Compare the compact model with the prepared one, wherever that agreed with the original."""
    result = record.result
    for stage, inputs in subject.places().items():
        fixed = stage == "other size" and result.other_size == "fixed"
        if fixed or result.find_failure(stage) is not None:
            continue
        with record.stage(stage, needed=False):
            found = compare(outputs_of(prepared, inputs), outputs_of(compact, inputs))
            note(result, stage, "error", found.error)
            if not (found.error <= subject.tolerance or is_rounding(subject, compact, found.error, inputs)):
                message = f"the compact model differs from the prepared one by {found.error:.1e}"
                result.fail(stage, "Differs", message)
            if stage == "exactness":
                result.variation = found.variation
                if found.is_vacuous:
                    result.fail(stage, "Vacuous", f"the outputs vary by {result.variation:.1e} of their size only")


def is_rounding(subject: Subject, model: nn.Module, error: float, inputs: Inputs) -> bool:
    """Whether a model in single precision, the original or what became of it, moves as far with its last bits."""
    if subject.precision != "single":
        return False
    moved = copy.deepcopy(model)
    move_last_bits(moved.parameters())
    return error <= MOST_ROUNDINGS * compare(outputs_of(model, inputs), outputs_of(moved, inputs)).error


def note(result: Result, stage: str, field: str, error: float) -> None:
    """Write an error to its field; the larger one of two where there are two comparisons."""
    field = field if stage == "exactness" else stage.replace(" ", "_")
    known = getattr(result, field)
    setattr(result, field, error if not isinstance(known, float) else max(known, error))


def check_onnx(result: Result, subject: Subject, compact: TracedModel) -> None:
    """Export the compact model and compare it on ONNX Runtime; if that fails, see whether the original does."""
    args, kwargs = cast(subject.inputs(2, subject.size), torch.float32)
    inputs = kwargs or args
    result.onnx_status = "fails"
    try:
        result.onnx = export(compact.float().eval(), inputs)
    except Exception:
        result.refusal = find_refusal(subject.model, inputs)
        result.onnx_status = "fails" if result.refusal is None else "exporter cannot"
        raise
    result.onnx_status = "agrees"


def find_refusal(model: nn.Module, inputs: Any) -> str | None:
    """Why the original cannot be exported either; None where it can, or where that is a bug of our own."""
    try:
        export(model.float().eval(), inputs)
    except (ExactnessError, ExportError) as error:
        return shorten(str(error))
    except Exception:  # noqa: BLE001 - a bug of our own, whatever the model
        return None
    return None


def export(model: nn.Module, inputs: Any) -> float | None:
    """Write a model, with a fixed batch where it has no other; return the error on ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            written = fxprune.export.to_onnx(model, inputs, path)
        except ExportError as error:
            if "dynamic_batch=False" not in str(error):
                raise
            written = fxprune.export.to_onnx(model, inputs, path, dynamic_batch=False)
    return written.verification.worst.error if written.verification is not None else None


if __name__ == "__main__":
    measure_model(*sys.argv[1:3], Path(sys.argv[3]))

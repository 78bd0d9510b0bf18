"""Does an ONNX file compute what the model computes?"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.errors import ExportError, GuardViolated
from fxprune.export.evaluation import copy_for_evaluation, no_trace
from fxprune.export.interface import ExampleInputs, Inputs, flatten_outputs, read_inputs
from fxprune.export.runtimes.interface import Array, Session
from fxprune.export.runtimes.ort_cpu import OrtCpu

ROUNDING_FACTOR = 4
"""How many times the model's own rounding error the file may differ: each has its own, in another order of sums."""

ROUNDING_LIMIT = 1e-2
"""The largest error that rounding excuses."""

VACUOUS = 1e-6
"""An output that varies by less than this share of its magnitude says nothing about the model."""


@dataclass(frozen=True)
class OutputCheck:
    """One output of the file beside the model's.

    `difference` is max |file - model|, `variation` the largest range that an element has over
    the samples, and `error` their quotient. Where the output does not vary (`is_vacuous`) the
    error is relative to its magnitude, and agreement shows little. For integers and booleans
    `error` is the share of elements that differ. `argmax_agreement` is the share of samples
    with the same argmax, for outputs of two dimensions only. `rounding` is the error of the
    model itself against a float64 copy, measured only where `error` is above the tolerance.
    """

    name: str
    error: float
    difference: float
    variation: float
    is_vacuous: bool
    argmax_agreement: float | None
    rounding: float = 0.0

    def is_within(self, tolerance: float) -> bool:
        """Say whether the error is within the tolerance, or else explained by the model's own rounding."""
        return self.error <= max(tolerance, min(ROUNDING_FACTOR * self.rounding, ROUNDING_LIMIT))

    def __str__(self) -> str:
        """Return one line."""
        scale = "but it does not vary with the input" if self.is_vacuous else f"it varies by {self.variation:.2g}"
        argmax = "" if self.argmax_agreement is None else f", same argmax in {self.argmax_agreement:.1%}"
        rounding = f", the model's own rounding error is {self.rounding:.1e}" if self.rounding else ""
        return f"{self.name}: error {self.error:.1e} (differs by {self.difference:.1e}, {scale}{argmax}{rounding})"


@dataclass(frozen=True)
class Verification:
    """What the comparison of a file with a model found."""

    outputs: tuple[OutputCheck, ...]
    batch_sizes: tuple[int, ...]
    tolerance: float

    @property
    def worst(self) -> OutputCheck:
        """Return the output that differs most, of those beyond the tolerance if there are any."""
        return max(self.outputs, key=lambda output: (not output.is_within(self.tolerance), output.error))

    @property
    def passed(self) -> bool:
        """Say whether every output is within the tolerance, or differs by the model's own rounding only."""
        return all(output.is_within(self.tolerance) for output in self.outputs)

    @property
    def is_vacuous(self) -> bool:
        """Say whether no output varies with the input, so that agreement shows little."""
        return all(output.is_vacuous for output in self.outputs)

    def __str__(self) -> str:
        """Return a verdict, and a line for each output."""
        verdict = f"agrees with the model within {self.tolerance:g}"
        if not self.passed:
            verdict = f"differs from the model by more than {self.tolerance:g}"
        elif self.worst.error > self.tolerance:
            verdict = "agrees with the model up to rounding"
        head = f"{verdict} at batch sizes {', '.join(str(size) for size in self.batch_sizes)}"
        return "\n".join([head, *(f"  {output}" for output in self.outputs)])


def verify(
    model: nn.Module, path: str | os.PathLike[str], example_inputs: ExampleInputs, *, tolerance: float = 1e-4
) -> Verification:
    """Compare an ONNX file on ONNX Runtime's CPU kernels with the model in eval mode on the CPU.

    The example inputs are run as given, and random ones of their shape and spread at batch
    sizes 1, 2 and the example's (the example's only, where the file fixes the batch). Tensors
    are matched by name where the file has the model's names, else by position.

    Very deep networks and half precision amplify rounding: an output beyond the tolerance is
    accepted if the model itself differs from a float64 copy by a quarter as much.

    The model stays as it is, random state included. Raises ExportError if the file is no ONNX
    file or has another number of inputs or outputs.
    """
    session = OrtCpu().load(Path(path), threads=torch.get_num_threads())
    inputs = read_inputs(model, example_inputs)
    with no_trace():
        return compare(copy_for_evaluation(model), session, inputs, tolerance)


def compare(model: nn.Module, session: Session, inputs: Inputs, tolerance: float) -> Verification:
    """Compare a loaded file with a model that is on the CPU and in eval mode; see verify."""
    names = _match_inputs(session, inputs)
    sizes = (inputs.batch,) if _has_fixed_batch(session, inputs, names) else tuple(sorted({1, 2, inputs.batch}))
    sizes = tuple(size for size in sizes if size == inputs.batch or _takes(model, inputs, size))
    generator = torch.Generator().manual_seed(0)
    samples = [inputs.tensors]
    samples += [tuple(_draw_like(t, generator) for t in inputs.resize_batch(size)) for size in (*sizes, *sizes)]
    batches = (inputs.batch, *sizes, *sizes)
    labels = tuple(info.name for info in session.outputs)
    expected = [_run_model(model, inputs, tensors, labels) for tensors in samples]
    found = [session.run({name: t.numpy() for name, t in zip(names, tensors, strict=True)}) for tensors in samples]
    checks = _check_outputs(labels, expected, found, batches)
    if all(check.error <= tolerance for check in checks):
        return Verification(checks, sizes, tolerance)
    return Verification(_measure_rounding(model, inputs, samples, expected, checks), sizes, tolerance)


def _takes(model: nn.Module, inputs: Inputs, size: int) -> bool:
    """Whether a model takes batches of this size: code that decides by the size was traced on one of its ways."""
    args, kwargs = inputs.rebuild(inputs.resize_batch(size))
    try:
        model(*args, **kwargs)
    except GuardViolated:
        return False
    return True


def _run_model(model: nn.Module, inputs: Inputs, tensors: Sequence[Tensor], labels: tuple[str, ...]) -> list[Array]:
    args, kwargs = inputs.rebuild([tensor.clone() for tensor in tensors])
    keys, outputs = flatten_outputs(model(*args, **kwargs))
    if len(keys) != len(labels):
        raise ExportError(f"the file has the outputs {labels}, the model {keys}.")
    return [output.numpy(force=True) for output in outputs]


def _measure_rounding(
    model: nn.Module,
    inputs: Inputs,
    samples: Sequence[Sequence[Tensor]],
    expected: list[list[Array]],
    checks: tuple[OutputCheck, ...],
) -> tuple[OutputCheck, ...]:
    """Add the error of the model itself against a copy in float64, where its code runs in float64 at all."""
    exact = copy_for_evaluation(model).double()
    labels = tuple(check.name for check in checks)
    precise = [[t.double() if t.is_floating_point() else t for t in tensors] for tensors in samples]
    try:
        truth = [_run_model(exact, inputs, tensors, labels) for tensors in precise]
    except RuntimeError:  # the code creates tensors of another type, so nothing is known about rounding
        return checks
    batches = [next((t.shape[0] for t in tensors if t.ndim > 0), 1) for tensors in samples]
    rounded = _check_outputs(labels, truth, expected, batches)
    return tuple(replace(check, rounding=own.error) for check, own in zip(checks, rounded, strict=True))


def _match_inputs(session: Session, inputs: Inputs) -> tuple[str, ...]:
    """Return the file's name of each tensor: the model's own where the file has them all, else by position."""
    names = tuple(info.name for info in session.inputs)
    if len(names) != len(inputs.names):
        raise ExportError(f"the file takes the inputs {names}, example_inputs hold {inputs.names}.")
    return inputs.names if set(names) == set(inputs.names) else names


def _has_fixed_batch(session: Session, inputs: Inputs, names: tuple[str, ...]) -> bool:
    shapes = {info.name: info.shape for info in session.inputs}
    return any(inputs.is_batched(index) and shapes[name][:1] != (None,) for index, name in enumerate(names))


def _draw_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a tensor of the same shape, type and spread; integers stay in the example's range, booleans as they are."""
    if tensor.is_floating_point():
        spread = float(tensor.std(correction=0)) or 1.0
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        return (noise * spread + float(tensor.mean())).to(tensor.dtype)
    if tensor.dtype == torch.bool or tensor.numel() == 0:
        return tensor
    low, high = int(tensor.min()), int(tensor.max())
    return torch.randint(low, high + 1, tensor.shape, generator=generator, dtype=tensor.dtype)


def _check_outputs(
    labels: tuple[str, ...], expected: list[list[Array]], found: list[list[Array]], batches: Sequence[int]
) -> tuple[OutputCheck, ...]:
    return tuple(
        _check_output(label, [run[index] for run in expected], [run[index] for run in found], batches)
        for index, label in enumerate(labels)
    )


def _check_output(name: str, expected: list[Array], found: list[Array], batches: Sequence[int]) -> OutputCheck:
    if any(want.shape != have.shape for want, have in zip(expected, found, strict=True)):
        return OutputCheck(name, float("inf"), float("inf"), 0.0, False, None)
    argmax = _compare_argmax(expected, found) if expected[0].ndim == 2 else None
    if not np.issubdtype(expected[0].dtype, np.inexact):
        differing = sum(int((want != have).sum()) for want, have in zip(expected, found, strict=True))
        share = differing / max(1, sum(want.size for want in expected))
        return OutputCheck(name, share, share, 1.0, _measure_variation(expected, batches) == 0, argmax)
    difference = max(_measure_difference(want, have) for want, have in zip(expected, found, strict=True))
    variation = _measure_variation(expected, batches)
    magnitude = max((float(np.abs(_drop_nonfinite(want)).max(initial=0.0)) for want in expected), default=0.0)
    is_vacuous = variation <= VACUOUS * magnitude
    scale = (magnitude or 1.0) if is_vacuous else variation
    return OutputCheck(name, difference / scale, difference, variation, is_vacuous, argmax)


def _measure_difference(want: Array, have: Array) -> float:
    """Return max |want - have|; a NaN equals a NaN, and nothing else."""
    equal = (want == have) | (np.isnan(want) & np.isnan(have))
    with np.errstate(invalid="ignore"):
        difference = np.where(equal, 0.0, np.abs(want.astype(np.float64) - have))
    return float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max(initial=0.0))


def _measure_variation(runs: list[Array], batches: Sequence[int]) -> float:
    """Return the largest range that an element has over all samples (over runs, where there is no batch)."""
    arrays = [_drop_nonfinite(run) for run in runs]
    if all(array.shape[:1] == (batch,) for array, batch in zip(arrays, batches, strict=True)):
        shapes = {array.shape[1:] for array in arrays}
        groups = [np.concatenate([array for array in arrays if array.shape[1:] == shape]) for shape in shapes]
    else:
        shapes = {array.shape for array in arrays}
        groups = [np.stack([array for array in arrays if array.shape == shape]) for shape in shapes]
    return max(float(np.ptp(group, axis=0).max(initial=0.0)) for group in groups)


def _drop_nonfinite(array: Array) -> Array:
    return np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _compare_argmax(expected: list[Array], found: list[Array]) -> float:
    same = [want.argmax(1) == have.argmax(1) for want, have in zip(expected, found, strict=True)]
    return float(np.concatenate(same).mean())

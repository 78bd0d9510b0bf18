"""How far are the outputs of a file from those of the model, beside how much they vary?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fxprune.export.runtimes.interface import Array
from fxprune.output_scale import find_scale

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
    the samples, and `error` their quotient, or more where elements of a smaller range differ (see
    `find_scale`). Where the output does not vary (`is_vacuous`) the error is relative to its
    magnitude, and agreement shows little. For integers and booleans
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

    @property
    def is_rounding(self) -> bool:
        """Say whether the model's own rounding explains the error, however large it is."""
        return self.error <= ROUNDING_FACTOR * self.rounding

    def is_within(self, tolerance: float) -> bool:
        """Say whether the error is within the tolerance, or else explained by the model's own rounding."""
        return self.error <= self.allow(tolerance)

    def allow(self, tolerance: float) -> float:
        """Return the largest error that the tolerance or the model's own rounding excuses."""
        return max(tolerance, min(ROUNDING_FACTOR * self.rounding, ROUNDING_LIMIT))

    def __str__(self) -> str:
        """Return one line."""
        scale = "but it does not vary with the input" if self.is_vacuous else f"it varies by {self.variation:.2g}"
        argmax = "" if self.argmax_agreement is None else f", same argmax in {self.argmax_agreement:.1%}"
        rounding = f", the model's own rounding error is {self.rounding:.1e}" if self.rounding else ""
        return f"{self.name}: error {self.error:.1e} (differs by {self.difference:.1e}, {scale}{argmax}{rounding})"


def check_outputs(
    labels: tuple[str, ...], expected: list[list[Array]], found: list[list[Array]], batches: Sequence[int]
) -> tuple[OutputCheck, ...]:
    """Compare the outputs of several runs, a list of arrays each; `batches` are the samples of each run."""
    return tuple(
        check_output(label, [run[index] for run in expected], [run[index] for run in found], batches)
        for index, label in enumerate(labels)
    )


def check_output(name: str, expected: list[Array], found: list[Array], batches: Sequence[int]) -> OutputCheck:
    """Compare one output over several runs."""
    if any(want.shape != have.shape for want, have in zip(expected, found, strict=True)):
        return OutputCheck(name, float("inf"), float("inf"), 0.0, False, None)
    argmax = _compare_argmax(expected, found) if expected[0].ndim == 2 else None
    wants, haves = _stack_samples(expected, batches), _stack_samples(found, batches)
    variation = _measure_variation(wants)
    if not np.issubdtype(expected[0].dtype, np.inexact):
        differing = sum(int((want != have).sum()) for want, have in zip(expected, found, strict=True))
        share = differing / max(1, sum(want.size for want in expected))
        return OutputCheck(name, share, share, 1.0, variation == 0, argmax)
    differences = [_measure_difference(want, have) for want, have in zip(wants, haves, strict=True)]
    difference = max(float(each.max(initial=0.0)) for each in differences)
    magnitude = max((float(np.abs(_drop_nonfinite(want)).max(initial=0.0)) for want in wants), default=0.0)
    is_vacuous = variation <= VACUOUS * magnitude
    scales = [
        (magnitude or 1.0) if is_vacuous or not want.size else find_scale(torch.from_numpy(want)).numpy()
        for want in wants
    ]
    error = max(float((d / scale).max(initial=0.0)) for d, scale in zip(differences, scales, strict=True))
    return OutputCheck(name, error, difference, variation, is_vacuous, argmax)


def _measure_difference(want: Array, have: Array) -> Array:
    """Return |want - have|; a NaN equals a NaN, and nothing else."""
    equal = (want == have) | (np.isnan(want) & np.isnan(have))
    with np.errstate(invalid="ignore"):
        difference = np.where(equal, 0.0, np.abs(want - have))
    return np.nan_to_num(difference, nan=np.inf, posinf=np.inf)


def _measure_variation(groups: list[Array]) -> float:
    """Return the largest range that an element has over the samples of its group."""
    return max(float(np.ptp(_drop_nonfinite(group), axis=0).max(initial=0.0)) for group in groups)


def _stack_samples(runs: list[Array], batches: Sequence[int]) -> list[Array]:
    """Give the samples of all runs (the runs, where there is no batch) as float64 arrays, one for each shape."""
    has_batch = all(run.shape[:1] == (batch,) for run, batch in zip(runs, batches, strict=True))
    groups: dict[tuple[int, ...], list[Array]] = {}
    for run in runs:
        groups.setdefault(run.shape[1:] if has_batch else run.shape, []).append(run.astype(np.float64))
    return [np.concatenate(group) if has_batch else np.stack(group) for group in groups.values()]


def _drop_nonfinite(array: Array) -> Array:
    return np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0)


def _compare_argmax(expected: list[Array], found: list[Array]) -> float:
    same = [want.argmax(1) == have.argmax(1) for want, have in zip(expected, found, strict=True)]
    return float(np.concatenate(same).mean())

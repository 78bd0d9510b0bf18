"""Whether conversion is exact on whole model families, at both granularities, in both precisions, and in ONNX."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from torch import nn

import fxprune
from fxprune.model import PreparedModel
from tests.exactness import close_units, randomise, relative_error, settle_statistics, varied_images, zero_filters
from tests.zoo.networks import PRUNABLE, build, image_sizes

DOUBLE, SINGLE = 1e-8, 1e-4
"""Errors relative to the outputs' variation; rounding alone stays a thousand times below the first."""


def prepared_model(name: str, share: float) -> PreparedModel:
    """A prepared model with random scales and shifts, random gates, and statistics that fit them, in double."""
    model = build(name).double()
    randomise(model, share=share)
    size = image_sizes(name)[0]
    prepared = fxprune.prepare(model, varied_images(2, 3, size))
    close_units(prepared, share, seed=1)
    settle_statistics(prepared, varied_images(4, 3, size, seed=2))
    return prepared


def check_everywhere(name: str, source: nn.Module, compact: nn.Module) -> None:
    """Compare at two batch sizes and two image sizes, in double and in single precision."""
    single = copy.deepcopy(source).float(), copy.deepcopy(compact).float()
    for batch, size in zip((4, 7), image_sizes(name), strict=True):
        x = varied_images(batch, 3, size, seed=batch)
        assert relative_error(source, compact, x) < DOUBLE
        assert relative_error(*single, x.float()) < SINGLE


def check_onnx(name: str, compact: nn.Module, folder: Path) -> None:
    """Export and compare on ONNX Runtime; `to_onnx` raises if they differ by more than 1e-4."""
    x = varied_images(2, 3, image_sizes(name)[0]).float()
    written = fxprune.export.to_onnx(compact.float().eval(), x, folder / f"{name}.onnx", tolerance=1e-4)
    assert written.verification is not None
    assert written.verification.passed


@pytest.mark.zoo
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("name", PRUNABLE)
def test_closed_channels_convert_exactly(name: str, share: float, tmp_path: Path) -> None:
    prepared = prepared_model(name, share)
    compact = fxprune.convert(prepared)
    check_everywhere(name, prepared, compact)
    if share == 0.5:
        check_onnx(name, compact, tmp_path)


@pytest.mark.zoo
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("name", PRUNABLE)
def test_zero_filters_convert_exactly(name: str, share: float, tmp_path: Path) -> None:
    model = build(name).double()
    randomise(model, share=share)
    size = image_sizes(name)[0]
    prepared = fxprune.prepare(model, varied_images(2, 3, size), granularity="weight")
    zero_filters(prepared, share)
    settle_statistics(prepared, varied_images(4, 3, size, seed=2))
    compact = fxprune.convert(prepared)
    assert compact.report.parameters_after < compact.report.parameters_before
    check_everywhere(name, prepared, compact)
    if share == 0.5:
        check_onnx(name, compact, tmp_path)

"""Whether the zoo's runner says what is so: what counts as agreement, what is kept of a failure, and the limits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.zoo.cases import Candidate, Source, draw_images, make_case
from tests.zoo.meaning import compare, randomise
from tests.zoo.measure import find_refusal, measure
from tests.zoo.result import Record, Result, Stopped, read_results
from tests.zoo.rows import count_rows
from tests.zoo.run import Limits, choose, run_all
from tests.zoo.table import is_exact, lost_parameters, write_table


def test_errors_are_relative_to_the_variation() -> None:
    outputs = torch.tensor([[100.0, 0.0], [104.0, 0.0]], dtype=torch.float64)
    found = compare([outputs], [outputs + 0.4])
    assert found.error == pytest.approx(0.1)
    assert found.variation == pytest.approx(4 / 104)


def test_equal_outputs_that_do_not_vary_are_vacuous() -> None:
    assert compare([torch.ones(2, 3)], [torch.ones(2, 3)]).is_vacuous


def test_other_shapes_and_nan_are_no_agreement() -> None:
    outputs = torch.randn(2, 3)
    assert compare([outputs], [outputs[:, :2]]).error == float("inf")
    assert compare([outputs], [outputs * float("nan")]).error == float("inf")


def test_zero_heads_are_randomised() -> None:
    head = nn.Linear(4, 2)
    nn.init.zeros_(head.weight)
    randomise(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), head), 0.5)
    assert head.weight.abs().min() > 0


def test_rows_are_those_of_contractions() -> None:
    layers = (nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 5, 1), nn.MultiheadAttention(4, 2), nn.LayerNorm(4))
    assert count_rows(nn.ModuleList(layers)) == 8 + 5 + 12 + 4


def test_failures_are_one_line_without_folders() -> None:
    result = Result("torchvision", "resnet18")
    result.fail("trace", "TraceError", "no\n  such thing (at /home/me/site-packages/timm/layers.py:7 in forward)")
    assert result.failures[0].message == "no such thing (at layers.py:7 in forward)"
    assert not is_exact(result)


def test_a_model_is_measured_in_all_stages(tmp_path: Path) -> None:
    record = Record(Result("torchvision", "squeezenet1_1"), tmp_path / "result.json")
    measure(record)
    result = next(iter(read_results(record.path).values()))
    assert result.failures == []
    assert is_exact(result)
    assert (lost_parameters(result) or 0) > 0.4
    assert isinstance(result.other_size, float)
    assert result.onnx_status == "agrees"


def test_a_model_that_is_not_there_fails_in_build(tmp_path: Path) -> None:
    record = Record(Result("torchvision", "resnet17"), tmp_path / "result.json")
    with pytest.raises(Stopped):
        measure(record)
    assert record.result.failures[0].stage == "build"


def test_what_takes_too_long_is_ended_and_noted(tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    run_all(choose(["torchvision"], ["alexnet"]), 1, Limits(seconds=0.5, memory=10), out)
    results = list(read_results(out).values())
    assert [(result.name, result.failures[0].error) for result in results] == [("alexnet", "Timeout")]
    write_table(results, tmp_path / "table.md")
    assert "alexnet" in (tmp_path / "table.md").read_text(encoding="utf-8")


class Planned(nn.Module):
    """A layer whose width its constructor computes with a tensor, as RegNet's does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, int(torch.linspace(4, 8, 2)[1]), 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_models_that_compute_their_widths_get_small_images_too() -> None:
    source = Source(
        candidates=lambda name: iter([Candidate({}, 32, 48), Candidate({}, 299, 331)]),
        build=lambda name, options: Planned(),
        draw=lambda name, model: draw_images,
    )
    assert make_case(source, "planned").size == 32


class Eigen(nn.Module):
    """A model with an op that ONNX does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x)


def test_what_the_exporter_cannot_do_is_listed_with_its_reason(tmp_path: Path) -> None:
    reason = find_refusal(Eigen(), (torch.randn(2, 3, 3),))
    assert reason is not None
    assert "linalg_eig" in reason
    assert find_refusal(nn.Linear(3, 2), (torch.randn(2, 3),)) is None
    results = [Result("own", "eigen", refusal=reason), Result("own", "linear")]
    write_table(results, tmp_path / "table.md")
    listed = (tmp_path / "table.md").read_text(encoding="utf-8").partition("originals that cannot be exported")[2]
    assert "linalg_eig" in listed
    assert "linear" not in listed.partition("linalg_eig")[0]

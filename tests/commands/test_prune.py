"""Does `fxprune prune` write what it says, and do `export` and `report` read it again?"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from typer.testing import Result

import fxprune
from fxprune.commands.load_model import load_model
from fxprune.errors import ExactnessError
from fxprune.export.measurements import NotMeasured
from fxprune.reporting.comparison import Comparison
from tests.commands.running import assert_refused, run

SIZE = "2x3x8x8"


class Pruned(NamedTuple):
    folder: Path
    result: Result
    arguments: list[str]


@pytest.fixture(scope="module")
def pruned(model_file: str, tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    folder = tmp_path_factory.mktemp("pruned")
    np.savez(folder / "images.npz", images=5 + np.random.default_rng(0).normal(size=(40, 3, 8, 8)))
    arguments = ["prune", model_file, "--target", "macs=0.5", "--align", "4", "--input", SIZE]
    arguments += ["--calibrate", str(folder / "images.npz"), "--onnx", str(folder / "compact.onnx")]
    arguments += [
        "--save",
        str(folder / "compact.safetensors"),
        "--bench",
        "ort-cpu",
        "--batch",
        "1",
        "--seconds",
        "0.02",
    ]
    arguments += ["--report", str(folder / "report.html"), "--json", str(folder / "result.json")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["/bin/fxprune", *arguments])
        return Pruned(folder, run(*arguments), arguments)


def test_the_file_is_half_the_model(pruned: Pruned, model_file: str) -> None:
    assert pruned.result.exit_code == 0, pruned.result.stderr
    session = onnxruntime.InferenceSession(pruned.folder / "compact.onnx")
    (scores,) = session.run(None, {"input": np.zeros((3, 3, 8, 8), np.float32)})
    assert scores.shape == (3, 4)
    dense, compact = Comparison.from_json((pruned.folder / "result.json").read_text()).networks
    assert 0.3 * dense.macs < compact.macs <= 0.5 * dense.macs


def test_the_saved_model_is_the_one_in_the_file(pruned: Pruned, model_file: str) -> None:
    compact = fxprune.load(load_model(model_file), pruned.folder / "compact.safetensors").eval()
    x = 5 + torch.randn(4, 3, 8, 8)
    session = onnxruntime.InferenceSession(pruned.folder / "compact.onnx")
    (scores,) = session.run(None, {"input": x.numpy()})
    torch.testing.assert_close(compact(x), torch.from_numpy(scores), atol=1e-4, rtol=1e-4)
    widths = {layer.weight.shape[0] for layer in (compact.get_submodule("0"), compact.get_submodule("3"))}
    assert {width % 4 for width in widths} == {0}


def test_calibration_measures_the_users_images(pruned: Pruned, model_file: str) -> None:
    compact = fxprune.load(load_model(model_file), pruned.folder / "compact.safetensors")
    with np.load(pruned.folder / "images.npz") as file:
        images = torch.from_numpy(file["images"]).float()
    first, norm = compact.get_submodule("0"), compact.get_submodule("1")
    batches = [first(part).mean((0, 2, 3)) for part in (images[:32], images[32:])]
    torch.testing.assert_close(norm.running_mean, torch.stack(batches).mean(0), atol=1e-4, rtol=1e-4)


def test_what_is_printed_stands_in_the_page_and_in_the_json(pruned: Pruned) -> None:
    found = Comparison.from_json((pruned.folder / "result.json").read_text())
    assert str(found) in pruned.result.stdout
    page = (pruned.folder / "report.html").read_text()
    assert f"{found.networks[1].macs:,}" in page
    assert found.commands == (" ".join(["fxprune", *pruned.arguments]),)
    assert [timing.name for timing in found.benchmark.timings] == ["dense", "compact"]


def test_report_makes_the_other_forms(pruned: Pruned, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("epoch,sparsity\n1,0.25\n2,0.5\n")
    forms = ["--html", tmp_path / "page.html", "--markdown", tmp_path / "page.md", "--log", tmp_path / "log.csv"]
    result = run("report", pruned.folder / "result.json", *forms)
    assert result.exit_code == 0
    assert result.stdout == pruned.result.stdout
    assert "Sparsity over training" in (tmp_path / "page.html").read_text()
    assert "multiply-accumulates" in (tmp_path / "page.md").read_text()


def test_report_exits_with_3_where_a_check_had_failed(pruned: Pruned, tmp_path: Path) -> None:
    fields = json.loads((pruned.folder / "result.json").read_text())
    fields["networks"][1]["verification"]["outputs"][0]["error"] = 1.0
    (tmp_path / "wrong.json").write_text(json.dumps(fields))
    result = run("report", tmp_path / "wrong.json")
    assert result.exit_code == 3
    assert "differs from the model" in result.stdout


def test_a_saved_model_is_exported(pruned: Pruned, model_file: str, tmp_path: Path) -> None:
    weights = pruned.folder / "compact.safetensors"
    result = run("export", model_file, "--weights", weights, "--onnx", tmp_path / "again.onnx")
    assert result.exit_code == 0
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    first, second = (
        onnxruntime.InferenceSession(path).run(None, {"input": x})[0]
        for path in (pruned.folder / "compact.onnx", tmp_path / "again.onnx")
    )
    np.testing.assert_allclose(first, second, atol=1e-4)


def test_a_runtime_that_was_not_measured_is_a_failed_check(
    pruned: Pruned, model_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Comparison.from_json((pruned.folder / "result.json").read_text()).benchmark
    lacking = replace(found, not_measured=(NotMeasured("openvino", "it is not installed"),))
    monkeypatch.setattr("fxprune.export.benchmark", lambda *_, **options: lacking)
    out = ["--onnx", tmp_path / "out.onnx", "--bench", "ort-cpu,openvino"]
    result = run("prune", model_file, "--target", "sparsity=0.5", "--input", SIZE, *out)
    assert result.exit_code == 3
    assert "openvino was not measured: it is not installed" in result.stdout
    assert (tmp_path / "out.onnx").exists()


def test_a_conversion_that_differs_exits_with_3(
    model_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ExactnessError("the outputs differ")

    monkeypatch.setattr("fxprune.convert", fail)
    result = run("prune", model_file, "--target", "params=0.5", "--input", SIZE, "--onnx", tmp_path / "out.onnx")
    assert (result.exit_code, result.stderr) == (3, "fxprune: the outputs differ\n")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--target", "latncy=0.5", ["latncy", "macs, params, sparsity, latency", "did you mean latency?"]),
        ("--target", "macs=half", ["macs=half", "macs=0.5"]),
        ("--target", "macs=1.5", ["between 0 and 1"]),
        ("--target", "macs=0.0001", ["cannot be reached"]),
        ("--method", "fether", ["did you mean feather"]),
        ("--bench", "ort-gpu", ["ort-gpu", "ort-cpu"]),
        ("--batch", "1,x", ["whole numbers"]),
        ("--input", "3x", ["1x3x224x224"]),
        ("--calibrate", "missing.npz", ["--calibrate missing.npz"]),
        ("--report", "report.pdf", [".html"]),
        ("--json", "/no/folder/result.json", ["cannot be written"]),
        ("--exclude", "layer9", ["layer9"]),
        ("--shapes", "rectangles", ["--shapes rectangles goes with --granularity stripe"]),
        ("--weights", "missing.safetensors", ["no such file"]),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(
    model_file: str, tmp_path: Path, option: str, value: str, words: list[str]
) -> None:
    given = {"--target": "macs=0.5", "--input": SIZE, "--onnx": str(tmp_path / "out.onnx"), option: value}
    assert_refused(run("prune", model_file, *(part for pair in given.items() for part in pair)), *words)
    assert list(tmp_path.iterdir()) == []


def test_report_refuses_other_files_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    assert_refused(run("report", tmp_path / "other.json"), "other.json: ", "no JSON of a fxprune report")
    assert_refused(run("report", tmp_path / "none.json"), "cannot be read")
    assert_refused(run("report", tmp_path / "other.json", "--html", tmp_path / "page.pdf"), "give .html")


def test_one_file_for_two_results_is_refused(model_file: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    out = ["--onnx", tmp_path / "one.onnx", "--dense", tmp_path / "folder" / ".." / "one.onnx"]
    result = run("prune", model_file, "--target", "macs=0.5", "--input", SIZE, *out)
    assert_refused(result, "one.onnx is given for two files")
    assert not (tmp_path / "one.onnx").exists()


@pytest.mark.parametrize("images", [np.zeros((4, 1, 8, 8), np.float32), np.zeros((4, 3, 8, 8), np.uint8)])
def test_calibration_on_inputs_that_do_not_fit_is_refused(images: np.ndarray, model_file: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images)
    out = ["--onnx", tmp_path / "out.onnx", "--calibrate", tmp_path / "images.npz"]
    result = run("prune", model_file, "--target", "macs=0.5", "--input", SIZE, *out)
    assert_refused(result, "images.npz", "its first batch", str(images.shape))


def test_stripes_are_lowered_by_time_where_time_is_asked_for_and_saved_as_exported(
    model_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def lower_without_timing(compact: nn.Module, **options: object) -> nn.Module:
        asked.append(options)
        return lower_stripes(compact)

    lower_stripes = fxprune.lower_stripes
    monkeypatch.setattr("fxprune.lower_stripes", lower_without_timing)
    model = model_file.replace(":net", ":rows")
    options = ["--granularity", "stripe", "--target", "sparsity=0.67", "--exclude", "0", "--input", "2x3x32x32"]
    out = ["--onnx", tmp_path / "out.onnx", "--save", tmp_path / "lowered.safetensors"]
    result = run("prune", model, *options, "--bench", "ort-cpu", "--batch", "2", "--seconds", "0.01", *out)
    assert result.exit_code == 0, result.stderr
    assert asked == [{"runtime": "ort-cpu", "threads": 1}]
    loaded = fxprune.load(load_model(model), tmp_path / "lowered.safetensors").eval()
    kernels = [tuple(m.kernel_size) for m in loaded.modules() if isinstance(m, nn.Conv2d)]
    nodes = [node for node in onnx.load(tmp_path / "out.onnx").graph.node if node.op_type == "Conv"]
    exported = [tuple(a.ints) for node in nodes for a in node.attribute if a.name == "kernel_shape"]
    assert (1, 3) in kernels
    assert sorted(kernels) == sorted(exported)


def test_shapes_of_stripes_are_passed_on(model_file: str, tmp_path: Path) -> None:
    options = ["--granularity", "stripe", "--shapes", "rectangles", "--target", "sparsity=0.5", "--input", "2x3x32x32"]
    result = run("prune", model_file.replace(":net", ":rows"), *options, "--save", tmp_path / "a.safetensors",
                 "--onnx", tmp_path / "out.onnx")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    kernels = [onnx.numpy_helper.to_array(each) for each in onnx.load(tmp_path / "out.onnx").graph.initializer]
    patterns = [(np.abs(kernel).sum(1) > 0) for kernel in kernels if kernel.ndim == 4]
    assert patterns
    assert all(np.array_equal(filter, pattern[0]) for pattern in patterns for filter in pattern)  # of a block of 16


def test_each_input_has_its_size(model_file: str, tmp_path: Path) -> None:
    model = model_file.replace(":net", ":Sum")
    sizes = ["--input", "2x7", "--input", "2x3"]
    result = run("prune", model, "--target", "macs=0.5", *sizes, "--onnx", tmp_path / "out.onnx")
    assert result.exit_code == 0, result.stderr
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx")
    assert [(found.name, found.shape[1]) for found in session.get_inputs()] == [("left", 7), ("right", 3)]

"""Does the command line do what its options say, and refuse in one sentence?"""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune.cli import main
from fxprune.errors import ExactnessError
from tests.commands.running import assert_refused, run


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bench")
    paths = folder / "wide.onnx", folder / "slim.onnx"
    for path, width in zip(paths, (64, 8), strict=True):
        model = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 4))
        fxprune.export.to_onnx(model, torch.randn(2, 16), path)
    return paths


def test_the_version_is_shown() -> None:
    assert run("--version").stdout == f"fxprune {version('fxprune')}\n"


def test_help_and_version_do_not_wait_for_torch() -> None:
    code = "import sys, fxprune.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_help_names_both_commands() -> None:
    shown = run("--help").stdout
    assert "demo" in shown
    assert "bench" in shown


def test_the_demo_prints_its_report_and_where_the_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("fxprune.demo.run.run_demo", lambda settings: asked.append(settings) or "the report")
    result = run("demo", "--method", "st3-sigma", "--target", "0.7", "--epochs", "2", "--seed", "5", "--out", tmp_path)
    assert result.exit_code == 0
    assert result.stdout.startswith("the report\n")
    assert str(tmp_path) in result.stdout
    (settings,) = asked
    assert (settings.method, settings.granularity, settings.target) == ("st3-sigma", "channel", 0.7)
    assert (settings.epochs, settings.seed, settings.out) == (2, 5, tmp_path)


def test_the_demo_refuses_in_one_sentence(tmp_path: Path) -> None:
    assert_refused(run("demo", "--target", "1.5", "--out", tmp_path), "between 0 and 1")
    assert_refused(run("demo", "--model", "resnet19", "--out", tmp_path), "did you mean")


def test_a_check_that_fails_has_an_exit_code_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: object) -> None:
        raise ExactnessError("the outputs differ")

    monkeypatch.setattr("fxprune.demo.run.run_demo", fail)
    result = run("demo", "--out", tmp_path)
    assert result.exit_code == 3
    assert result.stderr == "fxprune: the outputs differ\n"
    assert "3 a check failed" in " ".join(run("demo", "--help").stdout.split())


def test_an_unknown_method_is_a_usage_error() -> None:
    assert run("demo", "--method", "magnitude").exit_code == 2


def test_bench_prints_both_files_and_writes_the_numbers(files: tuple[Path, Path], tmp_path: Path) -> None:
    result = run("bench", *files, "--batch", "1,4", "--seconds", "0.05", "--json", tmp_path / "bench.json")
    assert result.exit_code == 0
    timings = json.loads((tmp_path / "bench.json").read_text())["timings"]
    assert [(timing["name"], timing["batch_size"]) for timing in timings] == [
        (str(path), batch) for batch in (1, 4) for path in files
    ]
    for timing in timings:
        assert f"{timing['median']:.3f}" in result.stdout


def test_bench_takes_several_runtimes_and_thread_counts(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxprune.export.pin_cores.count_cores", lambda: 2)
    result = run(
        "bench", *files, "--runtime", "ort-cpu,torch-cuda-graphs", "--batch", "2", "--threads", "1,2", "--seconds",
        "0.01", "--layers", "--json", tmp_path / "bench.json",
    )  # fmt: skip
    assert result.exit_code == (3 if "was not measured" in result.stdout else 0)
    found = json.loads((tmp_path / "bench.json").read_text())
    assert [(timing["runtime"], timing["threads"]) for timing in found["timings"]] == [
        ("ort-cpu", threads) for threads in (1, 2) for _ in files
    ]
    if not torch.cuda.is_available():
        assert [each["runtime"] for each in found["not_measured"]] == ["torch-cuda-graphs"]
        assert "torch-cuda-graphs was not measured: " in result.stdout
    assert {layer["layer"] for layer in found["layers"]} >= {"0", "2"}
    assert_refused(run("bench", *files, "--runtime", "ort-gpu"), "is not known")


def test_bench_refuses_in_one_sentence(files: tuple[Path, Path], tmp_path: Path) -> None:
    assert_refused(run("bench", files[0], tmp_path / "none.onnx"), "none.onnx")
    assert_refused(run("bench", files[0], files[0]), "given twice")
    content = files[1].read_bytes()
    assert_refused(run("bench", *files, "--json", files[1]), "is read by this command, which would overwrite it")
    assert files[1].read_bytes() == content
    assert_refused(run("bench", *files, "--batch", "1,x"), "whole numbers")
    assert_refused(run("bench", *files, "--batch", "0"), "1 or more")
    assert_refused(run("bench", *files, "--json", tmp_path / "no" / "file.json"), "cannot be written")
    assert_refused(run("bench", files[0], tmp_path / "none.onnx", "--json", tmp_path / "bench.json"), "none.onnx")
    assert not (tmp_path / "bench.json").exists()


def test_open_sizes_are_given_by_an_option(tmp_path: Path) -> None:
    path = tmp_path / "open.onnx"
    axes = {"input": {2: "height", 3: "width"}}
    fxprune.export.to_onnx(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8), path, dynamic_axes=axes)
    timed = ["bench", path, "--batch", "1", "--seconds", "0.01"]
    assert_refused(run(*timed), "--input-shape input=3x64x64")
    assert_refused(run(*timed, "--input-shape", "3x8x8"), "the input's name")
    assert_refused(run(*timed, "--input-shape", "input=3x0x8"), "whole numbers from 1")
    assert run(*timed, "--input-shape", "input=3x8x8").exit_code == 0


def test_the_console_script_exits_with_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["fxprune", "demo", "--target", "0"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_bench_ends_with_3_where_nothing_could_be_measured(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = run("bench", *files, "--runtime", "torch-cuda-graphs", "--batch", "1")
    assert result.exit_code == 3
    assert result.stderr.startswith("fxprune: ")

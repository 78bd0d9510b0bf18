"""Does the demo do what it says, and refuse what it cannot do before any training?"""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fxprune.demo.data import load_images
from fxprune.demo.model import build_model
from fxprune.demo.picture import count_channels
from fxprune.demo.report import Report, Row, format_agreement, format_table
from fxprune.demo.run import run_demo, use_one_thread
from fxprune.demo.settings import DemoError, Settings, check_settings
from fxprune.demo.training import predict, train
from fxprune.errors import TargetError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Report]:
    settings = Settings(epochs=1, seconds=0.1, out=tmp_path_factory.mktemp("demo") / "made" / "here")
    return settings, run_demo(settings)


def rows_by_name(report: Report) -> dict[str, Row]:
    return {row.name: row for row in report.rows}


def test_the_demo_writes_its_four_files(run: tuple[Settings, Report]) -> None:
    settings, report = run
    assert sorted(file.name for file in settings.out.iterdir()) == [
        "channels.png",
        "compact.onnx",
        "dense.onnx",
        "report.json",
    ]
    for name, row in rows_by_name(report).items():
        if name != "prepared":
            assert row.onnx_bytes == (settings.out / f"{name}.onnx").stat().st_size


def test_the_table_is_that_of_the_written_report(run: tuple[Settings, Report]) -> None:
    settings, report = run
    read = Report.from_json((settings.out / "report.json").read_text())
    assert read == report
    table = format_table(read)
    for row in read.rows:
        line = next(line for line in table.splitlines() if line.startswith(row.name))
        assert f"{row.correct / row.images:.1%}" in line
        assert f"{row.parameters:,}" in line
        assert f"{row.macs:,}" in line
    for timing in read.benchmark.timings:
        line = next(line for line in table.splitlines() if line.startswith(timing.name))
        assert f"{timing.median:.3f} ({timing.lower_quartile:.3f} to {timing.upper_quartile:.3f})" in line
        assert f"{timing.speedup:.2f}x ({timing.speedup_low:.2f} to {timing.speedup_high:.2f})" in line


def test_the_compact_model_is_smaller_and_says_the_same(run: tuple[Settings, Report]) -> None:
    _, report = run
    rows = rows_by_name(report)
    assert rows["compact"].correct == rows["prepared"].correct
    assert report.agreeing == report.agreeing_file == rows["compact"].images == 500
    assert rows["compact"].difference < 1e-5 * report.variation
    assert rows["compact"].parameters < 0.5 * rows["dense"].parameters
    assert rows["compact"].macs < 0.5 * rows["dense"].macs
    assert rows["compact"].onnx_bytes < 0.5 * rows["dense"].onnx_bytes


def test_training_teaches_the_digits() -> None:
    digits = load_images(8, 1)
    model = build_model("digitnet", seed=0).model
    with use_one_thread():
        train(model, digits, epochs=2, seed=0, title="")
    right = predict(model, digits.test_images).argmax(1) == digits.test_labels
    assert right.float().mean() > 0.9


def test_a_changed_prediction_is_not_called_the_same(run: tuple[Settings, Report]) -> None:
    _, report = run
    assert " is the same to the last sample" in format_agreement(report)
    assert " is NOT the same to the last sample" in format_agreement(replace(report, agreeing=499))
    changed = tuple(replace(row, correct=row.correct - (row.name == "compact")) for row in report.rows)
    assert " is NOT the same to the last sample" in format_agreement(replace(report, rows=changed))


def test_a_model_that_says_the_same_of_every_image_shows_little(run: tuple[Settings, Report]) -> None:
    assert "shows little" not in format_agreement(run[1])
    assert "shows little" in format_agreement(replace(run[1], variation=0.0))


def test_layers_are_counted_by_the_outputs_that_stay(run: tuple[Settings, Report]) -> None:
    layers = {layer.name: layer for layer in run[1].layers}
    assert next(iter(layers)) == "stem"
    assert layers["stages.2.conv1"].kept + layers["stages.2.conv1"].removed == 128
    assert (layers["head"].kept, layers["head"].removed) == (10, 0)
    assert layers["stages.1.conv2"].kept == layers["stages.1.shortcut.0"].kept  # summed, so tied


def test_a_layer_that_is_gone_kept_no_channel() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Linear(8, 4))
    (first, second) = count_channels(model, torch.nn.Sequential(torch.nn.Conv2d(1, 6, 3)))
    assert (first.kept, first.removed, second.kept, second.removed) == (6, 2, 0, 4)


def test_the_same_seed_trains_the_same_model() -> None:
    digits = load_images(8, 1)
    digits = digits._replace(train_images=digits.train_images[:128], train_labels=digits.train_labels[:128])
    logits = []
    for seed in (3, 3, 4):
        model = build_model("digitnet", seed).model
        with use_one_thread():
            train(model, digits, epochs=1, seed=seed, title="")
        logits.append(predict(model, digits.test_images[:8]))
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


def test_digits_are_split_always_alike_and_normalised() -> None:
    digits, again = load_images(8, 1), load_images(32, 3)
    assert digits.train_images.shape == (1297, 1, 8, 8)
    assert again.test_images.shape == (500, 3, 32, 32)
    assert torch.equal(digits.test_labels, again.test_labels)
    assert abs(float(digits.train_images.mean())) < 1e-4
    assert digits.test_labels.bincount().min() >= 48


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_torchvision_classifiers_take_the_digits(name: str) -> None:
    subject = build_model(name, seed=0)
    assert subject.model.training
    images = load_images(subject.size, subject.channels).test_images[:2]
    assert predict(subject.model, images).shape == (2, 10)


@pytest.mark.parametrize("method", ["feather", "st3", "st3-sigma"])
def test_each_method_has_its_name(method: str) -> None:
    settings = Settings(method=method)  # type: ignore[arg-type]
    assert type(settings.build_method()).__name__ == ("Feather" if method == "feather" else "ST3")
    assert getattr(settings.build_method(), "sigma", False) is (method == "st3-sigma")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (Settings(model="resnet19"), "did you mean resnet1"),
        (Settings(model="zzz"), "give a classifier of torchvision"),
        (Settings(method="magnitude"), "give one of feather, st3, st3-sigma"),  # type: ignore[arg-type]
        (Settings(granularity="filter"), "give one of channel, weight"),  # type: ignore[arg-type]
        (Settings(epochs=0), "give 1 or more"),
        (Settings(seed=-1), "give a whole number"),
        (Settings(seconds=0.0), "more than 0 seconds"),
    ],
)
def test_what_cannot_be_done_is_refused(settings: Settings, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(DemoError, match=sentence):
        run_demo(replace(settings, out=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", [0.0, 1.0, -0.5, float("nan")])
def test_a_target_outside_of_0_and_1_is_refused(target: float, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="between 0 and 1"):
        check_settings(Settings(target=target, out=tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="no CUDA device"):
        check_settings(Settings(device="cuda", out=tmp_path))


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DemoError, match="cannot be written"):
        check_settings(Settings(out=tmp_path / "file" / "demo"))


@pytest.mark.parametrize("package", ["sklearn", "matplotlib"])
def test_a_missing_extra_is_refused(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(DemoError, match=r"fxprune\[demo\]"):
        check_settings(Settings(out=tmp_path))


def test_settings_that_can_be_run_are_let_through(tmp_path: Path) -> None:
    check_settings(Settings(model="squeezenet1_1", out=tmp_path / "new"))
    assert (tmp_path / "new").is_dir()

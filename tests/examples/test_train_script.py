"""Whether the script trains, converts, measures and resumes, on a few random images."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.transforms.v2.functional import to_pil_image

import train
from command_line import Place
from data import load_images
from ranks import Ranks
from recipes import Recipe

SMALL = [
    "--model",
    "resnet8(width=4)",
    "--batch-size",
    "64",
    "--padding",
    "2",
    "--held-out",
    "0",
    "--best-from",
    "none",
]
QUICK = ["--device", "cpu", "--quiet", "--seconds", "0"]
HERE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 4, 300)
    images = np.clip(draw.integers(0, 256, (4, 8, 8, 3))[labels] * 0.7 + draw.integers(0, 80, (300, 8, 8, 3)), 0, 255)
    images, path = images.astype(np.uint8), tmp_path_factory.mktemp("data") / "few.npz"
    np.savez(path, x_train=images[:200], y_train=labels[:200], x_test=images[200:], y_test=labels[200:])
    return path


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "result.json").read_text())


def read_log(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "log.csv").read_text().splitlines()))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "checkpoint.pt", weights_only=True)["model"]


def test_the_script_ends_with_a_measured_model(arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--recipe", "feather-cifar10-channels", "--dataset", str(arrays), *SMALL, *QUICK, "--epochs", "2"]
    train.main([*options, "--out", str(tmp_path), "--seconds", "0.05"])
    result = read(tmp_path)
    conversion = result["conversion"]
    assert conversion["before"] == conversion["after"] == result["correct"]
    assert conversion["agreeing"] == conversion["images"] == result["images"] == 100
    assert result["parameters"] < result["dense_parameters"]
    assert result["macs"] < 0.7 * result["dense_macs"]
    assert set(result["latency"]) == {"1", "8"}
    assert len(read_log(tmp_path)) == 2
    assert (tmp_path / "compact.onnx").stat().st_size < (tmp_path / "dense.onnx").stat().st_size
    assert "is the same to the last sample" in capsys.readouterr().out


def test_the_dense_model_is_trained_by_the_same_script(arrays: Path, tmp_path: Path) -> None:
    options = ["--recipe", "dense-cifar10", "--dataset", str(arrays), *SMALL, *QUICK, "--epochs", "6"]
    train.main([*options, "--padding", "0", "--no-flip", "--out", str(tmp_path)])
    result = read(tmp_path)
    assert result["conversion"] is None
    assert result["parameters"] == result["dense_parameters"] == result["nonzero"]
    assert result["correct"] > 50  # of 100; 25 by chance


TWO_PHASES = ["--recipe", "slimming-cifar10", "--exclude", "--epochs", "2", "--tune-epochs", "2"]
CYCLES = ["--recipe", "lrr-cifar10", "--prunings", "1", "--epochs", "2", "--tune-epochs", "2"]
ONE_PHASE = ["--recipe", "st3-cifar10", "--epochs", "4"]


@pytest.mark.parametrize(
    ("recipe", "stop_after"), [(ONE_PHASE, 2), (CYCLES, 3), (TWO_PHASES, 2), (TWO_PHASES, 3)], ids=str
)
def test_a_resumed_run_gives_the_same(
    recipe: list[str], stop_after: int, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*recipe, "--dataset", str(arrays), *SMALL, *QUICK]
    train.main([*options, "--out", str(tmp_path / "whole")])
    with monkeypatch.context() as patched:
        patched.setattr(train, "write_checkpoint", break_off_after(stop_after))
        with pytest.raises(KeyboardInterrupt):
            train.main([*options, "--out", str(tmp_path / "broken")])
    train.main([*options, "--out", str(tmp_path / "broken"), "--resume"])
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    same = ("correct", "conversion", "parameters", "nonzero", "macs")
    assert [read(tmp_path / "whole")[name] for name in same] == [read(tmp_path / "broken")[name] for name in same]
    assert len(read_log(tmp_path / "broken")) == 4


def break_off_after(epochs: int) -> Callable[[Place, dict[str, Any]], None]:
    def write(place: Place, state: dict[str, Any]) -> None:
        write_checkpoint(place, state)
        if len(state["rows"]) == epochs:
            raise KeyboardInterrupt

    write_checkpoint = train.write_checkpoint
    return write


def test_a_checkpoint_of_other_settings_is_refused(arrays: Path, tmp_path: Path) -> None:
    options = ["--recipe", "dense-cifar10", "--dataset", str(arrays), *SMALL, *QUICK, "--out", str(tmp_path)]
    train.main([*options, "--epochs", "1"])
    with pytest.raises(SystemExit, match=r"other settings of epochs, rate; give those, or another --out"):
        train.main([*options, "--epochs", "2", "--rate", "0.2", "--resume"])


def test_the_best_epoch_on_held_out_images_is_kept(
    arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = iter([9, 8, 5, 7, 6, 4])  # of ten: after each epoch, and at the end
    monkeypatch.setattr(train, "count_correct", lambda model, batches, ranks: (next(right), 10))
    options = ["--recipe", "dense-cifar10", "--dataset", str(arrays), *SMALL, *QUICK, "--out", str(tmp_path)]
    train.main([*options, "--epochs", "5", "--held-out", "40", "--best-from", "0.4"])
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert [row["accuracy"] for row in saved["rows"]] == [0.9, 0.8, 0.5, 0.7, 0.6]
    assert saved["best"]["accuracy"] == 0.7
    assert saved["best"]["model"]["bn1.num_batches_tracked"] == 4 * 3  # batches of 64 of 160 images


def test_a_method_without_a_target_trains_to_its_own_sparsity(arrays: Path, tmp_path: Path) -> None:
    options = ["--recipe", "swp-cifar10", "--dataset", str(arrays), *SMALL, *QUICK, "--epochs", "1"]
    train.main([*options, "--method", "FilterSkeleton(delta=0.999)", "--out", str(tmp_path)])
    result = read(tmp_path)
    assert 0 < result["nonzero"] < result["dense_parameters"]
    assert result["conversion"]["agreeing"] == 100


def test_two_processes_train_one_model(arrays: Path, tmp_path: Path) -> None:
    options = [
        "--recipe",
        "st3-cifar10",
        "--dataset",
        str(arrays),
        *SMALL,
        *QUICK,
        "--epochs",
        "2",
        "--out",
        str(tmp_path),
    ]
    port = find_port()
    context = multiprocessing.get_context("forkserver")  # imports torch once, not once a process
    context.set_forkserver_preload(["train"])
    processes = [context.Process(target=train_as_rank, args=(rank, port, options)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    result = read(tmp_path)
    assert result["images"] == result["conversion"]["agreeing"] == 100
    assert [float(row["sparsity"]) for row in read_log(tmp_path)] == [0.9, 0.9]


def train_as_rank(rank: int, port: int, options: list[str]) -> None:
    """Run the script as torchrun does."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    train.main(options)


def find_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def test_an_epoch_is_shuffled_and_comes_again_the_same(arrays: Path) -> None:
    images = load_images(Recipe(dataset=str(arrays), batch_size=64), Place(), HERE)
    first, again, next_epoch = (list(images.train(epoch)) for epoch in (0, 0, 1))
    assert [len(labels) for _, labels in first] == [64, 64, 64, 8]
    assert images.steps == 4
    assert all(
        torch.equal(a, b) for batch, other in zip(first, again, strict=True) for a, b in zip(batch, other, strict=True)
    )
    assert not torch.equal(first[0][1], next_epoch[0][1])
    counts = torch.cat([labels for _, labels in first]).bincount()
    assert torch.equal(counts, torch.cat([labels for _, labels in next_epoch]).bincount())


def test_ranks_share_every_batch(arrays: Path) -> None:
    recipe = Recipe(dataset=str(arrays), batch_size=64)
    alone = list(load_images(recipe, Place(), HERE).train(3))
    halves = [list(load_images(recipe, Place(), Ranks(rank, 2, torch.device("cpu"))).train(3)) for rank in (0, 1)]
    for (images, _), (even, _), (odd, _) in zip(alone, *halves, strict=True):
        assert torch.equal(images[0::2], even)
        assert torch.equal(images[1::2], odd)


def test_crops_and_flips_stay_within_the_padded_image(arrays: Path) -> None:
    plain = load_images(Recipe(dataset=str(arrays), batch_size=300, padding=0, flip=False), Place(), HERE)
    moved = load_images(Recipe(dataset=str(arrays), batch_size=300, padding=2), Place(), HERE)
    (before, labels), (after, other) = next(plain.train(0)), next(moved.train(0))
    assert torch.equal(labels, other)
    assert before.mean().abs() < 1e-5
    assert before.std() == pytest.approx(1, abs=1e-3)
    padded = torch.nn.functional.pad(before, [2] * 4, value=float("nan"))
    seen = set()
    for image, source in zip(after[:100], padded[:100], strict=True):
        ways = [(flip, r, c) for flip in (0, 1) for r in range(5) for c in range(5)]
        crops = [(source.flip(2) if flip else source)[:, r : r + 8, c : c + 8] for flip, r, c in ways]
        same = [torch.equal(image[~crop.isnan()], crop[~crop.isnan()]) for crop in crops]
        assert sum(same) == 1
        seen.add(ways[same.index(True)])
    for each, values in zip(zip(*seen, strict=True), (2, 5, 5), strict=True):
        assert set(each) == set(range(values))


def test_gray_images_become_three_channels(tmp_path: Path) -> None:
    path = tmp_path / "gray.npz"
    images, labels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8), np.arange(20) % 5
    np.savez(path, train_images=images, train_labels=labels[:, None], test_images=images, test_labels=labels)
    loaded = load_images(Recipe(dataset=str(path)), Place(), HERE)
    batch, _ = next(loaded.test())
    assert batch.shape == (20, 3, 28, 28)
    assert loaded.classes == 5


def test_image_folders_are_loaded(tmp_path: Path) -> None:
    for split, name, number in [(s, n, i) for s in ("train", "val") for n in ("cat", "dog") for i in range(3)]:
        (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
        to_pil_image(pixels).save(tmp_path / split / name / f"{number}.png")
    recipe = Recipe(dataset=str(tmp_path), image_size=32, batch_size=4)
    images = load_images(recipe, Place(workers=0), HERE)
    assert images.classes == 2
    assert [batch.shape for batch, _ in images.train(0)] == [(4, 3, 32, 32), (2, 3, 32, 32)]
    assert images.steps == 2
    assert torch.cat([labels for _, labels in images.test()]).tolist() == [0, 0, 0, 1, 1, 1]


def test_a_data_set_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"give cifar10, cifar100, fashion-mnist, an .npz file, or a folder"):
        load_images(Recipe(dataset="cifar11"), Place(data=tmp_path), HERE)


def test_a_run_starts_from_weights_of_a_file(arrays: Path, tmp_path: Path) -> None:
    options = ["--recipe", "dense-cifar10", "--dataset", str(arrays), *SMALL, *QUICK, "--epochs", "1", "--rate", "0"]
    train.main([*options, "--seed", "1", "--out", str(tmp_path / "first")])
    path = tmp_path / "weights.safetensors"
    save_file(weights(tmp_path / "first"), path)
    train.main([*options, "--weights", str(path), "--out", str(tmp_path / "second")])
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert all(torch.equal(first[name], second[name]) for name in first if name.endswith("weight"))


def test_weights_of_another_model_are_refused(arrays: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"other": torch.zeros(3)}, path)
    options = ["--recipe", "dense-cifar10", "--dataset", str(arrays), *SMALL, *QUICK, "--out", str(tmp_path)]
    with pytest.raises(
        SystemExit, match=r"--weights .*weights\.safetensors is of another model: Missing key.*conv1.weight"
    ):
        train.main([*options, "--weights", str(path)])
    path.write_bytes(b"no weights")
    with pytest.raises(SystemExit, match=r"--weights .*weights\.safetensors: cannot be read"):
        train.main([*options, "--weights", str(path)])


def test_images_are_normalised_by_imagenet_where_asked(arrays: Path) -> None:
    own, imagenet = (
        next(load_images(Recipe(dataset=str(arrays), colours=colours), Place(), HERE).test())[0]
        for colours in ("own", "imagenet")
    )
    with np.load(arrays) as file:
        pixels = torch.from_numpy(file["x_test"][:1]).permute(0, 3, 1, 2) / 255
    red = (pixels[:, 0] - 0.485) / 0.229
    assert torch.allclose(imagenet[:1, 0], red, atol=1e-5)
    assert not torch.allclose(own[:1, 0], red, atol=1e-1)

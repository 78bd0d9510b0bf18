"""What does the demo do, step by step?"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import fxprune
from fxprune import export
from fxprune.demo.data import Digits, load_images
from fxprune.demo.model import build_model
from fxprune.demo.picture import count_channels, draw_channels
from fxprune.demo.report import Report, Row
from fxprune.demo.settings import Settings, check_settings
from fxprune.demo.training import predict, train
from fxprune.export.measurements import Benchmark
from fxprune.export.runtimes.ort_cpu import OrtCpu
from fxprune.model import PreparedModel, TracedModel

BATCH_SIZES = (1, 32)


@dataclass(frozen=True)
class Trained:
    """The same model trained in two ways, in eval mode on the CPU, and the images."""

    dense: nn.Module
    prepared: PreparedModel
    digits: Digits


def run_demo(settings: Settings) -> Report:
    """Train a model dense and sparse, convert the sparse one, export both, time both, and report.

    Writes dense.onnx, compact.onnx, report.json and channels.png into the out folder. What is trained is the same
    for the same seed on the same machine; the caller's random state stays as it was.

    Raises what `check_settings` raises, before any training.
    """
    started = time.perf_counter()
    check_settings(settings)
    with use_one_thread(), torch.random.fork_rng():
        trained = train_both(settings)
        compact = fxprune.convert(trained.prepared)
        files = {"dense": settings.out / "dense.onnx", "compact": settings.out / "compact.onnx"}
        example = {"x": trained.digits.test_images[:2]}  # by name, so that both files call their input alike
        export.to_onnx(trained.dense, example, files["dense"])
        export.to_onnx(compact, example, files["compact"])
        benchmark = export.benchmark(files, batch_sizes=BATCH_SIZES, seconds=settings.seconds)
        report = compare_models(settings, trained, compact, files, benchmark, started)
    (settings.out / "report.json").write_text(report.to_json() + "\n", encoding="utf-8")
    draw_channels(report.layers, str(settings), settings.out / "channels.png")
    return report


@contextmanager
def use_one_thread() -> Iterator[None]:
    """Let torch compute on one thread: sums do not depend on the machine's cores, and where others use those too,
    threads that wait for each other made a step on such small images up to 20 times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train_both(settings: Settings) -> Trained:
    """Train the model as it is, and prepared, from the same initial weights on the same batches."""
    model, size, channels = build_model(settings.model, settings.seed)
    digits = load_images(size, channels)
    prepared = fxprune.prepare(
        model,
        digits.test_images[:2],
        method=settings.build_method(),
        target=fxprune.Sparsity(settings.target),
        granularity=settings.granularity,
    )
    on_device = Digits(*(tensor.to(settings.device) for tensor in digits))
    for each, title in ((model, "dense"), (prepared, settings.method)):
        each.to(settings.device)
        train(each, on_device, settings.epoch_count, settings.seed, f"{title:>9}", settings.learning_rate)
        each.cpu()
    return Trained(model, prepared, digits)


def compare_models(
    settings: Settings,
    trained: Trained,
    compact: TracedModel,
    files: dict[str, Path],
    benchmark: Benchmark,
    started: float,
) -> Report:
    """Run all models on all test images, the compact file too, and put what they cost beside what they say."""
    images, labels = trained.digits.test_images, trained.digits.test_labels
    models = {"dense": trained.dense, "prepared": trained.prepared, "compact": compact}
    logits = {name: predict(model, images) for name, model in models.items()}
    reference = logits["prepared"]
    rows = []
    for name, model in models.items():
        cost = export.count(model, images[:2])
        rows.append(
            Row(
                name=name,
                correct=int((logits[name].argmax(1) == labels).sum()),
                images=len(labels),
                parameters=cost.parameters,
                macs=cost.macs,
                onnx_bytes=files[name].stat().st_size if name in files else None,
                difference=None if name == "dense" else float((logits[name] - reference).abs().max()),
            )
        )
    in_file = run_file(files["compact"], images)
    return Report(
        settings=str(settings),
        rows=tuple(rows),
        layers=count_channels(trained.prepared, compact),
        benchmark=benchmark,
        variation=float((reference.amax(0) - reference.amin(0)).max()),
        agreeing=count_equal(logits["compact"], reference),
        agreeing_file=count_equal(in_file, reference),
        seconds=time.perf_counter() - started,
    )


def run_file(path: Path, images: Tensor) -> Tensor:
    """Compute a file's first output for all images on ONNX Runtime's CPU kernels."""
    session = OrtCpu().load(path, threads=torch.get_num_threads())
    name = session.inputs[0].name
    return torch.cat([torch.from_numpy(session.run({name: batch.numpy()})[0]) for batch in images.split(100)])


def count_equal(logits: Tensor, others: Tensor) -> int:
    """Count the images to which both give the same class."""
    return int((logits.argmax(1) == others.argmax(1)).sum())

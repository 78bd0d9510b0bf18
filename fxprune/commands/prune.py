"""`fxprune prune`: prune a model in one go, convert, export, measure and report."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from tqdm import tqdm

import fxprune
from fxprune.commands.endings import CHECK_FAILED, require_writable
from fxprune.commands.options import Align, Batch, InputSize, Layers, Model, Seconds, Threads, Trust, Weights
from fxprune.commands.settings import METHODS, TARGETS, read_method, read_numbers, read_target

STEPS = (
    "pruning", "converting", "measuring batch norms", "lowering stripes", "exporting", "measuring time", "reporting",
)  # fmt: skip


def prune(
    model: Model,
    target: Annotated[str, typer.Option(metavar="NAME=SHARE", help=f"What stays, or goes: {', '.join(TARGETS)}.")],
    onnx: Annotated[Path, typer.Option(help="The ONNX file to write.")],
    method: Annotated[str, typer.Option(help=f"How units are chosen: {', '.join(METHODS)}.")] = "gmp",
    granularity: Annotated[Literal["channel", "stripe", "weight"], typer.Option(help="What goes as one.")] = "channel",
    shapes: Annotated[Literal["free", "rectangles"], typer.Option(help="What stays of a kernel, of stripes.")] = "free",
    align: Align = 1,
    exclude: Annotated[list[str] | None, typer.Option(help="A layer to leave as it is, or a glob; repeatable.")] = None,
    weights: Weights = None,
    trust: Trust = False,
    input: InputSize = None,
    calibrate: Annotated[Path | None, typer.Option(help="An .npz of inputs to renew batch norms with.")] = None,
    save: Annotated[Path | None, typer.Option(help="A .safetensors file for fxprune.load.")] = None,
    dense: Annotated[Path | None, typer.Option(help="An ONNX file to write the dense model to.")] = None,
    bench: Annotated[str | None, typer.Option(help="Runtimes to time both on, such as ort-cpu,openvino.")] = None,
    batch: Batch = "1,8",
    threads: Threads = "1",
    seconds: Seconds = 5.0,
    layers: Layers = False,
    report: Annotated[Path | None, typer.Option(help="A report to write: .html, .md or .json.")] = None,
    json: Annotated[Path | None, typer.Option(help="A file to write all numbers to, for `fxprune report`.")] = None,
) -> None:
    """Prune a model in one go, without training: convert it, export it, and measure it."""
    from fxprune.commands.calibration import read_batches, require_fit
    from fxprune.commands.load_model import load_model, make_inputs
    from fxprune.commands.load_weights import load_weights
    from fxprune.export.runtimes.registry import find_runtime
    from fxprune.reporting.comparison import require_form

    goal, chosen = read_target(target, align), read_method(method)
    runtimes = bench.split(",") if bench is not None else []
    for runtime in runtimes:
        find_runtime(runtime)
    sizes, counts = read_numbers("--batch", batch), read_numbers("--threads", threads)
    require_form(report)
    require_writable(onnx, save, dense, report, json, read=[weights, calibrate])
    batches = read_batches(calibrate) if calibrate is not None else None
    original = load_weights(load_model(model), weights, trust).eval()
    if weights is None and model.startswith(("torchvision:", "timm:")):
        typer.echo(f"{model} has random weights; --weights takes those of a training", err=True)
    if calibrate is not None and batches is not None:
        require_fit(original, calibrate, batches)
    inputs = make_inputs(original, model, input)
    with tqdm(STEPS, disable=None, leave=False, bar_format="{n_fmt}/{total_fmt} {desc} {elapsed}") as bar:

        def begin(step: str) -> None:
            bar.set_description_str(step)
            bar.update(STEPS.index(step) + 1 - bar.n)

        begin("pruning")
        options = {"method": chosen, "target": goal, "granularity": granularity, "shapes": shapes}
        pruned = fxprune.prune(original, inputs, **options, exclude=exclude or ())
        begin("converting")
        compact = fxprune.convert(pruned)
        for reason, count in compact.report.kept.items():
            bar.write(f"{count:,} closed units stay: {reason}", sys.stderr)
        if batches is not None:
            begin("measuring batch norms")
            fxprune.recalibrate(compact, batches)
        if granularity == "stripe":
            begin("lowering stripes")
            compact = fxprune.lower_stripes(compact, runtime=next(iter(runtimes), None), threads=counts[0])
        if save is not None:
            fxprune.save(compact, save)
        models = {"dense": original, "compact": compact}
        begin("exporting")
        files = {"compact": fxprune.export.to_onnx(compact, inputs, onnx)}
        if dense is not None:
            files["dense"] = fxprune.export.to_onnx(original, inputs, dense)
        benchmark = None
        if runtimes:
            begin("measuring time")
            benchmark = fxprune.export.benchmark(
                models,
                runtimes=runtimes,
                batch_sizes=sizes,
                threads=counts,
                seconds=seconds,
                layers=layers,
                example_inputs=inputs,
            )
        begin("reporting")
        command = shlex.join(["fxprune", *sys.argv[1:]])
        result = fxprune.export.report(models, inputs, files=files, benchmark=benchmark, commands=[command])
    if granularity == "stripe":
        typer.echo(compact.lowered)
    typer.echo(result)
    for path in (report, json):
        if path is not None:
            result.write(path)
    if benchmark is not None and benchmark.not_measured:
        raise typer.Exit(CHECK_FAILED)

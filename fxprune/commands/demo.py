"""`fxprune demo`: train on handwritten digits, dense and sparse, and compare."""

from pathlib import Path
from typing import Annotated

import typer

from fxprune.demo.choices import DIGIT_NET, Device, Granularity, MethodName


def demo(
    method: Annotated[MethodName, typer.Option(help="How gates follow from magnitudes.")] = "feather",
    granularity: Annotated[Granularity, typer.Option(help="What one gate closes.")] = "channel",
    target: Annotated[float, typer.Option(help="The share masked at the end, between 0 and 1.")] = 0.5,
    model: Annotated[str, typer.Option(help=f"{DIGIT_NET}, or any classifier of torchvision.")] = DIGIT_NET,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each training.", show_default="by model")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same models.")] = 0,
    device: Annotated[Device, typer.Option(help="Where to train.")] = "cpu",
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("runs/demo"),
    seconds: Annotated[float, typer.Option(help="Benchmark time, a file and batch size.")] = 3.0,
) -> None:
    """Train on handwritten digits, dense and sparse, convert, export, and time both on ONNX Runtime."""
    from fxprune.demo.run import run_demo
    from fxprune.demo.settings import Settings

    settings = Settings(method, granularity, target, model, epochs, seed, device, out, seconds)
    typer.echo(run_demo(settings))
    typer.echo(f"{out}: dense.onnx, compact.onnx, report.json, channels.png")

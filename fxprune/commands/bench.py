"""`fxprune bench`: time ONNX files in turns."""

from pathlib import Path
from typing import Annotated

import typer

import fxprune
from fxprune.commands.endings import CHECK_FAILED, require_writable
from fxprune.commands.options import Batch, Layers, Seconds, Threads
from fxprune.commands.settings import read_numbers, read_shapes
from fxprune.errors import FxpruneError

RUNTIMES = "With commas: ort-cpu, ort-cuda, ort-tensorrt, openvino, torch, torch-compile, torch-cuda-graphs."


def bench(
    files: Annotated[list[Path], typer.Argument(metavar="A.onnx B.onnx", help="The first is compared with.")],
    runtime: Annotated[str, typer.Option(help=RUNTIMES)] = "ort-cpu",
    batch: Batch = "1,8",
    threads: Threads = "1",
    seconds: Seconds = 5.0,
    precision: Annotated[float, typer.Option(help="A speed-up's interval, over it, that is narrow enough.")] = 0.02,
    layers: Layers = False,
    input_shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=3x224x224", help="A sample of an input, where a file leaves it open; repeatable."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="A file to write all numbers to.")] = None,
) -> None:
    """Time ONNX files in turns, on one or several runtimes."""
    sizes, counts = read_numbers("--batch", batch), read_numbers("--threads", threads)
    names = [str(path) for path in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise FxpruneError(f"{twice} is given twice; give two files to compare")
    require_writable(json, read=files)
    result = fxprune.export.benchmark(
        dict(zip(names, files, strict=True)),
        runtimes=runtime.split(","),
        batch_sizes=sizes,
        threads=counts,
        seconds=seconds,
        precision=precision,
        layers=layers,
        input_shapes=read_shapes(input_shape or ()),
    )
    typer.echo(result)
    if json is not None:
        json.write_text(result.to_json() + "\n", encoding="utf-8")
    if result.not_measured:
        raise typer.Exit(CHECK_FAILED)

"""`fxprune bench`: time ONNX files in turns."""

from pathlib import Path
from typing import Annotated

import typer

from fxprune.commands.endings import end_in_a_sentence, require_writable
from fxprune.errors import FxpruneError

RUNTIMES = "With commas: ort-cpu, ort-cuda, ort-tensorrt, openvino, torch, torch-compile, torch-cuda-graphs."


def bench(
    files: Annotated[list[Path], typer.Argument(metavar="A.onnx B.onnx", help="The first is compared with.")],
    runtime: Annotated[str, typer.Option(help=RUNTIMES)] = "ort-cpu",
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas between.")] = "1,8",
    threads: Annotated[str, typer.Option(help="Numbers of threads, with commas between.")] = "1",
    seconds: Annotated[float, typer.Option(help="Most measuring time, a file and setting.")] = 5.0,
    precision: Annotated[float, typer.Option(help="A speed-up's interval, over it, that is narrow enough.")] = 0.02,
    layers: Annotated[bool, typer.Option("--layers", help="Profile the layers on ort-cpu, too.")] = False,
    json: Annotated[Path | None, typer.Option(help="A file to write all numbers to.")] = None,
) -> None:
    """Time ONNX files in turns, on one or several runtimes."""
    with end_in_a_sentence():
        from fxprune.export import benchmark

        sizes, counts = _read_numbers("--batch", batch), _read_numbers("--threads", threads)
        names = [str(path) for path in files]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise FxpruneError(f"{twice} is given twice; give two files to compare")
        require_writable(json)
        result = benchmark(
            dict(zip(names, files, strict=True)),
            runtimes=runtime.split(","),
            batch_sizes=sizes,
            threads=counts,
            seconds=seconds,
            precision=precision,
            layers=layers,
        )
        typer.echo(result)
        if json is not None:
            json.write_text(result.to_json() + "\n", encoding="utf-8")


def _read_numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError as error:
        raise FxpruneError(f"{option} {text}: give whole numbers with commas between, such as 1,8") from error

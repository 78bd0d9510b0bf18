"""`fxprune bench`: time ONNX files in turns."""

from pathlib import Path
from typing import Annotated

import typer

from fxprune.commands.endings import end_in_a_sentence, require_writable
from fxprune.errors import FxpruneError


def bench(
    first: Annotated[Path, typer.Argument(metavar="A.onnx", help="The file to compare with.")],
    second: Annotated[Path, typer.Argument(metavar="B.onnx", help="The file to compare.")],
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas between.")] = "1,8",
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 1,
    seconds: Annotated[float, typer.Option(help="Measuring time, a file and batch size.")] = 5.0,
    json: Annotated[Path | None, typer.Option(help="A file to write all numbers to.")] = None,
) -> None:
    """Time two ONNX files in turns on ONNX Runtime's CPU kernels."""
    with end_in_a_sentence():
        from fxprune.export import benchmark

        sizes = _read_batch_sizes(batch)
        if str(first) == str(second):
            raise FxpruneError(f"{first} is given twice; give two files to compare")
        require_writable(json)
        result = benchmark({str(p): p for p in (first, second)}, batch_sizes=sizes, threads=threads, seconds=seconds)
        typer.echo(result)
        if json is not None:
            json.write_text(result.to_json() + "\n", encoding="utf-8")


def _read_batch_sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError as error:
        raise FxpruneError(f"--batch {text}: give whole numbers with commas between, such as 1,8") from error

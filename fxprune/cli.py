"""What does the command `fxprune` do? It reads the options; torch is loaded when a command needs it."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from fxprune.demo.choices import DIGIT_NET, Device, Granularity, MethodName
from fxprune.errors import FxpruneError

app = typer.Typer(add_completion=False, no_args_is_help=True, help="A compiler for pruning neural networks.")


def main() -> None:
    """Run the command line; the exit code is 2 where something is refused."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fxprune {version('fxprune')}")
        raise typer.Exit


@app.callback()
def read_common_options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """A compiler for pruning neural networks."""


@app.command()
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
    with _refuse_in_a_sentence():
        from fxprune.demo.run import run_demo
        from fxprune.demo.settings import Settings

        settings = Settings(method, granularity, target, model, epochs, seed, device, out, seconds)
        typer.echo(run_demo(settings))
        typer.echo(f"{out}: dense.onnx, compact.onnx, report.json, channels.png")


@app.command()
def bench(
    first: Annotated[Path, typer.Argument(metavar="A.onnx", help="The file to compare with.")],
    second: Annotated[Path, typer.Argument(metavar="B.onnx", help="The file to compare.")],
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas between.")] = "1,8",
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 1,
    seconds: Annotated[float, typer.Option(help="Measuring time, a file and batch size.")] = 5.0,
    json: Annotated[Path | None, typer.Option(help="A file to write all numbers to.")] = None,
) -> None:
    """Time two ONNX files in turns on ONNX Runtime's CPU kernels."""
    with _refuse_in_a_sentence():
        from fxprune.export import benchmark

        sizes = _read_batch_sizes(batch)
        if str(first) == str(second):
            raise FxpruneError(f"{first} is given twice; give two files to compare")
        if json is not None:
            _require_writable(json)
        result = benchmark({str(p): p for p in (first, second)}, batch_sizes=sizes, threads=threads, seconds=seconds)
        typer.echo(result)
        if json is not None:
            json.write_text(result.to_json() + "\n", encoding="utf-8")


@app.command()
def inspect(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="torchvision:NAME, timm:NAME, package.module:function.")
    ],
    input: Annotated[str | None, typer.Option(metavar="1x3x224x224", help="The size of an input.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="A layer to leave as it is, or a glob; repeatable.")] = None,
    json: Annotated[Path | None, typer.Option(help="A file to write all of it to.")] = None,
    picture: Annotated[Path | None, typer.Option(help="A .dot, .svg or .png file to draw the groups in.")] = None,
) -> None:
    """Show which channels of a model can be pruned, which cannot, and because of which line of its code."""
    with _refuse_in_a_sentence():
        from fxprune.inspection.inspect import inspect as inspect_model
        from fxprune.inspection.load_model import load_model, make_inputs
        from fxprune.inspection.picture import check_picture

        if picture is not None:
            check_picture(picture)
        for path in (json, picture):
            if path is not None:
                _require_writable(path)
        made = load_model(model)
        found = inspect_model(made, make_inputs(made, model, input), exclude or ())
        typer.echo(found)
        if json is not None:
            json.write_text(found.to_json() + "\n", encoding="utf-8")
        if picture is not None:
            found.write_picture(picture)


@contextmanager
def _refuse_in_a_sentence() -> Iterator[None]:
    """Show an error of fxprune as one sentence on stderr, without traceback, and exit with 2."""
    try:
        yield
    except FxpruneError as error:
        typer.echo(f"fxprune: {error}", err=True)
        raise typer.Exit(2) from error


def _read_batch_sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError as error:
        raise FxpruneError(f"--batch {text}: give whole numbers with commas between, such as 1,8") from error


def _require_writable(path: Path) -> None:
    """Refuse a file that could not be written later, before the time is spent; what stands in it stays."""
    try:
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise FxpruneError(f"{path}: cannot be written ({error.strerror}); give another file") from error

"""What is the command `fxprune`? Its commands, each in a file of `commands/`, and what all of them share."""

from importlib.metadata import version
from typing import Annotated

import typer

from fxprune.commands.bench import bench
from fxprune.commands.demo import demo
from fxprune.commands.endings import CODES, end_in_a_sentence
from fxprune.commands.export import export
from fxprune.commands.inspect import inspect
from fxprune.commands.prune import prune
from fxprune.commands.report import report

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="A compiler for pruning neural networks.", epilog=CODES
)
for command in (prune, export, bench, report, inspect, demo):
    app.command(epilog=CODES)(end_in_a_sentence(command))


def main() -> None:
    """Run the command line; `commands/endings.py` has the exit codes."""
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

"""`fxprune report`: show what `fxprune prune --json` wrote, or make a page of it."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fxprune.commands.endings import CHECK_FAILED, require_writable
from fxprune.errors import FxpruneError, ReportError


def report(
    result: Annotated[Path, typer.Argument(metavar="RESULT.json", help="What prune --json wrote.")],
    html: Annotated[Path | None, typer.Option(help="A self-contained page to write.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="A Markdown file to write.")] = None,
    log: Annotated[Path | None, typer.Option(help="A CSV file of the training: epoch, sparsity, accuracy.")] = None,
) -> None:
    """Show a result as a table, and write it as a page or as Markdown."""
    from fxprune.export.report import read_log
    from fxprune.reporting.comparison import Comparison, require_form
    from fxprune.reporting.notes import list_failures

    require_form(html, ".html")
    require_form(markdown, ".md")
    require_writable(html, markdown, read=[result, log])
    try:
        text = result.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FxpruneError(f"{result} cannot be read ({error}); give what `fxprune prune --json` wrote") from error
    try:
        comparison = Comparison.from_json(text)
    except ReportError as error:
        raise ReportError(f"{result}: {error}") from error
    if log is not None:
        comparison = replace(comparison, training=read_log(log))
    typer.echo(comparison)
    for path in (html, markdown):
        if path is not None:
            comparison.write(path)
    if list_failures(comparison):
        raise typer.Exit(CHECK_FAILED)

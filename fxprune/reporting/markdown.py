"""What does a report look like as Markdown, and on a terminal?"""

from __future__ import annotations

from tabulate import tabulate

from fxprune.reporting.comparison import Comparison
from fxprune.reporting.notes import describe_pruning, list_notes, list_surroundings, title_of
from fxprune.reporting.tables import Table, compare_networks, list_tables

EXPLAINED = (
    "An error is the largest difference between file and model, relative to how much the output varies. A speed-up "
    "stands with its interval of 95%; efficiency is the speed-up over the reduction of multiply-accumulates."
)


def write_markdown(comparison: Comparison) -> str:
    """Return the report as Markdown."""
    parts = [f"# {escape(title_of(comparison))}", escape(describe_pruning(comparison)), bullets(list_notes(comparison))]
    headline, *others = list_tables(comparison)
    parts += [format_table(headline, "github"), EXPLAINED]
    for table in others:
        parts += [f"## {table.title}", format_table(table, "github")]
    if comparison.training:
        rows = [(f"{p.epoch:g}", f"{p.sparsity:.1%}", _show(p.accuracy)) for p in comparison.training]
        parts += ["## Training", tabulate(rows, ("epoch", "masked", "accuracy"), "github", disable_numparse=True)]
    parts += ["## Surroundings", bullets(list_surroundings(comparison))]
    if comparison.commands:
        parts += ["## To repeat it", "\n".join(["```", *comparison.commands, "```"])]
    return "\n\n".join(part for part in parts if part)


def write_text(comparison: Comparison) -> str:
    """Return the headline for a terminal."""
    table = format_table(compare_networks(comparison), "simple")
    return "\n".join([title_of(comparison), describe_pruning(comparison), "", table, "", *list_notes(comparison)])


def format_table(table: Table, form: str) -> str:
    """Lay a table out; words to the left, figures to the right."""
    cells = [[escape(str(cell)) if form == "github" else str(cell) for cell in row] for row in table.rows]
    align = ["left" if index < table.texts else "right" for index in range(len(table.headers))]
    return tabulate(cells, table.headers, form, disable_numparse=True, colalign=align)


def escape(text: str) -> str:
    """Keep names from being read as Markdown."""
    for mark in ("\\", "|", "*", "_", "<", "`"):
        text = text.replace(mark, f"\\{mark}")
    return text


def bullets(lines: list[str]) -> str:
    """Make a list."""
    return "\n".join(f"- {escape(line)}" for line in lines)


def _show(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{accuracy:.2%}"

"""What does a report look like as a page? One file without anything from outside, in `page.html`."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from fxprune.reporting.charts import draw_charts
from fxprune.reporting.comparison import Comparison
from fxprune.reporting.markdown import EXPLAINED
from fxprune.reporting.notes import describe_pruning, list_failures, list_notes, list_surroundings, title_of
from fxprune.reporting.tables import find_compact, list_tables, name_way, share


class Figure(NamedTuple):
    """One of the numbers on top of the page."""

    number: str
    what: str


def write_html(comparison: Comparison) -> str:
    """Return the report as a page; its figures need matplotlib."""
    charts = [chart._replace(svg=Markup(chart.svg)) for chart in draw_charts(comparison)]  # ours, as it is
    return load_page().render(
        title=title_of(comparison),
        subtitle=describe_pruning(comparison),
        figures=list_figures(comparison),
        notes=[note for note in list_notes(comparison) if note not in list_failures(comparison)],
        failures=list_failures(comparison),
        tables=list_tables(comparison),
        explained=EXPLAINED,
        charts=charts,
        surroundings=list_surroundings(comparison),
        commands=comparison.commands,
    )


def list_figures(comparison: Comparison) -> list[Figure]:
    """Choose the numbers that say it all: what is left, how fast, and how exact."""
    dense, compact = comparison.networks[0], find_compact(comparison)
    figures = [
        Figure(share(compact.parameters or 0, dense.parameters), "of the parameters"),
        Figure(share(compact.macs or 0, dense.macs), "of the multiply-accumulates"),
    ]
    timings = comparison.benchmark.timings if comparison.benchmark is not None else ()
    fastest = next((timing for timing in timings if timing.name == compact.name), None)
    if fastest is not None:
        way = f"{name_way(fastest.runtime, fastest.threads)}, batch {fastest.batch_size}"
        figures.append(Figure(f"{fastest.speedup:.2f}x", f"as fast: {way}"))
    if compact.verification is not None:
        figures.append(Figure(f"{compact.verification.worst.error:.1e}", "error of the file"))
    if compact.accuracy is not None:
        before = f", {dense.accuracy:.2%} before" if dense.accuracy is not None else ""
        figures.append(Figure(f"{compact.accuracy:.2%}", f"accuracy{before}"))
    return figures


@cache
def load_page() -> Template:
    """Read the template; whatever is put into it is escaped."""
    loader = PackageLoader("fxprune.reporting", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html")

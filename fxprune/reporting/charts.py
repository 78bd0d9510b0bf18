"""How are the figures of a report drawn? By matplotlib, as SVG that takes its colours from the page around it.

matplotlib cannot know whether the page is light or dark, so each role has a colour of its own that occurs nowhere else,
and becomes a CSS variable in the finished text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from fxprune.export.measurements import Benchmark, Timing
from fxprune.reporting.comparison import Comparison
from fxprune.reporting.tables import find_compact, name_way

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROLES = {
    "ink": "#010101",
    "muted": "#020202",
    "line": "#030303",
    "before": "#040404",
    "after": "#050505",
    "paper": "#090909",
}
INK, MUTED, LINE, BEFORE, AFTER, PAPER = ROLES.values()
OTHERS = ("#060606", "#070707", "#080808")
ROLES |= {f"other-{number}": colour for number, colour in enumerate(OTHERS)}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fxprune",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}
WIDE, NARROW = (9.6, 2.9), (4.7, 3.1)
MOST_NAMES = 24
"""How many layers are named below their bars; above that only the ends are."""


class Chart(NamedTuple):
    """A figure with what it says, as SVG."""

    title: str
    caption: str
    svg: str
    is_wide: bool


def draw_charts(comparison: Comparison) -> list[Chart]:
    """Draw whatever there are data for."""
    charts = []
    if comparison.layers:
        charts.append(
            draw(
                "Width by layer",
                "Output channels of each layer, before and after.",
                lambda figure: draw_widths(figure, comparison),
                WIDE,
            )
        )
    benchmark = comparison.benchmark
    if benchmark is not None:
        if len({timing.batch_size for timing in benchmark.timings}) > 1:
            charts.append(
                draw(
                    "Latency against batch",
                    "Median milliseconds a run; both axes are logarithmic.",
                    lambda figure: draw_latency(figure, benchmark),
                    (NARROW[0], NARROW[1] + 0.1 * len({(t.runtime, t.threads) for t in benchmark.timings})),
                )
            )
        if any(timing.efficiency is not None for timing in list_others(benchmark)):
            charts.append(
                draw(
                    "Speed-up against theory",
                    "Bars: measured, with intervals of 95%. Marks: as fast as multiply-accumulates are fewer.",
                    lambda figure: draw_speedups(figure, benchmark),
                    (NARROW[0], 0.9 + 0.36 * len(list_others(benchmark))),
                )
            )
    if comparison.training:
        charts.append(
            draw(
                "Sparsity over training",
                "The share that is masked after each epoch, and the accuracy.",
                lambda figure: draw_training(figure, comparison),
                NARROW,
            )
        )
    return charts


def draw(title: str, caption: str, fill: Callable[[Figure], None], size: tuple[float, float]) -> Chart:
    """Make a figure, let it be filled, and write it."""
    import matplotlib as mpl  # here: an extra, whose absence `require_form` explains
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_visible(False)
        fill(figure)
        for axes in figure.axes:
            axes.patch.set_visible(False)
            axes.tick_params(length=0)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Chart(title, caption, embed(text.getvalue(), title), size == WIDE)


def embed(svg: str, label: str) -> str:
    """Keep the drawing alone, without a size, ids that nothing refers to, and with the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*" ', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?)height="[^"]*" ', r"\1", svg, count=1)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for name, colour in ROLES.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def draw_widths(figure: Figure, comparison: Comparison) -> None:
    """One bar a layer: what stayed before what there was."""
    axes = figure.add_subplot()
    layers = comparison.layers
    places = range(len(layers))
    axes.bar(places, [layer.width_before for layer in layers], 0.8, color=BEFORE, label=comparison.networks[0].name)
    known = [(place, layer.width_after) for place, layer in enumerate(layers) if layer.width_after is not None]
    axes.bar(
        [place for place, _ in known],
        [width for _, width in known],
        0.8,
        color=AFTER,
        label=find_compact(comparison).name,
    )
    axes.set_xlim(-0.7, len(layers) - 0.3)
    shown = list(places) if len(layers) <= MOST_NAMES else list(dict.fromkeys([0, *first_of_stages(comparison)]))
    turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(shown) > 6 else {}
    axes.set_xticks(shown, [layers[place].name for place in shown], size=7, **turned)
    axes.set_ylabel("output channels")
    add_legend(axes)


def first_of_stages(comparison: Comparison) -> list[int]:
    """The places at which the dense width changes, far enough from each other to be named."""
    widest = len(comparison.layers) / MOST_NAMES
    chosen: list[int] = []
    for place, layer in enumerate(comparison.layers):
        before = comparison.layers[place - 1].width_before if place else None
        if layer.width_before != before and (not chosen or place - chosen[-1] >= widest):
            chosen.append(place)
    return chosen


def draw_latency(figure: Figure, benchmark: Benchmark) -> None:
    """One line a network and way of running it."""
    axes = figure.add_subplot()
    names = list(dict.fromkeys(timing.name for timing in benchmark.timings))
    ways = list(dict.fromkeys((timing.runtime, timing.threads) for timing in benchmark.timings))
    dashes = dict(zip(ways, ("-", "--", ":", "-.") * len(ways), strict=False))
    for name in names:
        for way in ways:
            found = [t for t in benchmark.timings if (t.name, t.runtime, t.threads) == (name, *way)]
            found.sort(key=lambda timing: timing.batch_size)
            sizes, medians = [t.batch_size for t in found], [t.median for t in found]
            axes.plot(sizes, medians, dashes[way], marker="o", markersize=4, color=colour_of(names, name))
    for name in names:
        axes.plot([], [], color=colour_of(names, name), label=name)
    for way in ways if len(ways) > 1 else ():
        axes.plot([], [], dashes[way], color=INK, label=name_way(*way))
    batches = sorted({timing.batch_size for timing in benchmark.timings})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    label_decades(axes)
    axes.set_xlabel("batch")
    axes.set_ylabel("ms")
    add_legend(axes)


def label_decades(axes: Axes) -> None:
    """Name enough milliseconds on a logarithmic axis, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def draw_speedups(figure: Figure, benchmark: Benchmark) -> None:
    """One bar a network and way of running it, its interval on it, and a mark at what the count promises."""
    axes = figure.add_subplot()
    names = list(dict.fromkeys(timing.name for timing in benchmark.timings))
    others = [timing for timing in list_others(benchmark) if timing.efficiency is not None]
    for place, timing in enumerate(others):
        axes.barh(place, timing.speedup, 0.62, color=colour_of(names, timing.name))
        axes.plot([timing.speedup_low, timing.speedup_high], [place, place], color=INK, linewidth=1.4)
        theory = timing.speedup / (timing.efficiency or 1)
        axes.plot([theory, theory], [place - 0.42, place + 0.42], color=OTHERS[0], linewidth=2.4)
        axes.annotate(
            f"{timing.speedup:.2f}x",
            (0, place),
            (5, 0),
            textcoords="offset points",
            va="center",
            size=8,
            color=PAPER,
        )
    several = len(names) > 2
    labels = [
        f"{name_way(t.runtime, t.threads)}\n{t.name + ', ' if several else ''}batch {t.batch_size}" for t in others
    ]
    axes.set_yticks(range(len(others)), labels, size=7)
    axes.set_ylim(len(others) - 0.4, -0.6)
    axes.axvline(1, color=LINE, linewidth=1)
    axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("times as fast")


def draw_training(figure: Figure, comparison: Comparison) -> None:
    """The share that is masked, and the accuracy where it is known, over the epochs."""
    axes = figure.add_subplot()
    epochs = [point.epoch for point in comparison.training]
    axes.plot(epochs, [point.sparsity for point in comparison.training], color=AFTER, label="masked")
    known = [(point.epoch, point.accuracy) for point in comparison.training if point.accuracy is not None]
    if known:
        axes.plot(*zip(*known, strict=True), color=BEFORE, label="accuracy")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("epoch")
    add_legend(axes)


def list_others(benchmark: Benchmark) -> list[Timing]:
    """The timings of all networks but the first."""
    return [timing for timing in benchmark.timings if timing.name != benchmark.timings[0].name]


def colour_of(names: list[str], name: str) -> str:
    """A network's colour: the first one's is that of all that was before."""
    return [BEFORE, AFTER, *OTHERS][names.index(name) % 5]


def add_legend(axes: Axes) -> None:
    """Put the legend above the drawing, in rows of two."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, borderpad=0, handlelength=2)

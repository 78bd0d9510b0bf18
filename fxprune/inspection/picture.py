"""How an inspection looks as a picture: its graph as Graphviz's text, groups in colour, rendered where `dot` is."""

from __future__ import annotations

import colorsys
import shutil
import subprocess
from pathlib import Path

from fxprune.errors import FxpruneError
from fxprune.inspection.report import Group, Inspection, Layer

SUFFIXES = (".dot", ".svg", ".png")
PINNED = "#e4e4e4"
MOST_COLOURS = 6
"""How many groups one node shows as stripes, as a concatenation has them; the label names all."""

GOLDEN = 0.618034
"""Steps of the golden ratio around the circle of hues keep any number of colours apart."""


def check_picture(path: Path) -> None:
    """Refuse a file that could not be drawn, before the work.

    Raises:
        FxpruneError: the suffix is none of ours, or `dot` is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise FxpruneError(f"{path}: pictures are written as {', '.join(SUFFIXES)}; give a name that ends so")
    if path.suffix != ".dot" and shutil.which("dot") is None:
        raise FxpruneError(
            f"{path}: Graphviz's program `dot`, which draws it, is not installed; install graphviz, or write "
            f"{path.with_suffix('.dot').name} and draw it elsewhere"
        )


def write_picture(inspection: Inspection, path: Path) -> None:
    """Write the picture; see `Inspection.write_picture`."""
    check_picture(path)
    text = draw_graph(inspection)
    try:
        if path.suffix == ".dot":
            path.write_text(text, encoding="utf-8")
            return
        command = ["dot", f"-T{path.suffix[1:]}", "-o", str(path)]
        done = subprocess.run(command, input=text, capture_output=True, text=True, encoding="utf-8", check=False)
    except OSError as error:
        raise FxpruneError(f"{path}: cannot be written ({error.strerror}); give another file") from error
    if done.returncode:
        raise FxpruneError(f"{path}: `dot` could not draw it ({done.stderr.strip() or f'exit code {done.returncode}'})")


def draw_graph(inspection: Inspection) -> str:
    """Return the graph as text in Graphviz's language; the same for the same inspection."""
    drawn = {layer.name: number for number, layer in enumerate(inspection.layers)}
    lines = [
        f"digraph {quote(inspection.model)} {{",
        "  rankdir=TB; nodesep=0.25; ranksep=0.3;",
        '  node [shape=box, fontname="Helvetica", fontsize=10, margin="0.12,0.06"];',
        '  edge [arrowsize=0.6, color="#707070"];',
    ]
    lines += [f"  n{number} [{style_layer(layer)}];" for number, layer in enumerate(inspection.layers)]
    lines += [
        f"  n{drawn[name]} -> n{number};" for number, layer in enumerate(inspection.layers) for name in layer.inputs
    ]
    return "\n".join([*lines, *draw_legend(inspection.groups), "}", ""])


def style_layer(layer: Layer) -> str:
    """Write a node's label and colours."""
    shape = " x ".join(map(str, layer.shape))
    named = [str(group) for group in layer.groups[:MOST_COLOURS] if group >= 0]
    more = len([g for g in layer.groups if g >= 0]) - len(named)
    groups = f"group{'s' if len(named) > 1 else ''} {', '.join(named)}" + (f" and {more} more" if more > 0 else "")
    label = [layer.op, shape, groups if named else "pinned" if layer.groups else ""]
    if layer.op == layer.name:  # an input, an output
        label[0] = layer.name
    colours = [find_colour(group) for group in layer.groups[:MOST_COLOURS]]
    style = "striped" if len(colours) > 1 else "filled,rounded" if colours else "rounded"
    fill = f", fillcolor={quote(':'.join(colours))}" if colours else ""
    return f"label={quote(chr(10).join(part for part in label if part))}, style={quote(style)}{fill}"


def draw_legend(groups: tuple[Group, ...]) -> list[str]:
    """Write one table of all groups, and of what is pinned."""
    entries = [(find_colour(number), str(number), describe_group(group)) for number, group in enumerate(groups)]
    entries.append((PINNED, " ", "pinned: cannot be pruned"))
    rows = [
        f'<TR><TD BGCOLOR="{colour}">{number}</TD><TD ALIGN="LEFT">{escape(text)}</TD></TR>'
        for colour, number, text in entries
    ]
    table = f'<TABLE BORDER="0" CELLBORDER="1" CELLSPACING="0" CELLPADDING="3">{"".join(rows)}</TABLE>'
    return [f"  legend [shape=plain, label=<{table}>];"]


def describe_group(group: Group) -> str:
    """One line of the legend."""
    cannot = "" if group.reason is None else ", cannot be pruned"
    return f"{group.name}: {group.units} unit{'' if group.units == 1 else 's'}{cannot}"


def find_colour(group: int) -> str:
    """A light colour on which black can be read; neighbours in number are far apart."""
    if group < 0:
        return PINNED
    hue, shade = (group * GOLDEN) % 1.0, group // 8 % 3
    red, green, blue = colorsys.hls_to_rgb(hue, (0.72, 0.82, 0.64)[shade], (0.75, 0.60, 0.50)[shade])
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def quote(text: str) -> str:
    """Write a text as Graphviz reads it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def escape(text: str) -> str:
    """Write a text inside a table."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

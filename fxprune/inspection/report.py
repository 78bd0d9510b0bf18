"""What an inspection tells: groups, pins and costs as data, as a table, as JSON and as a picture."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

from fxprune.passes.find_pins import PinnedBy
from fxprune.stripes.step import LoweredLayer, show_layers

MOST_GROUPS = 100
"""How many groups the table shows; JSON has all."""

WIDEST = 24
"""How many characters two names in one cell may take."""

_FOLDERS = re.compile(r"(?<=[\s(])/\S*/(?=[^/\s]+/[^/\s]+:\d)|^/\S*/(?=[^/\s]+/[^/\s]+:\d)")


@dataclass(frozen=True)
class Place:
    """One dimension of one parameter or buffer on which units of a group live."""

    parameter: str
    dim: int
    role: str  # "rows" or "columns" of a contraction's weight, or "scale" for norms, biases and all others
    size: int  # of the dimension
    indexes: int  # of the dimension, that are the group's
    each: tuple[int, int]  # fewest and most indexes of one unit, such as 64 for a head of 64

    def __str__(self) -> str:
        return f"{self.parameter}[{self.dim}]"


@dataclass(frozen=True)
class Tie:
    """One op that makes indexes of different parameters one unit.

    `layer` is the layer whose own parameters it ties to those before it, as every layer does; it is empty for
    ops that join what has no other reason to be one: additions, products, attention, which ties indexes of one
    parameter, too.
    """

    node: str
    op: str
    where: str  # the line of the user's source
    layer: str
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Units that live on the same dimensions of the same parameters and that fare alike.

    `parameters` is the share of the model's parameters that lie on the group's indexes; one that lies
    on two groups' indexes, as in a weight whose rows are one's and whose columns are the other's, counts
    for both. `macs` is the share of the multiply-accumulates, in eval mode, whose row or column (or head, or
    channel of a depthwise convolution) is the group's, counted in the same way. So shares add up to more than 1.
    """

    name: str  # the layer that makes the units, where one does
    units: int
    reason: str | None  # why its units cannot be pruned; None if they can
    parameters: float
    macs: float
    places: tuple[Place, ...]
    ties: tuple[Tie, ...]

    @property
    def each(self) -> tuple[int, int]:
        """The fewest and most indexes that one unit takes on one dimension."""
        return min(place.each[0] for place in self.places), max(place.each[1] for place in self.places)

    def layers(self, role: str) -> list[str]:
        """List the layers in which the group has this role, in the model's order."""
        return list(dict.fromkeys(_layer_of(place.parameter) for place in self.places if place.role == role))


@dataclass(frozen=True)
class Layer:
    """One node of the picture: a layer, a join or a reduction; batch norms and element-wise ops are left out.

    `groups` are the numbers of the groups (from 0) along its result's channels; -1 for what is pinned.
    """

    name: str
    op: str
    shape: tuple[int, ...]  # of the result
    groups: tuple[int, ...]
    inputs: tuple[str, ...]  # the names of the nodes before it


@dataclass(frozen=True)
class Inspection:
    """What `fxprune.prepare` would find in a model at granularity "channel"; `print` it for a table."""

    model: str
    groups: tuple[Group, ...]
    pinned: tuple[PinnedBy, ...]
    untraced: dict[str, str]  # parts of the model that could not be traced, and why
    parameters: int
    macs: int  # multiply-accumulates a sample, in eval mode
    rows: int  # of all weights of contractions
    prunable_rows: int
    layers: tuple[Layer, ...] = field(repr=False)
    stripes: dict[str, LoweredLayer] = field(default_factory=dict)  # of convolutions that have dead ones, by weight

    @property
    def units(self) -> int:
        """How many units can be pruned."""
        return sum(group.units for group in self.groups if group.reason is None)

    def to_json(self) -> str:
        """Return all fields as JSON, nothing abbreviated."""
        return json.dumps(dataclasses.asdict(self), indent=2, default=list)  # ranges are lists

    def write_picture(self, path: str | Path) -> None:
        """Write the graph, groups in colour, as `.dot`, or as `.svg` or `.png` with Graphviz's program `dot`.

        Raises:
            FxpruneError: another suffix, a file that cannot be written, or `dot` is not installed.
        """
        from fxprune.inspection.picture import write_picture  # it draws what is defined here

        write_picture(self, Path(path))

    def __str__(self) -> str:
        share = self.prunable_rows / self.rows if self.rows else 0.0
        groups = sum(group.reason is None for group in self.groups)
        parts = [
            f"{self.model}: {self.parameters:,} parameters, {self.macs:,} multiply-accumulates a sample\n"
            f"{_count(self.units, 'prunable unit')} in {_count(groups, 'group')}; "
            f"{self.prunable_rows:,} of {self.rows:,} rows of weights can go ({share:.1%})",
            self._show_groups(),
            self._show_unprunable(),
            self._show_pins(),
            show_layers(self.stripes) if self.stripes else "",
        ]
        if self.untraced:
            parts.append("not traced\n" + "\n".join(f"{path}: {why}" for path, why in self.untraced.items()))
        return "\n\n".join(part for part in parts if part)

    def _show_groups(self) -> str:
        numbered = [(number, group) for number, group in enumerate(self.groups) if group.reason is None]
        rows = [
            (
                number,
                group.units,
                _show_range(*group.each),
                f"{group.parameters:.1%}",
                f"{group.macs:.1%}",
                _abbreviate(group.layers("rows") or group.layers("scale")),
                _abbreviate(group.layers("columns")),
                _show_joins(group),
            )
            for number, group in numbered[:MOST_GROUPS]
        ]
        if not rows:
            return ""
        headers = ["group", "units", "indexes", "parameters", "MACs", "made by", "read by", "tied by"]
        table = tabulate(rows, headers, colalign=("right",) * 5 + ("left",) * 3, disable_numparse=True)
        left = len(numbered) - len(rows)
        return table + (f"\n... and {left:,} more (JSON has all)" if left else "")

    def _show_unprunable(self) -> str:
        rows = [
            (number, group.units, _abbreviate([str(p) for p in group.places]), shorten(group.reason))
            for number, group in enumerate(self.groups)
            if group.reason is not None
        ]
        shown = tabulate(rows[:MOST_GROUPS], ["group", "units", "lives on", "cannot be pruned because"])
        left = len(rows) - MOST_GROUPS
        return shown + (f"\n... and {left:,} more (JSON has all)" if left > 0 else "") if rows else ""

    def _show_pins(self) -> str:
        rows = [(f"{pin.rows:,}", pin.reason, shorten(pin.where)) for pin in self.pinned]
        shown = tabulate(rows, ["rows pinned", "because", "by"], colalign=("right", "left", "left"))
        return shown if rows else ""


def shorten(where: str) -> str:
    """Leave the folders of a source line out, but for the last one."""
    return _FOLDERS.sub("", where)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _show_range(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"


def _abbreviate(names: list[str]) -> str:
    """Name the first two, or the first if they are long, and count the others."""
    shown = names[: 2 if len(", ".join(names[:2])) <= WIDEST else 1]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _show_joins(group: Group) -> str:
    """Name the ops that tie, each line of the source once."""
    counts: dict[str, int] = {}
    for tie in group.ties:
        if not tie.layer:
            line = shorten(tie.where).partition(" in ")[0].rpartition(", ")[2]
            op = f"{tie.op} ({line})" if line else tie.op
            counts[op] = counts.get(op, 0) + 1
    return _abbreviate([f"{n} x {op}" if n > 1 else op for op, n in counts.items()])


def _layer_of(parameter: str) -> str:
    """The module that owns a parameter; the parameter itself where the model does."""
    return parameter.rpartition(".")[0] or parameter

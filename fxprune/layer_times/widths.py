"""How long does a layer take at each of its widths?

It is timed at few of them, multiples of a block of channels; what lies between follows along straight lines.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxprune.export.runtimes.interface import Runtime
from fxprune.layer_times.graph import Convolution, LayerGraph, Linear
from fxprune.layer_times.measure import time_layers

SHARES = (0.25, 0.5, 1.0)
"""Of a width, at which a layer is timed, beside a single block."""

SECONDS = 0.05
"""For the timing of each graph."""


@dataclass(frozen=True)
class Width:
    """A number of channels that may become less, in steps of a block; as many as the full width where none may go."""

    full: int
    block: int

    @property
    def steps(self) -> list[int]:
        """The widths of which each stands for all down to the one before: 0 first, the full one last."""
        return [min(step * self.block, self.full) for step in range(math.ceil(self.full / self.block) + 1)]

    @property
    def timed(self) -> list[int]:
        """Those of the steps at which a layer is timed."""
        shares = {math.ceil(self.full * share / self.block) * self.block for share in SHARES}
        return sorted({min(width, self.full) for width in (self.block, *shares)})


@dataclass(frozen=True)
class WideLayer:
    """A layer at its real sizes, on an input of `samples` with these positions (none, if it is linear).

    `rows` are the outputs, `columns` the inputs of one group. Where it `loses_groups`, as depthwise layers do, fewer
    rows are fewer groups.
    """

    samples: int
    positions: tuple[int, ...]
    rows: Width
    columns: Width
    groups: int
    loses_groups: bool
    kernel: tuple[int, ...]  # () for a linear layer, as are the next three
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def widths(self) -> tuple[Width, ...]:
        """What becomes less, a dimension of the table for each: rows, and columns unless groups go."""
        return (self.rows,) if self.loses_groups else (self.rows, self.columns)

    @property
    def points(self) -> list[tuple[int, ...]]:
        """The widths, together, at which the layer is timed."""
        return list(itertools.product(*(width.timed for width in self.widths)))

    def cut(self, point: tuple[int, ...]) -> LayerGraph:
        """Give the graph of the layer with these widths."""
        rows, columns = (*point, self.columns.full)[:2]
        if not self.kernel:
            return LayerGraph((self.samples, columns), ((Linear(rows),),))
        groups = rows * self.groups // self.rows.full if self.loses_groups else self.groups
        layer = Convolution(rows, self.kernel, self.padding * 2, self.stride, self.dilation, groups)
        return LayerGraph((self.samples, columns * groups, *self.positions), ((layer,),))

    def spread(self, time: Callable[[LayerGraph], float]) -> NDArray[np.float64]:
        """Give the time at all steps of all widths, of those at the points; never less for wider ones."""
        times = np.array([time(self.cut(point)) for point in self.points])
        times = times.reshape([len(width.timed) for width in self.widths])
        for axis, width in enumerate(self.widths):
            times = np.concatenate([np.zeros_like(times.take([0], axis)), times], axis)
            times = np.apply_along_axis(interpolate, axis, times, width)
            times = np.maximum.accumulate(times, axis)
        return times


def interpolate(times: NDArray[np.float64], width: Width) -> NDArray[np.float64]:
    """Give the time at each step of a width, of those at width 0 and at the timed ones: a full last step or not."""
    timed = [math.ceil(each / width.block) for each in (0, *width.timed)]
    return np.interp(np.arange(len(width.steps)), timed, times)


def time_widths(
    layers: Iterable[WideLayer], runtime: Runtime, threads: int
) -> dict[WideLayer, NDArray[np.float64]]:  # fmt: skip
    """Give the milliseconds of each layer at the steps of its widths, [steps of rows + 1, steps of columns + 1].

    Raises:
        ExportError: the runtime refuses a layer.
    """
    wide = list(dict.fromkeys(layers))
    graphs = [layer.cut(point) for layer in wide for point in layer.points]
    times = time_layers(graphs, runtime=runtime, threads=threads, seconds=SECONDS)
    return {layer: layer.spread(times.__getitem__) for layer in wide}

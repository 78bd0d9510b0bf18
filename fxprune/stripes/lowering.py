"""What became of a convolution with dead stripes?

A list of parts, each with its filters and the rectangles that are summed for them: *crop* is one smaller kernel,
*groups* several smaller convolutions over groups of filters, *sums* are sums of rectangles, *mixtures* groups of them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from fxprune.layer_times.graph import Convolution, LayerGraph
from fxprune.stripes.reading import Options, find_reading
from fxprune.stripes.rectangles import Rectangle

Kind = Literal["dense", "crop", "groups", "sums", "mixtures"]

KINDS: tuple[Kind, ...] = ("crop", "groups", "sums", "mixtures")


@dataclass(frozen=True)
class Layer:
    """What the choice depends on: the sizes of a convolution, of its output, and of its input at each of its calls."""

    rows: int
    columns: int  # input channels of one group
    kernel: tuple[int, int]
    options: Options
    positions: int  # of one output channel, over all calls and the whole batch
    inputs: tuple[tuple[int, ...], ...]

    @property
    def whole(self) -> Rectangle:
        """The whole kernel."""
        return Rectangle(range(self.kernel[0]), range(self.kernel[1]))


@dataclass(frozen=True)
class Part:
    """Some filters of a convolution, in their order, and the smaller kernels that are summed for them."""

    filters: tuple[int, ...]
    rectangles: tuple[Rectangle, ...]

    def __str__(self) -> str:
        return f"{len(self.filters)} of {' + '.join(map(str, self.rectangles))}"


@dataclass(frozen=True)
class Lowering:
    """The parts of one convolution, joined in this order; no parts for what stays as it is."""

    parts: tuple[Part, ...]

    @property
    def order(self) -> list[int]:
        """Which filter each output channel is of."""
        return [number for part in self.parts for number in part.filters]

    @property
    def is_ordered(self) -> bool:
        """Whether the outputs stand in the filters' order."""
        return all(a < b for a, b in itertools.pairwise(self.order))

    @property
    def kind(self) -> Kind:
        """What it is made of."""
        if not self.parts:
            return "dense"
        summed = any(len(part.rectangles) > 1 for part in self.parts)
        if len(self.parts) == 1:
            return "sums" if summed else "crop"
        return "mixtures" if summed else "groups"

    def in_order(self) -> Lowering:
        """The same once the filters stand in this order."""
        numbers = itertools.count()
        return Lowering(tuple(Part(tuple(next(numbers) for _ in part.filters), part.rectangles) for part in self.parts))

    def __str__(self) -> str:
        return ", ".join(map(str, self.parts)) or "as it is"


def list_graphs(layer: Layer, lowering: Lowering, is_free: bool) -> list[LayerGraph]:
    """List the graphs to time for a lowering, one for each call of the convolution."""
    parts = lowering.parts or (Part(tuple(range(layer.rows)), (layer.whole,)),)
    ops = tuple(
        tuple(make_convolution(layer, len(part.filters), rectangle) for rectangle in part.rectangles) for part in parts
    )
    reordered = not is_free and not lowering.is_ordered
    return [LayerGraph(shape, ops, reordered) for shape in layer.inputs]


def make_convolution(layer: Layer, filters: int, rectangle: Rectangle) -> Convolution:
    """Describe the smaller convolution of so many filters."""
    reading = find_reading(rectangle, layer.kernel, layer.options)
    size = (len(rectangle.rows), len(rectangle.columns))
    return Convolution(
        filters, size, reading.sides, layer.options.stride, reading.dilation, layer.options.groups
    )  # fmt: skip

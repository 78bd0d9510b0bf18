"""How does a smaller kernel read the same input as the whole one?"""

from __future__ import annotations

from typing import NamedTuple

from fxprune.stripes.rectangles import Rectangle


class Options(NamedTuple):
    """How the whole convolution reads its input; the padding at top, bottom, left and right."""

    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int


class Reading(NamedTuple):
    """How one smaller kernel reads the same input: what is padded (or cut off) first, and the convolution's own."""

    pad: tuple[int, int, int, int] | None  # as F.pad takes it: left, right, top, bottom
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def sides(self) -> tuple[int, int, int, int]:
        """The whole padding as ONNX writes it: top, left, bottom, right."""
        left, right, top, bottom = self.pad or (0, 0, 0, 0)
        down, along = self.padding
        return (top + down, left + along, bottom + down, right + along)

    @property
    def crops(self) -> bool:
        """Whether some of the input is cut off."""
        return min(self.sides) < 0


def find_reading(rectangle: Rectangle, kernel: tuple[int, int], options: Options) -> Reading:
    """Give the padding and dilation with which a rectangle of a kernel gives outputs of the same size and place.

    Row r of the kernel reads r * dilation - padding rows below the output; so the rectangle's first row r0 takes the
    padding p - r0 * dilation at the top, which may be negative, and likewise at the other sides.
    """
    (height, width), (down, right) = kernel, options.dilation
    top, bottom, left, end = options.padding
    rows, columns = rectangle.rows, rectangle.columns
    top, bottom = top - rows[0] * down, bottom - (height - 1 - rows[-1]) * down
    left, end = left - columns[0] * right, end - (width - 1 - columns[-1]) * right
    dilation = (rows.step * down if len(rows) > 1 else 1, columns.step * right if len(columns) > 1 else 1)
    if top == bottom >= 0 and left == end >= 0:
        return Reading(None, (top, left), dilation)
    return Reading((left, end, top, bottom), (0, 0), dilation)

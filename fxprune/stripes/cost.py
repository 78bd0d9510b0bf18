"""What does a convolution cost, in multiply-accumulates of a large dense one?

    cost = positions * (aligned rows * columns * taps * factor + columns of each reading) + what is joined and moved

for a processor with wide vectors. Figures are fits to ONNX Runtime's kernels on AVX-512, measured with
`fxprune.layer_times`; they say which lowerings are worth a try, and a measured choice needs no more of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fxprune.vector_width import VECTOR


@dataclass(frozen=True)
class CostModel:
    """What a runtime makes of convolutions of different shapes; costs of elements are for each."""

    align: int = VECTOR  # output channels computed at a time
    point: float = 1.1  # what a multiply-accumulate of a 1 x 1 kernel costs, one of a 3 x 3 kernel being 1
    line: float = 1.03  # of kernels of one row or one column
    read: float = 4.0  # of the input that a convolution reads
    join: float = 25.0  # that is concatenated in blocks of channels,
    reorder: float = 100.0  # or out of them, where a width is no multiple of `align`
    move: float = 60.0  # that is put in another order, or cropped
    add: float = 2.0  # that is added to another
    call: float = 200_000.0  # for each op

    def count_convolution(self, positions: int, rows: int, columns: int, taps: int, is_line: bool) -> float:
        """The cost of one convolution with `rows` filters over `columns` input channels, at so many positions."""
        factor = self.point if taps == 1 else self.line if is_line else 1.0
        aligned = math.ceil(rows / self.align) * self.align if rows >= self.align else rows + self.align / 4
        return self.call + positions * (aligned * columns * taps * factor + columns * self.read)

    def count_join(self, positions: int, widths: Sequence[int]) -> float:
        """The cost of joining parts of these widths, at so many positions."""
        blocked = all(width % self.align == 0 for width in widths)
        return self.call + positions * sum(widths) * (self.join if blocked else self.reorder)

    def count_moves(self, elements: int) -> float:
        """The cost of putting so many elements into another order, or of cropping them."""
        return self.call + elements * self.move

    def count_sums(self, elements: int) -> float:
        """The cost of adding so many elements to others."""
        return self.call + elements * self.add


CPU = CostModel()

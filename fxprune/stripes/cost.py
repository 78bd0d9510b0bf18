"""What does a convolution cost, in multiply-accumulates of a large dense one?

    cost = positions * (aligned rows * columns * taps * factor + columns of each reading + moves of what it writes)

for a processor with wide vectors. Figures are fits to ONNX Runtime's kernels on AVX-512 (`benchmarks/stripes.py` prints
them for the machine at hand); a measured choice needs none of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class CostModel:
    """What a runtime makes of convolutions of different shapes."""

    align: int = 16  # output channels computed at a time
    point: float = 1.3  # what a multiply-accumulate of a 1 x 1 kernel costs, one of a 3 x 3 kernel being 1
    line: float = 1.1  # of kernels of one row or one column
    read: float = 4.0  # for each element of the input that a convolution reads
    move: float = 25.0  # for each element that is copied, as by a concatenation, or added
    call: float = 200_000.0  # for each op

    def count_convolution(self, positions: int, rows: int, columns: int, taps: int, is_line: bool) -> float:
        """The cost of one convolution with `rows` filters over `columns` input channels, at so many positions."""
        factor = self.point if taps == 1 else self.line if is_line else 1.0
        aligned = math.ceil(rows / self.align) * self.align if rows >= self.align else rows + self.align / 4
        return self.call + positions * (aligned * columns * taps * factor + columns * self.read)

    def count_moves(self, elements: int) -> float:
        """The cost of writing so many elements once more."""
        return self.call + elements * self.move


CPU = CostModel()

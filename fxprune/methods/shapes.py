"""Which rectangle of its kernel does a filter keep, so that what training prunes is a smaller dense convolution?

With magnitudes m of its stripes and T^2 as the price of one stripe, each filter takes the lattice rectangle

    R = argmax over R of sum over p in R of (m_p^2 - T^2),      or none where that is not above 0

which without the rectangle is the usual m_p > T. A layer shares few shapes: those that together keep most, chosen one
after the other. The magnitude of every stripe inside is then the root of the mean square over R.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from fxprune.errors import FxpruneError
from fxprune.methods.threshold import count_closed
from fxprune.stripes.rectangles import progressions

MOST_SHAPES = 4
"""So many shapes a layer has at most, beside filters that keep nothing."""

_BISECTIONS = 24


@functools.cache
def list_rectangles(height: int, width: int) -> Tensor:
    """List the lattice rectangles of a kernel, float32 [rectangles, height * width], 1 inside."""
    found = []
    for rows, columns in itertools.product(progressions(list(range(height))), progressions(list(range(width)))):
        inside = torch.zeros(height, width)
        inside[rows.start : rows.stop : rows.step, columns.start : columns.stop : columns.step] = 1
        found.append(inside.flatten())
    return torch.stack(found)


def choose_rectangles(squares: Tensor, price: Tensor | float) -> Tensor:
    """Give the stripes in their filter's rectangle, from the squared magnitudes, both [filters, height, width]."""
    table = list_rectangles(squares.size(1), squares.size(2)).to(squares)
    values = (squares.flatten(1) - price) @ table.T
    best, chosen = torch.zeros_like(values[:, 0]), []
    for _ in range(min(MOST_SHAPES, len(table))):
        shape = torch.maximum(values, best[:, None]).sum(0).argmax()
        chosen.append(shape)
        best = torch.maximum(best, values.index_select(1, shape[None])[:, 0])
    shapes = torch.stack(chosen)
    value, which = values[:, shapes].max(1)
    return ((table[shapes][which] > 0) & (value > 0)[:, None]).view_as(squares)


def find_price(layers: Mapping[str, Tensor], sparsity: float) -> Tensor:
    """Give the least threshold T, to 7 digits, at which rectangles close the share `sparsity` of all stripes together.

    `layers` are the squared magnitudes, [filters, height, width] each. A sparsity of 0 or less gives 0.
    """
    first = next(iter(layers.values()))
    total = sum(squares.numel() for squares in layers.values())
    wanted = count_closed(total, sparsity)
    largest = max(float(squares.max()) for squares in layers.values())
    if not largest < torch.inf:
        raise FxpruneError("weights are NaN or infinite, so no threshold exists; lower the learning rate")
    if wanted == 0:
        return torch.zeros((), dtype=first.dtype, device=first.device)
    low, high = 0.0, largest * 1.001  # at which nothing stays
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        kept = sum(int(choose_rectangles(squares, middle).sum()) for squares in layers.values())
        low, high = (low, middle) if total - kept >= wanted else (middle, high)
    return torch.tensor(high**0.5, dtype=first.dtype, device=first.device)

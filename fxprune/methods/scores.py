"""How much does a unit matter?

The score of a unit is the root of the mean, over all places where it appears (the rows of its producers, the columns
of its readers, its batch-norm scales), of the mean square there, divided by that layer's mean. So every layer has
mean 1, which scores every layer alike: the columns alone, or the scale alone, empty whole layers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 1 << 18  # weights squared at a time: they stay in the cache


@dataclass(frozen=True, eq=False)
class Slice:
    """Where units appear in a parameter: index i of dimension `dim` belongs to unit `index[i]`, -1 to none."""

    parameter: str
    dim: int
    index: Tensor  # int64 [size of dim]


def unit_scores(parameters: Mapping[str, Tensor], slices: Sequence[Slice], units: int) -> Tensor:
    """Give every unit its score, float32 (float64 where the parameters are) of shape [units].

    A unit in no slice, or only in layers that are all zero, has score 0. Weights that are NaN or infinite give
    NaN, which `select_threshold` refuses. Units are scored one by one: nothing here keeps the strongest of a group.
    """
    dims: dict[str, set[int]] = {}
    for place in slices:
        dims.setdefault(place.parameter, set()).add(place.dim)
    squares = {name: _mean_squares(parameters[name], sorted(wanted)) for name, wanted in dims.items()}
    if not slices:
        return torch.zeros(units)
    relative = []
    for place in slices:
        values = squares[place.parameter][place.dim]
        mean = values.mean()
        relative.append(values / torch.where(mean == 0, 1, mean))
    return _mean_by_unit(relative, slices, units).sqrt()


@torch.no_grad()
def norm_scores(
    parameters: Mapping[str, Tensor], slices: Sequence[Slice], units: int, importance: Callable[[Tensor], Tensor]
) -> Tensor:  # fmt: skip
    """Give every unit the mean importance of its batch-norm scales, [units], as they are: layers are compared."""
    return _mean_by_unit([importance(parameters[place.parameter]) for place in slices], slices, units)


def _mean_by_unit(values: Sequence[Tensor], slices: Sequence[Slice], units: int) -> Tensor:
    """Give the mean of each unit's values, [units]; with each slice stand the values at its indexes."""
    first = values[0]
    sums = torch.zeros(units + 1, dtype=torch.promote_types(first.dtype, torch.float32), device=first.device)
    counts = torch.zeros_like(sums)  # the last collects index -1
    for each, place in zip(values, slices, strict=True):
        index = place.index.remainder(units + 1)
        sums.index_add_(0, index, each.to(sums))
        counts.index_add_(0, index, torch.ones_like(each).to(counts))
    return (sums / counts.clamp_min(1))[:-1]


@torch.no_grad()
def _mean_squares(parameter: Tensor, dims: Sequence[int]) -> dict[int, Tensor]:
    """Give the mean square of each index of each of the dimensions, in one pass over the parameter."""
    length = max(1, parameter.shape[0])
    rows = max(1, _BLOCK * length // max(1, parameter.numel())) if parameter.device.type == "cpu" else length
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    by_row: list[Tensor] = []
    by_rest = torch.zeros(parameter.shape[1:], dtype=dtype, device=parameter.device)
    for start in range(0, length, rows):
        square = parameter[start : start + rows].to(dtype).square()
        if 0 in dims:
            by_row.append(square.sum(tuple(range(1, square.dim()))) if square.dim() > 1 else square)
        if any(dims):
            by_rest += square.sum(0)
    sums = {0: torch.cat(by_row)} if by_row else {}
    for dim in filter(None, dims):
        others = tuple(other for other in range(by_rest.dim()) if other != dim - 1)
        sums[dim] = by_rest.sum(others) if others else by_rest
    return {dim: total * (parameter.shape[dim] / parameter.numel()) for dim, total in sums.items()}

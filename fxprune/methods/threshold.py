"""Which magnitude is the threshold that closes a given share of all weights?

The threshold is the order statistic T = v[floor((N - 1) s)] of the N magnitudes v = |w| / scale of all layers, and
a weight stays open iff v > T. Nothing is sorted or concatenated: a strided sample gives a bracket around T, one pass
(`magnitudes.py`) counts what lies above it and collects the few magnitudes inside, and T is picked from those.
A sample that misleads costs more passes and never the exactness. What comes out depends on the weights alone: a
bracket remembered from the last step was tried, and saves a quarter at best where the threshold hardly moves, and
costs a second pass where it does.

Equal magnitudes close together or not at all, whichever comes nearer to what was asked.

Magnitudes are ordered as their bits are, read as an integer, so brackets are pairs of integers (low, high], with
-1 for below everything. Where `torch.distributed` runs, all ranks hold the same weights and find the same T.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fxprune.errors import FxpruneError, TargetError
from fxprune.methods.magnitudes import Layer, count_magnitudes

_SAMPLE = 1 << 19
_FEW = 1 << 16  # so many magnitudes are collected whatever their share
_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


def select_threshold(
    weights: Mapping[str, Tensor], sparsity: float, scales: Mapping[str, float] | None = None
) -> Tensor:
    """Give the magnitude T = v[floor((N - 1) * sparsity)], v sorted, of all weights' v = |w| / scale together.

    `weights` are named tensors of any shape, layout and floating type; `scales` divides a layer's magnitudes
    and is 1 for layers that it leaves out. The result is 0-dimensional, on the device of the first tensor, of
    type float32 or, if any weight is, float64. With distinct magnitudes exactly floor((N - 1) * sparsity) + 1
    are <= T; of ties see `select_priced_threshold`. A sparsity of 0 or less gives 0: no threshold.

    Raises TargetError for a sparsity of 1 or more, FxpruneError for weights that are NaN or infinite.
    """
    if not sparsity < 1:
        raise TargetError(f"a sparsity of {sparsity} closes everything; give less than 1")
    total = sum(weight.numel() for weight in weights.values())
    return select_priced_threshold(weights, count_closed(total, sparsity), scales)


def select_priced_threshold(
    weights: Mapping[str, Tensor],
    closed: int,
    scales: Mapping[str, float] | None = None,
    prices: Mapping[str, int] | None = None,
) -> Tensor:
    """Give the smallest magnitude T such that the weights with |w| / scale <= T cost `closed` or more together.

    `prices` says what each weight of a layer costs, 1 for layers that it leaves out. All else is as for
    `select_threshold`; `closed` is at most what all weights cost, and 0 or less gives 0.

    Where several magnitudes are equal to T and fewer would do, T stays just below them if that comes nearer to
    `closed`, or if everything would close; 0 where nothing is below them. A T of zeros is the smallest normal
    number instead, since 0 is no threshold.
    """
    device = next((weight.device for weight in weights.values()), torch.device("cpu"))
    dtype = torch.float32
    for weight in weights.values():
        dtype = torch.promote_types(dtype, weight.dtype)
    cost = {name: (prices or {}).get(name, 1) for name, weight in weights.items() if weight.numel()}
    unit = math.gcd(*cost.values())
    if closed <= 0 or unit == 0:
        return torch.zeros((), dtype=dtype, device=device)
    layers = [
        Layer(name, _flatten(weights[name]), (scales or {}).get(name, 1.0), price // unit)
        for name, price in cost.items()
    ]
    total = sum(layer.flat.numel() * layer.price for layer in layers)
    number = sum(layer.flat.numel() for layer in layers)
    found = _find(_Search(layers, dtype, number, total, rank=(closed - 1) // unit))
    threshold = max(found.value, torch.finfo(dtype).tiny)
    beyond, missing = found.upto * unit - closed, closed - found.below * unit
    if found.equal > 1 and beyond > 0 and (missing < beyond or found.upto == total):
        threshold = _from_bits(_to_bits(found.value, dtype) - 1, dtype) if found.below else 0.0
    return torch.tensor(threshold, dtype=dtype, device=device)


def count_closed(total: int, share: float) -> int:
    """Give how many of `total` close: the rank of the order statistic `v[floor((total - 1) * share)]`, and 1."""
    return math.floor((total - 1) * share) + 1 if share > 0 and total > 0 else 0


def layer_threshold(threshold: Tensor, scale: float) -> Tensor:
    """Give the largest tau with tau / scale <= threshold as rounded, so that |w| > tau iff |w| / scale > threshold.

    The product `threshold * scale` may be off by its last bit, which would open or close the weight at the threshold.
    """
    if scale == 1.0:
        return threshold
    tau = threshold * scale
    for _ in range(2):
        tau = torch.where(tau / scale > threshold, torch.nextafter(tau, torch.zeros_like(tau)), tau)
    for _ in range(2):
        larger = torch.nextafter(tau, torch.full_like(tau, math.inf))
        tau = torch.where(larger / scale <= threshold, larger, tau)
    return tau


class _Search(NamedTuple):
    layers: list[Layer]
    dtype: torch.dtype
    number: int  # of magnitudes
    total: int  # what they cost together
    rank: int  # what those below the threshold cost at most

    @property
    def is_priced(self) -> bool:
        return any(layer.price != 1 for layer in self.layers)


class _Point(NamedTuple):
    bits: int
    upto: int  # what the magnitudes that are <= it cost
    number: int  # and how many they are


class _Found(NamedTuple):
    value: float  # the threshold
    below: int  # what the magnitudes below it cost
    upto: int  # what those up to it cost
    equal: int  # how many have this value


class _Ordered(NamedTuple):
    bits: Tensor  # of magnitudes, ascending
    costs: Tensor | None  # of all up to each, together; None where each costs 1

    def find(self, bits: int) -> tuple[int, int]:
        """Give where the magnitudes of these bits begin and end."""
        return int(torch.searchsorted(self.bits, bits)), int(torch.searchsorted(self.bits, bits, right=True))

    def cost(self, number: int) -> int:
        """Give what so many of the smallest cost together."""
        return number if self.costs is None or number == 0 else int(self.costs[number - 1])


class _Survey(NamedTuple):
    low: _Point
    high: _Point
    inside: _Ordered | None  # those in (low, high], or None where they are too many to be collected


@torch.no_grad()
def _find(search: _Search) -> _Found:
    most = _to_bits(torch.finfo(search.dtype).max, search.dtype)
    floor, ceiling = _Point(-1, 0, 0), _Point(most, search.total, search.number)
    for deviations in itertools.count(3, 9):  # floor.upto <= rank < ceiling.upto, and every round brings them closer
        low, high = _bracket(search, floor, ceiling, deviations)
        survey = _survey(search, low, high)
        for point in (survey.low, survey.high):
            if point.upto <= search.rank:
                floor = max(floor, point)
            else:
                ceiling = min(ceiling, point)
        if ceiling.bits - floor.bits == 1:
            return _Found(
                _from_bits(ceiling.bits, search.dtype), floor.upto, ceiling.upto, ceiling.number - floor.number
            )
        if survey.inside is not None and (floor, ceiling) == (survey.low, survey.high):
            return _describe(survey.inside, _pick(survey.inside, search.rank - floor.upto), search.dtype, floor.upto)
    raise AssertionError("unreachable")


def _bracket(search: _Search, floor: _Point, ceiling: _Point, deviations: int) -> tuple[int, int]:
    """Choose the bits (low, high] to survey: all that is left where few are, else by sampling, at last the middle."""
    if ceiling.number - floor.number <= _most_inside(search):
        return floor.bits, ceiling.bits
    if deviations <= 12:
        low, high = _sample_bracket(search, deviations)
        low, high = min(max(low, floor.bits), ceiling.bits - 1), min(high, ceiling.bits)
        if low < high:
            return low, high
    third = (ceiling.bits - floor.bits) // 3
    return floor.bits + third, ceiling.bits - max(1, third)


def _sample_bracket(search: _Search, deviations: int) -> tuple[int, int]:
    """Guess bits (low, high] around the threshold, so many standard deviations of a sample to each side."""
    stride = search.number // min(_SAMPLE, search.number // 8)
    while math.gcd(stride, 210) > 1:  # else it could hit the same places of every kernel
        stride += 1
    parts: list[tuple[Tensor, int]] = []
    start = 0
    for layer in search.layers:
        part = layer.flat[-start % stride :: stride].to(search.layers[0].flat.device, search.dtype)
        parts.append((part.abs() / layer.scale, layer.price))
        start += layer.flat.numel()
    count, spread = (sum(part.numel() * price**power for part, price in parts) for power in (1, 2))
    if not count:  # it holds nothing that costs anything
        return -1, _to_bits(torch.finfo(search.dtype).max, search.dtype)
    sample = _order(parts, search.is_priced)
    share, dearest = search.rank / search.total, max(price for _, price in parts)
    middle, margin = share * count, deviations * (math.sqrt(spread * share * (1 - share)) + dearest)
    low, high = math.floor(middle - margin), math.ceil(middle + margin)
    high_bits = _pick(sample, high) if high < count else _to_bits(torch.finfo(search.dtype).max, search.dtype)
    if low < 0:
        return -1, high_bits
    low_bits = _pick(sample, low)
    start, end = sample.find(low_bits)
    if (end - start) * 32 > sample.bits.numel() and low_bits < high_bits:
        return low_bits, high_bits  # what so many share, zeros mostly, is counted and not collected
    return low_bits - 1, high_bits


def _survey(search: _Search, low: int, high: int) -> _Survey:
    """Count the magnitudes up to `low` and up to `high`, and collect those between unless they are many.

    Raises FxpruneError where it meets a weight that is NaN or infinite.
    """
    limit = _most_inside(search) if high - low > 1 else 0
    low_value, high_value = _from_bits(low, search.dtype), _from_bits(high, search.dtype)
    counts = count_magnitudes(search.layers, low_value, high_value, search.dtype, limit)
    if not all(math.isfinite(count.largest) for count in counts):
        refuse_unfinite({layer.name: layer.flat for layer in search.layers})
    low_point = _place(search, low, [(count.above_low, count.price) for count in counts])
    high_point = _place(search, high, [(count.above_high, count.price) for count in counts])
    if not 0 < high_point.number - low_point.number <= limit:
        return _Survey(low_point, high_point, None)
    inside = [(count.inside, count.price) for count in counts if count.inside is not None]
    return _Survey(low_point, high_point, _order(inside, search.is_priced))


def _place(search: _Search, bits: int, above: list[tuple[int, int]]) -> _Point:
    """Give the point at these bits, where so many magnitudes lie above it, with the price of each."""
    cost, number = sum(count * price for count, price in above), sum(count for count, _ in above)
    return _Point(bits, search.total - cost, search.number - number)


def _most_inside(search: _Search) -> int:
    return max(_FEW, search.number // 16)


def _order(parts: Sequence[tuple[Tensor, int]], is_priced: bool) -> _Ordered:
    """Order the magnitudes of all parts together, whose prices stand beside them."""
    bits = torch.cat([part.cpu() for part, _ in parts])
    bits = bits.view(_BITS[bits.dtype])  # ordered many times as fast as floating point
    if not is_priced:
        return _Ordered(torch.from_numpy(np.sort(bits.numpy())), None)  # PyTorch would keep track of the order, too
    bits, order = bits.sort()
    prices = torch.cat([torch.full((part.numel(),), price) for part, price in parts])
    return _Ordered(bits, prices[order].cumsum(0))


def _pick(ordered: _Ordered, amount: int) -> int:
    """Give the bits of the smallest magnitude up to which all cost more than `amount`."""
    place = amount if ordered.costs is None else torch.searchsorted(ordered.costs, amount, right=True)
    return int(ordered.bits[place])


def _describe(ordered: _Ordered, bits: int, dtype: torch.dtype, lower: int) -> _Found:
    """Say what lies below the magnitude that was picked and up to it, where `lower` is what lies below all of these."""
    start, end = ordered.find(bits)
    return _Found(_from_bits(bits, dtype), lower + ordered.cost(start), lower + ordered.cost(end), end - start)


def _flatten(weight: Tensor) -> Tensor:
    """View a dense weight as one row in whatever order it is stored (channels last, transposed); copy any other."""
    strides = weight.stride()
    order = sorted(range(weight.dim()), key=lambda dim: -strides[dim])
    return weight.detach().permute(order).reshape(-1)


def _to_bits(value: float, dtype: torch.dtype) -> int:
    return int(torch.tensor(value, dtype=dtype).view(_BITS[dtype]))


def _from_bits(bits: int, dtype: torch.dtype) -> float:
    return float(torch.tensor(bits, dtype=_BITS[dtype]).view(dtype)) if bits >= 0 else -1.0


def refuse_unfinite(weights: Mapping[str, Tensor]) -> None:
    """Name the first tensor that holds NaN or infinity, if any does, and raise FxpruneError."""
    for name, weight in weights.items():
        bad = int((~weight.isfinite()).sum())
        if bad:
            raise FxpruneError(
                f"{name}: {bad} of {weight.numel()} weights are NaN or infinite, so no threshold exists; "
                "lower the learning rate or clip the gradients"
            )

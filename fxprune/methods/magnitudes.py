"""How many magnitudes lie above two values, and which lie between them, in one pass over all layers?

The layers are cut into blocks that stay in a core's cache while they are read. On the CPU each thread counts blocks
of its own with numpy, from the first to the last: PyTorch would divide every one of some ten operations on a block
among the threads and have them wait for each other each time, which took three times as long. On a GPU, blocks are
larger, since each is waited for.
"""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_CPU_BLOCK = 1 << 18  # magnitudes
_GPU_BLOCK = 1 << 22
_SERIAL = 1 << 14  # PyTorch converts so many elements in the thread that asks


class Layer(NamedTuple):
    name: str
    flat: Tensor  # [n], in the order of storage where the weight is dense
    scale: float  # divides the magnitudes
    price: int  # of each of them


class Count(NamedTuple):
    """What one block holds."""

    price: int  # of each magnitude
    above_low: int
    above_high: int
    inside: Tensor | None  # the magnitudes in (low, high], [n] on the CPU; None where there was no room for them
    largest: float  # NaN where one is NaN


class _Piece(NamedTuple):
    layer: Layer
    begin: int
    end: int


class _Block(NamedTuple):
    """Pieces of one price on one device."""

    pieces: list[_Piece]
    size: int  # of all pieces together
    price: int
    device: torch.device


class _Room:
    """Room for so many magnitudes; once it is overfull, no more are collected."""

    def __init__(self, size: int) -> None:
        self.left = size
        self._lock = Lock()

    def take(self, number: int) -> bool:
        with self._lock:
            self.left -= number
            return self.left >= 0


class _Bracket(NamedTuple):
    low: float
    high: float
    dtype: torch.dtype
    room: _Room


def count_magnitudes(layers: Sequence[Layer], low: float, high: float, dtype: torch.dtype, limit: int) -> list[Count]:
    """Count the magnitudes |w| / scale of all layers, as float32 or float64, above `low` and above `high` by blocks.

    Those in (low, high] are handed out too while they are no more than `limit` together, and where they are more,
    some counts are without. The counts come in any order.
    """
    bracket = _Bracket(low, high, dtype, _Room(limit))
    blocks = list(_divide(layers))
    on_cpu = [block for block in blocks if block.device.type == "cpu"]
    elsewhere = [_count_elsewhere(block, bracket) for block in blocks if block.device.type != "cpu"]
    threads = min(torch.get_num_threads(), len(on_cpu))
    if threads < 2:
        return elsewhere + _count_on_cpu(iter(on_cpu), bracket)
    queue = iter(on_cpu)  # each thread takes the next block of it
    with ThreadPoolExecutor(threads) as pool:
        counts = pool.map(lambda _: _count_on_cpu(queue, bracket), range(threads))
        return elsewhere + list(itertools.chain.from_iterable(counts))


def _divide(layers: Sequence[Layer]) -> Iterator[_Block]:
    """Cut layers into blocks; small layers of one price and device share one."""
    for (price, device), alike in itertools.groupby(layers, lambda layer: (layer.price, layer.flat.device)):
        most = _CPU_BLOCK if device.type == "cpu" else _GPU_BLOCK
        pieces: list[_Piece] = []
        filled = 0
        for layer in alike:
            begin = 0
            while begin < layer.flat.numel():
                end = min(layer.flat.numel(), begin + most - filled)
                pieces.append(_Piece(layer, begin, end))
                filled += end - begin
                begin = end
                if filled == most:
                    yield _Block(pieces, filled, price, device)
                    pieces, filled = [], 0
        if filled:
            yield _Block(pieces, filled, price, device)


def _count_on_cpu(blocks: Iterator[_Block], bracket: _Bracket) -> list[Count]:
    """Count blocks until none is left, all in this thread."""
    values = np.empty(_CPU_BLOCK, dtype=str(bracket.dtype).removeprefix("torch."))
    marks = np.empty((2, _CPU_BLOCK), dtype=bool)
    counts = []
    for block in blocks:
        magnitudes, (above_low, above_high) = values[: block.size], marks[:, : block.size]
        filled = 0
        for layer, begin, end in block.pieces:
            part = magnitudes[filled : filled + end - begin]
            _take_magnitudes(layer.flat[begin:end], part)
            if layer.scale != 1.0:
                np.divide(part, layer.scale, out=part)
            filled += end - begin
        np.greater(magnitudes, bracket.low, out=above_low)
        np.greater(magnitudes, bracket.high, out=above_high)
        many, few = (int(np.count_nonzero(above)) for above in (above_low, above_high))
        inside = None
        if bracket.room.take(many - few):
            np.not_equal(above_low, above_high, out=above_low)
            inside = torch.from_numpy(magnitudes[np.flatnonzero(above_low)])
        counts.append(Count(block.price, many, few, inside, float(magnitudes.max())))
    return counts


def _take_magnitudes(weights: Tensor, out: np.ndarray) -> None:
    taken = torch.from_numpy(out)
    if weights.dtype != taken.dtype:
        for part, place in zip(weights.split(_SERIAL), taken.split(_SERIAL), strict=True):
            place.copy_(part)
        np.abs(out, out=out)
    else:
        np.abs(weights.numpy(), out=out)


def _count_elsewhere(block: _Block, bracket: _Bracket) -> Count:
    magnitudes = torch.cat(
        [layer.flat[begin:end].to(bracket.dtype).abs() / layer.scale for layer, begin, end in block.pieces]
    )
    above_low, above_high = magnitudes > bracket.low, magnitudes > bracket.high
    counted = torch.stack([above_low.sum(), above_high.sum(), magnitudes.max().double()]).tolist()
    many, few = int(counted[0]), int(counted[1])
    inside = magnitudes[above_low & ~above_high].cpu() if bracket.room.take(many - few) else None
    return Count(block.price, many, few, inside, counted[2])

"""Does a view cut channels where the size of an image says? Then an image of another size would cut them elsewhere.

A view takes elements in their order, so `[n, channels]` can be viewed as `[channels, height, width]`: each of the new
channels is a piece of the old ones, and of some tokens. Where channels are cut, between heads and their inner channels
as between pixels, follows from the sizes at the right of the cut, among the input's dimensions and the output's: the
cut stays where it is if the same sizes of images stand on both sides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fxprune.shadow.tensor import Ids, varying


class Block(NamedTuple):
    """Dimensions of the input and of the output that hold the same elements, and are in no smaller block."""

    before: range
    after: range


def find_cut_by_size(
    ids: Ids, before: Sequence[int], after: Sequence[int], sized: Sequence[bool | None]
) -> Iterator[Tensor]:  # fmt: skip
    """Find the ids that a view of a tensor of shape `before` cuts at places that follow from the size of an input.

    `sized` says of each dimension of the result whether that size says how long it is; None where it is what is left,
    written as -1.
    """
    if 0 in before or all(flag is False for flag in sized):
        return
    for block in find_blocks(before, after):
        if any(sized[d] is not False for d in block.after):
            for t in ids:
                dims = set(varying(t)) & set(block.before)
                if any(is_cut(t, dim, ids, block, before, after, sized) for dim in dims):
                    yield t


def find_blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[Block]:
    """Split the dimensions of a view wherever both shapes have as many elements at the right."""
    starts = [dict(zip(count_right(shape), range(len(shape) + 1), strict=True)) for shape in (before, after)]
    common = sorted(starts[0].keys() & starts[1].keys(), reverse=True)
    for left, right in itertools.pairwise(common):
        yield Block(*(range(start[left], start[right]) for start in starts))


def count_right(shape: Sequence[int]) -> list[int]:
    """How many elements lie at the right of each dimension's left end, and 1 behind the last."""
    return [math.prod(shape[d:]) for d in range(len(shape) + 1)]


def is_cut(
    t: Tensor, dim: int, ids: Ids, block: Block, before: Sequence[int], after: Sequence[int],
    sized: Sequence[bool | None],
) -> bool:  # fmt: skip
    """Whether the channels of `t` along one dimension are cut so."""
    run, period = find_pattern(t, dim)
    inner = math.prod(before[dim + 1 : block.before.stop])
    behind = run * math.prod(count_positions(ids, d, before) for d in range(dim + 1, block.before.stop))
    places = math.prod(count_positions(ids, d, before) for d in block.before)
    for start in block.after[1:]:
        if not run * inner < math.prod(after[start : block.after.stop]) < period * inner:
            continue
        lengths = {d: after[d] if sized[d] else 1 for d in block.after}
        right = math.prod(lengths[d] for d in range(start, block.after.stop))
        if None in sized[start : block.after.stop]:
            right = places // math.prod(lengths[d] for d in range(block.after.start, start))
        if right != behind:
            return True
    return False


def find_pattern(t: Tensor, dim: int) -> tuple[int, int]:
    """How often each id along a dimension comes at once, and after how many elements all of them come again."""
    rows = t.movedim(dim, 0).flatten(1) if t.dim() > 1 else t[:, None]
    size = len(rows)
    changes = (rows[1:] != rows[:-1]).any(1).nonzero().flatten() + 1
    run = math.gcd(size, *changes.tolist())
    period = next(p for p in range(run, size + 1, run) if size % p == 0 and torch.equal(rows[p:], rows[: size - p]))
    return run, period


def count_positions(ids: Ids, dim: int, shape: Sequence[int]) -> int:
    """How many of the elements along a dimension are not channels: all of them, or those that share one channel."""
    patterns = [(t.size(dim), *find_pattern(t, dim)) for t in ids if dim in varying(t)]
    return min((size // (period // run) for size, run, period in patterns), default=shape[dim])

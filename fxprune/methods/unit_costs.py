"""What do the open units cost together, and which close so that the whole meets a target?

A *side* is a dimension along which units stand, of a parameter or of an operand. Its length is a linear function of how
many units of each group are open, and the cost a sum of products of lengths:

    length_s = base_s + sum over groups g of m_sg open_g,      cost = sum over terms t of c_t prod over s in t length_s

A factor c_t is a number, or stands in a table with a step for every so many indexes of some sides, as measured times
do, whose kernels compute blocks of channels:

    c_t = table_t[ceil(length_1 / block_1), ceil(length_2 / block_2), ...]

A *group* is the set of units that stand at the same places, equally often, so its units cost alike. All is in whole
numbers, hence exact; and all but the order of the scores is known in advance, hence fast: the units close block by
block in the order of their scores, and how many blocks close is found by a search over the rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneError
from fxprune.methods.targets import Target
from fxprune.methods.threshold import count_closed

_WAYS = 32  # ranks that are tried at a time
_EXCHANGES = 4  # blocks that are tried open to come closer to a measured target


class Steps(NamedTuple):
    """A side that a table has a dimension for: the number of the unit at every index, and how many are one step."""

    side: Tensor
    block: int


class Term(NamedTuple):
    """One summand of a cost: a factor, times the lengths of some sides, each the number of the unit at every index.

    A factor that changes with widths is a table, [steps along the first side + 1, those along the next + 1, ...].
    """

    factor: int | Tensor
    sides: tuple[Tensor, ...] = ()
    steps: tuple[Steps, ...] = ()
    name: str = ""  # the layer that costs it


class Choice(NamedTuple):
    """Which units are open: those whose magnitude is above their threshold."""

    magnitudes: Tensor  # [units], the scores, but for ties at the threshold
    thresholds: Tensor  # [units]
    threshold: Tensor  # 0-dim, the score of the last that closed


class UnitCosts(nn.Module):
    """The cost of a model as a function of which units are open, and which close for a target.

    `places` are the dimensions of parameters where the units live: the number of the unit at each index, -1 where
    there is none. `total` is the cost of the dense model; `own` are the shares of units with an override, [units],
    NaN for the others. Without `terms` every unit costs 1, and without `places` all units are one group. Tables, which
    were measured, are in the state dict, and so is what `calibrate` adds to them.
    """

    group: Tensor  # [units]
    size: Tensor  # [groups]
    asked: Tensor  # [groups], how many units an override closes at the end; -1 without
    quantum: Tensor  # [groups], how many units close at a time
    group_ranked: Tensor  # [units], the group of each unit where they are sorted by group
    position: Tensor  # [units], and its position there within the group
    end: Tensor  # [blocks], the last unit of each block that may close, where they are sorted by group
    end_group: Tensor  # [blocks]
    end_closed: Tensor  # [blocks], how many units of its group are closed with it
    first_end: Tensor  # [groups], the number of its first block
    first_block: Tensor  # [groups], how many units that has: the odd ones go first
    base: Tensor  # [lengths], indexes that never close; the last length is 1
    pair_side: Tensor  # [pairs of a length and a group]
    pair_group: Tensor
    pair_indexes: Tensor  # how many indexes a unit of the group has there
    factors: Tensor  # of all terms, one table after another
    term_start: Tensor  # [terms], where the factors of each begin
    term_sides: Tensor  # [terms, most sides], filled up with the length 1
    term_stepped: Tensor  # [terms, most dimensions of a table], sides, filled up with the length 1
    term_block: Tensor  # the same, how many of its indexes are one step
    term_stride: Tensor  # the same, how far apart two steps are among the factors; 0 where filled up
    constant: Tensor  # 0-dim, what no width changes, beside the terms
    total: Tensor  # 0-dim

    def __init__(
        self,
        units: int,
        target: Target,
        places: Sequence[Tensor] = (),
        terms: Sequence[Term] = (),
        total: int | None = None,
        own: Tensor | None = None,
    ) -> None:
        super().__init__()
        self._constants: list[str] = []
        self.target = target
        every = torch.arange(units)
        places, terms = list(places) or [every], list(terms) or [Term(1, (every,))]
        sides = [side for term in terms for side in (*term.sides, *(steps.side for steps in term.steps))]
        self._keep("group", group_units(units, [*places, *sides]))
        self._keep("size", torch.bincount(self.group))
        self._keep_blocks(places)
        self._keep_terms(terms, sides)
        shares = torch.full((len(self.size),), math.nan, dtype=torch.float64)
        if own is not None:
            shares[self.group] = own.double()  # all units of a group have the same
        counts = zip(self.size.tolist(), shares.tolist(), strict=True)
        self._keep("asked", torch.tensor([-1 if math.isnan(s) else count_closed(n, s) for n, s in counts]))
        whole = self.cost(self.size) if total is None else torch.tensor(total)
        self._keep("total", whole, self.is_measured)

    def cost(self, open_units: Tensor) -> Tensor:
        """Give the cost, int64 [...], of so many open units of each group, int64 [..., groups]."""
        return self._cost_terms(open_units).sum(-1) + self.constant

    def count_open(self, gates: Tensor) -> Tensor:
        """Give how many units of each group are open, int64 [groups], by the gates of all, [units]."""
        self._move(gates.device)
        return torch.zeros_like(self.size).index_add_(0, self.group, (gates > 0).long())

    def _cost_terms(self, open_units: Tensor) -> Tensor:
        """Give what each term costs, int64 [..., terms]."""
        lengths = self.base.expand(*open_units.shape[:-1], -1).clone()
        lengths.index_add_(-1, self.pair_side, self.pair_indexes * open_units[..., self.pair_group])
        steps = (lengths[..., self.term_stepped] + self.term_block - 1) // self.term_block
        factor = self.factors[self.term_start + (steps * self.term_stride).sum(-1)]
        product: Tensor = lengths[..., self.term_sides].prod(-1) * factor
        return product

    def list_shares(self, open_units: Tensor) -> dict[str, float]:
        """Give the share of the cost of so many open units, [groups], that each layer has: the largest first."""
        costs = [*self._cost_terms(open_units).tolist(), int(self.constant)]
        whole = max(1, int(self.cost(open_units)))
        shares: dict[str, float] = {}
        for name, cost in zip([*self.names, "what no width changes"], costs, strict=True):
            shares[name] = shares.get(name, 0.0) + cost / whole
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def calibrate(self, open_units: Tensor, measured: float) -> None:
        """Let `measured`, below 1, be the share of the cost that so many open units, [groups], leave.

        A constant makes it so, which all widths cost alike:  (cost + constant) / (total + constant) = measured.
        """
        left, total = int(self.cost(open_units) - self.constant), int(self.total - self.constant)
        constant = round((measured * total - left) / (1 - measured))
        self.constant.fill_(constant)
        self.total.fill_(total + constant)

    def limit(self, share: float) -> Tensor:
        """Give the most that may be left where `share` of the dense model's cost is to go, 0-dim."""
        closed = ((self.total - 1).double() * share).floor().long() + 1  # as `count_closed` has it
        return torch.where((self.total > 0) & (share > 0), self.total - closed, self.total)

    def most_closed(self) -> Tensor:
        """Give how many units of each group may close, [groups]."""
        may = torch.where(self.asked < 0, self.size, self.asked)[self.end_group]
        closed = torch.where(self.end_closed <= may, self.end_closed, 0)
        return torch.zeros_like(self.size).scatter_reduce(0, self.end_group, closed, "amax")

    def choose(self, scores: Tensor, share: float) -> Choice:
        """Close the units of the lowest scores, [units], so that `share` of the cost goes: no more than it takes.

        Equal scores close in the order of the groups. Raises FxpruneError for scores that are NaN or infinite.
        """
        self._move(scores.device)
        bad = int((~scores.isfinite()).sum())
        if bad:
            raise FxpruneError(
                f"unit scores: {bad} of {len(scores)} are NaN or infinite, so no threshold exists; "
                "lower the learning rate or clip the gradients"
            )
        if share <= 0:
            return Choice(scores, torch.zeros_like(scores), scores.new_zeros(()))
        by_score = scores.argsort(stable=True)
        order = by_score[self.group[by_score].argsort(stable=True)]
        ranked = scores[order]  # by group, then by score
        keys = self._order_blocks(ranked, share / self.target.share)
        closed = self._close(keys, self.limit(share))
        magnitudes, thresholds, threshold = self._separate(ranked, closed)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return Choice(magnitudes[back], thresholds[back], threshold)

    def _order_blocks(self, ranked: Tensor, ramp: float) -> Tensor:
        """Give the key by which blocks close: their highest score, or in each layer the share that is closed then.

        Those that an override closes, now at `ramp`, come first (-inf), and those that it leaves open never (inf).
        """
        by_layer = self.target.scope == "layer"
        keys = self.end_closed.double() / self.size[self.end_group] if by_layer else ranked[self.end]
        asked = self.asked[self.end_group]
        within = self.end_closed <= (asked * ramp).ceil()
        return torch.where(asked < 0, keys, torch.where(within, -math.inf, math.inf))

    def _close(self, keys: Tensor, limit: Tensor) -> Tensor:
        """Close blocks in the order of their keys until the cost is within the limit; give how many units, [groups].

        Measured costs fall in large steps, so there the block that goes beyond is tried open, and others in its place,
        as long as that comes closer.
        """
        best, last = self._close_in_order(keys, limit)
        for _ in range(_EXCHANGES if self.is_measured and len(keys) else 0):
            beyond = (self.end_group == self.end_group[last]) & (self.end_closed >= self.end_closed[last])
            keys = torch.where(beyond & (keys > -math.inf), math.inf, keys)
            closed, last = self._close_in_order(keys, limit)
            cost = self.cost(self.size - closed)
            best = torch.where((cost <= limit) & (cost > self.cost(self.size - best)), closed, best)
        return best

    def _close_in_order(self, keys: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
        """Give how many units close, [groups], and the number of the block that closes last, 0-dim."""
        sequence = keys.argsort(stable=True)
        rank = torch.empty_like(sequence).scatter_(0, sequence, torch.arange(len(keys), device=keys.device))
        blocks = self._search(rank, keys, limit)
        return self._count_closed(rank, blocks), sequence[(blocks - 1).clamp_min(0)] if len(keys) else blocks

    def _search(self, rank: Tensor, keys: Tensor, limit: Tensor) -> Tensor:
        """Find how many blocks have to close for the cost to be within the limit; a GPU is not waited for."""
        low, high = (keys == -math.inf).sum(), (keys < math.inf).sum()
        ways = torch.arange(_WAYS + 1, device=keys.device)
        tried = 1
        while tried <= len(keys):
            points = low + (high - low) * ways // _WAYS
            above = (self.cost(self.size - self._count_closed(rank, points[:, None])) > limit).sum()
            high = points[above.clamp_max(_WAYS)]  # the first that is within the limit, or the last
            low = torch.where(above > 0, points[(above - 1).clamp_min(0)] + 1, low).minimum(high)
            tried *= _WAYS
        return high

    def _count_closed(self, rank: Tensor, blocks: Tensor) -> Tensor:
        """Give how many units of each group are closed after so many blocks, [..., 1] or 0-dim: [..., groups]."""
        stride = len(rank) + 1
        groups = torch.arange(len(self.size), device=rank.device)
        count = torch.searchsorted(self.end_group * stride + rank, groups * stride + blocks) - self.first_end
        return torch.where(count > 0, self.first_block + (count - 1) * self.quantum, 0)

    def _separate(self, ranked: Tensor, closed: Tensor) -> Choice:
        """Give thresholds that close so many units of each group.

        It is the same one wherever that does; elsewhere the strongest score that is closed in the group. Open units
        with just this score are moved above it.
        """
        begin = self.size.cumsum(0) - self.size
        highest = torch.where(closed > 0, ranked[(begin + closed - 1).clamp_min(0)], 0)
        lowest = torch.where(closed < self.size, ranked[(begin + closed).clamp_max(len(ranked) - 1)], math.inf)
        common = torch.where(self.asked < 0, highest, 0).amax()
        alike = (self.asked < 0) & (lowest > common) & (self.target.scope == "global")
        thresholds = torch.where(alike, common, highest)
        thresholds = torch.where(closed > 0, thresholds.clamp_min(torch.finfo(ranked.dtype).tiny), thresholds)
        thresholds = thresholds[self.group_ranked]
        above = torch.nextafter(thresholds, torch.full_like(thresholds, math.inf))
        is_open = self.position >= closed[self.group_ranked]
        return Choice(torch.where(is_open, ranked.maximum(above), ranked), thresholds, common)

    def _keep(self, name: str, value: Tensor, persistent: bool = False) -> None:
        """Note a tensor; what is not saved never changes, and is no buffer: some average those."""
        if persistent:
            self.register_buffer(name, value)
        else:
            setattr(self, name, value)
            self._constants.append(name)

    def _move(self, device: torch.device) -> None:
        """Move what is no buffer to the device where the units are."""
        for name in self._constants if self.group.device != device else ():
            setattr(self, name, getattr(self, name).to(device))

    def _keep_blocks(self, places: Sequence[Tensor]) -> None:
        """Note where blocks end: what is left is a multiple of `align` indexes, and no less than `least` units."""
        self._keep("quantum", find_quantum(self.group, places, self.target.align))
        group = self.group.sort().values
        position = torch.arange(len(group)) - (self.size.cumsum(0) - self.size)[group]
        left = self.size[group] - position - 1
        self._keep("group_ranked", group)
        self._keep("position", position)
        self._keep("end", ((left % self.quantum[group] == 0) & (left >= self.target.least)).nonzero().flatten())
        self._keep("end_group", group[self.end])
        self._keep("end_closed", position[self.end] + 1)
        ends = torch.bincount(self.end_group, minlength=len(self.size))
        self._keep("first_end", ends.cumsum(0) - ends)
        odd = self.size % self.quantum
        self._keep("first_block", torch.where(odd == 0, self.quantum, odd))

    def _keep_terms(self, terms: Sequence[Term], sides: Sequence[Tensor]) -> None:
        """Note the lengths that the terms are made of, and what they are made of themselves."""
        groups = len(self.size)
        side, number = flatten_places(sides)
        pairs, counts = torch.unique(side * groups + self.group[number], return_counts=True)
        self._keep("base", torch.tensor([int((index < 0).sum()) for index in sides] + [1]))
        self._keep("pair_side", pairs // groups)
        self._keep("pair_group", pairs % groups)
        self._keep("pair_indexes", counts // self.size[pairs % groups])
        numbers = iter(range(len(sides)))
        plain, stepped, block, stride = [], [], [], []
        for term in terms:
            plain.append([next(numbers) for _ in term.sides])
            stepped.append([next(numbers) for _ in term.steps])
            block.append([steps.block for steps in term.steps])
            stride.append(list(term.factor.stride()) if isinstance(term.factor, Tensor) else [])
        self._keep("term_sides", fill_up(plain, len(sides)))
        self._keep("term_stepped", fill_up(stepped, len(sides)))
        self._keep("term_block", fill_up(block, 1))
        self._keep("term_stride", fill_up(stride, 0))
        tables = [torch.as_tensor(term.factor).reshape(-1) for term in terms]
        length = torch.tensor([len(table) for table in tables])
        self._keep("term_start", length.cumsum(0) - length)
        self.is_measured = any(term.steps for term in terms)
        self.names = [term.name for term in terms]
        self._keep("factors", torch.cat(tables), self.is_measured)
        self._keep("constant", torch.zeros((), dtype=torch.int64), self.is_measured)


def fill_up(rows: list[list[int]], value: int) -> Tensor:
    """Make rows of numbers a matrix, filled up at the right."""
    most = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (most - len(row)) for row in rows], dtype=torch.int64).view(len(rows), most)


def group_units(units: int, places: Sequence[Tensor]) -> Tensor:
    """Number the groups from 0, and give that of each unit, [units].

    What a unit's places have in common is a sum of random 64-bit numbers, one for each index, that two different sets
    hardly ever share.
    """
    draw = torch.Generator().manual_seed(0)
    signs = torch.randint(-(2**62), 2**62, (len(places),), generator=draw)
    place, number = flatten_places(places)
    sums = torch.zeros(units, dtype=torch.int64).index_add(0, number, signs[place])
    _, alike = torch.unique(sums, return_inverse=True)
    first = torch.full((int(alike.max()) + 1,), units).scatter_reduce(0, alike, torch.arange(units), "amin")
    groups: Tensor = first.argsort().argsort()[alike]  # in the order of their first units
    return groups


def find_quantum(group: Tensor, places: Sequence[Tensor], align: int) -> Tensor:
    """Give how many units of each group make a multiple of `align` indexes at its narrowest place, [groups]."""
    size = torch.bincount(group)
    place, number = flatten_places(places)
    pairs, counts = torch.unique(place * len(size) + group[number], return_counts=True)
    narrowest = torch.full((len(size),), torch.iinfo(torch.int64).max)
    narrowest.scatter_reduce_(0, pairs % len(size), counts // size[pairs % len(size)], "amin")
    multiple = torch.full_like(narrowest, align)
    return multiple // torch.gcd(multiple, narrowest)


def flatten_places(places: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """List the units of all places, one after another: the number of the place, and that of the unit."""
    number = torch.cat([torch.zeros(0, dtype=torch.int64), *places])
    place = torch.repeat_interleave(torch.tensor([len(p) for p in places], dtype=torch.int64))
    return place[number >= 0], number[number >= 0]

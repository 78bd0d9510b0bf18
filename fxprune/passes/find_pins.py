"""Why channels cannot be pruned: what pins them, at which line of the user's source, and how far it reaches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.passes.analyse import Channels
from fxprune.shadow.ids import PINNED, join


@dataclass(frozen=True)
class PinnedBy:
    """Why channels are pinned: the reason, the line of the user's source, and how far it reaches.

    `rows` counts the rows of weights that the op touches, and all rows that are tied to them. What two ops pin
    counts for both.
    """

    reason: str
    where: str
    rows: int

    def __str__(self) -> str:
        return f"{self.reason} ({self.where})"


def find_pins(channels: Channels) -> tuple[PinnedBy, ...]:
    """List what pins rows of weights, the most first; an op that ties them to what is no channel pins them, too."""
    ends = torch.cat([torch.zeros(2, 0, dtype=torch.int64), *(edges for _, edges in channels.ties)], 1)
    tied = join(torch.arange(len(channels.units)), [ends[:, (ends != PINNED).all(0)]])  # without what is pinned
    rows = torch.zeros(len(channels.units), dtype=torch.int64)
    for _, ids in rows_of(channels):
        rows.index_add_(0, tied[ids], torch.ones_like(ids))
    reasons = {(pin.reason, pin.where): [ids] for pin, ids in channels.pins.items()}
    named = torch.zeros(len(channels.units), dtype=torch.bool)
    for ids in channels.pins.values():
        named[ids] = True
    met = (ends == PINNED).any(0)
    numbers = torch.arange(len(channels.ties)).repeat_interleave(torch.tensor([t.size(1) for _, t in channels.ties]))
    for number in numbers[met].unique().tolist() if channels.ties else ():
        node, edges = channels.ties[number]
        other = edges.amax(0)[(edges == PINNED).any(0)]
        if node is not None and not bool(named[other].all()):
            where = str(node.meta.get("where", node.name))
            reasons.setdefault(("tied to what is no channel, such as an input of the model", where), []).append(other)
    counts = {reason: int(rows[torch.unique(tied[torch.cat(ids)])].sum()) for reason, ids in reasons.items()}
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return tuple(PinnedBy(*reason, count) for reason, count in ordered if count)


def rows_of(channels: Channels) -> Iterator[tuple[str, Tensor]]:
    """Go through the weights of contractions: name, and the ids of the rows."""
    for name, dim in channels.weights.items():
        for ids in channels.parameters[name].along(dim)[:1] if name in channels.parameters else ():
            yield name, ids

"""Whose channels may stand in another order?

Those that are alike to everything that happens to them: each channel is a unit of its own, lies along one dimension
wherever it goes, and all of them go to the same places. Then the channels can be permuted where they are made if all
parameters behind are permuted alike.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fxprune.model import TracedModel, find_tensor
from fxprune.passes.analyse import Channels, Shadow
from fxprune.shadow.ids import PINNED
from fxprune.shadow.tensor import varying


def find_free(channels: Channels, name: str, rows: int = 0) -> Tensor | None:
    """Give the units of a weight's rows, [rows], if their order is free; else None."""
    units = channels.units_along(name, rows)
    if bool((units == PINNED).any()) or len(units.unique()) < len(units):
        return None
    member = torch.zeros(len(channels.units), dtype=torch.bool)
    member[units] = True
    for ids in all_ids(channels):
        if len(varying(ids)) > 1 and bool(member[channels.units[ids]].any()):
            return None
    for _, _, found in channels.positions:
        inside = found[member[found]]
        if len(inside) and not is_whole(inside, units):
            return None
    return units


def all_ids(channels: Channels) -> Iterator[Tensor]:
    """Go through the ids of everything that the analysis knows."""
    for shadow in channels.parameters.values():
        yield from shadow.ids
    for values in channels.values:
        for value in values.values():
            for leaf in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(leaf, Shadow):
                    yield from leaf.ids


def is_whole(found: Tensor, units: Tensor) -> bool:
    """Whether all units appear, each as often as the others."""
    known, counts = found.unique(return_counts=True)
    return len(known) == len(units) and bool((counts == counts[0]).all())


@torch.no_grad()
def permute_units(model: TracedModel, channels: Channels, units: Tensor, order: list[int]) -> None:
    """Put the channels of all parameters, in place, where the i-th is what the order[i]-th of these units was."""
    moved = dict(zip(units.tolist(), units[torch.tensor(order)].tolist(), strict=True))
    done: set[tuple[int, int]] = set()
    for name, dim, found in channels.positions:
        tensor = find_tensor(model, name)
        slots = torch.isin(found, units).nonzero().flatten().tolist()
        if not slots or (id(tensor), dim) in done:
            continue
        done.add((id(tensor), dim))
        places: dict[int, list[int]] = {}
        for slot in slots:
            places.setdefault(int(found[slot]), []).append(slot)
        index = list(range(len(found)))
        for old, new in moved.items():
            for here, there in zip(places[old], places[new], strict=True):
                index[here] = there
        tensor.data = tensor.data.index_select(dim, torch.tensor(index, device=tensor.device))

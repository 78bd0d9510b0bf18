"""Which dead units stay, so that widths are multiples of what a runtime computes at a time?

A dead unit may always stay: it is computed, and nothing follows from it. A runtime with vectors of 16 numbers takes as
long for a width of 65 as for one of 80, so with a few of them more it is faster.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxprune.methods.unit_costs import find_quantum, group_units
from fxprune.passes.analyse import Channels


def find_padding(channels: Channels, dead: Tensor, align: int) -> Tensor:
    """Mark the dead units, bool [units], with which every width is a multiple of `align`, or again what it was.

    Nothing is marked of what is gone altogether, and of what a norm or another op counts: there it would have to be
    left out anew in every run.
    """
    places = [units for _, _, units in channels.positions]
    group = group_units(len(dead), places)
    quantum = find_quantum(group, places, align)
    count = len(quantum)
    alive, gone = (torch.bincount(group[marks], minlength=count) for marks in (~dead, dead))
    wanted = torch.where(alive > 0, -alive % quantum, 0).minimum(gone)
    for mix in channels.mixes:
        wanted[group[channels.units[mix.ids]].flatten()] = 0
    chosen = dead.nonzero().flatten()
    chosen = chosen[group[chosen].argsort(stable=True)]  # by group
    rank = torch.arange(len(chosen)) - (gone.cumsum(0) - gone)[group[chosen]]
    stays = torch.zeros_like(dead)
    stays[chosen[rank < wanted[group[chosen]]]] = True
    return stays

"""What tests of targets ask a prepared model: its costs, and which units are open."""

import torch
from torch import Tensor

from fxprune.methods.unit_costs import UnitCosts
from fxprune.model import PreparedModel


def costs_of(prepared: PreparedModel) -> UnitCosts:
    costs = prepared.fxprune.costs
    assert isinstance(costs, UnitCosts)
    return costs


def open_units(prepared: PreparedModel) -> Tensor:
    """Count the open units of each group, [groups]."""
    costs = costs_of(prepared)
    return torch.bincount(costs.group[prepared.fxprune.gates > 0], minlength=len(costs.size))

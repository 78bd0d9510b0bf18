"""How many multiply-accumulates does each node of a graph take?"""

from __future__ import annotations

from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from fxprune.model import Inputs, TracedModel
from fxprune.passes.analyse import Channels
from fxprune.passes.cost_terms import evaluated_products


def count_macs(model: TracedModel, channels: Channels) -> dict[fx.Node, int]:
    """Count the multiply-accumulates of each node of the eval graphs that has any, for the whole batch traced with.

    What could not be traced is not counted, and a region only for the first of its calls.
    """
    macs: dict[fx.Node, int] = {}
    for product in evaluated_products(model, channels):
        macs[product.node] = macs.get(product.node, 0) + product.macs
    return macs


def batch_of(inputs: Inputs) -> int:
    """The number of samples: the first dimension of the first tensor that has one, as `export.count` takes it."""
    return next((leaf.size(0) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim()), 1)

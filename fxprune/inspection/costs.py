"""How many multiply-accumulates does each node of a graph take? Counted on shapes alone, in one more shadow run."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from fxprune.model import Inputs, TracedModel
from fxprune.passes.analyse import ShadowRun
from fxprune.shadow.ids import IdTable
from fxprune.shadow.tensor import Call, Constant, Ids


def count_macs(model: TracedModel) -> dict[fx.Node, int]:
    """Count the multiply-accumulates of each node of the eval graphs that has any, for the whole batch traced with.

    What could not be traced is not counted, and a region only for the first of its calls.
    """
    run = CostRun(model)
    for region in model.graphs.regions:
        run.run(region.eval, region.inputs)
    return run.macs


def batch_of(inputs: Inputs) -> int:
    """The number of samples: the first dimension of the first tensor that has one, as `export.count` takes it."""
    return next((leaf.size(0) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim()), 1)


class CostRun(ShadowRun):
    """A shadow run that counts, and follows no ids."""

    def __init__(self, model: TracedModel) -> None:
        super().__init__(model, IdTable(), constants=False)
        self.macs: dict[fx.Node, int] = {}

    def follow(self, call: Call) -> list[tuple[Ids, Constant | None]]:
        """Count one ATen call."""
        rule = flop_registry.get(call.op.overloadpacket)
        if rule is not None:
            self.add(rule(*call.args, **call.kwargs, out_val=call.outputs[0]))
        return [((), None) for _ in call.outputs]

    def run_opaque(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Count a module that hides several layers."""
        with FlopCounterMode(display=False) as counter:
            result = super().run_opaque(module, args, kwargs)
        self.add(counter.get_total_flops())
        return result

    def add(self, flops: int) -> None:
        """Note the operations of the node that is running; two are one multiply-accumulate."""
        node = self.table.node
        assert node is not None
        self.macs[node] = self.macs.get(node, 0) + flops // 2

"""Where may a unit's gate sit while it trains, and does it learn while closed? Each as a change of a prepared model.

`columns` is what fxprune.prepare makes: the columns of the contractions that read a unit, which rest while it is
closed. The others close the same units by the same thresholds. What they train is read, at the end, by a model that is
prepared in the ordinary way; in a network of convolutions, batch norms, sums and ReLUs the two compute the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.mask_modules import UnitMask, straight_through
from fxprune.model import PreparedModel, find_parts


def gate_columns(prepared: PreparedModel) -> None:
    """Leave the gates on the columns of the weights that read a unit."""


def let_closed_learn(prepared: PreparedModel) -> None:
    """Leave the gates on the columns, and let the columns of closed units learn as if they were open."""
    for mask in prepared.fxprune.unit_masks.values():
        mask.__class__ = LearningMask


def gate_norms(prepared: PreparedModel) -> None:
    """Move the gates to scale and shift of the batch norms that make a unit."""
    masks = prepared.fxprune
    for number, slice_ in enumerate(masks.slices):
        path, _, name = slice_.parameter.rpartition(".")
        norm = prepared.get_submodule(path)
        if isinstance(norm, nn.BatchNorm2d) and name == "weight":
            scale, shift = (UnitMask(f"{path}.{each}", 0, slice_.index) for each in NORMS)
            norm.__class__ = GatedNorm
            norm.gates = (scale, shift)  # no submodules: they belong to the masks
            masks.unit_masks.update({f"{number}-scale": scale, f"{number}-shift": shift})
    for graph in prepared.graphs:
        for node in find_masks(graph):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for key in [key for key, mask in masks.unit_masks.items() if mask.dim == 1]:
        del masks.unit_masks[key]
    prepared.set_graphs(prepared.graphs)
    masks.parts = find_parts(prepared)


def gate_activations(prepared: PreparedModel) -> None:
    """Move the gates to the channels that a contraction reads: a + stop_gradient((h - 1) * a)."""
    let_closed_learn(prepared)
    for graph in prepared.graphs:
        for node in find_masks(graph):
            for reader in list(node.users):
                with graph.inserting_before(reader):
                    gated = graph.call_module(node.target, (reader.args[0],))
                reader.update_arg(0, gated)
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    prepared.set_graphs(prepared.graphs)


PLACEMENTS: dict[str, Callable[[PreparedModel], None]] = {
    "columns": gate_columns,
    "learning columns": let_closed_learn,
    "norms": gate_norms,
    "activations": gate_activations,
}
NORMS = ("weight", "bias")


class LearningMask(UnitMask):
    """A mask of units whose gradient passes straight through, that of closed ones, too."""

    def forward(self, weight: Tensor) -> Tensor:
        return straight_through(weight, weight.detach() * self._along(weight, self.gate).to(weight.dtype))


class GatedNorm(nn.BatchNorm2d):
    """A batch norm whose scale and shift pass through masks."""

    gates: tuple[UnitMask, UnitMask]

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = (mask(getattr(self, name)) for mask, name in zip(self.gates, NORMS, strict=True))
        mean, variance = self.running_mean, self.running_var
        return F.batch_norm(x, mean, variance, scale, shift, self.training, self.momentum or 0.0, self.eps)


def find_masks(graph: fx.Graph) -> list[fx.Node]:
    return [n for n in graph.nodes if n.op == "call_module" and str(n.target).startswith("fxprune.unit_masks.")]


@torch.no_grad()
def settle(trained: PreparedModel, ordinary: PreparedModel) -> PreparedModel:
    """Give `ordinary` the weights, statistics and gates of the trained one; both are of one model."""
    values = {name: value for name, value in trained.state_dict().items() if name in ordinary.state_dict()}
    own = {name: value for name, value in values.items() if not name.startswith("fxprune.")}
    ordinary.load_state_dict(own, strict=False)
    ordinary.fxprune.set_gates(trained.fxprune.gates)
    return ordinary

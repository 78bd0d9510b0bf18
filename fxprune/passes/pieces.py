"""How one of several pieces is moved where they have lost different channels, as q, k and v of one linear layer.

Together they have no dense form any more. Each is selected by itself from the tensor that holds them all,
and goes through copies of the moves, whose literals say what is left of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from fxprune.passes.moved_elements import number, step

if TYPE_CHECKING:
    from fxprune.passes.mend import Mender


class Left(NamedTuple):
    """What is left of a tensor, or of several, and for each dimension which of its indexes stay."""

    part: Any
    alive: list[Tensor]


class Piece:
    """What a node of the smaller graph takes of `source`, several moves away; elements are known by their numbers."""

    def __init__(self, mender: Mender, node: fx.Node, source: fx.Node) -> None:
        self.mender, self.node, self.source = mender, node, source
        self.whole = number(mender.values[mender.originals[source]].shape, 0)
        self.wanted = torch.zeros(self.whole.numel() + 1, dtype=torch.bool)
        self.wanted[mender.leave_alive(self.replay(node), node)] = True

    def write(self) -> fx.Node | None:
        """Write the piece's own selection and moves into the graph, in front of the node; None if that is impossible.

        Numbers that the moves compute stay nodes, so that it follows the size of the input as the whole did.
        """
        stays = self.leave(self.mender.leave_alive(self.whole, self.source))
        if stays is None or self.wanted[0]:
            return None
        shorter = [dim for dim, keep in enumerate(stays.alive) if not keep.all()]
        if len(shorter) > 1:
            return None
        copies, left = {self.source: self.source}, {self.source: stays}
        for dim in shorter:
            keep = stays.alive[dim]
            index = keep.nonzero().reshape(-1)
            copies[self.source] = self.mender.emit_selection(self.node, [self.source], [len(keep)], dim, index)
        for move in self.find_moves():
            stays = self.leave(self.replay(move))
            copy = None if stays is None else self.copy_move(move, stays, copies, left)
            if stays is None or copy is None:
                return None
            copies[move], left[move] = copy, stays
        return copies[self.node]

    def copy_move(
        self, move: fx.Node, stays: Left, copies: dict[fx.Node, fx.Node], left: dict[fx.Node, Left]
    ) -> fx.Node | None:
        """Copy one move, with the literals that lead to what stays of its result; None where there are none."""
        mender, moved = self.mender, [n for n in move.all_input_nodes if n in copies]
        with mender.graph.inserting_before(self.node):
            copy = mender.graph.node_copy(move, lambda n: copies.get(n, n))
        inputs = {copies[n]: left[n].part for n in moved}
        alive = [keep for n in moved for keep in left[n].alive] + stays.alive

        def leads_there() -> bool:
            try:
                result = step(copy, inputs, mender.env, mender.compact)
            except (RuntimeError, ValueError, IndexError, TypeError):
                return False
            got, wanted = tree_leaves(result), tree_leaves(stays.part)
            return len(got) == len(wanted) and all(map(torch.equal, got, wanted))

        if not leads_there() and not mender.try_literals(copy, alive, leads_there):
            return None
        mender.env[copy] = mender.attempt(copy)
        return copy

    def replay(self, node: fx.Node) -> Any:
        """What a node gave in the larger graph."""
        originals = self.mender.originals
        return self.mender.replay(originals[node], {originals[self.source]: self.whole})

    def leave(self, tree: Any) -> Left | None:
        """Leave the piece's elements, of several tensors those that have any; None where they have no dense form."""
        if isinstance(tree, Tensor):
            marks = self.wanted[tree]
            alive = [marks.movedim(dim, 0).flatten(1).any(1) for dim in range(tree.dim())]
            for dim, keep in enumerate(alive):
                tree = tree.index_select(dim, keep.nonzero().reshape(-1))
            return Left(tree, alive) if tree.numel() == int(marks.sum()) else None
        left = [each for leaf in tree_leaves(tree) if (each := self.leave(leaf)) is not None]
        if len(left) < len(tree_leaves(tree)):
            return None
        stays = torch.tensor([bool(each.part.numel()) for each in left])
        parts = tuple(each.part for each in left if each.part.numel())
        return Left(parts, [stays, *(keep for each in left for keep in each.alive)])

    def find_moves(self) -> list[fx.Node]:
        """The moves that lead from the source to the node, in order."""
        found: set[fx.Node] = set()
        stack = [self.node]
        while stack:
            each = stack.pop()
            if each not in found and each is not self.source and self.mender.moves_tensors(each):
                found.add(each)
                stack += each.all_input_nodes
        return sorted(found)

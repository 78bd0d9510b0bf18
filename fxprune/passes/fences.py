"""Where the gradient of closed channels would reach what is open, and how it is kept from there.

A channel that no weight reads receives its gradient, while it is closed, as if it were open (see `living`). What
computes it from open channels as well (the projection of queries, a norm's scale, a temperature) would hand that
gradient on to them. Such a step is run twice: once for its result, with the gradient of all channels going to what
is the channels' own (rows of weights, biases), and once for what they share, with the gradient of the open ones only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.function import FunctionCtx

from fxprune.passes.analyse import Channels, Shadow, find_written
from fxprune.passes.living import along, find_muted_input
from fxprune.shadow.ids import fold_positions, spread_positions
from fxprune.shadow.tensor import compress, varying


@dataclass(frozen=True, eq=False)
class Fence:
    """A node, those of its inputs that all its channels share, and where its channels are."""

    node: fx.Node
    shared: list[fx.Node]
    dim: int
    index: Tensor  # the number of each one's unit, or -1, folded as by `fold_positions`


def find_fences(channels: Channels, numbers: Tensor, muted: list[tuple[fx.Node, Tensor]]) -> Iterator[Fence]:
    """Go through the nodes that compute the channels of what is muted from others, too.

    `muted`: nodes that hand the gradient of closed channels on to what they are computed from, and the numbers of
    the channels' units, -1 for none.
    """
    marked = torch.zeros(int(numbers.max()) + 2, dtype=torch.bool)  # index -1 is the one at the end
    for _, index in muted:
        marked[index] = True
    marked[-1] = False
    behind = find_ancestors([node for node, _ in muted])
    for values in channels.values:
        for node in values:
            if node.op not in ("call_function", "call_method") or node in channels.moves or find_written(node):
                continue
            found = find_channels(channels, values[node], numbers, marked) if node in behind else None
            if found is None:
                continue
            inputs = [n for n in node.all_input_nodes if isinstance(values[n], Shadow) and values[n].made is None]
            shared = [n for n in inputs if find_channels(channels, values[n], numbers, marked, found[1]) is None]
            if shared:
                yield Fence(node, shared, *found)


def find_ancestors(nodes: list[fx.Node]) -> set[fx.Node]:
    """The nodes, and all that they are computed from."""
    stack, found = list(nodes), set(nodes)
    while stack:
        new = [n for n in stack.pop().all_input_nodes if n not in found]
        found.update(new)
        stack += new
    return found


def find_channels(
    channels: Channels, shadow: Any, numbers: Tensor, marked: Tensor, among: Tensor | None = None
) -> tuple[int, Tensor] | None:  # fmt: skip
    """The dimension of a tensor that has marked units (of those `among`), and their numbers along it, folded."""
    for ids in shadow.ids if isinstance(shadow, Shadow) else ():
        index = numbers[channels.units[ids]]
        here = marked[index] if among is None else marked[index] & torch.isin(index, among)
        dims = varying(compress(index)) or varying(index)
        if len(dims) == 1 and bool(here.any()):
            return dims[0], fold_positions(index.movedim(dims[0], 0).reshape(index.size(dims[0]), -1)[:, 0])
    return None


def insert_fence(node: fx.Node, shared: list[fx.Node], dim: int, is_open: str) -> None:
    """Let what a node's channels share receive a gradient from those that the buffer `is_open` leaves open."""
    graph = node.graph
    shared = [find_muted_input(node, n) for n in shared]
    own = [n for n in node.all_input_nodes if n not in shared]
    with graph.inserting_before(node):
        apart = {n: graph.call_method("detach", (n,)) for n in (*shared, *own)}
    with graph.inserting_after(node):
        again = graph.node_copy(node, lambda n: n if n in shared else apart[n])
    for n in shared:
        node.replace_input_with(n, apart[n])
    with graph.inserting_after(again):
        mask = graph.get_attr(is_open)
    with graph.inserting_after(mask):
        joined = graph.call_function(pass_open, (node, again, mask, dim))
    for made in (*apart.values(), again, joined):
        made.meta = dict(node.meta)
    node.replace_all_uses_with(joined, delete_user_cb=lambda user: user is not joined)


def pass_open(result: Tensor, again: Tensor, is_open: Tensor, dim: int) -> Tensor:
    """Give `result`; of its gradient `again`, which has the same values, receives that of the open channels."""
    is_open = along(spread_positions(is_open, result.size(dim)), result, dim)
    passed: Tensor = _PassOpen.apply(result, again, is_open)
    return passed


class _PassOpen(torch.autograd.Function):
    @staticmethod
    def forward(result: Tensor, again: Tensor, is_open: Tensor) -> Tensor:
        return result.view_as(result)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (is_open,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient, gradient * is_open.to(gradient.dtype), None

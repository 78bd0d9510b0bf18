"""Which dimensions of a view are as long as the size of an input says, and which are channels, or the code's own?"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

Flags = list[bool | None]
"""For each number: whether the size of an input says it; None for -1, which stands for what is left."""

VIEWS = ("view", "reshape", torch.reshape)
LIKE = ("view_as", "reshape_as")


def find_sized_dims(
    node: fx.Node,
    results: dict[fx.Node, Any],
    widths: set[fx.Node],
    counts_channels: Callable[[Any, int], bool],
) -> Flags:
    """Look through the arguments of a node that may view a tensor; nothing for nodes that take no shape.

    `results` are those of the nodes before, `widths` the numbers that no size of an input changes, `counts_channels`
    tells of a tensor's dimension whether it is one of channels.
    """

    def of_tensor(tensor: fx.Node) -> Flags:
        return [not counts_channels(results[tensor], d) for d in range(len(results[tensor].shape))]

    def of(given: Any) -> Flags:
        if isinstance(given, (tuple, list)):
            return [flag for each in given for flag in of(each)]
        if not isinstance(given, fx.Node):
            return [None if given == -1 else False]
        value, args = results[given], list[Any](given.args)
        if not isinstance(value, (tuple, list)):
            return [given not in widths]
        if given.target is operator.add:
            return [*of(args[0]), *of(args[1])]
        if given.target in (torch.Size, tuple, list) and args:
            return of(args[0])
        if given.target in (getattr, "size") and hasattr(results.get(args[0]), "ids"):
            return of_tensor(args[0])
        if given.target is operator.getitem and isinstance(args[1], slice):
            bounds = (args[1].start, args[1].stop, args[1].step)
            return of(args[0])[slice(*(results.get(b, b) if isinstance(b, fx.Node) else b for b in bounds))]
        return [True] * len(value)

    if node.target in LIKE and isinstance(node.args[1], fx.Node):
        return of_tensor(node.args[1])
    if node.target in VIEWS:
        return of([*node.args[1:], *node.kwargs.values()])
    return []

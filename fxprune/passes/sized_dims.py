"""Which dimensions of a view are as long as the size of an input says, and which are channels, or the code's own?"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx

Flags = list[bool | None]
"""For each number: whether the size of an input says it; None for -1, which stands for what is left."""

VIEWS = ("view", "reshape", torch.reshape)
LIKE = ("view_as", "reshape_as")


class Sizes(NamedTuple):
    """What is known of the numbers that a view may take."""

    results: dict[fx.Node, Any]  # of the nodes before
    widths: set[fx.Node]  # numbers that no size of an input changes
    counts_channels: Callable[[Any, int], bool]  # whether a tensor's dimension is one of channels

    def find_dims(self, node: fx.Node) -> Flags:
        """Look through the arguments of a node that may view a tensor; nothing for nodes that take no shape."""
        if node.target in LIKE and isinstance(node.args[1], fx.Node):
            return self.of_tensor(node.args[1])
        return self.of([*node.args[1:], *node.kwargs.values()]) if node.target in VIEWS else []

    def of_tensor(self, tensor: fx.Node) -> Flags:
        return [not self.counts_channels(self.results[tensor], d) for d in range(len(self.results[tensor].shape))]

    def of(self, given: Any) -> Flags:
        if isinstance(given, (tuple, list)):
            return [flag for each in given for flag in self.of(each)]
        if not isinstance(given, fx.Node):
            return [None if given == -1 else False]
        value, args = self.results[given], list[Any](given.args)
        if not isinstance(value, (tuple, list)):
            return [given not in self.widths]
        if given.target is operator.add:
            return [*self.of(args[0]), *self.of(args[1])]
        if given.target in (torch.Size, tuple, list) and args:
            return self.of(args[0])
        if given.target in (getattr, "size") and hasattr(self.results.get(args[0]), "ids"):
            return self.of_tensor(args[0])
        if given.target is operator.getitem and isinstance(args[1], slice):
            bounds = (args[1].start, args[1].stop, args[1].step)
            return self.of(args[0])[slice(*(self.results[b] if isinstance(b, fx.Node) else b for b in bounds))]
        return [True] * len(value)

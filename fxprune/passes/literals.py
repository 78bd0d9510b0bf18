"""Which whole numbers stand among the arguments of a node, and how others take their place."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import fx

DIMS = frozenset({"dim", "dims", "dim0", "dim1", "dim2", "start_dim", "end_dim", "dimension", "source", "destination"})
"""How PyTorch's schemas name the arguments that say which dimension is meant."""


class Dim(int):
    """A number that says which dimension is meant: it is no size, and no literal that another could replace."""


class Width(int):
    """A number of channels, as it was in the larger graph, and the node that counts them."""

    node: fx.Node


class Arithmetic(NamedTuple):
    """A number that a node computes, with what it computes it from."""

    node: fx.Node
    args: tuple[Any, ...]


def mark_dims(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Mark the numbers among a node's arguments that say which dimension is meant."""
    places = find_dims(node.target if isinstance(node.target, str) else getattr(node.target, "__name__", ""))
    marked = tuple(mark(a) if i in places or (-1 in places and i > max(places)) else a for i, a in enumerate(args))
    return marked, {key: mark(value) if key in DIMS and places else value for key, value in kwargs.items()}


@functools.cache
def find_dims(name: str) -> frozenset[int]:
    """Find where an op takes dimensions; -1 if more of them follow, as in `permute(0, 2, 1)`."""
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() and name != "tile" else None  # tile's are sizes
    places: set[int] = set()
    for overload in packet.overloads() if packet is not None else ():
        arguments = getattr(packet, overload)._schema.arguments
        found = {i for i, a in enumerate(arguments) if a.name in DIMS}
        open_end = len(arguments) - 1 in found and isinstance(arguments[-1].type, torch.ListType)
        places |= found | ({-1} if open_end else set())
    return frozenset(places)


def mark(tree: Any) -> Any:
    """Mark all whole numbers inside one argument."""
    if isinstance(tree, (tuple, list)):
        return type(tree)(map(mark, tree))
    return Dim(tree) if type(tree) is int else tree


def find_literals(tree: Any) -> Iterator[int]:
    """Go through the whole numbers among arguments, in order, inside slices too."""
    if type(tree) in (int, Width):
        yield tree
    elif isinstance(tree, slice):
        yield from find_literals((tree.start, tree.stop, tree.step))
    elif isinstance(tree, dict):
        yield from find_literals(tuple(tree.values()))
    elif isinstance(tree, (tuple, list)):
        for leaf in tree:
            yield from find_literals(leaf)


def replace_literals(tree: Any, numbers: Iterator[int | fx.Node]) -> Any:
    """Put other whole numbers, or nodes that give them, in the order of `find_literals`."""
    if type(tree) in (int, Width):
        return next(numbers)
    if isinstance(tree, slice):
        return slice(*(replace_literals(part, numbers) for part in (tree.start, tree.stop, tree.step)))
    if isinstance(tree, dict):
        return {key: replace_literals(leaf, numbers) for key, leaf in tree.items()}
    if isinstance(tree, Arithmetic):
        return Arithmetic(tree.node, replace_literals(tree.args, numbers))
    if isinstance(tree, (tuple, list)):
        return type(tree)(replace_literals(leaf, numbers) for leaf in tree)
    return tree

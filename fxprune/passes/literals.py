"""Which whole numbers stand among the arguments of a node, and how others take their place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import fx


class Arithmetic(NamedTuple):
    """A number that a node computes, with what it computes it from."""

    node: fx.Node
    args: tuple[Any, ...]


def find_literals(tree: Any) -> Iterator[int]:
    """Go through the whole numbers among arguments, in order, inside slices too."""
    if type(tree) is int:
        yield tree
    elif isinstance(tree, slice):
        yield from find_literals((tree.start, tree.stop, tree.step))
    elif isinstance(tree, dict):
        yield from find_literals(tuple(tree.values()))
    elif isinstance(tree, (tuple, list)):
        for leaf in tree:
            yield from find_literals(leaf)


def replace_literals(tree: Any, numbers: Iterator[int]) -> Any:
    """Put other whole numbers in the order of `find_literals`."""
    if type(tree) is int:
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

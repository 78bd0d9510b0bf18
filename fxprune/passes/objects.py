"""How an object that holds traced values as attributes, such as a cache of keys, is made again by a graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fxprune.passes.proxies import ValueProxy


def remake(value: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return a function that makes an object like this one, and the attributes that it takes: those that are traced.

    What is not traced is the same for every call, and is shared.
    """
    kind = type(value)
    traced = {name: each for name, each in vars(value).items() if holds_proxies(each)}
    rest = {name: each for name, each in vars(value).items() if name not in traced}
    make = functools.partial(make_object, kind, rest)
    vars(make).update(__name__=kind.__name__, __qualname__=kind.__qualname__, __module__=__name__)  # torch.fx calls
    return make, traced


def holds_proxies(value: Any) -> bool:
    """Whether something is a proxy, or has one inside: in containers, and in attributes of objects."""
    if type(value) is ValueProxy:
        return True
    if isinstance(value, dict):
        return any(map(holds_proxies, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(holds_proxies, value))
    is_code = isinstance(value, (type, nn.Module, Tensor)) or callable(value)
    return not is_code and any(map(holds_proxies, getattr(value, "__dict__", {}).values()))


def make_object(kind: type, attributes: dict[str, Any], **traced: Any) -> Any:
    """Make an object of a class from its attributes, past its constructor."""
    made: Any = object.__new__(kind)
    vars(made).update(attributes, **traced)
    return made

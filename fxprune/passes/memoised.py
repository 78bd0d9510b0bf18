"""What functions that remember their results (`functools.lru_cache`) give while a model is traced: each time anew.

They must not remember what stands for sizes: the owner's model would be given that later. And what they gave for these
sizes holds for no others.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Place = tuple[Any, str]
"""Where a function is found: a module or a class, and the name in it."""


class Memoised(BaseException):
    """Raised where such a function is called with a size; the model's code must not take it for an error of its own."""

    def __init__(self, places: list[Place]) -> None:
        super().__init__()
        self.places = places


def refuse_memoised(caller: FrameType) -> None:
    """Raise where code that looks a size up names such a function: of its module, of others, of classes, of `self`."""
    names = caller.f_code.co_names
    used = [caller.f_globals[name] for name in names if name in caller.f_globals]
    owners: list[Any] = [sys.modules.get(str(caller.f_globals.get("__name__"))), *filter(inspect.ismodule, used)]
    owners += [*filter(inspect.isclass, used), *type(caller.f_locals.get("self")).__mro__]
    places = [(owner, name) for owner in owners for name in names if is_memoised(owner, name)]
    if places:
        raise Memoised(places)


def is_memoised(owner: Any, name: str) -> bool:
    """Whether a module or a class has such a function under this name."""
    return isinstance(getattr(owner, "__dict__", {}).get(name), functools._lru_cache_wrapper)


@contextmanager
def computing_anew(places: list[Place]) -> Iterator[None]:
    """Let such functions compute their results each time, and remember none."""
    originals = [vars(owner)[name] for owner, name in places]
    try:
        for (owner, name), original in zip(places, originals, strict=True):
            setattr(owner, name, original.__wrapped__)
        yield
    finally:
        for (owner, name), original in zip(places, originals, strict=True):
            setattr(owner, name, original)

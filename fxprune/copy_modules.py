"""Deep copies of modules as `copy.deepcopy` makes them, several times as fast.

Much of its time goes into the ten dictionaries of every module, most of them empty: for each it looks anew at how an
object of its class is copied.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import types
from collections import OrderedDict
from typing import Any

from torch import nn

_ATOMS = (type(None), bool, int, float, complex, str, bytes, type, types.FunctionType, types.BuiltinFunctionType)
_MISSING = object()


def deep_copy(value: Any, memo: dict[int, Any]) -> Any:
    """Copy a value with all that lies in it; `memo` is that of `copy.deepcopy`: what is there is not copied."""
    if type(value) in _ATOMS:
        return value
    known = memo.get(id(value), _MISSING)
    if known is not _MISSING:
        return known
    if is_plain_dict(value) and all(type(key) in (str, int) for key in value):
        copied = memo[id(value)] = type(value)()
        for key, each in value.items():
            copied[key] = deep_copy(each, memo)
        return copied
    if isinstance(value, nn.Module) and is_copied_by_state(value):
        module = memo[id(value)] = type(value).__new__(type(value))
        module.__setstate__({name: deep_copy(each, memo) for name, each in value.__getstate__().items()})
        return module
    return copy.deepcopy(value, memo)


def is_plain_dict(value: Any) -> bool:
    """Whether a value is a dictionary, and nothing but that: a state dict has attributes."""
    return type(value) is dict or (type(value) is OrderedDict and not vars(value))


def is_copied_by_state(module: nn.Module) -> bool:
    """Whether a module leaves it to Python and torch how it is copied: its class, and what it holds."""
    own = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__")
    kind: Any = type(module)
    return is_class_copied_by_state(kind) and vars(module).keys().isdisjoint(own)


@functools.cache
def is_class_copied_by_state(kind: Any) -> bool:
    """Whether a class of modules does so."""
    own = ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__")
    return (
        kind.__reduce__ is object.__reduce__
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__getstate__ is nn.Module.__getstate__
        and kind not in copyreg.dispatch_table
        and not any(hasattr(kind, name) for name in own)
        and not any("__slots__" in vars(each) for each in kind.__mro__)
    )

"""What stands for a value while a model is traced: a proxy that knows the value which the example input gives it."""

from __future__ import annotations

import builtins
import functools
import math
import operator
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.errors import TraceError
from fxprune.passes.memoised import refuse_memoised
from fxprune.passes.source_lines import find_user_line

_STRUCTURE = frozenset({
    "ndim", "layout", "requires_grad", "grad_fn", "is_leaf", "is_sparse", "is_quantized",
    "_is_buffer", "_is_param", "persistent",
})  # fmt: skip

_RANK = frozenset({"dim", "ndimension", "ndim"})
"""What tells how many dimensions a tensor has."""

LENGTH = len
"""Python's own, also while code is traced, for which another stands."""


class ValueProxy(fx.Proxy):
    """A proxy that knows the value which the example input gives it."""

    tracer: Any  # the ValueTracer that made it

    def __init__(self, node: fx.Node, tracer: Any, value: Any, data: bool) -> None:
        super().__init__(node, tracer)
        self._value = value
        tracer.proxies.append(weakref.ref(self))
        self._data = data  # whether the value depends on the contents of an input, not only on shapes

    def __getattr__(self, name: str) -> Any:
        if isinstance(self._value, dict) and name in ("keys", "values", "items"):
            return {"keys": self._guarded_keys, "values": self._list_values, "items": self._list_items}[name]
        try:
            value = getattr(self._value, name)
        except AttributeError:
            self._note_lack(name)
            raise
        if name in _RANK:
            self._ask_rank()
        if callable(value):
            if name in _RANK:
                return lambda: value()
            return lambda *args, **kwargs: self.tracer.create_proxy("call_method", name, (self, *args), kwargs)
        if name in _STRUCTURE:
            return value
        return self.tracer.create_proxy("call_function", builtins.getattr, (self, name), {})

    def __getitem__(self, key: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.getitem, (self, key), {})

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self._value, dict):
            return iter(self._guarded_keys())
        return iter([self[i] for i in range(self.__len__())])

    def __len__(self) -> int:
        if isinstance(self._value, Tensor):
            return int(self.tracer.guard(self.shape[0]))
        if type(self._value) in (list, tuple) and self.node.op != "call_module":  # of which sizes may say how long
            return int(self.tracer.guard(self.tracer.create_proxy("call_function", LENGTH, (self,), {})))
        if isinstance(self._value, torch.Size):
            self._ask_rank()
        if isinstance(self._value, dict):
            return LENGTH(self._guarded_keys())
        return self._value.__len__()  # type: ignore[no-any-return]

    def _note_lack(self, name: str) -> None:
        """Guard that an object lacks an attribute: the code may go on without it."""
        is_object = hasattr(self._value, "__dict__") and not isinstance(self._value, Tensor)
        if self.tracer.recording and is_object and not name.startswith("_"):
            asked = self.tracer.create_node("call_function", builtins.hasattr, (self.node, name), {})
            self.tracer.create_guard(asked, False)

    def _ask_rank(self) -> None:
        """Note that the code asks for a number of dimensions, which is that of the inputs or follows from it."""
        self.tracer.asked.rank |= self.tracer.recording

    def __contains__(self, item: Any) -> bool:
        if isinstance(self._value, dict):
            return item in self._guarded_keys()
        return any(bool(each == item) for each in self)

    @property
    def keys(self) -> Any:  # torch.fx gives every proxy keys; only a dict has them
        return self.__getattr__("keys")

    def _guarded_keys(self) -> tuple[Any, ...]:
        return tuple(self.tracer.guard(self.tracer.create_proxy("call_function", tuple, (self,), {})))

    def _list_values(self) -> list[Any]:
        return [self[key] for key in self._guarded_keys()]

    def _list_items(self) -> list[tuple[Any, Any]]:
        return [(key, self[key]) for key in self._guarded_keys()]

    def __bool__(self) -> bool:
        if isinstance(self._value, (list, tuple, dict)):
            return len(self) > 0
        is_number = type(self._value) in (int, float)
        asked = operator.ne(self, 0) if is_number else self  # the truth of a number, not the number
        return bool(self.tracer.guard(asked))

    def __index__(self) -> int:
        return operator.index(self.tracer.guard(self))

    def __int__(self) -> int:
        return int(self._ask(sys._getframe(1)))

    def __float__(self) -> float:
        return float(self._ask(sys._getframe(1)))

    def _ask(self, caller: FrameType) -> Any:
        if isinstance(self._value, Tensor):
            return self.tracer.guard(self.item())
        self.tracer.asked.numbers.append(caller.f_globals)
        return self.tracer.guard(self)

    def __round__(self, digits: int | None = None) -> Any:
        return self.tracer.create_proxy("call_function", round, (self, digits), {})

    def __ceil__(self) -> Any:
        return self.tracer.create_proxy("call_function", math.ceil, (self,), {})

    def __floor__(self) -> Any:
        return self.tracer.create_proxy("call_function", math.floor, (self,), {})

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __str__(self) -> str:
        return self._write(str(self._value), sys._getframe(1))

    def __repr__(self) -> str:
        return self._write(repr(self._value), sys._getframe(1))

    def __format__(self, spec: str) -> str:
        return self._write(format(self._value, spec), sys._getframe(1))

    def _write(self, text: str, writer: FrameType) -> str:
        is_size = type(self._value) in (int, float, tuple, torch.Size)
        if is_size and writer.f_globals.get("__name__") not in ("logging", "warnings"):
            self.tracer.guard_text(self, text)
        return text

    def __hash__(self) -> int:
        """That of the value where the code looks a size or a text up, as in a table."""
        if type(self._value) in (int, float, str, tuple, torch.Size) and self.tracer.recording:
            refuse_memoised(sys._getframe(1))
            return hash(self.tracer.guard(self))
        return id(self)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    @classmethod
    def __torch_function__(cls, orig_method: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return record_torch_function(next(find_proxies((args, kwargs))).tracer, orig_method, args, kwargs or {})


@contextmanager
def answering_for_values() -> Iterator[None]:
    """Let `isinstance(x, torch.Tensor)` answer for a proxy as it will at run time, and `len(x)` stay symbolic.

    So do `max` and `min` of sizes, and `callable(x)` answers for the value. In Python code alone: torch's own, compiled
    checks must not take a proxy for what it stands for.
    """
    originals = builtins.isinstance, builtins.len, builtins.callable, builtins.max, builtins.min

    def check(value: Any, kinds: Any) -> bool:
        return originals[0](value, kinds) or (type(value) is ValueProxy and originals[0](value._value, kinds))

    def measure(value: Any) -> Any:
        is_tensor = type(value) is ValueProxy and originals[0](value._value, Tensor)
        return value.shape[0] if is_tensor else originals[1](value)

    def can_call(value: Any) -> bool:
        return originals[2](value._value if type(value) is ValueProxy else value)

    def pick(function: Callable[..., Any], symbolic: Callable[[Any, Any], Any]) -> Callable[..., Any]:
        def choose(*args: Any, **kwargs: Any) -> Any:
            sizes = [each for each in args if type(each) is ValueProxy]
            if len(args) < 2 or not sizes or kwargs or {type(unwrap(each)) for each in args} not in ({int}, {float}):
                return function(*args, **kwargs)
            return functools.reduce(
                lambda a, b: sizes[0].tracer.create_proxy("call_function", symbolic, (a, b), {}), args
            )

        return choose

    try:
        builtins.isinstance, builtins.len = check, measure
        builtins.callable = can_call  # type: ignore[assignment]
        builtins.max, builtins.min = pick(originals[3], torch.sym_max), pick(originals[4], torch.sym_min)
        yield
    finally:
        builtins.isinstance, builtins.len, builtins.callable, builtins.max, builtins.min = originals


class StandIn(type):
    """What stands for a class where it is called; in all else it is the class itself."""

    plain: type

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, cls.plain)

    def __subclasscheck__(cls, kind: type) -> bool:
        return issubclass(kind, cls.plain)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls.plain

    def __hash__(cls) -> int:
        return hash(cls.plain)


class NumberType(StandIn):
    """What stands for `int` or `float`: a class that leaves what it makes of a size symbolic."""

    symbolic: Callable[[Any], Any]

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        number = args[0] if len(args) == 1 else None
        if type(number) is not ValueProxy or type(number._value) not in (int, float) or not number.tracer.recording:
            return cls.plain(*args, **kwargs)
        if type(number._value) is cls.plain:
            return number
        return number.tracer.create_proxy("call_function", cls.symbolic, (number,), {})


class SizeType(StandIn):
    """What stands for `torch.Size`: a class that leaves the sizes in it symbolic."""

    def __call__(cls, *args: Any) -> Any:
        size = next(find_proxies(args), None)
        if size is None or not size.tracer.recording:
            return cls.plain(*args)
        return size.tracer.create_proxy("call_function", cls.plain, args, {})


class SymbolicInt(metaclass=NumberType):
    """Stands for `int`."""

    plain, symbolic = int, torch.sym_int


class SymbolicFloat(metaclass=NumberType):
    """Stands for `float`."""

    plain, symbolic = float, torch.sym_float


class SymbolicSize(metaclass=SizeType):
    """Stands for `torch.Size`."""

    plain = torch.Size


@contextmanager
def symbolic_numbers(modules: list[dict[str, Any]]) -> Iterator[None]:
    """Let `int(n)` and `float(n)` leave sizes symbolic in the code of modules, given by their globals."""
    kinds = {"int": SymbolicInt, "float": SymbolicFloat}
    free = [(code, name) for code in {id(m): m for m in modules}.values() for name in kinds if name not in code]
    try:
        for code, name in free:
            code[name] = kinds[name]
        yield
    finally:
        for code, name in free:
            del code[name]


def _inplace(name: str) -> Callable[..., Any]:
    changed, new = getattr(operator, f"i{name}"), getattr(operator, f"{name}_" if name in ("and", "or") else name)

    def method(self: ValueProxy, other: Any) -> Any:
        function = new if type(self._value) in (int, float) else changed  # a number is never written to
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "and", "or", "matmul"):
    setattr(ValueProxy, f"__i{_name}__", _inplace(_name))


def record_torch_function(tracer: Any, function: Any, args: Any, kwargs: Any) -> Any:
    """Record a call of a torch function, of a Tensor method, or of a Tensor property."""
    if is_accessor(function):
        return getattr(args[0], function.__self__.__name__)
    if getattr(function, "__name__", "") in ("__set__", "__delete__"):
        name = getattr(function.__self__, "__name__", "data")
        raise TraceError(
            f"{find_user_line()}: the code assigns to `.{name}` of a tensor, which no graph does; write to the tensor "
            "itself, under torch.no_grad(), as by copy_() or lerp_(), or keep it out of the model that is prepared"
        )
    if torch.overrides.is_tensor_method_or_property(function):
        return tracer.create_proxy("call_method", function.__name__, args, kwargs)
    return tracer.create_proxy("call_function", function, args, kwargs)


def is_accessor(function: Any) -> bool:
    """Tell whether a torch function reads a property of a tensor, as `x.shape` does."""
    return getattr(function, "__name__", "") == "__get__"


def find_proxies(tree: Any) -> Iterator[ValueProxy]:
    """Go through the proxies among arguments, inside slices too."""
    if type(tree) is ValueProxy:
        yield tree
    elif type(tree) is slice:
        yield from find_proxies((tree.start, tree.stop, tree.step))
    elif type(tree) is dict:
        yield from find_proxies(tuple(tree.values()))
    elif isinstance(tree, (tuple, list)):
        for leaf in tree:
            yield from find_proxies(leaf)


def unwrap(tree: Any) -> Any:
    """Replace proxies by their values, inside slices too."""
    if type(tree) is ValueProxy:
        return tree._value
    if isinstance(type(tree), type) and issubclass(type(tree), StandIn):
        return tree.plain
    if type(tree) is slice:
        return slice(unwrap(tree.start), unwrap(tree.stop), unwrap(tree.step))
    if type(tree) in (list, tuple):
        return type(tree)(unwrap(leaf) for leaf in tree)
    if type(tree) is dict:
        return {key: unwrap(leaf) for key, leaf in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(unwrap(leaf) for leaf in tree))
    return tree

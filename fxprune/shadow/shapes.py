"""What an ATen call gives where only shapes are asked for: the meta device says it, once for all calls alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

SHAPES: dict[Any, Any] = {}
"""Results on the meta device by op and arguments: PyTorch takes up to a millisecond to find each."""

MOST_SHAPES = 20_000


def find_shapes(op: Any, args: Any, kwargs: Any) -> Any:
    """Give the results of an ATen call on the meta device; one that was made before alike gives the same again.

    Tensors that hold others, as those of this package do, stand for what they hold.
    """
    key = (op, describe_argument(args), describe_argument(kwargs))
    if key not in SHAPES:
        args, kwargs = map_tensors((args, kwargs), lambda t: getattr(t, "held", t).to("meta").detach())
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": "meta"}
        if len(SHAPES) >= MOST_SHAPES:
            SHAPES.clear()
        SHAPES[key] = QUICK.get(op, op)(*args, **kwargs)
    return SHAPES[key]


def normalise_batch(x: Tensor, *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The results of `native_batch_norm(x, weight, bias, mean, var, training, momentum, eps)`."""
    statistics = x.new_empty(x.size(1) if settings[4] else 0)
    return x.clone(), statistics, statistics


def keep(x: Tensor, *settings: Any, **named: Any) -> Tensor:
    """The result of an op of one tensor that works position by position."""
    return x.clone()


QUICK: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.native_batch_norm.default: normalise_batch,
    torch.ops.aten.hardtanh.default: keep,
    torch.ops.aten.hardtanh_.default: keep,
    torch.ops.aten.gelu.default: keep,
}
"""What gives the same for ops whose shapes torch finds by Python code, in a millisecond each."""


def describe_argument(value: Any) -> Any:
    """Give a key that is equal for arguments of which an op makes results of the same shapes and strides."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.storage_offset()
    if isinstance(value, (tuple, list)):
        return tuple(describe_argument(each) for each in value)
    if isinstance(value, dict):
        return tuple((name, describe_argument(each)) for name, each in value.items())
    return type(value), value


def leaves_of(value: Any) -> Iterator[Any]:
    """Go through the arguments or results of an ATen call, which nest in lists and dicts only."""
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from leaves_of(each)
    elif isinstance(value, dict):
        yield from leaves_of(tuple(value.values()))
    else:
        yield value


def map_tensors(value: Any, change: Callable[[Any], Any]) -> Any:
    """Change each tensor among the arguments or results of an ATen call."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(each, change) for each in value)
    if isinstance(value, dict):
        return {name: map_tensors(each, change) for name, each in value.items()}
    return value


def make_wrapper(kind: type[Tensor], like: Tensor, device: torch.device) -> Any:
    """Make a tensor of this class with the sizes and strides of another, and no memory."""
    return torch.Tensor._make_wrapper_subclass(
        kind,
        like.size(),
        strides=like.stride(),
        storage_offset=like.storage_offset(),
        dtype=like.dtype,
        layout=like.layout,
        device=device,
    )


class ShapeTensor(torch.Tensor):
    """A tensor with a shape, a type and a device, and no values; what is computed from one has none either."""

    held: Tensor  # on the meta device

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, shape: Tensor, device: torch.device) -> ShapeTensor:
        self: ShapeTensor = make_wrapper(cls, shape, device)
        self.held = shape.to("meta").detach()
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        schema = func._schema
        result = find_shapes(func, args, kwargs)
        if schema.is_mutable and schema.name.endswith("_"):
            if not isinstance(args[0], ShapeTensor) or result.shape != args[0].shape:
                raise NotImplementedError(f"{func} needs values, or another shape for its first argument")
            return args[0]
        given = next(t for t in leaves_of((args, kwargs)) if isinstance(t, ShapeTensor)).device
        device = torch.device(kwargs.get("device") or given)
        return map_tensors(result, lambda t: ShapeTensor(t, device))

    def __repr__(self) -> str:  # type: ignore[override]
        return f"ShapeTensor({tuple(self.shape)})"

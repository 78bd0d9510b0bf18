"""How a shadow travels: a graph is run once on tensors that have shapes, and beside each its shadow.

Every spelling of an operation arrives here as the same few ATen ops. Tensors that do not depend on
the model's inputs are computed for real (index tables are needed); all others live on the meta
device, so a run costs neither arithmetic nor memory. In-place writes reach every tensor that shares
the storage: a write to a view is written through to its base, and from there to the base's other views.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.shadow.shapes import find_shapes, leaves_of, make_wrapper, map_tensors

Ids = tuple[Tensor, ...]
"""The ids of a tensor: int64 tensors that broadcast against it, size 1 where an id is repeated."""


class Constant(NamedTuple):
    """What is known of a tensor's values whatever the input: both broadcast against the tensor."""

    value: Tensor  # float64 for floating point tensors; meaningless where not known
    known: Tensor  # bool


class View(NamedTuple):
    """How a tensor was made of its base's storage."""

    parent: ShadowTensor
    replay: Callable[[Tensor], Tensor]


class ShadowTensor(torch.Tensor):
    """A tensor with a shape, a shadow, and values only where they do not depend on the model's inputs."""

    held: Tensor  # the values; on the meta device, without any, where they depend on an input
    ids: Ids
    constant: Constant | None
    source: str | None  # the parameter of the graph whose elements these are, only moved
    made: Tensor | None  # the values, where they follow from numbers alone
    sized: bool  # whether its values depend on the size of an input, though not on its contents
    view_of: View | None
    views: list[weakref.ref[ShadowTensor]]

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor, ids: Ids = (), constant: Constant | None = None) -> ShadowTensor:
        self: ShadowTensor = make_wrapper(cls, inner, torch.device("cpu"))
        self.held, self.ids, self.constant = inner, ids, constant
        self.source, self.sized, self.made, self.view_of, self.views = None, False, None, None, []
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(f"{func} met a shadow tensor outside of the run that made it")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"ShadowTensor({tuple(self.shape)}, ids vary along {[varying(t) for t in self.ids]})"

    @property
    def is_real(self) -> bool:
        """Whether the values are at hand because no input of the model reaches this tensor."""
        return self.held.device.type != "meta"


@dataclass
class Call:
    """One ATen call of the run: what a rule sees."""

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor] = field(default_factory=list)  # shapes, and values where no input reaches
    moves: bool = False  # whether its rule only moves elements
    made: bool = False  # whether its values follow from numbers alone
    sized: bool = False  # whether numbers among its arguments, or values, depend on the size of an input
    sized_dims: Sequence[bool | None] = ()  # of a view that takes such numbers: which dimensions; None where it says -1

    @functools.cached_property
    def tensors(self) -> list[ShadowTensor]:
        """The tensor arguments, in order, also those inside lists."""
        return [leaf for leaf in leaves_of((self.args, self.kwargs)) if isinstance(leaf, ShadowTensor)]

    @property
    def functional(self) -> Any:
        """The op, whichever its overload; that which writes to no argument, where this one does."""
        packet = self.op.overloadpacket
        in_place = packet.__name__.endswith("_") and not packet.__name__.endswith("__")
        return getattr(torch.ops.aten, packet.__name__[:-1], packet) if in_place else packet

    def argument(self, name: str, default: Any = None) -> Any:
        """Look up an argument by the name that the op's schema gives it."""
        position, default = find_parameters(self.op).get(name, (len(self.args), default))
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)


@functools.cache
def find_parameters(op: Any) -> dict[str, tuple[int, Any]]:
    """The position and default value of each parameter of an op."""
    return {
        p.name: (position, p.default_value if p.has_default_value() else None)
        for position, p in enumerate(op._schema.arguments)
    }


SPELLED: dict[Any, Callable[..., Tensor]] = {
    torch.ops.aten.mv.default: lambda a, b: torch.mm(a, b.unsqueeze(1)).squeeze(1),
    torch.ops.aten.dot.default: lambda a, b: torch.mm(a.unsqueeze(0), b.unsqueeze(1)).view(()),
    torch.ops.aten.addmv.default: lambda c, a, b, **k: torch.addmm(c.unsqueeze(-1), a, b.unsqueeze(1), **k).squeeze(1),
}
"""Ops on vectors, which are the same ops on matrices of one column."""


class ShadowMode(TorchDispatchMode):
    """Run ATen calls on shadows: `follow` gives the shadows of a call's outputs."""

    def __init__(self, follow: Callable[[Call], list[tuple[Ids, Constant | None]]], fresh: Callable[..., Ids]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.follow = follow
        self.fresh = fresh
        self.memo: dict[int, ShadowTensor] = {}
        self.alive: list[Tensor] = []  # keeps the ids of python objects in `memo` unique

    def adopt(self, tensor: Tensor, shadow: ShadowTensor) -> None:
        """Let `shadow` stand for a plain tensor wherever the run meets it."""
        self.memo[id(tensor)] = shadow
        self.alive.append(tensor)

    def wrap(self, tensor: Tensor) -> ShadowTensor:
        """Give the shadow of a plain tensor: a known parameter's, or fresh ids."""
        if isinstance(tensor, ShadowTensor):
            return tensor
        if id(tensor) not in self.memo:
            shadow = ShadowTensor(tensor.detach(), self.fresh(tensor.shape))
            shadow.made = shadow.held  # no parameter: the code made it
            self.adopt(tensor, shadow)
        return self.memo[id(tensor)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in SPELLED:
            with self:
                return SPELLED[func](*args, **(kwargs or {}))
        args, kwargs = map_tensors((args, kwargs or {}), self.wrap)
        call = Call(func, args, kwargs)
        result, written = run_inner(call)
        call.outputs = [leaf for leaf in leaves_of(result) if isinstance(leaf, Tensor)]
        shadows = self.follow(call)
        if written is not None and torch.Tag.inplace_view in func.tags:
            move_in_place(written, call, *shadows[0])
            return written
        if written is not None:
            written.held = call.outputs[0] if call.outputs else written.held
            written.sized |= call.sized
            write(written, *shadows[0])
            return written
        wrapped = [ShadowTensor(t, *shadow) for t, shadow in zip(call.outputs, shadows, strict=True)]
        for made in wrapped:
            made.sized = call.sized and made.is_real  # of what an input reaches, only constants count, and they are cut
            made.made = made.held if call.made else None
        if call.moves and isinstance(args[0], ShadowTensor):
            for moved in wrapped:
                moved.source = args[0].source
        if func.is_view:
            for index, leaf in enumerate(wrapped):
                link(leaf, args[0], replay_view(call, index))
        following = iter(wrapped)
        return map_tensors(result, lambda _: next(following))


def run_inner(call: Call) -> tuple[Any, ShadowTensor | None]:
    """Run a call on the inner tensors; return its result, and the tensor that it wrote to in place, if any."""
    real = all(t.is_real for t in call.tensors)
    written = None
    schema = call.op._schema
    if schema.is_mutable and schema.name.endswith("_"):
        written = call.args[0]
    target = written

    def lower(t: ShadowTensor) -> Tensor:
        return t.held.clone() if t is target or schema.is_mutable else t.held

    if not real:
        return find_shapes(call.op, call.args, call.kwargs), written
    args, kwargs = map_tensors((call.args, call.kwargs), lower)
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": "cpu"}
    return call.op(*args, **kwargs), written


def replay_view(call: Call, index: int) -> Callable[[Tensor], Tensor]:
    """Return the function that makes this view of any tensor shaped like its base."""
    rest, kwargs = map_tensors((call.args[1:], call.kwargs), lambda t: t.held)

    def replay(base: Tensor) -> Tensor:
        result = call.op(base, *rest, **kwargs)
        return result if isinstance(result, Tensor) else result[index]

    return replay


def move_in_place(target: ShadowTensor, call: Call, ids: Ids, constant: Constant | None) -> None:
    """Give a tensor whose shape was changed in place that shape and its shadow; its memory stays what it was."""
    target.held, target.ids, target.constant = call.outputs[0], ids, constant
    target.made = None if target.made is None else target.held
    if target.view_of is not None:
        parent, before = target.view_of
        then = replay_view(call, 0)
        target.view_of = View(parent, lambda base: then(before(base)))
    with torch._C._DisableTorchDispatch():
        call.op(target, *call.args[1:], **call.kwargs)


def link(view: ShadowTensor, parent: ShadowTensor, replay: Callable[[Tensor], Tensor]) -> None:
    """Remember that two tensors share storage."""
    view.view_of = View(parent, replay)
    parent.views.append(weakref.ref(view))


def write(target: ShadowTensor, ids: Ids, constant: Constant | None) -> None:
    """Give a tensor that was written in place its new shadow, through to all that share its storage."""
    target.ids, target.constant, target.made = ids, constant, None
    made_of_inputs = not target.is_real
    child = target
    while child.view_of is not None:
        parent, replay = child.view_of
        positions = replay(torch.arange(parent.numel()).view(parent.shape))
        parent.ids = scatter_ids(parent, child, positions)
        parent.constant = scatter_constant(parent, child, positions) if positions.numel() else None  # at this size
        if made_of_inputs:
            parent.held = parent.held.to("meta")
        elif parent.is_real:
            parent.held = parent.held.clone()  # what was noted of it before the write stays
            replay(parent.held).copy_(child.held)
        parent.made = None
        child = parent
    refresh_views(child, made_of_inputs)


def refresh_views(base: ShadowTensor, made_of_inputs: bool) -> None:
    """Recompute the shadows of all views of a tensor that was written."""
    for reference in base.views:
        view = reference()
        if view is None or view.view_of is None:
            continue
        replay = view.view_of.replay
        view.ids = tuple(compress(replay(t.expand(base.shape).contiguous())) for t in base.ids)
        constant = base.constant
        if constant is not None:
            constant = Constant(*(compress(replay(t.expand(base.shape).contiguous())) for t in constant))
        view.constant = constant
        view.made = None
        if made_of_inputs:
            view.held = view.held.to("meta")
        refresh_views(view, made_of_inputs)


def scatter_ids(parent: ShadowTensor, child: ShadowTensor, positions: Tensor) -> Ids:
    """Write the ids of a view into those of its base; ids of different dimensions are kept apart."""
    nowhere = torch.zeros((), dtype=torch.int64)
    rest = [(set(varying(compress(scatter(nowhere, t, parent, positions)))), t) for t in child.ids]
    result = []
    for t in parent.ids:
        match = next((pair for pair in rest if not pair[0].isdisjoint(varying(t)) or not pair[0]), None)
        rest = [pair for pair in rest if pair is not match]
        result.append(compress(scatter(t, nowhere if match is None else match[1], parent, positions)))
    result += [compress(scatter(nowhere, t, parent, positions)) for _, t in rest]
    return tuple(result)


def scatter_constant(parent: ShadowTensor, child: ShadowTensor, positions: Tensor) -> Constant | None:
    """Write what is known of a view into what is known of its base."""
    base, part = constant_of(parent), constant_of(child)
    if base is None and part is None:
        return None
    unknown = Constant(torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.bool))
    pairs = zip(base or unknown, part or unknown, strict=True)
    return Constant(*(compress(scatter(b, p.to(b.dtype), parent, positions)) for b, p in pairs))


def scatter(base: Tensor, part: Tensor, parent: ShadowTensor, positions: Tensor) -> Tensor:
    """Put `part` at flat `positions` into a copy of `base`, both broadcast to their full shapes."""
    flat = base.expand(parent.shape).reshape(-1).clone()
    flat[positions.reshape(-1)] = part.expand(positions.shape).reshape(-1)
    return flat.view(parent.shape)


def constant_of(t: ShadowTensor) -> Constant | None:
    """What is known of a tensor: all, if no input reaches it."""
    if not t.is_real or t.sized:
        return t.constant
    value = t.held.double() if t.held.is_floating_point() else t.held
    return Constant(value, torch.ones((), dtype=torch.bool))


def varying(t: Tensor) -> list[int]:
    """The dimensions along which a compressed tensor varies."""
    return [d for d, size in enumerate(t.shape) if size > 1]


def compress(t: Tensor) -> Tensor:
    """Cut a tensor to size 1 along each dimension along which it only repeats itself."""
    for d in range(t.dim()):
        if t.stride(d) == 0 and t.size(d) > 1:
            t = t.narrow(d, 0, 1)
    for d in range(t.dim()):
        if t.size(d) > 1 and torch.equal(t.narrow(d, 0, 1).expand(t.shape), t):
            t = t.narrow(d, 0, 1)
    return t

"""What does a masked weight become? The modules that stand in a graph between a parameter and the op that uses it."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from fxprune.bits import unpack
from fxprune.kept_gates import KeptGates
from fxprune.methods.base import Method
from fxprune.sharding import gather, refuse_piece

_BLOCK = 1 << 20  # weights masked at a time: temporaries stay in a cache; with fewer, threads wait for each other more


class WeightMask(nn.Module):
    """One gate per weight: q = c * w * gate(|w|, threshold), with the gradient dL/dw = dL/dq * (1, or theta if closed).

    Where gates hold along the dimensions `shared`, as for stripes, the magnitude is the root of the mean square there;
    with `rectangles` the buffer `inside` holds it, over the rectangle that a block of filters keeps, and 0 outside.
    `rows` is the dimension of the weight's output channels. Closed weights are exact zeros.

    Buffers: `threshold` (0-dim, this layer's tau; at 0 or less the weight passes unchanged); for methods that rescale
    `factor` (c, the size of the weight along `rows` and 1 elsewhere). Those that remember have the module `kept`, which
    says what the gates are; where its buffers have been averaged, the threshold does, and is remembered from then on.
    Methods that learn have the parameter `variable`, at least float32, and say what q is; the buffer `progress` tells
    them which share of the training is over.
    """

    threshold: Tensor
    factor: Tensor | None
    kept: KeptGates | None
    inside: Tensor | None
    progress: Tensor | None

    def __init__(
        self, parameter: str, weight: Tensor, method: Method, closed_gradient: float, rows: int = 0,
        shared: tuple[int, ...] = (), rectangles: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.parameter = parameter
        self.method = method
        self.closed_gradient = closed_gradient
        self.rows = rows
        self.shared = shared
        self.sizes = tuple(weight.shape)
        dtype, device = torch.promote_types(weight.dtype, torch.float32), weight.device
        constant = None if rectangles else method.find_threshold()
        threshold = torch.full((), constant or 0.0, dtype=dtype, device=device)
        self.register_buffer("threshold", threshold)
        sizes = [size if dim == rows else 1 for dim, size in enumerate(weight.shape)]
        self.register_buffer("factor", torch.ones(sizes, dtype=dtype, device=device) if method.rescales else None)
        gates = [1 if dim in shared else size for dim, size in enumerate(weight.shape)]
        self.kept = KeptGates(tuple(gates), device) if method.remembers else None
        inside = torch.ones(gates, dtype=dtype, device=device) if rectangles else None
        self.register_buffer("inside", inside)
        self.register_buffer("progress", torch.zeros((), device=device) if method.learns else None)
        self.variable = None
        if method.learns:
            self.variable = nn.Parameter(method.make_variable(weight.detach(), shared).to(dtype))

    def forward(self, weight: Tensor) -> Tensor:
        refuse_piece(weight, self.parameter)
        if self.variable is not None and self.progress is not None:
            masked = self.method.mask(weight, self.variable, self.threshold, self.progress, self.training)
            return masked.to(weight.dtype)
        masked = self._mask(weight)
        if self.closed_gradient == 1:
            return straight_through(weight, masked)
        if self.kept is not None:
            return straight_through(weight, masked, self.kept.bits, self.closed_gradient, packed=self.kept.sizes[1:])
        if self.shared:
            return straight_through(weight, masked, self._is_open(weight), self.closed_gradient)
        return straight_through(weight, masked, theta=self.closed_gradient, threshold=self.threshold)

    @torch.no_grad()
    def measure(self, weight: Tensor) -> Tensor:
        """Give what has its magnitudes compared: the weight, its stripes' root mean squares, or the variable."""
        if self.variable is not None:
            return gather(self.variable.detach())
        values = self._reduce(weight, self.inside)
        kept = self._read_kept(weight)
        return values if kept is None else kept.read().to(values.dtype).mul_(values)  # what was closed comes first

    @torch.no_grad()
    def refresh(self, weight: Tensor, threshold: Tensor) -> None:
        """Take a new threshold, and the factor c that the method gives for this weight."""
        self.threshold.copy_(threshold)
        kept = self._read_kept(weight)
        if kept is not None:
            values = self._reduce(weight, self.inside)
            for block in _cut(values) or [slice(None)]:
                kept.close(block, self._exceeds(values[block]))
            kept.set_seal()
        if self.factor is None:
            return
        magnitude = weight.abs().to(self.threshold.dtype)
        factor = self.method.rescale(
            _mean_along(magnitude * self._is_open(weight), self.rows), _mean_along(magnitude, self.rows)
        )
        self.factor.copy_(factor.view_as(self.factor))

    def count_gates(self) -> int:
        """Count the gates."""
        return math.prod(size for dim, size in enumerate(self.sizes) if dim not in self.shared)

    @torch.no_grad()
    def count_closed(self, weight: Tensor) -> int:
        """Count the gates that are closed for good; none are where nothing is remembered."""
        kept = self._read_kept(weight)
        return 0 if kept is None else kept.count_closed()

    def list_zeros(self, masked: Tensor) -> Tensor:
        """Say which gates, of the shape that they have, leave nothing of a masked weight."""
        return (masked == 0).all(self.shared) if self.shared else masked == 0

    @torch.no_grad()
    def measure_stripes(self, weight: Tensor) -> Tensor:
        """Give the magnitudes of stripes one by one, [filters, *kernel]."""
        source = weight if self.variable is None else self.variable
        values = source.detach().to(self.threshold.dtype).square()
        kept = self._read_kept(weight)
        return (values if kept is None else values * kept.read()).mean(self.shared).sqrt()

    @torch.no_grad()
    def take_rectangles(self, magnitudes: Tensor) -> None:
        """Take the magnitudes of stripes that lie in rectangles, 0 for those outside, [filters, *kernel]."""
        assert self.inside is not None
        self.inside.copy_(magnitudes.view_as(self.inside))
        if self.variable is not None:
            self.variable.mul_(self.inside > 0)

    def _reduce(self, weight: Tensor, inside: Tensor | None) -> Tensor:
        """Give the magnitudes of weights, or of their stripes; of stripes in rectangles `inside`, of the same rows."""
        if inside is not None:
            return inside
        if not self.shared:
            return weight.detach()
        values = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        return values.square().mean(self.shared, keepdim=True).sqrt()

    @torch.no_grad()
    def _is_open(self, weight: Tensor) -> Tensor:
        kept = self._read_kept(weight)
        if kept is not None:
            return kept.read().bool()
        return self._exceeds(self._reduce(weight, self.inside))

    def _read_kept(self, weight: Tensor) -> KeptGates | None:
        """Give what is remembered; where it has been averaged, it is first made again of the threshold."""
        if self.kept is not None and not self.kept.is_sound():
            self.kept.write(self._exceeds(self._reduce(weight, self.inside)))
        return self.kept

    def _exceeds(self, values: Tensor) -> Tensor:
        threshold = torch.where(self.threshold > 0, self.threshold, -1)
        return values.abs().to(threshold.dtype).gt_(threshold).bool()

    @torch.no_grad()
    def _mask(self, weight: Tensor) -> Tensor:
        """Give c * w * gate, in pieces that fit into the cache where that helps."""
        kept = self._read_kept(weight)
        parts = (self.factor, self.inside, None if kept is None else kept.bits)
        blocks = [] if 0 in self.shared else _cut(weight)
        if not blocks:
            return self._mask_block(weight, parts).to(weight.dtype)
        masked = torch.empty_like(weight)
        for block in blocks:
            taken = [part if part is None else _take(part, block) for part in parts]
            self._mask_block(weight[block], taken, masked[block])
        return masked

    def _mask_block(self, weight: Tensor, parts: Sequence[Tensor | None], out: Tensor | None = None) -> Tensor:
        factor, inside, bits = parts
        if bits is None or self.kept is None:
            gate = self.method.gate(self._reduce(weight, inside).abs().to(self.threshold.dtype), self.threshold)
        else:
            gate = _as_numbers(bits, weight.dtype, self.kept.sizes[1:])
        return torch.mul(gate if factor is None else gate.mul_(factor), weight, out=out)


class UnitIndex(nn.Module):
    """To which unit each index of a dimension belongs: `index`, -1 for none; no buffer, since some average buffers."""

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.index = index

    def spread(self, values: Tensor) -> Tensor:
        """Give each index the value of its unit, and 1 where it belongs to none."""
        self.index = self.index.to(values.device)
        return torch.cat([values, values.new_ones(1)])[self.index]  # -1 is the one at the end


class UnitMask(UnitIndex):
    """One gate per index of a weight's dimension `dim`: q = w * gate, with the gradient dL/dw = dL/dq, or 0 if closed.

    Buffer `gate` [size of dim]: 0 is closed; for methods that rescale it contains the layer's factor c. `index` says
    to which unit each index belongs; those with -1 are never closed.
    """

    gate: Tensor

    def __init__(self, parameter: str, dim: int, index: Tensor) -> None:
        super().__init__(index)
        self.parameter = parameter
        self.dim = dim
        self.register_buffer("gate", torch.ones(index.numel(), device=index.device))

    def forward(self, weight: Tensor) -> Tensor:
        refuse_piece(weight, self.parameter)
        gate = self._along(weight, self.gate)
        return straight_through(weight, weight.detach() * gate.to(weight.dtype), gate, theta=0.0)

    def scatter(self, gates: Tensor) -> None:
        """Take the gates of this weight's units out of those of all units."""
        self.gate.copy_(self.spread(gates))

    def rescale(self, weight: Tensor, method: Method) -> None:
        """Multiply the layer's factor c, from the magnitudes in the open and in all indexes, into the gate."""
        magnitude = _mean_along(weight.abs().to(self.gate.dtype), self.dim)
        self.gate.mul_(method.rescale((magnitude * (self.gate > 0)).mean(), magnitude.mean()))

    def _along(self, weight: Tensor, values: Tensor) -> Tensor:
        return values.view([-1 if dim == self.dim else 1 for dim in range(weight.dim())])


class Alive(UnitIndex):
    """Which channels a norm over channels runs over: buffer `open`, as long as `index`, 1 where it is open, else 0."""

    open: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__(index)
        self.register_buffer("open", torch.ones(index.shape, device=index.device))

    def forward(self) -> Tensor:
        return self.open

    def scatter(self, gates: Tensor) -> None:
        """Take over which of this norm's units are open."""
        self.open.copy_(self.spread(gates) > 0)


def straight_through(
    weight: Tensor, masked: Tensor, gates: Tensor | None = None, theta: float = 1.0, threshold: Tensor | None = None,
    packed: tuple[int, ...] | None = None,
) -> Tensor:  # fmt: skip
    """Give `masked` in the forward; in the backward hand its gradient to `weight`, times theta where gates are 0.

    `gates` broadcast to the weight; where they are bits, `packed` is the shape of a row of them. Where a `threshold` is
    given instead, `masked` stands for them, which the op that uses it saves anyway: it is 0 where they are, or where a
    weight is, which no threshold above 0 leaves open. With neither, the whole gradient passes, and nothing is saved.
    """
    result: Tensor = _StraightThrough.apply(weight, masked, gates, theta, threshold, packed)
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        weight: Tensor, masked: Tensor, gates: Tensor | None, theta: float, threshold: Tensor | None,
        packed: tuple[int, ...] | None,
    ) -> Tensor:  # fmt: skip
        return masked.view_as(masked)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, masked, gates, ctx.theta, threshold, ctx.packed = inputs  # type: ignore[attr-defined]
        ctx.save_for_backward(gates if threshold is None else masked, threshold)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gates, threshold = ctx.saved_tensors  # type: ignore[attr-defined]
        if gates is not None:
            theta: float = ctx.theta  # type: ignore[attr-defined]
            least = theta if threshold is None else torch.where(threshold > 0, theta, 1.0)
            packed: tuple[int, ...] | None = ctx.packed  # type: ignore[attr-defined]
            gradient = _scale_gradient(gradient, gates, least, packed)
        return gradient.view_as(gradient), None, None, None, None, None  # a view becomes weight.grad without a copy


def _scale_gradient(gradient: Tensor, gates: Tensor, least: float | Tensor, packed: tuple[int, ...] | None) -> Tensor:
    """Give the gradient times 1 where gates are open, and times `least` where they are closed."""
    blocks = _cut(gradient)
    if not blocks:
        return gradient * _as_numbers(gates, gradient.dtype, packed).clamp(min=least)
    scaled = torch.empty_like(gradient)
    for block in blocks:
        shares = _as_numbers(_take(gates, block), gradient.dtype, packed).clamp_(min=least)
        torch.mul(gradient[block], shares, out=scaled[block])
    return scaled


def _cut(values: Tensor) -> list[slice]:
    """Cut the first dimension into blocks that fit into the cache; none where they are of no use.

    A GPU needs none, a compiler fuses by itself, and derivatives of gradients know nothing of writing into blocks.
    """
    whole = values.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_grad_enabled()
    if whole or values.numel() <= _BLOCK:
        return []
    rows = max(1, _BLOCK * values.shape[0] // values.numel())
    return [slice(start, start + rows) for start in range(0, values.shape[0], rows)]


def _take(values: Tensor, block: slice) -> Tensor:
    """Give a block of a tensor, or the one row that is the same for all."""
    return values if values.shape[0] == 1 else values[block]


def _as_numbers(gates: Tensor, dtype: torch.dtype, packed: tuple[int, ...] | None = None) -> Tensor:
    """Give a new tensor, 1 where gates are open and 0 where they are closed; many times as fast as by way of bool.

    Where gates are bits, `packed` is the shape of a row.
    """
    if packed is not None:
        return unpack(gates, packed).to(dtype)
    if gates.dtype == torch.bool:
        return gates.view(torch.uint8).to(dtype)
    return gates.detach().clone().ne_(0).to(dtype)


def _mean_along(values: Tensor, dim: int) -> Tensor:
    """Give the mean over all other dimensions, [size of dim]; also of a tensor that has no others."""
    return values.transpose(0, dim).reshape(values.shape[dim], -1).mean(1)

"""What does a masked weight become, and where do the masks of a model keep their state?

A mask is a module between a parameter and the op that uses it; `Masks` holds them all, with thresholds, gates and
the step as buffers, so that copies, checkpoints, autocast and torch.compile need nothing special. Which mask goes
where is decided elsewhere: here nothing knows of graphs, and the formulas are the method's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from fxprune.errors import TargetError
from fxprune.methods.base import Method
from fxprune.methods.scores import Slice, unit_scores
from fxprune.methods.targets import Sparsity
from fxprune.methods.threshold import layer_threshold, select_threshold

Granularity = Literal["weight", "channel"]
_BLOCK = 1 << 18  # weights masked at a time: the temporaries stay in the cache


class Masks(nn.Module):
    """All masks of one prepared model, which holds this module under the name `fxprune`.

    Buffers: `step` (int64, optimizer steps so far), `threshold` (0-dim, the global T), `gates` ([units], the gate of
    each unit; channel granularity only). `weight_masks`, `unit_masks` and `alive` are keyed by name with "-" for ".".
    `slices` say where the units appear in the parameters that score them.
    """

    step: Tensor
    threshold: Tensor
    gates: Tensor

    def __init__(
        self,
        method: Method,
        target: Sparsity,
        granularity: Granularity,
        *,
        units: int = 0,
        slices: Sequence[Slice] = (),
    ) -> None:
        super().__init__()
        if granularity not in ("weight", "channel"):
            raise TargetError(f"granularity {granularity!r} is unknown; give 'weight' or 'channel'")
        self.method = method
        self.target = target
        self.granularity = granularity
        self.weight_masks = nn.ModuleDict()
        self.unit_masks = nn.ModuleDict()
        self.alive = nn.ModuleDict()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("gates", torch.ones(units))
        self._places = [(place.parameter, place.dim) for place in slices]
        for number, place in enumerate(slices):
            self.register_buffer(f"slice_{number}", place.index, persistent=False)

    def add_weight_mask(self, name: str, weight: Tensor, rows: int = 0) -> "WeightMask":
        """Make the mask of the parameter `name`; `rows` is the dimension of its output channels."""
        mask = WeightMask(name, weight, self.method, self.closed_gradient, rows)
        self.weight_masks[name.replace(".", "-")] = mask
        self.threshold = self.threshold.to(torch.promote_types(self.threshold.dtype, mask.threshold.dtype))
        return mask

    def add_unit_mask(self, name: str, dim: int, index: Tensor) -> "UnitMask":
        """Make the mask of the parameter `name` along `dim`, whose indexes belong to the units `index` (-1: none)."""
        mask = UnitMask(name, dim, index, self.closed_gradient)
        self.unit_masks[name.replace(".", "-")] = mask
        return mask

    def add_alive(self, name: str, index: Tensor) -> "Alive":
        """Make the record of which channels of the norm `name` are open; `index` as for a unit mask."""
        record = Alive(index)
        self.alive[name.replace(".", "-")] = record
        return record

    @property
    def closed_gradient(self) -> float:
        """The share of its gradient that a closed weight receives."""
        return self.method.closed_gradient(self.target.share)

    @property
    def slices(self) -> list[Slice]:
        """Where the units appear in the parameters that score them."""
        return [Slice(name, dim, self.get_buffer(f"slice_{number}")) for number, (name, dim) in enumerate(self._places)]

    @property
    def parameter_names(self) -> list[str]:
        """The names of all parameters that are masked or score a unit, each once, in a fixed order."""
        masked = [mask.parameter for mask in self._weight_masks() + self._unit_masks()]
        return list(dict.fromkeys(masked + [name for name, _ in self._places]))

    @torch.no_grad()
    def refresh(self, parameters: Mapping[str, Tensor], sparsity: float) -> None:
        """Close the share `sparsity` of the weights or units, those of the smallest magnitude, and open the others.

        `parameters` holds, by name, at least `parameter_names`. A sparsity of 0 opens everything. All units of a
        group may close: it is the conversion that keeps the strongest one.
        """
        if self.granularity == "weight":
            self._refresh_weights(parameters, sparsity)
        else:
            self._refresh_units(parameters, sparsity)

    @torch.no_grad()
    def set_gates(self, gates: Tensor) -> None:
        """Set the gates of all units ([units], 0 is closed) and hand them to the masks and to the norms' records."""
        self.gates.copy_(gates)
        for mask in self._unit_masks():
            mask.scatter(self.gates)
        for record in self.alive.values():
            if isinstance(record, Alive):
                record.scatter(self.gates)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move and cast as the model does, but keep thresholds and gates at float32 or more where it turns to half."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for module in self.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point() and buffer.itemsize < 4:
                    setattr(module, name, buffer.float())
        return self

    def _refresh_weights(self, parameters: Mapping[str, Tensor], sparsity: float) -> None:
        masks = self._weight_masks()
        weights = {mask.parameter: parameters[mask.parameter] for mask in masks}
        scales = {name: self.method.scale(weight) for name, weight in weights.items()}
        threshold = select_threshold(weights, sparsity, scales)
        self.threshold.copy_(threshold)
        for mask in masks:
            mask.refresh(weights[mask.parameter], layer_threshold(threshold, scales[mask.parameter]))

    def _refresh_units(self, parameters: Mapping[str, Tensor], sparsity: float) -> None:
        scores = unit_scores(parameters, self.slices, self.gates.numel())
        threshold = select_threshold({"unit scores": scores}, sparsity)
        self.threshold.copy_(threshold)
        self.set_gates(self.method.gate(scores, threshold))
        if self.method.rescales:
            for mask in self._unit_masks():
                mask.rescale(parameters[mask.parameter], self.method)

    def _weight_masks(self) -> list["WeightMask"]:
        return [mask for mask in self.weight_masks.values() if isinstance(mask, WeightMask)]

    def _unit_masks(self) -> list["UnitMask"]:
        return [mask for mask in self.unit_masks.values() if isinstance(mask, UnitMask)]


class WeightMask(nn.Module):
    """One gate per weight: q = c * w * gate(|w|, threshold), with the gradient dL/dw = dL/dq * (1, or theta if closed).

    Buffers: `threshold` (0-dim, this layer's tau; at 0 or less the weight passes unchanged) and, for methods that
    rescale, `factor` (c, the size of the weight along `rows` and 1 elsewhere). Closed weights are exact zeros.
    """

    threshold: Tensor
    factor: Tensor | None

    def __init__(self, parameter: str, weight: Tensor, method: Method, closed_gradient: float, rows: int = 0) -> None:
        super().__init__()
        self.parameter = parameter
        self.method = method
        self.closed_gradient = closed_gradient
        self.rows = rows
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.register_buffer("threshold", torch.zeros((), dtype=dtype, device=weight.device))
        sizes = [size if dim == rows else 1 for dim, size in enumerate(weight.shape)]
        factor = torch.ones(sizes, dtype=dtype, device=weight.device) if method.rescales else None
        self.register_buffer("factor", factor)

    def forward(self, weight: Tensor) -> Tensor:
        is_open = self._is_open(weight) if self.closed_gradient != 1 else None
        return straight_through(weight, self._mask(weight), is_open, self.closed_gradient)

    @torch.no_grad()
    def refresh(self, weight: Tensor, threshold: Tensor) -> None:
        """Take a new threshold, and the factor c that the method gives for this weight."""
        self.threshold.copy_(threshold)
        if self.factor is None:
            return
        magnitude = weight.abs().to(self.threshold.dtype)
        factor = self.method.rescale(
            _mean_along(magnitude * self._is_open(weight), self.rows), _mean_along(magnitude, self.rows)
        )
        self.factor.copy_(factor.view_as(self.factor))

    @torch.no_grad()
    def _is_open(self, weight: Tensor) -> Tensor:
        threshold = torch.where(self.threshold > 0, self.threshold, -1)
        return weight.abs().to(threshold.dtype) > threshold

    @torch.no_grad()
    def _mask(self, weight: Tensor) -> Tensor:
        """Give c * w * gate, in pieces that fit into the cache where that helps; the compiler fuses by itself."""
        if weight.device.type != "cpu" or torch.compiler.is_compiling() or weight.numel() <= _BLOCK:
            return self._mask_block(weight, self.factor).to(weight.dtype)
        rows = max(1, _BLOCK * weight.shape[0] // weight.numel())
        masked = torch.empty_like(weight)
        for start in range(0, weight.shape[0], rows):
            block = slice(start, start + rows)
            factor = self.factor[block] if self.factor is not None and self.rows == 0 else self.factor
            masked[block] = self._mask_block(weight[block], factor)
        return masked

    def _mask_block(self, weight: Tensor, factor: Tensor | None) -> Tensor:
        gate = self.method.gate(weight.abs().to(self.threshold.dtype), self.threshold)
        masked = gate.mul_(weight)
        return masked if factor is None else masked.mul_(factor)


class UnitMask(nn.Module):
    """One gate per index of a weight's dimension `dim`: q = w * gate, the gate taking no part in the gradient.

    Buffer `gate` [size of dim]: 0 is closed; for methods that rescale it contains the layer's factor c. `index` says
    to which unit each index belongs; those with -1 are never closed.
    """

    gate: Tensor
    index: Tensor

    def __init__(self, parameter: str, dim: int, index: Tensor, closed_gradient: float) -> None:
        super().__init__()
        self.parameter = parameter
        self.dim = dim
        self.closed_gradient = closed_gradient
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("gate", torch.ones(index.numel(), device=index.device))

    def forward(self, weight: Tensor) -> Tensor:
        gate = self._along(weight, self.gate)
        is_open = gate > 0 if self.closed_gradient != 1 else None
        return straight_through(weight, weight.detach() * gate.to(weight.dtype), is_open, self.closed_gradient)

    def scatter(self, gates: Tensor) -> None:
        """Take the gates of this weight's units out of those of all units."""
        self.gate.copy_(_gather(gates, self.index))

    def rescale(self, weight: Tensor, method: Method) -> None:
        """Multiply the layer's factor c, from the magnitudes in the open and in all indexes, into the gate."""
        magnitude = _mean_along(weight.abs().to(self.gate.dtype), self.dim)
        self.gate.mul_(method.rescale((magnitude * (self.gate > 0)).mean(), magnitude.mean()))

    def _along(self, weight: Tensor, values: Tensor) -> Tensor:
        return values.view([-1 if dim == self.dim else 1 for dim in range(weight.dim())])


class Alive(nn.Module):
    """Which channels a norm over channels runs over: buffer `open`, as long as `index`, 1 where it is open, else 0."""

    open: Tensor
    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("open", torch.ones(index.shape, device=index.device))

    def forward(self) -> Tensor:
        return self.open

    def scatter(self, gates: Tensor) -> None:
        """Take over which of this norm's units are open."""
        self.open.copy_(_gather(gates, self.index) > 0)


def straight_through(weight: Tensor, masked: Tensor, is_open: Tensor | None, theta: float) -> Tensor:
    """Give `masked` in the forward; in the backward hand its gradient to `weight`, times theta where not open.

    `is_open` is bool and broadcasts to the weight; None passes the whole gradient and saves nothing.
    """
    result: Tensor = _StraightThrough.apply(weight, masked, is_open, theta)
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(weight: Tensor, masked: Tensor, is_open: Tensor | None, theta: float) -> Tensor:
        return masked.view_as(masked)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor | None, float], output: Tensor) -> None:
        ctx.save_for_backward(*([] if inputs[2] is None else [inputs[2]]))
        ctx.theta = inputs[3]  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        for is_open in ctx.saved_tensors:  # type: ignore[attr-defined]
            gradient = torch.where(is_open, gradient, ctx.theta * gradient)  # type: ignore[attr-defined]
        return gradient.view_as(gradient), None, None, None  # a view is taken over as weight.grad without a copy


def _mean_along(values: Tensor, dim: int) -> Tensor:
    """Give the mean over all other dimensions, [size of dim]; also of a tensor that has no others."""
    return values.transpose(0, dim).reshape(values.shape[dim], -1).mean(1)


def _gather(gates: Tensor, index: Tensor) -> Tensor:
    return torch.cat([gates, gates.new_ones(1)])[index]  # index -1 is the one at the end: never closed

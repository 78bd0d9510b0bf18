"""Where do the masks of a model keep their state, and how do they follow the training?

A mask is a module between a parameter and the op that uses it; `Masks` holds them all, with thresholds, gates and
the step as buffers, so that copies, checkpoints, autocast and torch.compile need nothing special. Which mask goes
where is decided elsewhere: here nothing knows of graphs, and the formulas are the method's.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneError, TargetError
from fxprune.mask_modules import Alive, UnitMask, WeightMask
from fxprune.methods.base import Method
from fxprune.methods.scores import Slice
from fxprune.methods.shapes import choose_rectangles, select_rectangle_threshold
from fxprune.methods.targets import Target
from fxprune.methods.threshold import layer_threshold, refuse_unfinite, select_priced_threshold
from fxprune.methods.unit_costs import UnitCosts
from fxprune.methods.weight_costs import Select, WeightCosts
from fxprune.sharding import gather, spread

Granularity = Literal["weight", "stripe", "channel"]
GRANULARITIES: tuple[str, ...] = get_args(Granularity)


class Masks(nn.Module):
    """All masks of one prepared model, which holds this module under the name `fxprune`.

    Buffers: `step` (int64, optimizer steps so far), `calls` (int64, calls of `fxprune.prune` so far), `threshold`
    (0-dim, the global T), `gates` ([units], the gate of each unit; channel granularity only). `weight_masks`,
    `unit_masks` and `alive` are keyed by name with "-" for ".".
    `slices` say where the units appear in the parameters that score them.
    """

    step: Tensor
    calls: Tensor
    threshold: Tensor
    gates: Tensor

    def __init__(
        self,
        method: Method,
        target: Target | None,
        granularity: Granularity,
        *,
        units: int = 0,
        slices: Sequence[Slice] = (),
        costs: UnitCosts | WeightCosts | None = None,
        rectangles: bool = False,
    ) -> None:
        super().__init__()
        if granularity not in GRANULARITIES:
            raise TargetError(f"granularity {granularity!r} is unknown; give 'weight', 'stripe' or 'channel'")
        self.method = method
        self.target = target
        self.granularity = granularity
        self.rectangles = rectangles  # whether each filter keeps a rectangle of its kernel
        self.weight_masks = nn.ModuleDict()
        self.unit_masks = nn.ModuleDict()
        self.alive = nn.ModuleDict()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("gates", torch.ones(units))
        self.costs: UnitCosts | WeightCosts | None = costs
        if costs is None and target is not None:
            self.costs = UnitCosts(units, target) if units else WeightCosts(target)
        self.norms: list[tuple[str, str, Tensor]] = []
        self.parts: dict[str, nn.Module] = {}  # the prepared model's own modules by name, as they were traced
        self.described: dict[str, str] = {}  # what they were, in words
        self._slices = list(slices)  # no buffers: some average those

    def add_weight_mask(
        self, name: str, weight: Tensor, rows: int = 0, norms: Sequence[tuple[str, Tensor]] = ()
    ) -> WeightMask:  # fmt: skip
        """Make the mask of the parameter `name`; `rows` is the dimension of its output channels.

        `norms` are scales and shifts behind those that nothing else feeds, each with the row of each of its channels.
        """
        shared = tuple(dim for dim in (0, 1) if dim != rows) if self.granularity == "stripe" else ()
        closed_gradient = self.method.closed_gradient(self.target.share if self.target is not None else 0.0)
        mask = WeightMask(name, weight, self.method, closed_gradient, rows, shared, self.rectangles)
        self.norms += [(name, norm, index) for norm, index in norms]
        self.weight_masks[name.replace(".", "-")] = mask
        self.threshold = self.threshold.to(torch.promote_types(self.threshold.dtype, mask.threshold.dtype))
        return mask

    def add_unit_mask(self, name: str, dim: int, index: Tensor) -> UnitMask:
        """Make the mask of the parameter `name` along `dim`, whose indexes belong to the units `index` (-1: none)."""
        mask = UnitMask(name, dim, index)
        self.unit_masks[name.replace(".", "-")] = mask
        return mask

    def add_alive(self, name: str, index: Tensor) -> Alive:
        """Make the record of which channels of the norm `name` are open; `index` as for a unit mask."""
        record = Alive(index)
        self.alive[name.replace(".", "-")] = record
        return record

    @property
    def slices(self) -> list[Slice]:
        """Where the units appear in the parameters that score them."""
        self._slices = [replace(place, index=place.index.to(self.gates.device)) for place in self._slices]
        return self._slices

    @property
    def parameter_names(self) -> list[str]:
        """The names of all parameters that are masked or score a unit, each once, in a fixed order."""
        masked = [mask.parameter for mask in self._weight_masks() + self._unit_masks()]
        return list(
            dict.fromkeys([*masked, *(place.parameter for place in self._slices), *(norm for _, norm, _ in self.norms)])
        )

    @property
    def sizes(self) -> list[tuple[str, int, int]]:
        """The sizes that masked parameters and those that score units must have: name, dimension and size."""
        weights = [(mask.parameter, *each) for mask in self._weight_masks() for each in enumerate(mask.sizes)]
        units = [(mask.parameter, mask.dim, mask.index.numel()) for mask in self._unit_masks()]
        return weights + units + [(place.parameter, place.dim, place.index.numel()) for place in self.slices]

    @property
    def variables(self) -> dict[str, nn.Parameter]:
        """What the masks themselves learn, under names for messages."""
        masks = self._weight_masks()
        return {f"the mask of {mask.parameter}": mask.variable for mask in masks if mask.variable is not None}

    def get_extra_state(self) -> Tensor:
        """Give method, target and granularity for the state dict, as bytes: what it holds are tensors."""
        return torch.tensor(list(self.settings.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse the state of other masks: their numbers would fit and mean something else. Raises FxpruneError."""
        saved = bytes(state.tolist()).decode()
        if saved != self.settings:
            raise FxpruneError(
                f"this state dict is of a model prepared with {saved}, and this one with {self.settings}; "
                "prepare it in the same way, or take the weights alone: leave out the keys that begin with 'fxprune.', "
                "and load with strict=False"
            )

    @property
    def settings(self) -> str:
        """Method, target and granularity in words, the same in every process."""
        text = f"method={self.method}, target={self.target!r}, granularity={self.granularity!r}"
        if self.rectangles:
            text += ", shapes='rectangles'"
        return re.sub(" at 0x[0-9a-f]+", "", text)  # of a predicate among the target's overrides

    @torch.no_grad()
    def before_step(self, parameters: Mapping[str, Tensor], scale: float | Tensor = 1.0) -> None:
        """Do what the method does when gradients are there, `scale` times too large, and the optimizer will step."""
        masks = {mask.parameter: mask for mask in self._weight_masks()}
        for mask in masks.values():
            if mask.variable is not None:
                self.method.before_step(mask.variable, mask.threshold, scale)
        for name, norm, index in self.norms:
            mask, parameter = masks[name], parameters[norm]
            rows = mask.measure(gather(parameters[name])).transpose(0, mask.rows).flatten(1)
            alive = (rows.abs() > mask.threshold).any(1)[index.to(rows.device)]
            for values in (parameter, parameter.grad) if parameter.requires_grad else ():
                if values is not None:
                    values.mul_(spread(alive, values))

    @torch.no_grad()
    def after_step(self, parameters: Mapping[str, Tensor], sparsity: float, progress: float) -> None:
        """Do what the method does when the optimizer has stepped, and refresh the masks."""
        if self.method.learns:
            self._change_variables(sparsity)
            for mask in self._weight_masks():
                if mask.progress is not None:
                    mask.progress.fill_(progress)
        self.refresh(parameters, sparsity)

    def _change_variables(self, sparsity: float) -> None:
        """Let the method change its variables, layers together that lose a share of the cost together."""
        variables = {mask.parameter: mask.variable.data for mask in self._weight_masks() if mask.variable is not None}
        whole = {name: gather(variable) for name, variable in variables.items()}
        if isinstance(self.costs, WeightCosts):
            sizes = {name: values.numel() for name, values in whole.items()}
            for names, budget in self.costs.share_budgets(sizes, sparsity):
                prices = [self.costs.prices.get(name, 1) for name in names]
                self.method.after_step([whole[name] for name in names], budget, prices)
        for name, values in whole.items():
            if values is not variables[name]:
                variables[name].copy_(spread(values, variables[name]))

    @torch.no_grad()
    def refresh(self, parameters: Mapping[str, Tensor], sparsity: float) -> None:
        """Close the weights or units of the smallest magnitude, `sparsity` of the target's cost, and open the others.

        `parameters` holds, by name, at least `parameter_names`; what FSDP shards is gathered, so that all ranks find
        the same. A sparsity of 0 opens everything.
        """
        parameters = {name: gather(parameters[name]) for name in self.parameter_names}
        if self.granularity == "channel":
            self._refresh_units(parameters, sparsity)
        elif self.rectangles:
            self._refresh_rectangles(parameters, sparsity)
        else:
            self._refresh_weights(parameters, sparsity)

    @property
    def counted(self) -> str:
        """What a target takes its share of; without one, all gates."""
        if self.target is not None and self.target.cost != "gates":
            return self.target.cost
        return "units" if self.granularity == "channel" else f"{self.granularity}s"

    @torch.no_grad()
    def measure_closed(self, find_masked: Callable[[str], Tensor]) -> float:
        """Give the share of what is `counted` that is gone, where masked weights are those that are found by name."""
        if isinstance(self.costs, UnitCosts):
            return 1 - float(self.costs.cost(self.costs.count_open(self.gates)) / self.costs.total.clamp_min(1))
        masks = {mask.parameter: mask.list_zeros(find_masked(mask.parameter)) for mask in self._weight_masks()}
        closed = {name: int(zeros.sum()) for name, zeros in masks.items()}
        sizes = {name: zeros.numel() for name, zeros in masks.items()}
        if isinstance(self.costs, WeightCosts):
            return self.costs.sum_costs(closed) / max(1, self.costs.count_total(sizes))
        return sum(closed.values()) / max(1, sum(sizes.values()))

    @torch.no_grad()
    def set_gates(self, gates: Tensor) -> None:
        """Set the gates of all units ([units], 0 is closed) and hand them to the masks and to the norms' records.

        Raises FxpruneError where they are no tensor of that shape, or NaN or infinite.
        """
        if not isinstance(gates, Tensor) or gates.shape != self.gates.shape:
            shown = f"shape {tuple(gates.shape)}" if isinstance(gates, Tensor) else f"type {type(gates).__name__}"
            raise FxpruneError(
                f"gates of {shown}: give a tensor of shape {tuple(self.gates.shape)}, a gate for each unit"
            )
        if not bool(gates.isfinite().all()):
            raise FxpruneError("some of the gates are NaN or infinite: give 0 for closed, and 1 for open")
        self._hand_out(gates)

    def _hand_out(self, gates: Tensor) -> None:
        self.gates.copy_(gates)
        for mask in self._unit_masks():
            mask.scatter(self.gates)
        for record in self.alive.values():
            if isinstance(record, Alive):
                record.scatter(self.gates)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move and cast as the model does, but nothing of it below float32: a half holds too few magnitudes apart."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.is_floating_point() and moved.itemsize < 4 else moved

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self

    def _refresh_weights(self, parameters: Mapping[str, Tensor], sparsity: float) -> None:
        masks = self._weight_masks()
        if self.method.remembers and isinstance(self.costs, WeightCosts):
            closed = {mask.parameter: mask.count_closed(parameters[mask.parameter]) for mask in masks}
            sizes = {mask.parameter: mask.count_gates() for mask in masks}
            if self.costs.is_met(closed, sizes, sparsity):
                return  # for what is closed stays closed, and no more has to
        measured = {mask.parameter: mask.measure(parameters[mask.parameter]) for mask in masks}
        scales = {mask.parameter: self.method.scale(parameters[mask.parameter]) for mask in masks}
        thresholds = self._find_thresholds(measured, sparsity, scales)
        self.threshold.copy_(max(thresholds.values()))
        for mask in masks:
            threshold = thresholds[mask.parameter]
            mask.refresh(parameters[mask.parameter], layer_threshold(threshold, scales[mask.parameter]))

    def _find_thresholds(
        self,
        measured: Mapping[str, Tensor],
        sparsity: float,
        scales: Mapping[str, float],
        select: Select = select_priced_threshold,
    ) -> dict[str, Tensor]:
        constant = self.method.find_threshold()
        if constant is None and isinstance(self.costs, WeightCosts):
            return self.costs.choose(measured, sparsity, scales, select)
        return dict.fromkeys(measured, torch.full_like(self.threshold, constant or 0.0))

    def _refresh_rectangles(self, parameters: Mapping[str, Tensor], sparsity: float) -> None:
        masks = self._weight_masks()
        scales = {mask.parameter: self.method.scale(parameters[mask.parameter]) for mask in masks}
        measured = {mask.parameter: mask.measure_stripes(parameters[mask.parameter]) for mask in masks}
        thresholds = self._find_thresholds(measured, sparsity, scales, select_rectangle_threshold)
        self.threshold.copy_(max(thresholds.values()))
        chosen = choose_rectangles({name: values / scales[name] for name, values in measured.items()}, thresholds)
        for mask in masks:
            mask.take_rectangles(chosen[mask.parameter] * scales[mask.parameter])
            threshold = thresholds[mask.parameter]
            learns = mask.variable is not None  # what lies in a rectangle is open, whatever its own magnitude
            own = torch.zeros_like(threshold) if learns else layer_threshold(threshold, scales[mask.parameter])
            mask.refresh(parameters[mask.parameter], own)

    def _refresh_units(self, parameters: Mapping[str, Tensor], sparsity: float) -> None:
        assert isinstance(self.costs, UnitCosts)
        scores = self.method.score_units(parameters, self.slices, self.gates.numel())
        if not bool(scores.isfinite().all()):
            refuse_unfinite(parameters)
        if self.method.remembers:
            scores = scores * (self.gates > 0)  # what was closed comes first
        choice = self.costs.choose(scores, sparsity)
        self.threshold.copy_(choice.threshold)
        gates = self.method.gate(choice.magnitudes, choice.thresholds)
        self._hand_out(gates * (self.gates > 0) if self.method.remembers else gates)
        if self.method.rescales:
            for mask in self._unit_masks():
                mask.rescale(parameters[mask.parameter], self.method)

    def _weight_masks(self) -> list[WeightMask]:
        return [mask for mask in self.weight_masks.values() if isinstance(mask, WeightMask)]

    def _unit_masks(self) -> list[UnitMask]:
        return [mask for mask in self.unit_masks.values() if isinstance(mask, UnitMask)]

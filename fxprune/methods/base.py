"""What does a pruning method say? The gate of a magnitude, how its gradient passes, and the penalty.

A method knows nothing of graphs, masks or layers' names: it is a handful of formulas over tensors, and a new one
is one small file beside this. What a training loop does is the same for all: each method says here at which of
its points it acts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fxprune.methods.gate import power_gate
from fxprune.methods.schedule import Cubic
from fxprune.methods.scores import Slice, unit_scores

Kind = Literal["weight", "norm", "bias", "gate"]
"""What an optimizer may treat apart: matrices and kernels, scales and shifts of norms, biases, and learnt gates."""


@dataclass(frozen=True)
class Method:
    """One pruning method; to make another, subclass and say whatever differs from the defaults here."""

    schedule: Cubic = field(default=Cubic(0.0, 0.5), kw_only=True)
    granularities: ClassVar[tuple[str, ...]] = ("weight", "stripe", "channel")
    rescales: ClassVar[bool] = False  # whether `rescale` is to be asked; it costs a pass over the weights
    learns: ClassVar[bool] = False  # whether masks have a variable of their own, that the optimizer trains
    one_shot: ClassVar[bool] = False  # whether it prunes when `fxprune.prune` is called, not step by step
    scored_by: ClassVar[Literal["all", "norms"]] = "all"  # what scores units: all that holds them, or norms' scales
    uniform: ClassVar[bool] = False  # whether every layer loses the same share, whatever the target's scope
    mutes_norms: ClassVar[bool] = False  # whether scale and shift of the norm behind a dead filter are zeroed
    targeted: ClassVar[str] = ""  # how to ask for this method with a target, where it can do without

    @property
    def takes_target(self) -> bool:
        """Whether a target says how much is masked; else that follows from the training."""
        return True

    @property
    def remembers(self) -> bool:
        """Whether what was closed stays closed; gates are then stored, and hard."""
        return False

    def gate(self, magnitude: Tensor, threshold: Tensor) -> Tensor:
        """Give every magnitude its gate in [0, 1]: exactly 0 iff magnitude <= threshold. The default is hard.

        A threshold of 0 or less opens all gates. `magnitude` (any shape, at least float32) stays as it is,
        `threshold` is 0-dimensional, or one for each magnitude.
        """
        return power_gate(magnitude, threshold, torch.inf)

    def closed_gradient(self, sparsity: float) -> float:
        """Give theta, the factor on a closed weight's gradient; `sparsity` is the final target. 1 is straight through.

        dL/dw = dL/dq where w is open, theta * dL/dq where it is closed; of weights and stripes. What is closed as a
        whole unit receives none.
        """
        return 1.0

    def scale(self, weight: Tensor) -> float:
        """Give the sigma > 0 by which a layer's magnitudes are divided before layers are compared."""
        return 1.0

    def rescale(self, kept: Tensor, total: Tensor) -> Tensor:
        """Give the factor c on what stays open, asked only of methods with `rescales`.

        `kept` is the mean of |w| where w is open and of 0 where it is closed, `total` the mean of |w|: per
        output channel at weight and stripe granularity, per layer at channel granularity.
        """
        raise NotImplementedError(f"{type(self).__name__} has `rescales` set and no `rescale`")

    def penalty(self, scales: Iterable[Tensor]) -> Tensor | None:
        """Give the term that training adds to its loss, from the scales of the batch norms, or None for no term."""
        return None

    def score_units(self, parameters: Mapping[str, Tensor], slices: Sequence[Slice], units: int) -> Tensor:
        """Give every unit its score, [units], from the parameters in which it appears."""
        return unit_scores(parameters, slices, units)

    def make_variable(self, weight: Tensor, shared: tuple[int, ...]) -> Tensor:
        """Give a mask's own variable as it is when training starts; asked only of methods that learn.

        `shared` are the dimensions of the weight along which one gate holds: none, or the input channels of stripes.
        """
        raise NotImplementedError(f"{type(self).__name__} has `learns` set and no `make_variable`")

    def mask(self, weight: Tensor, variable: Tensor, threshold: Tensor, progress: Tensor, training: bool) -> Tensor:
        """Give the masked weight, with gradients for both; asked only of methods that learn.

        `progress` is the share of the training that is over, 0-dimensional.
        """
        raise NotImplementedError(f"{type(self).__name__} has `learns` set and no `mask`")

    def find_threshold(self) -> float | None:
        """Give the threshold where it is a constant; None where it follows from the target."""
        return None

    def before_step(self, variable: nn.Parameter, threshold: Tensor, scale: float | Tensor = 1.0) -> None:
        """Change a mask's variable and its gradient, in place, when the optimizer is about to step.

        The gradient is still `scale` times too large, where a GradScaler leaves it to the optimizer to divide.
        """

    def after_step(self, variables: Sequence[Tensor], budget: float, prices: Sequence[int]) -> None:
        """Change variables of masks, in place, when the optimizer has stepped and before thresholds follow.

        These are of all layers that share a `budget`, what the open gates may cost together; each gate of a layer
        costs its price.
        """

    def share_of(self, calls: int, target: float) -> float:
        """Give the share of the target that is closed after so many calls of `fxprune.prune`."""
        return 1.0

    def adapt(self, model: nn.Module) -> None:
        """Change layers of the copy that is prepared, in place, to those that the method trains."""

    def restore(self, model: nn.Module) -> None:
        """Change them back into ordinary layers that compute the same.

        The modules are the model's own, but other models read the memory of its tensors: assign to `.data`.
        """

    def is_gate(self, module: nn.Module, name: str) -> bool:
        """Whether a parameter of a layer is what the method learns in the place of a mask's variable."""
        return False

    def options(self, kind: Kind, lr: float, weight_decay: float) -> dict[str, Any]:
        """Give the optimizer's options for one kind of parameters; norms and biases do not decay by default."""
        return {"lr": lr, "weight_decay": 0.0 if kind in ("norm", "bias") else weight_decay}

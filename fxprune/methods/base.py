"""What does a pruning method say? The gate of a magnitude, how its gradient passes, and the penalty.

A method knows nothing of graphs, masks or layers' names: it is a handful of formulas over tensors, and a new one
is one small file beside this.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from fxprune.methods.schedule import Cubic


@dataclass(frozen=True)
class Method(ABC):
    """One pruning method; to make another, subclass and say `gate`, then whatever differs from the defaults here."""

    schedule: Cubic = field(default=Cubic(0.0, 0.5), kw_only=True)
    rescales: ClassVar[bool] = False  # whether `rescale` is to be asked; it costs a pass over the weights

    @abstractmethod
    def gate(self, magnitude: Tensor, threshold: Tensor) -> Tensor:
        """Give every magnitude its gate in [0, 1]: exactly 0 iff magnitude <= threshold.

        A threshold of 0 or less opens all gates. `magnitude` (any shape, at least float32) stays as it is,
        `threshold` is 0-dimensional.
        """

    def closed_gradient(self, sparsity: float) -> float:
        """Give theta, the factor on a closed weight's gradient; `sparsity` is the final target. 1 is straight through.

        dL/dw = dL/dq where w is open, theta * dL/dq where it is closed.
        """
        return 1.0

    def scale(self, weight: Tensor) -> float:
        """Give the sigma > 0 by which a layer's magnitudes are divided before layers are compared."""
        return 1.0

    def rescale(self, kept: Tensor, total: Tensor) -> Tensor:
        """Give the factor c on what stays open, asked only of methods with `rescales`.

        `kept` is the mean of |w| where w is open and of 0 where it is closed, `total` the mean of |w|: per
        output channel at weight granularity, per layer at channel granularity.
        """
        raise NotImplementedError(f"{type(self).__name__} has `rescales` set and no `rescale`")

    def penalty(self, scales: Iterable[Tensor]) -> Tensor | None:
        """Give the term that training adds to its loss, from the scales of the batch norms, or None for no term."""
        return None

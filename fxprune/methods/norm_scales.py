"""What do methods share that learn by the scales of batch norm which channels matter, and prune in one go?

    loss = task + strength * a penalty on all scales; then `fxprune.prune(prepared)` closes the least important channels

and training goes on without the penalty. What was closed stays closed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from fxprune.errors import TargetError
from fxprune.is_number import is_number
from fxprune.methods.base import Kind, Method
from fxprune.methods.scores import Slice, norm_scores


@dataclass(frozen=True)
class NormScales(Method):
    """A method by the scales of batch norms, with the strength of its penalty."""

    strength: float = 1e-4
    granularities: ClassVar[tuple[str, ...]] = ("channel",)
    one_shot: ClassVar[bool] = True
    scored_by: ClassVar[Literal["all", "norms"]] = "norms"

    def __post_init__(self) -> None:
        if not is_number(self.strength) or not self.strength >= 0:
            raise TargetError(f"{type(self).__name__}(strength={self.strength!r}): 0 or more; usual are 1e-5 to 1e-3")

    @property
    def remembers(self) -> bool:
        return True

    def importance(self, scale: Tensor) -> Tensor:
        """Give the importance of channels from their scales; their magnitude by default."""
        return scale.abs()

    def score_units(self, parameters: Mapping[str, Tensor], slices: Sequence[Slice], units: int) -> Tensor:
        return norm_scores(parameters, slices, units, self.importance)

    def options(self, kind: Kind, lr: float, weight_decay: float) -> dict[str, Any]:
        return {"lr": lr, "weight_decay": weight_decay}

"""GMP: how are the smallest magnitudes cut off, harder and harder?

Zhu, Gupta: To prune, or not to prune, 2017; as the baseline of ST-3 (WACV 2023) has it.

    q = w where |w| > T, else 0;        dL/dw = dL/dq where |w| > T, else 0

Sticky, what was closed once stays closed; else a weight that its decay leaves above a falling threshold returns. The
schedule is Feather's, so that the methods can be compared. Deviation: sticky masks are stored, where the published
code sets weights to zero, which momentum moves again.
"""

from dataclasses import dataclass

from fxprune.errors import TargetError
from fxprune.methods.base import Method


@dataclass(frozen=True)
class GMP(Method):
    """Gradual magnitude pruning; `sticky` masks only ever close."""

    sticky: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.sticky, bool):
            raise TargetError(f"GMP(sticky={self.sticky!r}): give True, for masks that only ever close, or False")

    @property
    def remembers(self) -> bool:
        return self.sticky

    def closed_gradient(self, sparsity: float) -> float:
        return 0.0

"""How much is to be pruned?"""

from dataclasses import dataclass

from fxprune.errors import TargetError


@dataclass(frozen=True)
class Sparsity:
    """The share to be masked: of the weights, the stripes or the units, by granularity. Strictly between 0 and 1."""

    share: float

    def __post_init__(self) -> None:
        if not isinstance(self.share, (int, float)) or not 0 < self.share < 1:
            raise TargetError(
                f"Sparsity({self.share}) is the share to be masked and lies between 0 and 1, both excluded; "
                "half of the channels is Sparsity(0.5)"
            )

    def __str__(self) -> str:
        return f"{self.share:.4g} masked"

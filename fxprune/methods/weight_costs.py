"""What do open weights or stripes cost together, and which thresholds meet a target?

All gates of a layer cost the same, and what no gate holds costs what it did:

    cost = dense cost - sum over layers l of price_l * closed_l
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fxprune.methods.targets import Target
from fxprune.methods.threshold import count_closed, select_priced_threshold

Select = Callable[
    [Mapping[str, Tensor], int, Mapping[str, float] | None, Mapping[str, int] | None],
    Tensor,
]
"""Takes magnitudes, the cost that goes, scales and prices, and gives a threshold, as `select_priced_threshold` does."""


@dataclass(frozen=True)
class WeightCosts:
    """The cost that a target names, for masked weights by name.

    `prices` are those of a gate, 1 for layers that it leaves out; `total` is the cost of the dense model, that of all
    gates by default; `own` are the shares of layers with an override.
    """

    target: Target
    prices: Mapping[str, int] = field(default_factory=dict)
    total: int | None = None
    own: Mapping[str, float] = field(default_factory=dict)

    def choose(
        self,
        magnitudes: Mapping[str, Tensor],
        share: float,
        scales: Mapping[str, float],
        select: Select = select_priced_threshold,
    ) -> dict[str, Tensor]:
        """Give each layer the threshold, on |w| / scale, at which `share` of the cost is gone.

        Raises FxpruneError for magnitudes that are NaN or infinite.
        """
        sizes = {name: values.numel() for name, values in magnitudes.items()}
        wanted = {name: count_closed(sizes[name], own * share / self.target.share) for name, own in self.own.items()}
        free = {name: values for name, values in magnitudes.items() if name not in self.own}
        most = self.sum_costs({name: sizes[name] for name in free})
        left = min(most, max(0, count_closed(self.count_total(sizes), share) - self.sum_costs(wanted)))
        thresholds = {}
        if self.target.scope == "layer":
            wanted |= {name: math.ceil(sizes[name] * left / max(most, 1)) for name in free}
        else:
            common = select(free, left, scales, self.prices)
            thresholds = dict.fromkeys(free, common)
        return thresholds | {
            name: select({name: magnitudes[name]}, closed, scales, None) for name, closed in wanted.items()
        }

    def count_total(self, sizes: Mapping[str, int]) -> int:
        """Give the cost of the dense model, where layers have so many gates."""
        return self.sum_costs(sizes) if self.total is None else self.total

    def count_least(self, sizes: Mapping[str, int]) -> int:
        """Give the cost with everything closed that may close."""
        closed = {
            name: count_closed(size, self.own[name]) if name in self.own else size for name, size in sizes.items()
        }
        return self.count_total(sizes) - self.sum_costs(closed)

    def sum_costs(self, gates: Mapping[str, int]) -> int:
        """Give what so many gates of each layer cost."""
        return sum(self.prices.get(name, 1) * number for name, number in gates.items())

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
        wanted, common = self._share_out({name: values.numel() for name, values in magnitudes.items()}, share)
        free = {name: values for name, values in magnitudes.items() if name not in wanted}
        thresholds = dict.fromkeys(free, select(free, common, scales, self.prices)) if free else {}
        return thresholds | {
            name: select({name: magnitudes[name]}, closed, scales, None) for name, closed in wanted.items()
        }

    def share_budgets(self, sizes: Mapping[str, int], share: float) -> list[tuple[list[str], float]]:
        """Give what the open gates cost when `share` of the cost is gone, by layers that lose it together."""
        wanted, common = self._share_out(sizes, share)
        free = {name: size for name, size in sizes.items() if name not in wanted}
        budgets = [([name], float(self.sum_costs({name: sizes[name] - closed}))) for name, closed in wanted.items()]
        return [*budgets, (list(free), float(self.sum_costs(free) - common))] if free else budgets

    def is_met(self, closed: Mapping[str, int], sizes: Mapping[str, int], share: float) -> bool:
        """Whether `share` of the cost is gone already, where so many of each layer's gates are closed."""
        wanted, common = self._share_out(sizes, share)
        rest = {name: number for name, number in closed.items() if name not in wanted}
        return all(closed[name] >= number for name, number in wanted.items()) and self.sum_costs(rest) >= common

    def _share_out(self, sizes: Mapping[str, int], share: float) -> tuple[dict[str, int], int]:
        """Give how many gates close in layers that have a threshold of their own, and what the others lose together."""
        wanted = {name: count_closed(sizes[name], own * share / self.target.share) for name, own in self.own.items()}
        free = {name: size for name, size in sizes.items() if name not in wanted}
        most = self.sum_costs(free)
        left = min(most, max(0, count_closed(self.count_total(sizes), share) - self.sum_costs(wanted)))
        if self.target.scope == "layer":
            return wanted | {name: math.ceil(size * left / max(most, 1)) for name, size in free.items()}, 0
        return wanted, left

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

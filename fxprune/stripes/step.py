"""What was done to the stripes of a model: by layer what lives, what was chosen, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tabulate import tabulate

from fxprune.model import Rewrite
from fxprune.stripes.lowering import Lowering

_HEADERS = ("layer", "kernel", "live", "filters that keep a position", "computed as", "predicted", "measured ms")


@dataclass(frozen=True)
class LoweredLayer:
    """A convolution with dead stripes, and what became of it."""

    filters: int
    kernel: tuple[int, int]
    living: tuple[tuple[int, ...], ...]  # by position of the kernel, how many filters keep it
    lowering: Lowering
    predicted: float  # of the time as it was, by the cost model
    measured: tuple[float, float] | None  # milliseconds as it was and as it is, in turns; None if not measured

    @property
    def live(self) -> float:
        """The share of stripes that live."""
        return sum(map(sum, self.living)) / (self.filters * self.kernel[0] * self.kernel[1])


@dataclass(frozen=True)
class Race:
    """A lowered network beside the one that it was made from, on one runtime: times of the first over the second."""

    runtime: str
    threads: int
    batch_size: int
    ratio: float
    low: float  # of the 95% interval
    high: float

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return (
            f"the whole network takes {self.ratio:.2f} ({self.low:.2f} to {self.high:.2f}) of the time, on "
            f"{self.runtime}, {threads}, batch {self.batch_size}"
        )


@dataclass(frozen=True)
class StripeStep(Rewrite):
    """What `lower_stripes` did: each layer with dead stripes by its weight's name; `print` it for a table."""

    layers: Mapping[str, LoweredLayer]
    race: Race | None  # None where nothing was measured, or everything stays as it is

    def __str__(self) -> str:
        lines = [show_layers(self.layers)] if self.layers else ["no convolution that can be lowered has dead stripes"]
        return "\n".join([*lines, *([str(self.race)] if self.race else [])])


def show_layers(layers: Mapping[str, LoweredLayer]) -> str:
    """Make a table of layers, with a picture of each kernel."""
    rows = [
        (
            name.removesuffix(".weight"),
            f"{layer.filters} of {layer.kernel[0]} x {layer.kernel[1]}",
            f"{layer.live:.0%}",
            tabulate(layer.living, tablefmt="plain"),
            "\n".join(map(str, layer.lowering.parts)) or "as it is",
            f"{layer.predicted:.2f}",
            "{:.3f} to {:.3f}".format(*layer.measured) if layer.measured else "",
        )
        for name, layer in layers.items()
    ]
    return tabulate(rows, _HEADERS, tablefmt="simple", disable_numparse=True, colalign=("left",) * 7)

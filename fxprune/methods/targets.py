"""How much is to be pruned, and which layers share it how?

A target names a cost, what all gates open make of it, and the share of it that goes: units, stripes or weights
(`Sparsity`), the parameters of the compact model (`Params`), its multiply-accumulates (`Macs`), or the time that it
takes on a runtime (`Latency`). While the schedule runs at ramp r,

    remaining(r) = 1 - share * r

and the gates close in the order of their magnitudes until the cost is no more than that.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from fxprune.errors import TargetError
from fxprune.is_number import is_number, is_whole
from fxprune.vector_width import VECTOR

Scope = Literal["global", "layer"]
Cost = Literal["gates", "parameters", "multiply-accumulates", "latency"]


@dataclass(frozen=True)
class Target(ABC):
    """What all targets take beside their share.

    Args:
        scope: "global" compares the magnitudes of all layers; with "layer" all lose the same share of their gates.
        align: keep the widths of pruned layers on multiples of this (channel granularity).
        least: units that each group of tied channels keeps (channel granularity). With 0 whole layers may close;
            conversion then keeps one unit of those that cannot go, which costs a little more than was asked.
        overrides: layers with a share of their own, by the patterns of `exclude`: the share of the layer's gates
            that is masked (`Sparsity`) or remains (the other targets). It goes by the layers that make the channels; of
            several patterns the last counts. The target as a whole stays: the other layers make up for it.
    """

    scope: Scope = field(default="global", kw_only=True)
    align: int = field(default=1, kw_only=True)
    least: int = field(default=1, kw_only=True)
    overrides: Mapping[Any, float] = field(default_factory=dict, kw_only=True, hash=False)
    cost: ClassVar[Cost]

    def __post_init__(self) -> None:
        if self.scope not in ("global", "layer"):
            raise TargetError(f"scope={self.scope!r}: give 'global' or 'layer'")
        if not is_whole(self.align, 1):
            raise TargetError(f"align={self.align!r}: give the multiple for widths, such as 8 or 16; 1 is any width")
        if not is_whole(self.least, 0):
            raise TargetError(f"least={self.least!r}: give the number of units that stay of each group, 0 or more")
        if not isinstance(self.overrides, Mapping):
            raise TargetError(f"overrides={self.overrides!r}: give shares by pattern, such as {{'layer4.*': 0.8}}")
        for pattern, value in self.overrides.items():
            if not is_number(value) or not 0 <= value <= 1:
                raise TargetError(f"overrides={{{pattern!r}: {value!r}}}: a share lies between 0 and 1")

    @property
    @abstractmethod
    def share(self) -> float:
        """The share of the cost that is gone at the end."""

    def override(self, value: float) -> float:
        """Give the share of a layer's gates that close at the end, as an override says it."""
        return 1 - value


@dataclass(frozen=True)
class Sparsity(Target):
    """The share to be masked: of the weights, the stripes or the units, by granularity. Strictly between 0 and 1."""

    masked: float
    cost: ClassVar[Cost] = "gates"

    def __post_init__(self) -> None:
        if not is_number(self.masked) or not 0 < self.masked < 1:
            raise TargetError(
                f"Sparsity({self.masked!r}) is the share to be masked and lies between 0 and 1, both excluded; "
                "half of the channels is Sparsity(0.5)"
            )
        super().__post_init__()

    def __str__(self) -> str:
        return f"{self.masked:.4g} masked"

    @property
    def share(self) -> float:
        return self.masked

    def override(self, value: float) -> float:
        return value


@dataclass(frozen=True)
class Remaining(Target):
    """A target that says which share of a cost stays."""

    remaining: float

    def __post_init__(self) -> None:
        if not is_number(self.remaining) or not 0 < self.remaining < 1:
            raise TargetError(
                f"{type(self).__name__}(remaining={self.remaining!r}) is the share of the {self.cost} that stays and "
                f"lies between 0 and 1, both excluded; half of them is {type(self).__name__}(remaining=0.5)"
            )
        super().__post_init__()

    def __str__(self) -> str:
        return f"{self.remaining:.4g} of the {self.cost} remaining"

    @property
    def share(self) -> float:
        return 1 - self.remaining


@dataclass(frozen=True)
class Params(Remaining):
    """The share of all the model's parameters that stays: those of the compact model; or the weights that are not 0."""

    cost: ClassVar[Cost] = "parameters"


@dataclass(frozen=True)
class Macs(Remaining):
    """The share of the multiply-accumulates that stays: of the compact model, or those with weights that are not 0.

    They are counted at the example inputs of `prepare`.
    """

    cost: ClassVar[Cost] = "multiply-accumulates"


@dataclass(frozen=True)
class Latency(Remaining):
    """The share of the time of a run that stays, on a runtime of this machine (channel granularity).

    `prepare` times layers of several widths (half a minute or so, remembered in the user's cache folder) and solves
    the thresholds for what they add up to. Then it prunes, converts, exports and times copies of the model, the dense
    one beside them, until what is predicted is what is measured; `fxprune.prune` does so, too. The result stands in
    `prepared.latency`. Where training moves widths from layer to layer it may be off a little:
    `fxprune.prune(prepared)` after the training mends that.

    Args:
        runtime: its name, as `export.benchmark` takes it.
        threads: of one operator.
        batch_size: of a run.
        align: 16, unless given: kernels compute so many channels at a time, and narrower widths take as long.
    """

    runtime: str = field(default="ort-cpu", kw_only=True)
    threads: int = field(default=1, kw_only=True)
    batch_size: int = field(default=1, kw_only=True)
    align: int = field(default=VECTOR, kw_only=True)
    cost: ClassVar[Cost] = "latency"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.runtime, str):
            raise TargetError(f"runtime={self.runtime!r}: give the name of a runtime, such as 'ort-cpu'")
        for name, value in (("threads", self.threads), ("batch_size", self.batch_size)):
            if not is_whole(value, 1):
                raise TargetError(f"{name}={value!r}: give a whole number from 1 on")

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{super().__str__()} ({self.runtime}, {threads}, batch {self.batch_size})"

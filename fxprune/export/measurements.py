"""What did a benchmark find, as a table and as JSON?"""

import dataclasses
import json
from dataclasses import dataclass

from tabulate import tabulate

from fxprune.export.environment import Environment

MOST_LAYERS = 12
"""Layers in the text; JSON has all of them."""

_HEADERS = (
    "runtime", "threads", "batch", "model", "MB", "peak MB", "median ms", "quartiles", "p95", "samples/s", "speed-up",
    "95% interval", "efficiency",
)  # fmt: skip


@dataclass(frozen=True)
class Timing:
    """One network on one runtime, with so many threads, at one batch size; times are milliseconds a run.

    `speedup` is the median over the loads of the first network's median time divided by this
    one's, with its bootstrap interval of 95%; 1 for the first network itself.
    """

    runtime: str  # as it was asked for, such as "ort-cpu"; `Benchmark.runtimes` has its version
    threads: int  # as the runtime says that it uses
    cores: tuple[int, ...]  # that the process was held to; () if it was not
    batch_size: int
    name: str  # of the network
    size: int  # bytes of its ONNX file, and of what lies beside it
    macs: int | None  # multiply-accumulates a sample; None where the graph's shapes do not tell
    peak_memory: int | None  # bytes more than without the network, at the peak of a run; None where not measured
    loads: int  # how often it was loaded anew
    rounds: int
    runs: int
    median: float
    lower_quartile: float
    upper_quartile: float
    p95: float
    throughput: float  # samples a second, at the median
    speedup: float
    speedup_low: float
    speedup_high: float
    efficiency: float | None  # speedup / (the first network's multiply-accumulates / this one's); None without them


@dataclass(frozen=True)
class NotMeasured:
    """A runtime that was asked for and not measured, because it is not installed, has no device, or refuses a file."""

    runtime: str
    reason: str

    def __str__(self) -> str:
        return f"{self.runtime} was not measured: {self.reason}"


@dataclass(frozen=True)
class LayerTime:
    """What one layer takes in the first network and in another, in milliseconds a run, by the runtime's profiler.

    Layers of both are the same if their weights have the same name. What is no layer (element-wise
    operations, changes of layout, pooling) is summed by the kind of operation: its `macs` are 0.
    """

    runtime: str
    threads: int
    batch_size: int
    name: str  # of the other network
    layer: str  # the weight's name without ".weight", or the kind of operation in brackets
    op: str
    first_macs: int  # a sample
    macs: int
    first_milliseconds: float
    milliseconds: float

    @property
    def efficiency(self) -> float | None:
        """The layer's speed-up over its reduction of multiply-accumulates; None without any, or if it took no time."""
        if not self.first_macs or not self.milliseconds:
            return None
        return self.first_milliseconds / self.milliseconds * self.macs / self.first_macs

    @property
    def lost(self) -> float:
        """Milliseconds beyond the share that the multiply-accumulates have left; all where there are none."""
        share = self.macs / self.first_macs if self.first_macs else 0.0
        return self.milliseconds - self.first_milliseconds * share


@dataclass(frozen=True)
class OddWidth:
    """A width that costs more than its share, and a narrower one beside it that was timed with it."""

    runtime: str
    threads: int
    batch_size: int
    name: str  # of the network
    layer: str
    width: int  # output channels
    narrower: int
    speedup: float  # of the layer alone, at the narrower width

    def __str__(self) -> str:
        return f"{self.layer}: width {self.width}: {self.narrower} would be {self.speedup:.1f} times faster"


@dataclass(frozen=True)
class Benchmark:
    """Timings of several networks, measured in turns; the first network is what the others are compared with."""

    environment: Environment
    runtimes: dict[str, str]  # by the names asked for: name, version, device
    timings: tuple[Timing, ...]
    not_measured: tuple[NotMeasured, ...] = ()
    layers: tuple[LayerTime, ...] = ()  # with layers=True; by time lost, the most first
    odd_widths: tuple[OddWidth, ...] = ()  # with layers=True

    def __str__(self) -> str:
        """Return tables, one line a runtime, number of threads, batch size and network, and what was not measured."""
        rows = [_format(timing) for timing in self.timings]
        table = tabulate(rows, headers=_HEADERS, disable_numparse=True, colalign=_align(_HEADERS, 0, 3))
        names = [f"{name}: {described}" for name, described in self.runtimes.items()]
        lines = [*names, str(self.environment), table, *map(str, self.not_measured)]
        return "\n".join([*lines, *_format_layers(self.layers), *map(str, self.odd_widths)])

    def to_json(self) -> str:
        """Return all fields as JSON, for `from_json`."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Benchmark":
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        environment = fields["environment"]
        return cls(
            environment=Environment(
                **{**environment, "clock": tuple(environment["clock"]), "load": tuple(environment["load"])}
            ),
            runtimes=fields["runtimes"],
            timings=tuple(Timing(**{**timing, "cores": tuple(timing["cores"])}) for timing in fields["timings"]),
            not_measured=tuple(NotMeasured(**each) for each in fields["not_measured"]),
            layers=tuple(LayerTime(**layer) for layer in fields["layers"]),
            odd_widths=tuple(OddWidth(**width) for width in fields["odd_widths"]),
        )


def _format(timing: Timing) -> tuple[object, ...]:
    return (
        timing.runtime,
        timing.threads,
        timing.batch_size,
        timing.name,
        f"{timing.size / 1e6:.2f}",
        "-" if timing.peak_memory is None else f"{timing.peak_memory / 1e6:.1f}",
        f"{timing.median:.3f}",
        f"{timing.lower_quartile:.3f} to {timing.upper_quartile:.3f}",
        f"{timing.p95:.3f}",
        f"{timing.throughput:.1f}",
        f"{timing.speedup:.2f}x",
        f"{timing.speedup_low:.2f} to {timing.speedup_high:.2f}",
        "-" if timing.efficiency is None else f"{timing.efficiency:.2f}",
    )


def _format_layers(layers: tuple[LayerTime, ...]) -> list[str]:
    if not layers:
        return []
    headers = ("model", "layer", "MACs", "ms", "efficiency", "ms lost")
    rows = [
        (
            layer.name,
            layer.layer,
            f"{layer.first_macs:,} to {layer.macs:,}",
            f"{layer.first_milliseconds:.3f} to {layer.milliseconds:.3f}",
            "-" if layer.efficiency is None else f"{layer.efficiency:.2f}",
            f"{layer.lost:.3f}",
        )
        for layer in layers[:MOST_LAYERS]
    ]
    table = tabulate(rows, headers=headers, disable_numparse=True, colalign=_align(headers, 0, 1))
    return ["", f"where time is lost, the {len(rows)} first of {len(layers)} layers:", table]


def _align(headers: tuple[str, ...], *left: int) -> list[str]:
    return ["left" if index in left else "right" for index in range(len(headers))]

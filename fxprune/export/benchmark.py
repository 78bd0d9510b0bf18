"""How much faster is one network than another, on the runtimes where they will run?"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from fxprune.errors import ExportError, NothingMeasured
from fxprune.export.environment import describe_environment, note_moment
from fxprune.export.interface import ExampleInputs
from fxprune.export.loads import Rounds, compare_loads, time_loads
from fxprune.export.measurements import Benchmark, NotMeasured, Timing
from fxprune.export.onnx import to_onnx
from fxprune.export.onnx_file import describe_inputs, measure_size, read_file
from fxprune.export.onnx_macs import count_macs
from fxprune.export.peak_memory import MemoryMeter
from fxprune.export.pin_cores import hold_to_cores, require_cores
from fxprune.export.profile_networks import Profile, profile_networks
from fxprune.export.random_inputs import draw_inputs
from fxprune.export.runtimes.interface import Array, Runtime, Session, TensorInfo
from fxprune.export.runtimes.ort_cpu import OrtCpu
from fxprune.export.runtimes.registry import find_runtime
from fxprune.export.runtimes.torch_eager import TorchEager
from fxprune.export.turns import Timer

Feed = Mapping[str, Array]


@dataclass(frozen=True)
class Network:
    """What is timed: a file, and the module that it was exported from, if one was given."""

    name: str
    path: Path
    module: nn.Module | None
    example_inputs: ExampleInputs | None
    inputs: tuple[TensorInfo, ...]
    size: int  # bytes
    macs: int | None  # multiply-accumulates a sample


def benchmark(
    networks: Mapping[str, str | os.PathLike[str] | nn.Module],
    *,
    runtimes: Sequence[str | Runtime] = ("ort-cpu",),
    batch_sizes: Sequence[int] = (1, 8),
    threads: int | Sequence[int] = 1,
    seconds: float = 5.0,
    precision: float = 0.02,
    example_inputs: ExampleInputs | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    pin: bool = True,
    layers: bool = False,
) -> Benchmark:
    """Time networks by name beside each other; the first one is what the others are compared with.

    A network is an ONNX file or a module. Modules need `example_inputs` and are exported to
    temporary files; PyTorch's runtimes run the module itself. Inputs are random, and the same
    for all; `input_shapes` gives shapes of one sample (without the batch) where a file leaves
    more than its first dimension open.

    Runtimes are named as in `runtimes.registry` ("ort-cpu", "openvino", "torch:channels-last").
    One that is not installed, has no device or refuses a file is listed in `not_measured` with
    the reason; nothing takes its place. After a warm-up of their own the networks take turns,
    in an order that alternates, so that a drift of the machine hits them alike; and they are
    loaded anew before every pair of rounds, because two loads of one file differ in speed. That
    goes on until every interval of a speed-up is narrower than `precision` times the speed-up,
    and for `seconds` a network at the most (for four loads at the least). With `pin` the process
    is held to as many cores as there are threads meanwhile.

    With `layers`, ONNX Runtime's profiler says for "ort-cpu" what each layer takes, with the first
    number of threads at the first batch size, and layers of odd width are timed alone beside a
    narrower self.

    Raises ExportError if a file is missing or no ONNX file, the networks take different inputs,
    a batch size does not fit, or no runtime measured anything.
    """
    counts = [threads] if isinstance(threads, int) else list(threads)
    if not isinstance(networks, Mapping):
        raise ExportError(
            "networks have names, as in benchmark({'dense': 'dense.onnx', 'compact': compact}); this is a "
            f"{type(networks).__name__}."
        )
    _check_settings(networks, batch_sizes, counts, seconds, precision)
    found = [(r, find_runtime(r)) if isinstance(r, str) else (r.name, r) for r in runtimes]
    before = note_moment()
    timings: list[Timing] = []
    not_measured: list[NotMeasured] = []
    names: dict[str, str] = {}
    profile = Profile()
    with _read_networks(networks, example_inputs, input_shapes or {}, batch_sizes) as (read, feeds):
        for label, runtime in found:
            try:
                names[label] = runtime.name
                comparison = _Comparison(label, runtime, read, feeds, seconds, precision, pin)
                timings += comparison.measure(counts)
                if layers and isinstance(runtime, OrtCpu):
                    size = batch_sizes[0]
                    profile = profile_networks({n.name: n.path for n in read}, label, runtime, feeds[size], counts[0])
            except ExportError as error:
                names.pop(label, None)
                not_measured.append(NotMeasured(label, str(error)))
    if not timings:
        raise NothingMeasured("\n".join(each.reason if len(not_measured) == 1 else str(each) for each in not_measured))
    environment = describe_environment(before, note_moment())
    return Benchmark(environment, names, tuple(timings), tuple(not_measured), *profile)


def _check_settings(
    networks: Mapping[str, object],
    batch_sizes: Sequence[int],
    threads: Sequence[int],
    seconds: float,
    precision: float,
) -> None:
    if not networks:
        raise ExportError("there is no file to time; pass {'dense': 'dense.onnx', 'compact': 'compact.onnx'}.")
    if not batch_sizes or min(batch_sizes) < 1:
        raise ExportError(f"batch_sizes={tuple(batch_sizes)}: at least one size, each 1 or more.")
    if not threads or min(threads) < 1 or precision <= 0 or seconds <= 0:
        raise ExportError(
            f"threads={tuple(threads)}, precision={precision}, seconds={seconds}: all of them have to be positive."
        )
    require_cores(threads)


@contextmanager
def _read_networks(
    networks: Mapping[str, str | os.PathLike[str] | nn.Module],
    example_inputs: ExampleInputs | None,
    input_shapes: Mapping[str, Sequence[int]],
    batch_sizes: Sequence[int],
) -> Iterator[tuple[list[Network], dict[int, Feed]]]:
    """Export what is no file yet, read and check the files, and draw their inputs by batch size."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for index, (name, network) in enumerate(networks.items()):
            if isinstance(network, nn.Module):
                if example_inputs is None:
                    raise ExportError(f"{name} is a module; pass example_inputs=..., with which it is called.")
                paths[name] = to_onnx(network, example_inputs, Path(folder, f"{index}.onnx"), verify=False).path
            else:
                paths[name] = Path(network)
        graphs = {name: read_file(path, weights=False) for name, path in paths.items()}
        inputs = {name: describe_inputs(model.graph) for name, model in graphs.items()}
        _require_same_inputs(inputs)
        first = next(iter(inputs.values()))
        feeds: dict[int, Feed] = {size: draw_inputs(first, size, input_shapes) for size in batch_sizes}
        shapes = {key: array.shape for key, array in feeds[batch_sizes[0]].items()}
        read = []
        for name, network in networks.items():
            try:
                macs = sum(work.macs for work in count_macs(graphs[name], shapes)) // batch_sizes[0]
            except ExportError:
                macs = None
            module = network if isinstance(network, nn.Module) else None
            size = measure_size(paths[name], graphs[name])
            read.append(Network(name, paths[name], module, example_inputs, inputs[name], size, macs))
        yield read, feeds


def _require_same_inputs(inputs: Mapping[str, Sequence[TensorInfo]]) -> None:
    (first, reference), *others = inputs.items()
    for name, infos in others:
        theirs, ours = [info.name for info in infos], [info.name for info in reference]
        if theirs != ours:
            raise ExportError(
                f"{name} takes the inputs {theirs}, {first} takes {ours}; compare files of one interface."
            )


@dataclass(frozen=True)
class _Comparison:
    """Several networks on one runtime."""

    label: str
    runtime: Runtime
    networks: Sequence[Network]
    feeds: Mapping[int, Feed]
    seconds: float
    precision: float
    pin: bool

    def measure(self, thread_counts: Sequence[int]) -> list[Timing]:
        """Time all networks with each number of threads and each batch size."""
        timings = []
        peaks: dict[tuple[str, int], int | None] = {}
        for count in thread_counts:
            with hold_to_cores(count) if self.pin else nullcontext(()) as cores:
                found = {size: self._time(count, feed) for size, feed in self.feeds.items()}
                peaks = peaks or self._measure_memory(count)
            for size, (times, reported) in found.items():
                for network in self.networks:
                    timings.append(self._summarise(network, size, times, reported, cores, peaks))
        return timings

    def _time(self, threads: int, feed: Feed) -> tuple[dict[str, list[Rounds]], int]:
        """Return each network's times by its loads, and the number of threads that the runtime reports."""
        reported = []

        def load(network: Network) -> Timer:
            session = self._load(network, threads)
            reported.append(session.threads)
            return session.bind(feed)

        loaders = {network.name: partial(load, network) for network in self.networks}
        return time_loads(loaders, self.seconds, self.precision), reported[0]

    def _load(self, network: Network, threads: int) -> Session:
        if network.module is not None and network.example_inputs is not None and isinstance(self.runtime, TorchEager):
            return self.runtime.load_module(network.module, network.example_inputs, threads)
        return self.runtime.load(network.path, threads)

    def _measure_memory(self, threads: int) -> dict[tuple[str, int], int | None]:
        peaks = {}
        sizes = sorted(self.feeds)  # what a runtime keeps from a small batch is no more than a larger one needs
        for network in self.networks:
            meter = MemoryMeter()
            measured = meter.measure(self._load(network, threads), [self.feeds[size] for size in sizes])
            peaks.update({(network.name, size): peak for size, peak in zip(sizes, measured, strict=True)})
        return peaks

    def _summarise(
        self,
        network: Network,
        batch_size: int,
        times: Mapping[str, list[Rounds]],
        threads: int,
        cores: tuple[int, ...],
        peaks: Mapping[tuple[str, int], int | None],
    ) -> Timing:
        own, first = times[network.name], self.networks[0]
        rounds = [runs for load in own for runs in load]
        runs = np.concatenate(rounds)
        lower, median, upper, p95 = (float(value) for value in np.percentile(runs, [25, 50, 75, 95]))
        speedup, low, high = compare_loads(times[first.name], own)
        return Timing(
            runtime=self.label,
            threads=threads,
            cores=cores,
            batch_size=batch_size,
            name=network.name,
            size=network.size,
            macs=network.macs,
            peak_memory=peaks[network.name, batch_size],
            loads=len(own),
            rounds=len(rounds),
            runs=len(runs),
            median=median,
            lower_quartile=lower,
            upper_quartile=upper,
            p95=p95,
            throughput=batch_size / median * 1e3,
            speedup=speedup,
            speedup_low=low,
            speedup_high=high,
            efficiency=speedup * network.macs / first.macs if network.macs is not None and first.macs else None,
        )

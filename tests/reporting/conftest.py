"""A small comparison, whose times are invented and whose errors are measured."""

import pytest
import torch
from torch import nn

import fxprune
from fxprune.export.environment import describe_environment, note_moment
from fxprune.export.measurements import Benchmark, NotMeasured, Timing
from fxprune.reporting.comparison import Comparison, TrainingPoint


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.up(self.stem(x)).relu().mean((2, 3)))


def time(name: str, batch: int, median: float, speedup: float, efficiency: float) -> Timing:
    return Timing(
        runtime="ort-cpu", threads=1, cores=(), batch_size=batch, name=name, size=4000, macs=None, peak_memory=None,
        loads=8, rounds=16, runs=150, median=median, lower_quartile=median, upper_quartile=median, p95=median,
        throughput=batch / median * 1e3, speedup=speedup, speedup_low=speedup - 0.01, speedup_high=speedup + 0.01,
        efficiency=efficiency,
    )  # fmt: skip


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("report")
    model, x = Net().eval(), torch.randn(2, 3, 8, 8)
    compact = fxprune.convert(fxprune.prune(model, x, target=fxprune.Sparsity(0.5)))
    files = {"compact": fxprune.export.to_onnx(compact, x, folder / "compact.onnx")}
    moment = note_moment()
    timings = tuple(
        time(name, batch, median * batch, speedup, 0.875)
        for batch in (1, 8)
        for name, median, speedup in (("dense", 2.25, 1.0), ("compact", 1.0, 2.25))
    )
    benchmark = Benchmark(
        describe_environment(moment, moment),
        {"ort-cpu": "ONNX Runtime"},
        timings,
        (NotMeasured("openvino", "not <installed>"),),
    )
    return fxprune.export.report(
        {"dense": model, "compact": compact},
        x,
        files=files,
        benchmark=benchmark,
        accuracy={"dense": 0.9125, "compact": 0.9025},
        training=[TrainingPoint(1, 0.25, 0.5), TrainingPoint(2, 0.5)],
        commands=["fxprune prune 'mine:net' --target sparsity=0.5 > log & echo"],
    )


@pytest.fixture
def headline() -> tuple[str, ...]:
    """What every form says of the comparison."""
    return ("2.25x, 2.24 to 2.26", "18.000 ms", "91.25%", "90.25%", "Net, pruned")

"""Does a target in latency land, where what a runtime takes is known exactly? (Never: how fast is this machine?)"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import meet_latency
from fxprune.errors import ExportError, RuntimeUnavailable, TargetError
from fxprune.export.runtimes import registry
from fxprune.methods.unit_costs import UnitCosts
from fxprune.passes import measure_latency
from tests.costs import costs_of, open_units
from tests.exactness import randomise
from tests.formula_runtime import FormulaRuntime

IMAGES = (2, 3, 8, 8)


class Mobile(nn.Module):
    """A stem, an inverted residual with a depthwise layer, and a head."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width))
        self.block = nn.Sequential(
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.BatchNorm2d(4 * width),
            nn.ReLU6(),
            nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width, bias=False),
            nn.BatchNorm2d(4 * width),
            nn.ReLU6(),
            nn.Conv2d(4 * width, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.block(x)
        return self.head(x.mean((2, 3)))


def make_plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 96, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(96, 64, 3, padding=1, groups=4), nn.ReLU(),
        nn.Flatten(), nn.Linear(1024, 80), nn.ReLU(), nn.Linear(80, 10),
    )  # fmt: skip


def build(model: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    randomise(model, seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # units of one layer are to differ
            parameter.data *= torch.rand([len(parameter), *[1] * (parameter.dim() - 1)]) + 0.5
    return model


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FormulaRuntime:
    runtime = FormulaRuntime()
    monkeypatch.setitem(registry.RUNTIMES, "formula", lambda: runtime)
    return runtime


def take(runtime: FormulaRuntime, model: nn.Module, folder: Path, batch: int = 1) -> float:
    """What the runtime takes for a model, in milliseconds."""
    path = fxprune.export.to_onnx(model, torch.randn(IMAGES), folder / "model.onnx", verify=False).path
    session = runtime.load(path, 1)
    return session.bind({session.inputs[0].name: torch.randn(batch, *IMAGES[1:]).numpy()})() * 1e3


def price_of_a_block(costs: UnitCosts, left: Tensor) -> int:
    wider = [torch.minimum(left + row, costs.size) for row in torch.diag(costs.quantum)]
    return max(int(costs.cost(each) - costs.cost(left)) for each in wider)


def test_where_layers_add_up_the_first_network_takes_what_was_predicted(runtime: FormulaRuntime, folder: Path) -> None:
    remaining, batch_size = 0.5, 4
    model = build(make_plain())
    target = fxprune.Latency(remaining=remaining, runtime="formula", batch_size=batch_size)
    pruned = fxprune.prune(model, torch.randn(IMAGES), target=target)
    first = pruned.latency[0]
    assert first.predicted == pytest.approx(first.measured, rel=1e-6)
    dense = take(runtime, model, folder, batch_size)
    reached = take(runtime, fxprune.convert(pruned), folder, batch_size) / dense
    assert reached == pytest.approx(pruned.latency[-1].measured, rel=1e-6)
    assert pruned.latency[-1].dense == pytest.approx(dense)
    costs, left = costs_of(pruned), open_units(pruned)
    assert 0 <= remaining - reached <= max(0.02 * remaining, price_of_a_block(costs, left) / int(costs.total))
    assert ((left % costs.quantum == 0) | (left == costs.size)).all()


def test_what_layers_do_not_explain_is_measured_and_corrected(
    runtime: FormulaRuntime, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, target = torch.randn(IMAGES), fxprune.Latency(remaining=0.6, runtime="formula")
    model = build(Mobile())
    runtime.whole = 2e5
    prepared = fxprune.prepare(model, inputs, target=target)
    first, last = prepared.latency[0], prepared.latency[-1]
    assert first.predicted < 0.98 * first.measured
    assert last.miss <= 0.05
    assert all(trial.miss >= last.miss for trial in prepared.latency)
    assert (prepared.fxprune.gates == 1).all()
    costs = costs_of(prepared)
    scheduler = fxprune.Scheduler(prepared, total_steps=4)
    for _ in range(4):
        scheduler.step()
    assert int(costs.cost(open_units(prepared))) / int(costs.total) == pytest.approx(last.measured)
    assert take(runtime, fxprune.convert(prepared), folder) / last.dense == pytest.approx(last.measured)

    monkeypatch.setattr("fxprune.meet_latency.meet_latency", lambda *arguments: ())  # another machine
    other = fxprune.prepare(model, inputs, target=target)
    assert int(costs_of(other).total) != int(costs.total)
    other.load_state_dict(prepared.state_dict())
    assert torch.equal(other.fxprune.gates, prepared.fxprune.gates)
    assert int(costs_of(other).cost(open_units(other))) == int(costs.cost(open_units(prepared)))

    fxprune.prune(prepared)  # measures again
    assert prepared.latency[-1].measured == pytest.approx(0.6, rel=0.05)
    assert int(costs.cost(open_units(prepared))) / int(costs.total) == pytest.approx(prepared.latency[-1].measured)


def test_a_target_out_of_reach_is_refused_with_what_keeps_the_time(runtime: FormulaRuntime) -> None:
    model, inputs = build(Mobile()), torch.randn(IMAGES)
    target = fxprune.Latency(remaining=0.3, runtime="formula")
    runtime.whole = 5e5
    message = r"\(formula, 1 thread, batch 1\) cannot be reached: .* of the latency remain \(at least "
    with pytest.raises(
        TargetError, match=message + r".* in multiples of 16\), most of it in what no width changes \(\d+%\), stem.0 "
    ):
        fxprune.prepare(model, inputs, target=target)


class Attention(nn.Module):
    """One layer of attention, and a transposed convolution: products that no single layer is timed for."""

    def __init__(self) -> None:
        super().__init__()
        self.grow = nn.ConvTranspose2d(3, 32, 2, stride=2)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grow(x).flatten(2).transpose(1, 2)
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.head(torch.sigmoid(x).mean(1))


def test_all_parts_add_up_to_the_whole(runtime: FormulaRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = 10**15
    monkeypatch.setattr(measure_latency, "time_whole", lambda model, target: whole)
    monkeypatch.setattr("fxprune.meet_latency.meet_latency", lambda *arguments: ())
    target = fxprune.Latency(remaining=0.5, runtime="formula", align=8)
    costs = costs_of(fxprune.prepare(build(Attention()), torch.randn(IMAGES), target=target))
    assert int(costs.total) == pytest.approx(whole, rel=1e-3)
    shares = costs.list_shares(costs.size)
    assert sum(shares.values()) == pytest.approx(1)
    assert {"grow", "attention.out_proj", "head", "sigmoid"} <= set(shares)
    positions, rate = 2 * 8 * 2 * 8, 1e-6 * 1e12  # a microsecond for each multiply-accumulate of timed layers
    assert shares["attention.out_proj"] * whole == pytest.approx(positions * 32 * 32 * rate, rel=1e-3)
    grown = 8 * 8 * 3 * 32 * 4
    assert shares["grow"] * whole == pytest.approx(grown * rate, rel=0.05)
    half = costs.list_shares(costs.size // 2)
    assert half["sigmoid"] * int(costs.cost(costs.size // 2)) == pytest.approx(shares["sigmoid"] * whole / 2, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"runtime": "ort-gpu"}, ExportError, "runtime 'ort-gpu' is not known"),
        ({"runtime": "torch:cuda"}, RuntimeUnavailable, "sees no CUDA device"),
        ({"threads": 0}, TargetError, "threads=0: give a whole number from 1 on"),
        ({"batch_size": 1.5}, TargetError, "batch_size=1.5"),
        ({"remaining": 1}, TargetError, "share of the latency that stays"),
    ],
)
def test_what_cannot_be_timed_is_refused_at_once(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:  # fmt: skip
    with pytest.raises(error, match=message):
        fxprune.prepare(make_plain(), torch.randn(IMAGES), target=fxprune.Latency(**{"remaining": 0.5, **arguments}))


@pytest.mark.parametrize("granularity", ["weight", "stripe"])
def test_single_weights_and_stripes_are_refused(granularity: str) -> None:
    with pytest.raises(TargetError, match=r"0.5 of the latency remaining .* give granularity='channel'"):
        fxprune.prepare(make_plain(), torch.randn(IMAGES), target=fxprune.Latency(0.5), granularity=granularity)


def test_a_real_runtime_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MOST_TRIALS", 1), ("SECONDS", 0.1)):
        monkeypatch.setattr(meet_latency, name, value)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(1024, 4))
    pruned = fxprune.prune(model, torch.randn(IMAGES), target=fxprune.Latency(remaining=0.8))
    (trial,) = pruned.latency
    assert 0 < trial.predicted < 1
    assert 0 < trial.low <= trial.measured <= trial.high
    assert trial.dense > 0
    assert "80.0% were asked for" in str(trial)

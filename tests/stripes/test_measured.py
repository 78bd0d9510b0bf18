"""Is what is measured what decides, and is nothing slower than it was? (Never: how long does it take?)"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
import fxprune.stripes.lower as module
from fxprune.errors import TraceError
from fxprune.layer_times.graph import Convolution, LayerGraph
from fxprune.stripes.lowering import Kind, Layer, Lowering, list_graphs
from fxprune.stripes.module import StripeConv2d
from fxprune.stripes.step import Race
from tests.stripes.test_lower import EAGER, Block, kill_stripes, randomise

X = torch.randn(2, 3, 8, 8)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def block() -> nn.Module:
    model = randomise(Block())
    kill_stripes(model, 0.5, patterns=3)
    return model


def pretend(monkeypatch: pytest.MonkeyPatch, ratios: list[float], favourite: Kind = "groups") -> list[set[str]]:
    """Let every layer be fastest when computed in one way, and the races end like this; return who took part."""
    raced: list[set[str]] = []

    def time_lowerings(layer: Layer, lowerings: list[Lowering], *_: object) -> list[float]:
        size = float(layer.rows * layer.columns)
        return [{"dense": 1.0, favourite: 0.5}.get(lowering.kind, 2.0) * size for lowering in lowerings]

    def write_network(model: nn.Module, _: object, path: Path) -> None:
        names = {name for name, part in model.named_modules() if isinstance(part, StripeConv2d)}
        assert bool(names) == (path.stem == "lowered")
        if names:
            raced.append(names)

    def race(dense: Path, lowered: Path, batch_size: int, *_: object) -> Race:
        ratio = ratios[len(raced) - 1]
        return Race("pretended", 1, batch_size, ratio, ratio - 0.1, ratio + 0.1)

    monkeypatch.setattr(module, "write_network", write_network)
    monkeypatch.setattr(module, "time_lowerings", time_lowerings)
    monkeypatch.setattr(module, "race", race)
    return raced


@pytest.mark.parametrize("favourite", ["groups", "mixtures", "dense"])
def test_the_fastest_is_chosen(monkeypatch: pytest.MonkeyPatch, block: nn.Module, favourite: Kind) -> None:
    pretend(monkeypatch, [0.5], favourite)
    lowered = fxprune.lower_stripes(block, X, runtime="ort-cpu", cost=EAGER)
    layer = lowered.lowered.layers["first.weight"]
    assert layer.lowering.kind == favourite
    assert layer.measured == ((192.0, 192.0) if favourite == "dense" else (384.0, 192.0))
    assert (lowered.lowered.race is None) == (favourite == "dense")
    torch.testing.assert_close(lowered(X), block(X), rtol=1e-4, atol=1e-4)


def test_while_the_network_is_slower_the_layers_that_gain_least_go_back(
    monkeypatch: pytest.MonkeyPatch, block: nn.Module
) -> None:
    raced = pretend(monkeypatch, [1.3, 1.01, 0.9])
    lowered = fxprune.lower_stripes(block, X, runtime="ort-cpu", cost=EAGER)
    assert [len(names) for names in raced] == [4, 2, 1]
    assert raced[0] > raced[1] > raced[2]
    assert raced[2] < {"first", "second"}  # the large ones
    assert lowered.lowered.race.ratio == 0.9
    assert "0.90 (0.80 to 1.00)" in str(lowered.lowered)
    torch.testing.assert_close(lowered(X), block(X), rtol=1e-4, atol=1e-4)


def test_what_is_always_slower_stays_as_it_was(monkeypatch: pytest.MonkeyPatch, block: nn.Module) -> None:
    pretend(monkeypatch, [1.01] * 4)
    lowered = fxprune.lower_stripes(block, X, runtime="ort-cpu", cost=EAGER)
    assert not any(layer.lowering.parts for layer in lowered.lowered.layers.values())
    assert lowered.lowered.race is None
    assert isinstance(lowered.first, nn.Conv2d)


def test_layers_are_timed_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs that are timed have the smaller convolutions that come into the network."""
    model = randomise(Block())
    kill_stripes(model, 0.6, patterns=3)
    graphs: list[LayerGraph] = []

    def time_lowerings(layer: Layer, lowerings: list[Lowering], is_free: bool, *_: object) -> list[float]:
        graphs.extend(list_graphs(layer, lowerings[1], is_free))
        return [1.0, 0.5, *[2.0] * (len(lowerings) - 2)]

    pretend(monkeypatch, [0.5])
    monkeypatch.setattr(module, "time_lowerings", time_lowerings)
    lowered = fxprune.lower_stripes(model, X, runtime="ort-cpu", cost=EAGER)
    written = []
    for module_ in (m for m in lowered.modules() if isinstance(m, StripeConv2d)):
        parts = [
            [Convolution(c.out_channels, c.kernel_size, r.sides, c.stride, c.dilation, c.groups) for c, r in pairs]
            for pairs in map(zip, module_.convolutions(), module_.readings)
        ]
        written.append((tuple(map(tuple, parts)), module_.order is not None))
    assert sorted(written, key=repr) == sorted(((graph.parts, graph.reordered) for graph in graphs), key=repr)
    assert {graph.shape for graph in graphs} == {(2, 3, 8, 8), (2, 16, 8, 8), (2, 24, 8, 8)}


def test_the_runtime_at_hand_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.stripes.race.SECONDS", 0.02)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3)).eval()
    kill_stripes(model, 0.7, patterns=2)
    lowered = fxprune.lower_stripes(model, X, runtime="ort-cpu", cost=EAGER)
    layers = lowered.lowered.layers.values()
    assert all(layer.measured is not None and min(layer.measured) >= 0 for layer in layers)
    torch.testing.assert_close(lowered(X), model(X), rtol=1e-4, atol=1e-4)


def test_a_converted_model_is_timed_at_the_size_of_the_inputs_that_are_given(
    monkeypatch: pytest.MonkeyPatch, block: nn.Module
) -> None:
    pretend(monkeypatch, [0.5])
    sizes: set[tuple[int, ...]] = set()
    pretended = module.time_lowerings

    def time_lowerings(layer: Layer, lowerings: list[Lowering], *rest: object) -> list[float]:
        sizes.update((shape[0], *shape[2:]) for shape in layer.inputs)
        return pretended(layer, lowerings, *rest)

    monkeypatch.setattr(module, "time_lowerings", time_lowerings)
    model = nn.Sequential(block.stem, nn.ReLU(), block.first, nn.ReLU(), block.second)
    compact = fxprune.convert(model, X)
    given = torch.randn(3, 3, 24, 24)
    lowered = fxprune.lower_stripes(compact, given, runtime="ort-cpu", cost=EAGER)
    assert {size[0] for size in sizes} == {3}
    assert max(size[1] for size in sizes) == 24
    assert lowered.graphs.regions[0].inputs[0][0].shape == given.shape
    assert compact.graphs.regions[0].inputs[0][0].shape == X.shape


def test_inputs_that_a_converted_model_does_not_take_are_refused(block: nn.Module) -> None:
    compact = fxprune.convert(block, X)
    with pytest.raises(TraceError, match=r"Block does not run on the example inputs in eval mode.*pass example_inputs"):
        fxprune.lower_stripes(compact, torch.randn(2, 5, 8, 8))

"""Does a model compute the same once its stripes are smaller convolutions?"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune
import fxprune.stripes.lower as module
from fxprune.errors import ExactnessError, FxpruneError
from fxprune.stripes.cost import CostModel
from fxprune.stripes.module import StripeConv2d

EAGER = CostModel(align=1, point=1.0, line=1.0, read=0.0, join=0.0, reorder=0.0, move=0.0, add=0.0, call=0.0)
"""A runtime for which only multiply-accumulates count, so that everything is lowered as far as it goes."""


def kill_stripes(model: nn.Module, share: float, seed: int = 0, patterns: int = 0) -> None:
    """Set a random share of the stripes of all convolutions to zero; with `patterns`, so many kinds of filters."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            n, _, height, width = layer.weight.shape
            count = patterns or n
            kept = (torch.rand(count, height, width, generator=generator) >= share)[torch.arange(n) % count]
            with torch.no_grad():
                layer.weight.mul_(kept[:, None])


def randomise(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                t.uniform_(0.5, 1.5)
    return model.eval()


@st.composite
def convolutions(draw: Any) -> tuple[nn.Conv2d, Tensor]:
    kernel = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    groups = draw(st.sampled_from([1, 1, 1, 2, 4]))
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "circular", "replicate"]))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding: Any = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    if stride == (1, 1) and draw(st.booleans()):
        padding = draw(st.sampled_from(["same", "valid"]))
    size = [dilation[d] * (kernel[d] - 1) + 1 + draw(st.integers(0, 6)) for d in range(2)]
    if mode == "reflect":
        assume(padding == "valid" or all(s > 8 for s in size))
    if mode == "circular":
        assume(padding == "valid" or all(s > 12 for s in size))
    torch.manual_seed(draw(st.integers(0, 99)))
    layer = nn.Conv2d(
        4, 8, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()), padding_mode=mode
    ).double()
    return layer, torch.randn(2, 4, *size, dtype=torch.float64)


@given(convolutions(), st.sampled_from([0.3, 0.6, 0.9, 1.0]), st.integers(0, 5), st.integers(0, 3))
@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's, for even kernels
@settings(max_examples=60, deadline=None)
def test_any_convolution_is_lowered_exactly(
    case: tuple[nn.Conv2d, Tensor], share: float, seed: int, patterns: int
) -> None:
    layer, x = case
    model = nn.Sequential(layer)
    kill_stripes(model, share, seed, patterns)
    lowered = fxprune.lower_stripes(model.eval(), x, cost=EAGER)
    wanted, found = model(x), lowered(x)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-12 * wanted.abs().max().clamp(min=1e-3)
    larger = torch.cat([x, x], 2)
    torch.testing.assert_close(lowered(larger), model(larger), rtol=1e-12, atol=1e-12)
    for part in (m for m in lowered.modules() if isinstance(m, StripeConv2d)):
        if layer.padding_mode == "zeros":
            torch.testing.assert_close(part(x), wanted, rtol=1e-12, atol=1e-12)


class Block(nn.Module):
    """A residual block behind a stem, a depthwise convolution, a concatenation, and a flattened head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.first, self.inner = nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.second, self.outer = nn.Conv2d(24, 16, 5, padding=2, bias=False), nn.BatchNorm2d(16)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.beside = nn.Conv2d(16, 8, 3, padding=1, stride=2)
        self.down = nn.Conv2d(16, 8, (1, 3), padding=(0, 1), stride=2)
        self.head = nn.Linear(16 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.outer(self.second(self.inner(self.first(x)).relu()))).relu()
        x = torch.cat([self.beside(self.depth(x)), self.down(x)], 1)
        return self.head(x.flatten(1))


@pytest.mark.parametrize("patterns", [0, 2, 4])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_orders_go_into_the_consumers(share: float, patterns: int) -> None:
    model = randomise(Block()).double()
    kill_stripes(model, share, patterns=patterns)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    lowered = fxprune.lower_stripes(model, x, cost=EAGER)
    torch.testing.assert_close(lowered(x), model(x), rtol=1e-11, atol=1e-11)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert lowered.lowered.layers["first.weight"].lowering.parts
    assert isinstance(lowered.first, StripeConv2d)
    assert lowered.first.order is None  # its consumers took the order over
    assert fxprune.export.count(lowered, x).macs < fxprune.export.count(model, x).macs


def test_what_is_sliced_or_reshaped_keeps_its_order() -> None:
    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 4, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(x[:, :8]) + self.c(x[:, 8:])

    model = Sliced().double().eval()
    kill_stripes(model, 0.5, patterns=3)
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    lowered = fxprune.lower_stripes(model, x, cost=EAGER)
    torch.testing.assert_close(lowered(x), model(x), rtol=1e-12, atol=1e-12)
    assert lowered.a.order is not None


def test_a_trained_model_goes_all_the_way(tmp_path: Path) -> None:
    """Trained at stripe granularity, converted, lowered, trained on, exported, and prepared again."""
    torch.manual_seed(0)
    x, y = torch.randn(8, 3, 8, 8), torch.randint(5, (8,))
    prepared = fxprune.prepare(Block(), x[:2], granularity="stripe", target=fxprune.Sparsity(0.7))
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.05)
    fxprune.Scheduler(prepared, optimizer, total_steps=10)
    for _ in range(10):
        nn.functional.cross_entropy(prepared(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    compact = fxprune.convert(prepared.eval())
    lowered = fxprune.lower_stripes(compact, cost=EAGER)
    assert any(layer.lowering.parts for layer in lowered.lowered.layers.values())
    torch.testing.assert_close(lowered(x), prepared(x), rtol=1e-4, atol=1e-4)
    fxprune.export.to_onnx(lowered, x[:2], str(tmp_path / "lowered.onnx"))  # compared as it is written
    trained = copy.deepcopy(lowered).train()
    nn.functional.cross_entropy(trained(x), y).backward()
    assert all(p.grad is not None for p in trained.parameters())
    again = fxprune.convert(fxprune.prune(lowered, x[:2], target=fxprune.Sparsity(0.3)))
    assert again.report.parameters_after < again.report.parameters_before


def test_where_it_does_not_pay_the_convolution_stays() -> None:
    model = randomise(Block())
    kill_stripes(model, 0.3)
    dear = CostModel(call=1e12)
    lowered = fxprune.lower_stripes(model, torch.randn(2, 3, 8, 8), cost=dear)
    assert not lowered.lowered.layers["first.weight"].lowering.parts
    assert isinstance(lowered.first, nn.Conv2d)


def test_a_wrong_lowering_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "permute_units", lambda *_: None)
    model = randomise(Block())
    kill_stripes(model, 0.5, patterns=3)
    with pytest.raises(ExactnessError, match="bug in fxprune"):
        fxprune.lower_stripes(model, torch.randn(2, 3, 8, 8), cost=EAGER)


def test_a_prepared_model_is_refused() -> None:
    prepared = fxprune.prepare(Block(), torch.randn(2, 3, 8, 8), granularity="stripe")
    with pytest.raises(FxpruneError, match="convert it first"):
        fxprune.lower_stripes(prepared)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kinds": ("crops",)}, "kinds=.*'crop', 'groups', 'sums', 'mixtures'"),
        ({"kinds": "crop"}, "kinds='crop': give some of"),
        ({"runtime": 3}, "runtime=3: give the name"),
        ({"runtime": "ort-cpu", "threads": 0}, "threads=0: give a whole number"),
        ({"runtime": "ort-cpu", "threads": "1"}, "threads='1': give a whole number"),
    ],
)
def test_wrong_arguments_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(FxpruneError, match=words):
        fxprune.lower_stripes(Block(), torch.randn(2, 3, 8, 8), **given)


def test_a_file_is_refused() -> None:
    with pytest.raises(FxpruneError, match=r"takes a module, not 'model\.onnx'"):
        fxprune.lower_stripes("model.onnx")  # type: ignore[arg-type]


def test_tied_kernels_with_biases_of_their_own_stay_as_they_are() -> None:
    model = randomise(
        nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), *(nn.Conv2d(32, 32, 3, padding=1) for _ in range(2)))
    )
    model[2].weight = model[1].weight
    kill_stripes(model, 0.6, patterns=3)
    x = torch.randn(2, 3, 16, 16)
    lowered = fxprune.lower_stripes(model, x)
    assert list(lowered.lowered.layers) == ["0.weight"]
    torch.testing.assert_close(lowered(x), model(x), rtol=1e-4, atol=1e-4)

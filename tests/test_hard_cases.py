"""Whether models that broke fxprune when it was tried stay mended: odd, but legitimate code."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import FxpruneError, GuardViolated
from tests.exactness import close_units, randomise


@dataclasses.dataclass
class Out:
    y: Tensor
    features: Tensor


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


class Hard(nn.Module):
    """Ten inputs, eight hidden channels twice, two outputs, and what `body` does between."""

    def __init__(self, body: Callable[[Hard, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.a, self.b, self.h = body, nn.Linear(10, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 7, 6, 5, 4]))
        self.w = nn.Parameter(torch.randn(8, 8, 1, 1))
        self.d = nn.Linear(10, 8)
        self.d.weight = nn.Parameter(torch.randn(10, 8).t())  # not contiguous

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def write(m: Hard, x: Tensor) -> Tensor:
    z = m.b(m.a(x).relu())
    z[:, :4] = 0
    return m.h(z)


def copy_channel(m: Hard, x: Tensor) -> Tensor:
    z = m.b(m.a(x).relu())
    z[:, 2] = z[:, 3] * 2
    return m.h(z)


BODIES: dict[str, Callable[[Hard, Tensor], Any]] = {
    "root of the width": lambda m, x: (lambda y: m.h(y * math.sqrt(y.shape[1])))(m.a(x).relu()),
    "over the width": lambda m, x: (lambda y: m.h(y / y.shape[1]))(m.a(x).relu()),
    "size": lambda m, x: (lambda y: m.h(y * y.size(-1) ** -0.5))(m.a(x).relu()),
    "numel": lambda m, x: (lambda y: m.h(y * y.numel()))(m.b(m.a(x).relu())),
    "arange of the width": lambda m, x: (lambda y: m.h(y + torch.arange(y.shape[1])))(m.a(x).relu()),
    "linspace": lambda m, x: m.h(m.a(x).relu() * torch.linspace(0, 1, 8)),
    "write": write,
    "copy a channel": copy_channel,
    "order": lambda m, x: m.h(m.a(x).relu()[:, m.order]),
    "index select": lambda m, x: m.h(m.a(x).relu().index_select(1, m.order)),
    "sliced weight": lambda m, x: (lambda y: m.h(y * (y @ m.w[:, :, 0, 0]).sigmoid()))(m.b(m.a(x).relu())),
    "not contiguous": lambda m, x: m.h(m.d(x).relu()),
    "autograd function": lambda m, x: m.h(Double.apply(m.a(x)).relu()),
    "factory": lambda m, x: m.h(m.a(x).relu()) + torch.zeros(x.shape[0], 2),
    "round": lambda m, x: m.h(m.a(x).relu())[: round(x.shape[0] / 2)],
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_hard_code_converts_exactly(name: str, share: float) -> None:
    torch.manual_seed(0)
    model = Hard(BODIES[name]).double()
    randomise(model)
    x = torch.randn(4, 10).double()
    prepared = fxprune.prepare(model, x)
    close_units(prepared, share, seed=2)
    compact = fxprune.convert(prepared.eval(), check=False)
    for batch in (4, 6):
        x = torch.randn(batch, 10).double()
        torch.testing.assert_close(compact(x), prepared(x), rtol=1e-11, atol=1e-11)


def test_outputs_in_a_dataclass_are_outputs() -> None:
    model = Hard(lambda m, x: (lambda y: Out(m.h(y), m.b(y)))(m.a(x).relu())).double()
    prepared = fxprune.prepare(model, torch.randn(4, 10).double())
    close_units(prepared, 0.5)
    compact = fxprune.convert(prepared.eval())
    x = torch.randn(5, 10).double()
    assert isinstance(compact(x), Out)
    torch.testing.assert_close(compact(x).features, prepared(x).features)
    assert compact.report.units_removed > 0


def test_a_table_that_is_embedding_and_weight_is_left_alone() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.o = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
            self.f = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
            self.o.weight = self.e.weight

        def forward(self, i: Tensor) -> Tensor:
            return self.o(self.f(self.e(i)).relu())

    tokens = torch.randint(20, (3, 5))
    for granularity in ("channel", "weight"):
        prepared = fxprune.prepare(Tied().double(), tokens, granularity=granularity).eval()
        prepared.fxprune.refresh({n: prepared.get_parameter(n) for n in prepared.fxprune.parameter_names}, 0.5)
        compact = fxprune.convert(prepared)
        torch.testing.assert_close(compact(tokens), prepared(tokens))
        assert compact.o.weight is compact.e.weight


def test_flags_and_containers_are_guarded() -> None:
    class Flags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.h = nn.Linear(10, 8), nn.Linear(8, 2)

        def forward(self, xs: list[Tensor], flag: bool = False) -> Tensor:
            out = sum(self.h(self.a(x).relu()) for x in xs)
            return out + 1 if flag else out

    x = torch.randn(3, 10)
    model = Flags()
    prepared = fxprune.prepare(model, {"xs": [x, x], "flag": True})
    torch.testing.assert_close(prepared(xs=[x, x], flag=True), model([x, x], True))
    for call in (lambda: prepared([x, x]), lambda: prepared([x, x, x], True), lambda: prepared([x], True)):
        with pytest.raises((GuardViolated, IndexError)):
            call()


def test_what_cannot_be_prepared_or_converted_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    prepared = fxprune.prepare(model)
    with pytest.raises(FxpruneError, match=r"lies inside Sequential, as `0`; pass model\.0"):
        fxprune.convert(nn.Sequential(prepared), torch.randn(2, 4))
    with torch.inference_mode(), pytest.raises(FxpruneError, match="inference_mode"):
        fxprune.convert(prepared)


def test_the_example_follows_the_precision_of_the_model() -> None:
    prepared = fxprune.prepare(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))).double()
    close_units(prepared, 0.5)
    assert fxprune.convert(prepared).report.units_removed > 0


def test_a_shape_that_depends_on_values_is_refused_with_its_line() -> None:
    model = Hard(lambda m, x: (lambda y: y[y > 0].sum())(m.a(x)))
    with pytest.raises(FxpruneError, match=r"test_hard_cases.py:\d+.*shape of its result depends"):
        fxprune.prepare(model, torch.randn(4, 10))


@pytest.mark.parametrize(
    "layer", [nn.GRU(6, 8, batch_first=True), nn.LSTM(6, 8), nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)]
)
def test_layers_that_hide_others_are_left_alone_and_the_rest_is_pruned(layer: nn.Module) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.a, self.h = layer, nn.LazyLinear(8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            out = self.layer(x)
            return self.h(self.a(out if isinstance(out, Tensor) else out[0]).relu())

    x = torch.randn(3, 5, 6)
    model = Around().eval()
    model(x)
    prepared = fxprune.prepare(model, x)
    close_units(prepared, 0.5)
    assert fxprune.convert(prepared).report.units_removed > 0


def test_random_outputs_are_not_called_a_bug() -> None:
    model = Hard(lambda m, x: m.h(m.a(x) + torch.rand_like(m.a(x))))
    with pytest.raises(FxpruneError, match=r"random outputs in eval mode.*check=False$"):
        fxprune.convert(model, torch.randn(4, 10))


def test_a_part_without_gradients_leaves_the_callers_mode_alone() -> None:
    def body(m: Hard, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = m.b(m.a(x)).relu()
        return m.h(m.a(x) * scale)

    prepared = fxprune.prepare(Hard(body), torch.randn(4, 10))
    with torch.no_grad():
        assert not prepared(torch.randn(3, 10)).requires_grad
        assert not torch.is_grad_enabled()
    prepared(torch.randn(3, 10)).sum().backward()
    assert prepared.a.weight.grad is not None
    assert prepared.b.weight.grad is None
    with torch.no_grad():
        inside = fxprune.prepare(Hard(body), torch.randn(4, 10))
    assert inside(torch.randn(3, 10)).requires_grad


def test_random_numbers_in_empty_tensors_are_not_taken_for_a_table() -> None:
    class StochasticDepth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.h = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).relu()
            if self.training:
                noise = torch.empty([y.shape[0], 1], dtype=y.dtype)
                return self.h(y + self.b(y) * noise.bernoulli_(0.9))
            return self.h(y + self.b(y))

    junk = [torch.full((n, 1), float(n)).double() for n in range(1, 50)]
    del junk  # so that fresh memory is not zero
    prepared = fxprune.prepare(StochasticDepth().double(), torch.randn(4, 4).double())
    close_units(prepared, 0.4)
    compact = fxprune.convert(prepared)
    assert not [node for graph in compact.graphs for node in graph.nodes if node.target is torch.index_select]
    assert compact.train()(torch.randn(7, 4).double()).shape == (7, 2)


def test_what_is_made_like_a_constant_keeps_its_size() -> None:
    class Like(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.h = nn.Linear(3, 4), nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            z = torch.zeros_like(y)
            z[:, :2] = self.b(x)
            return self.h((y + z).relu())

    model, x = Like().double(), torch.randn(5, 3).double()
    with torch.no_grad():
        model.a.weight.zero_()
    compact = fxprune.convert(model, x)
    torch.testing.assert_close(compact(x[:3]), model(x[:3]))


@pytest.mark.parametrize("closed", [[0, 1], [0, 1, 3], [0, 1, 2, 3]])
def test_a_write_to_one_channel_that_cannot_move_is_not_left_as_it_is(closed: list[int]) -> None:
    class Copy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.h = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            z = self.a(x)
            z[:, 2] = z[:, 3] * 2
            return self.h(z)

    prepared = fxprune.prepare(Copy().double(), torch.randn(4, 3).double()).eval()
    gates = torch.ones(4)  # of the channels that are neither copied nor written
    gates[closed] = 0
    prepared.fxprune.set_gates(gates)
    x = torch.randn(5, 3).double()
    torch.testing.assert_close(fxprune.convert(prepared)(x), prepared(x))


class GroupScale(nn.Module):
    """Divides groups of channels by their deviation, and asserts that they can be told apart, as EvoNorm does."""

    def __init__(self, claim: Callable[[bool], object]) -> None:
        super().__init__()
        self.first, self.last, self.claim = nn.Conv2d(3, 20, 3), nn.Conv2d(20, 4, 1), claim

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        batch, channels, height, width = x.shape
        self.claim(channels % 4 == 0)
        groups = x.reshape(batch, 4, channels // 4, height, width)
        deviation = groups.var(dim=(2, 3, 4), keepdim=True).add(1e-5).sqrt()
        return self.last(x / deviation.expand(groups.shape).reshape(x.shape))


@pytest.mark.parametrize("claim", [lambda holds: torch._assert(holds, "no groups"), torch._check])
def test_what_is_asserted_of_widths_is_not_asserted_of_smaller_ones(claim: Callable[[bool], object]) -> None:
    model = GroupScale(claim)
    randomise(model)
    prepared = fxprune.prepare(model.double().eval(), torch.randn(2, 3, 8, 8).double())
    closed = prepared.fxprune.gates.clone()
    assert closed.numel() == 4
    closed[1] = 0
    prepared.fxprune.set_gates(closed)
    compact = fxprune.convert(prepared)
    assert compact.first.out_channels == 15  # three groups of five, no multiple of four
    x = torch.randn(3, 3, 9, 9).double()
    torch.testing.assert_close(compact(x), prepared(x))


class DotScale(nn.Module):
    """A layer times the product of two vectors, as differential attention has it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(10, 8), nn.Linear(8, 2)
        self.a, self.b = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu()) * torch.exp(torch.sum(self.a * self.b, dim=-1))


def test_what_no_weight_scores_is_no_unit() -> None:
    """Conversion could not tell which of their elements gates had closed, and left them."""
    prepared = fxprune.prepare(DotScale().eval(), torch.randn(4, 10))
    assert prepared.fxprune.gates.numel() == 8
    scored = torch.cat([place.index for place in prepared.fxprune.slices])
    assert set(range(8)) <= set(scored.tolist())
    close_units(prepared, 0.5)
    compact = fxprune.convert(prepared)
    assert compact.a.numel() == 6


class Registers(nn.Module):
    """Attention over the patches of an image, of any size, and over four tokens that are parameters."""

    def __init__(self, heads: int = 4, width: int = 32) -> None:
        super().__init__()
        self.embed, self.tokens = nn.Conv2d(3, width, 4, 4), nn.Parameter(torch.randn(1, 4, width))
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.tokens.expand(len(x), -1, -1), x], 1)
        batch, count, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.head((x + self.out(mixed.reshape(batch, count, width))).mean(1))


@pytest.mark.parametrize("exclude", [[], ["embed"]], ids=["all", "heads"])
def test_tokens_that_are_parameters_stay_tokens(exclude: list[str]) -> None:
    x = torch.randn(2, 3, 16, 16)
    prepared = fxprune.prepare(Registers(), x, target=fxprune.Sparsity(0.5), exclude=exclude)
    fxprune.prune(prepared)
    compact = fxprune.convert(prepared)
    assert compact.qkv.out_features < 96
    larger = torch.randn(3, 3, 32, 24)
    torch.testing.assert_close(compact.eval()(larger), prepared.eval()(larger))


class Largest(nn.Module):
    """The largest of a sequence so far, from a number that is smaller than all, as RWKV keeps one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        state = torch.zeros_like(x[:, 0]) - 1e38
        for step in range(3):
            state = torch.maximum(state - 1.0, x[:, step])
        return self.last(state)


def test_a_state_that_starts_as_one_number_is_converted() -> None:
    x = torch.randn(2, 3, 8)
    prepared = fxprune.prepare(Largest(), x, target=fxprune.Sparsity(0.5))
    fxprune.prune(prepared)
    compact = fxprune.convert(prepared)
    assert compact.first.out_features == 8
    torch.testing.assert_close(compact.eval()(x), prepared.eval()(x))

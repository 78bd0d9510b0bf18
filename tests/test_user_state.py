"""Does a model keep what its owner made of it, and is it refused where conversion could not follow?"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import fxprune
from fxprune import api
from fxprune.errors import ExactnessError, FxpruneError
from fxprune.scheduler import Scheduler


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.GroupNorm(4, 16)
        self.act, self.head = nn.LeakyReLU(0.2), nn.Conv2d(16, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.norm(self.a(x))))


CHANGES: dict[str, Callable[[Normed], None]] = {
    "eps": lambda m: setattr(m.norm, "eps", 1.0),
    "groups": lambda m: setattr(m.norm, "num_groups", 8),
    "stride": lambda m: setattr(m.a, "stride", (2, 2)),
    "padding": lambda m: setattr(m.head, "padding", (2, 2)),
    "a bias": lambda m: setattr(m.a, "bias", nn.Parameter(torch.randn(16))),
    "no bias": lambda m: setattr(m.head, "bias", None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_layer_that_is_changed_in_place_is_named(name: str) -> None:
    prepared = fxprune.prune(Normed(), torch.randn(4, 3, 12, 12)).eval()
    CHANGES[name](prepared)
    for act in (fxprune.convert, fxprune.prune, lambda m: Scheduler(m, total_steps=3)):
        with pytest.raises(FxpruneError, match=r"the layer (norm|a|head) was .* and became .* prepare it again"):
            act(prepared)


@pytest.mark.parametrize("name", ["eps", "groups", "stride", "a bias"])
def test_the_check_runs_what_the_owner_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = fxprune.prune(Normed(), torch.randn(4, 3, 12, 12)).eval()
    CHANGES[name](prepared)
    monkeypatch.setattr(api, "check_unchanged", lambda model: None)
    with pytest.raises(ExactnessError):
        fxprune.convert(prepared)


def test_settings_of_what_the_graph_calls_are_followed() -> None:
    x = torch.randn(4, 3, 12, 12)
    prepared = fxprune.prune(Normed(), x).eval()
    prepared.act.negative_slope = 0.7
    torch.testing.assert_close(fxprune.convert(prepared)(x), prepared(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
@pytest.mark.parametrize("granularity", ["channel", "weight"])
@pytest.mark.parametrize("training", [False, True])
def test_models_of_parametrized_layers_only_are_trained_and_converted(
    norm: Callable[[nn.Module], nn.Module], granularity: str, training: bool
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        norm(nn.Conv2d(3, 16, 3)), nn.ReLU(), norm(nn.Conv2d(16, 16, 3)), nn.ReLU(), norm(nn.Conv2d(16, 4, 1))
    )
    x = torch.randn(4, 3, 8, 8)
    prepared = fxprune.prepare(model.train(), x, granularity=granularity)
    own = {name: value for name, value in prepared.state_dict().items() if not name.startswith("fxprune")}
    torch.testing.assert_close(own, dict(model.state_dict()), rtol=0, atol=0)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.05)
    fxprune.Scheduler(prepared, optimizer, total_steps=5)
    for _ in range(5):
        prepared(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    expected, before = copy.deepcopy(prepared).eval()(x), copy.deepcopy(prepared.state_dict())
    compact = fxprune.convert(prepared.train(training))
    torch.testing.assert_close(compact.eval()(x), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(prepared.state_dict(), before, rtol=0, atol=0)
    with pytest.raises(FxpruneError, match="holds none of the prepared model's"):
        fxprune.Scheduler(prepared, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=5)


def test_counters_count_the_owners_calls_alone() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.calls = nn.Linear(6, 8), nn.Linear(8, 2), nn.Buffer(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.b(self.a(x).relu())

    model, x = Counting(), torch.randn(4, 6)
    prepared = fxprune.prepare(model, x)
    assert prepared.calls == 0
    prepared(x)
    compact = fxprune.convert(prepared)
    assert (int(model.calls), int(prepared.calls), int(compact.calls)) == (0, 1, 1)


def test_statistics_are_measured_where_a_branch_is_gone() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
            self.b, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            return self.head(x + self.b(self.norm(self.a(x)).relu()))

    model, x = Branch().eval(), torch.randn(4, 3, 8, 8)
    nn.init.zeros_(model.b.weight)
    compact = fxprune.convert(model, x)
    expected = compact(x)
    fxprune.recalibrate(compact, [x])
    torch.optim.swa_utils.update_bn([x], compact)
    torch.testing.assert_close(compact(x), expected, rtol=0, atol=0)


WHOLE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "where": lambda y, z: torch.where(z > 0, y, -y),
    "masked_fill": lambda y, z: y.masked_fill(z < 0, 0.7),
    "xor": lambda y, z: y * ((z > 0) ^ (y > 0)),
    "bool": lambda y, z: torch.where(z.bool(), y, y + 1),
    "long": lambda y, z: y * (z.long() % 3),
    "shift": lambda y, z: y * (z.int() << 1),
    "bits": lambda y, z: y * (z.int() & 1),
    "isfinite": lambda y, z: torch.where(torch.isfinite(z), y, z),
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("dead", [8, 16])
def test_constants_keep_their_type(name: str, dead: int) -> None:
    """Truth values and whole numbers of dead filters, behind which a bias is left."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(WHOLE[name](self.a(x), self.b(x)))

    torch.manual_seed(0)
    model, x = Two().double().eval(), torch.randn(2, 3, 8, 8).double()
    nn.init.uniform_(model.b.bias, -3, 3)
    nn.init.zeros_(model.b.weight[:dead])
    for check in (True, False):
        compact = fxprune.convert(model, x, check=check)
        torch.testing.assert_close(compact(x), model(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dead", ["k", "v", "both"])
def test_constants_in_front_of_attention_with_weights_apart(bias: bool, dead: str) -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.head = (nn.Linear(8, n) for n in (32, 12, 12, 6))
            self.head = nn.Linear(32, 6)
            self.attend = nn.MultiheadAttention(32, 4, kdim=12, vdim=12, batch_first=True, bias=bias)

        def forward(self, x: Tensor) -> Tensor:
            y = self.q(x)
            return self.head(y + self.attend(y, self.k(x), self.v(x))[0])

    torch.manual_seed(0)
    model, x = Cross().double().eval(), torch.randn(2, 5, 8).double()
    for name in ("k", "v") if dead == "both" else (dead,):
        nn.init.zeros_(getattr(model, name).weight[:7])
    compact = fxprune.convert(model, x)
    torch.testing.assert_close(compact(x), model(x), rtol=0, atol=1e-12)


def test_weights_stay_channels_last() -> None:
    model, x = Normed().to(memory_format=torch.channels_last), torch.randn(4, 3, 12, 12)
    compact = fxprune.convert(fxprune.prune(model, x))
    assert compact.head.in_channels < 16
    assert compact.head.weight.is_contiguous(memory_format=torch.channels_last)
    assert not compact.head.weight.is_contiguous()


def test_frozen_norms_and_the_random_state_stay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    fxprune.prepare(model, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), method=fxprune.RNI())
    assert torch.equal(torch.random.get_rng_state(), before)
    model[1].requires_grad_(False)
    prepared = fxprune.prepare(
        model, torch.randn(2, 3, 8, 8), method=fxprune.FilterSkeleton(delta=0.5), target=None, granularity="stripe"
    )
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
    fxprune.Scheduler(prepared, optimizer, total_steps=2)
    for mask in prepared.fxprune.weight_masks.values():
        mask.variable.data[:4] = 0
    prepared(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    assert torch.equal(prepared.get_submodule("1").weight, model[1].weight)


@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_models_free_their_weights_at_once(granularity: str) -> None:
    """Without waiting for Python to look for circles: on a GPU copies would pile up."""
    model, x = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(4, 8)

    def prepare() -> nn.Module:
        prepared = fxprune.prepare(model, x, granularity=granularity, target=fxprune.Sparsity(0.5))
        fxprune.prune(prepared)
        return prepared

    made = {
        "prepared": prepare,
        "a copy": lambda: copy.deepcopy(prepare()),
        "converted": lambda: fxprune.convert(prepare()),
        "converted, trained and copied": lambda: copy.deepcopy(train(fxprune.convert(prepare()))),
    }
    gc.collect()
    gc.disable()
    try:
        for name, make in made.items():
            result = make()
            kept = [weakref.ref(tensor) for tensor in [*result.parameters(), *result.buffers()]]
            del result
            assert not any(reference() is not None for reference in kept), name
    finally:
        gc.enable()


def train(model: nn.Module) -> nn.Module:
    """Make one step of training."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model


class Recording(nn.Module):
    """Adds hooks when it first runs, and notes that it has, as models of transformers do; lists what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3))
        self.head, self.seen = nn.Linear(24, 4), list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        if not getattr(self, "is_hooked", False):
            for layer in self.layers[:2]:
                layer.register_forward_hook(lambda module, args, output: self.seen.append(output))
            self.is_hooked = True
        self.seen.clear()
        for layer in self.layers:
            x = layer(x)
        return self.head(torch.cat([x, *self.seen], 1))


def test_hooks_that_code_adds_once_are_added_once() -> None:
    x = torch.randn(4, 8)
    model = Recording().eval()
    prepared = fxprune.prepare(model, x)
    torch.testing.assert_close(prepared(x), model(x))


def test_comparing_leaves_the_hooks_that_code_adds_to_the_model() -> None:
    x = torch.randn(4, 8)
    model = Recording().eval()
    with torch.no_grad():
        model.layers[1][0].weight[::2] = 0
        model.layers[1][0].bias[::2] = 0
    compact = fxprune.convert(model, x)
    assert not any(layer._forward_hooks for layer in model.layers)
    assert model.seen == []
    torch.testing.assert_close(compact(x), model(x))

"""What a model's code leaves behind when it runs: in buffers, weights, attributes, caches, and in the dice."""

import copy
import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import TraceError
from fxprune.passes.trace import trace
from fxprune.passes.written_weights import writes_weights
from tests.exactness import close_units

X = torch.randn(3, 6)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)


class Averages(Base):
    """Assigns buffers instead of writing to them."""

    mean: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
            self.count = self.count + 1
        out: Tensor = self.b((y - self.mean) * (1 + self.mean))
        return out


def test_buffers_that_code_assigns_are_written() -> None:
    model = Averages()
    prepared = fxprune.prepare(model, X)
    for _ in range(3):
        x = torch.randn(3, 6)
        wanted, got = model(x), prepared(x)
        torch.testing.assert_close(got, wanted)
        wanted.sum().backward()
        got.sum().backward()
    torch.testing.assert_close(prepared.state_dict()["mean"], model.mean)
    assert prepared.get_buffer("count") == model.count == 3
    torch.testing.assert_close(prepared.get_parameter("a.weight").grad, model.a.weight.grad)
    close_units(prepared, 0.5, soft=False)
    compact = fxprune.convert(prepared)
    assert len(compact.get_buffer("mean")) < 16
    for _ in range(2):
        torch.testing.assert_close(compact(X), prepared(X))
    torch.testing.assert_close(compact.eval()(X), prepared.eval()(X))


class Queue(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(0, 16))

    def forward(self, x: Tensor) -> Tensor:
        self.queue = torch.cat([self.a(x).detach(), self.queue])[:12]
        out: Tensor = self.b(self.a(x).relu() + self.queue.mean(0))
        return out


def test_buffers_that_grow_are_refused() -> None:
    with pytest.raises(TraceError, match=r"test_left_behind\.py:\d+.*the buffer queue another shape, \(3, 16\) after"):
        fxprune.prepare(Queue(), X)


class Renormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.a, self.b = nn.Embedding(11, 8, max_norm=1.0), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, index: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(self.embed(index)).relu())
        return out


class Decaying(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.b.weight.mul_(0.5)
        out: Tensor = self.b(self.a(x).relu())
        return out


@pytest.mark.parametrize(("kind", "inputs"), [(Renormed, torch.arange(5)[None]), (Decaying, X)])
@pytest.mark.parametrize("call", [fxprune.prepare, fxprune.convert, fxprune.inspect])
def test_weights_that_code_writes_to_stay(
    kind: Callable[[], nn.Module], inputs: Tensor, call: Callable[..., Any]
) -> None:
    model = kind()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = call(model, inputs)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    if call is fxprune.prepare:
        torch.testing.assert_close({name: result.state_dict()[name] for name in before}, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("write", "is_written"),
    [
        (lambda w, x: x * w.t().mul_(0.5), True),
        (lambda w, x: x * w[:2].reshape(-1)[:16].view(1, 16).mul_(0.5), True),
        (lambda w, x: (w.sum(0) * x).relu_(), False),
        (lambda w, x: torch.nn.functional.relu(w.sum(0) + x, inplace=True), False),
    ],
)
def test_a_write_to_what_was_computed_of_a_weight_is_none_to_the_weight(write: Any, is_written: bool) -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.rand(16, 16))

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return write(self.scale, x)  # type: ignore[no-any-return]

    assert writes_weights(trace(Writing(), ((torch.randn(16, 16),), {}))) == is_written


class Remembering(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        earlier = getattr(self, "earlier", None)
        self.earlier = y.detach()
        out: Tensor = self.b(y if earlier is None else y + earlier)
        return out


class Counting(Base):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.b(self.a(x).relu() * self.calls)
        return out


class Showing(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.a(x).relu()
        out: Tensor = self.b(self.seen)
        return out


@pytest.mark.parametrize(("kind", "name"), [(Remembering, "earlier"), (Counting, "calls")])
def test_code_that_goes_by_what_it_left_in_attributes_is_refused(kind: Callable[[], nn.Module], name: str) -> None:
    with pytest.raises(TraceError, match=f"in the second call: it goes by what the first one has left in {name}"):
        fxprune.prepare(kind(), X)


def test_attributes_that_only_show_something_may_be_left() -> None:
    model = Showing()
    prepared = fxprune.prepare(model, X)
    torch.testing.assert_close(prepared(X), model(X))


@functools.lru_cache
def make_ramp(count: int) -> Tensor:
    return torch.linspace(0, 1, count)


TABLES: dict[int, Tensor] = {}


class Holder:
    table: Tensor | None = None


HOLDER = Holder()


class Cached(Base):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x).relu() * make_ramp(16))
        return out


class Tabled(Base):
    def forward(self, x: Tensor) -> Tensor:
        if 16 not in TABLES:
            TABLES[16] = torch.linspace(0, 1, 16) * 2
        out: Tensor = self.b(self.a(x).relu() * TABLES[16])
        return out


class Shared(Base):
    table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if Shared.table is None:
            Shared.table = torch.linspace(0, 1, 16)
        out: Tensor = self.b(self.a(x).relu() * Shared.table)
        return out


class Held(Base):
    def forward(self, x: Tensor) -> Tensor:
        if HOLDER.table is None:
            HOLDER.table = torch.linspace(0, 1, 16)
        out: Tensor = self.b(self.a(x).relu() * HOLDER.table)
        return out


@pytest.mark.parametrize("kind", [Cached, Tabled, Shared, Held])
def test_caches_of_the_process_hold_tensors_as_before(kind: Callable[[], nn.Module]) -> None:
    model = kind()
    prepared = fxprune.prepare(model, X)
    torch.testing.assert_close(prepared(X), model(X))
    assert type(make_ramp(16)) is Tensor
    assert all(type(each) is Tensor for each in (*TABLES.values(), Shared.table, HOLDER.table) if each is not None)


class Chancy(Base):
    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        out: Tensor = self.b(y * 0 if self.training and self.draw() < 0.5 else y)
        return out


@pytest.mark.parametrize("draw", [lambda: random.random(), lambda: np.random.rand()])
def test_numbers_that_python_or_numpy_draws_are_drawn_in_each_call(draw: Callable[[], float]) -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)), Chancy(draw))
    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist()
    prepared = fxprune.prepare(model, X)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    assert "random numbers from Python or numpy" in prepared.untraced["1"]
    for seed in range(6):
        random.seed(seed)
        np.random.seed(seed)
        wanted = model(X)
        random.seed(seed)
        np.random.seed(seed)
        torch.testing.assert_close(prepared(X), wanted)


class Frozen(Base):
    """Keeps its batch norm in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)
        self.norm.running_mean.normal_()

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.norm(self.a(x)).relu())
        return out


class FrozenInside(nn.Module):
    """Keeps a part in eval mode, and can be traced in parts only."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.neck, self.head = Frozen(), nn.Linear(4, 6), nn.Linear(6, 3)

    def train(self, mode: bool = True) -> "FrozenInside":
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y = y if float(y.detach().sum()) > 0 else y + 1
        out: Tensor = self.head(self.neck(y).relu())
        return out


@pytest.mark.parametrize("kind", [Frozen, FrozenInside])
def test_a_train_of_the_models_own_sets_the_modes(kind: Callable[[], nn.Module], tmp_path: Any) -> None:
    model = kind().train()
    prepared = fxprune.prepare(model, X)
    close_units(prepared, 0.0, soft=False)
    norm = next(name for name, part in model.named_modules() if isinstance(part, nn.BatchNorm1d))
    compact = fxprune.convert(prepared)
    fxprune.save(compact, tmp_path / "compact.safetensors")
    copies = [copy.deepcopy(prepared), copy.deepcopy(compact), fxprune.load(kind(), tmp_path / "compact.safetensors")]
    for traced in (prepared, compact, *copies):
        traced.train()
        assert traced.training
        assert not traced.get_submodule(norm).training
        torch.testing.assert_close(traced(X), model(X))
        assert not traced.eval().training
    assert prepared.train().fxprune.training

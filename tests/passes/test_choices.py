"""What code decides on, other than sizes: texts, numbers of dimensions, what objects have, chance, and constants."""

import enum
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.errors import GuardViolated
from tests.exactness import close_units

X = torch.randn(3, 6)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)


class Mode(enum.Enum):
    PLAIN = 1
    TWICE = 2


class Choosing(Base):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"one": nn.Linear(16, 4), "two": nn.Linear(16, 4)})

    def forward(self, x: Tensor, task: Any = "one", mode: Mode = Mode.PLAIN) -> Tensor:
        y = self.a(x).relu()
        y = y * 2 if mode is Mode.TWICE else y
        out: Tensor = self.heads[task["task"] if isinstance(task, dict) else task](y)
        return out


class Ranks(Base):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x).relu())
        return y.mean(1) if y.dim() == 3 else y


class Lengths(Base):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x).relu())
        return y.mean(1) if len(x.shape) == 3 else y


class Tables(Base):
    def forward(self, x: Tensor) -> Tensor:
        scale = {4: 2.0, 5: 3.0}.get(x.shape[1], 1.0) * (2 if x.shape[1] in {5, 9} else 1)
        out: Tensor = self.b(self.a(x).relu() * scale)
        return out


class Objects(Base):
    def forward(self, data: Any) -> Tensor:
        y = self.a(data.x).relu()
        weight = getattr(data, "weight", None)
        y = y if weight is None else y * weight
        out: Tensor = self.b(y * data.scale if hasattr(data, "scale") else y)
        return out


@pytest.mark.parametrize(
    ("model", "example", "other"),
    [
        (Choosing(), (X, "two"), (X, "one")),
        (Choosing(), (X, "two"), (X,)),
        (Choosing(), (X, {"task": "two"}), (X, {"task": "one"})),
        (Choosing(), (X, "one", Mode.TWICE), (X, "one")),
        (Choosing(), (X, "one"), (X, "one", Mode.TWICE)),
        (Ranks(), (X,), (torch.randn(3, 5, 6),)),
        (Lengths(), (X,), (torch.randn(3, 5, 6),)),
        (Tables(), (torch.randn(2, 5, 6),), (torch.randn(2, 4, 6),)),
        (Tables(), (torch.randn(2, 4, 6),), (torch.randn(2, 9, 6),)),
        (Objects(), (types.SimpleNamespace(x=X),), (types.SimpleNamespace(x=X, weight=torch.rand(3, 1)),)),
        (Objects(), (types.SimpleNamespace(x=X),), (types.SimpleNamespace(x=X, scale=2.0),)),
    ],
)
def test_another_choice_than_the_example_s_is_refused(model: nn.Module, example: Any, other: Any) -> None:
    prepared = fxprune.prepare(model, example)
    torch.testing.assert_close(prepared(*example), model(*example))
    compact = fxprune.convert(prepared)
    for traced in (prepared, compact):
        with pytest.raises(GuardViolated, match=r"call prepare with example_inputs|in forward: this was"):
            traced(*other)


class Causal(nn.Module):
    """Makes its mask itself, of which torch's encoder asks whether it is a causal one."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.embed, self.encoder, self.head = nn.Embedding(11, 16), nn.TransformerEncoder(layer, 1), nn.Linear(16, 11)

    def forward(self, index: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(index.shape[1])
        out: Tensor = self.head(self.encoder(self.embed(index), mask=mask))
        return out


def test_the_truth_of_a_constant_is_guarded() -> None:
    model = Causal().eval()
    prepared = fxprune.prepare(model, torch.randint(0, 11, (2, 5)))
    close_units(prepared, 0.5, soft=False)
    compact, index = fxprune.convert(prepared), torch.randint(0, 11, (3, 7))
    torch.testing.assert_close(compact(index), prepared(index))
    prepared.train()(index)


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(x, src_key_padding_mask=mask))
        return out


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("is_padded", [False, True])
def test_encoders_with_padding_are_traced_whole(is_padded: bool) -> None:
    x, mask = torch.randn(3, 5, 16), torch.zeros(3, 5, dtype=torch.bool)
    padding = mask.clone()
    padding[0, 3:] = padding[1, 4:] = True
    model = Padded().eval()
    prepared = fxprune.prepare(model, (x, padding if is_padded else mask))
    assert not prepared.untraced
    with torch.no_grad():  # where torch's fast path gives zeros at the padding
        wanted, got = model(x, padding), prepared(x, padding)
    torch.testing.assert_close(got[~padding], wanted[~padding])
    torch.testing.assert_close(fxprune.convert(prepared)(x, padding), prepared(x, padding))


class Flagged(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("is_ready", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        out: Tensor = self.b(y if self.is_ready == 0 else y * 2)
        return out


def test_a_buffer_that_decides_is_guarded() -> None:
    model = Flagged()
    prepared = fxprune.prepare(model, X)
    torch.testing.assert_close(prepared(X), model(X))
    prepared.get_buffer("is_ready").fill_(1)
    with pytest.raises(GuardViolated, match=r"test_choices\.py:\d+ in forward: this was True .* is False"):
        prepared(X)


class Dropped(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        if self.training and torch.rand([]) < 0.5:
            y = y * 0
        out: Tensor = self.b(y)
        return out


def test_code_that_decides_by_chance_goes_on_running() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)), Dropped()).train()
    prepared = fxprune.prepare(model, X)
    assert "or by chance" in prepared.untraced["1"]
    for seed in range(6):
        torch.manual_seed(seed)
        wanted = model(X)
        torch.manual_seed(seed)
        torch.testing.assert_close(prepared(X), wanted)


def test_a_layer_whose_forward_was_replaced_is_traced_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    first = model[0]
    first.forward = types.MethodType(lambda layer, x: F.linear(x, layer.weight * 2, layer.bias), first)
    prepared = fxprune.prepare(model, X)
    torch.testing.assert_close(prepared(X), model(X))
    torch.testing.assert_close(fxprune.convert(model, X)(X), model(X))


class Optional(Base):
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        y = self.a(x).relu()
        out: Tensor = self.b(y if options["mask"] is None else y * options["mask"])
        return out


def test_options_by_name_may_be_none() -> None:
    model = Optional()
    torch.testing.assert_close(fxprune.prepare(model, {"x": X, "mask": None})(X, mask=None), model(X, mask=None))


class Inferring(Base):
    """Computes with its first layer only, as one that is not trained."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            y = self.a(x).relu()
        out: Tensor = self.b(y.clone())
        return out


def test_inference_mode_inside_a_model_lets_no_gradient_through() -> None:
    model = Inferring()
    prepared = fxprune.prepare(model, X)
    for each in (model, prepared):
        each(X).sum().backward()
    assert prepared.get_parameter("a.weight").grad is None
    torch.testing.assert_close(prepared.get_parameter("b.weight").grad, model.b.weight.grad)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()

"""Do recurrent layers and cells lose hidden units, and compute the same with what is left?"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fxprune
from fxprune.errors import TargetError
from fxprune.recurrent import run_layers, step
from tests.conversion import close_units

KINDS = ("LSTM", "GRU", "RNN")


class Around(nn.Module):
    """A recurrent layer between linear ones: its state at the start may come from the input, its last one counts."""

    def __init__(self, layer: nn.RNNBase, given: bool = False) -> None:
        super().__init__()
        self.a, self.layer = nn.Linear(6, layer.input_size), layer
        self.rows = layer.num_layers * (2 if layer.bidirectional else 1)
        self.start = nn.Linear(6, layer.hidden_size) if given else None
        width = (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
        self.b, self.head = nn.Linear(width, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        given = ()
        if self.start is not None:
            h = self.start(x.mean(1 if self.layer.batch_first else 0)).tanh().repeat(self.rows, 1, 1)
            given = ((h, 0.5 * h),) if isinstance(self.layer, nn.LSTM) else (h,)
        out, state = self.layer(self.a(x).relu(), *given)
        last = state[1] if isinstance(self.layer, nn.LSTM) else state
        return self.head(self.b(out).relu()), last.square().mean(-1)


class Cell(nn.Module):
    """A cell that runs in a Python loop."""

    def __init__(self, kind: str, given: bool) -> None:
        super().__init__()
        self.a, self.cell, self.head = nn.Linear(6, 10), getattr(nn, kind)(10, 8), nn.Linear(8, 2)
        self.given = given

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        h = x.new_zeros(len(x), self.cell.hidden_size)
        state: Any = ((h, h) if isinstance(self.cell, nn.LSTMCell) else h) if self.given else None
        for each in x.unbind(1):
            state = self.cell(each, state)
        return self.head(state[0] if isinstance(self.cell, nn.LSTMCell) else state)


def randomise(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -1, 1)
    return model.double().eval()


def check_exact(model: nn.Module, x: Tensor, *others: Tensor) -> nn.Module:
    """Prune half of the units and compare, also what is converted into the model's class, and pruned once more."""
    prepared = fxprune.prepare(randomise(model), x).eval()
    for each in (x, *others):
        torch.testing.assert_close(prepared(each), model(each), rtol=0, atol=1e-12)
    close_units(prepared, 0.5)
    compact = fxprune.convert(prepared)
    again = fxprune.prepare(compact, x).eval()
    close_units(again, 0.5)
    for source, target in (
        (prepared, compact), (prepared, fxprune.convert(prepared, into=model)), (again, fxprune.convert(again)),
    ):  # fmt: skip
        for each in (x, *others):
            torch.testing.assert_close(target(each), source(each), rtol=0, atol=1e-12)
    return compact


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"batch_first": True}, False),
        ({"num_layers": 2}, False),
        ({"num_layers": 2, "bidirectional": True, "dropout": 0.3}, False),
        ({"batch_first": True, "bidirectional": True, "bias": False}, True),
        ({"num_layers": 3, "dropout": 0.1}, True),
    ],
)
def test_hidden_units_go(kind: str, options: dict[str, Any], given: bool) -> None:
    model = Around(getattr(nn, kind)(10, 8, **options), given)
    compact = check_exact(model, torch.randn(3, 4, 6).double(), torch.randn(5, 7, 6).double())
    layer = compact.layer
    assert type(layer) is type(model.layer)
    assert layer.hidden_size == layer.weight_hh_l0.size(1) < 8
    assert layer.input_size == layer.weight_ih_l0.size(1) < 10
    heard: list[nn.Module] = []
    layer.register_forward_hook(lambda module, *_: heard.append(module))
    compact(torch.randn(3, 4, 6).double())
    assert heard == [layer]  # torch's own layer runs, whose weights are one piece on a GPU


def test_projections_and_cells_behind_them_go_apart() -> None:
    layer = nn.LSTM(10, 12, num_layers=2, proj_size=7, bidirectional=True)
    compact = check_exact(Around(layer), torch.randn(3, 4, 6).double(), torch.randn(2, 1, 6).double())
    assert compact.layer.hidden_size < 12
    assert compact.layer.proj_size < 7


def test_relu_and_the_activation_stay_what_they_are() -> None:
    compact = check_exact(Around(nn.RNN(10, 8, nonlinearity="relu")), torch.randn(3, 4, 6).double())
    assert compact.layer.nonlinearity == "relu"


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize("given", [False, True])
def test_cells_in_a_loop_lose_units(kind: str, given: bool) -> None:
    compact = check_exact(Cell(kind, given), torch.randn(4, 3, 6).double(), torch.randn(1, 3, 6).double())
    assert compact.cell.hidden_size == compact.cell.weight_hh.size(1) < 8


class Head(nn.Module):
    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_in_the_example_and_many_later(kind: str) -> None:
    layer = getattr(nn, kind)(6, 8, 2, batch_first=True)
    check_exact(Head(layer), torch.randn(5, 1, 6).double(), torch.randn(2, 4, 6).double())


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_without_a_batch(kind: str) -> None:
    check_exact(Head(getattr(nn, kind)(6, 8)), torch.randn(5, 6).double(), torch.randn(2, 6).double())


def test_a_learnt_state_and_a_layer_that_runs_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.state, self.layer = nn.Parameter(torch.randn(1, 1, 8)), nn.GRU(6, 8, batch_first=True)
            self.b, self.head = nn.Linear(8, 6), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            first = self.layer(x, self.state.expand(-1, len(x), -1).contiguous())[0]
            return self.head(self.layer(self.b(first).relu())[0])

    compact = check_exact(Twice(), torch.randn(5, 4, 6).double(), torch.randn(2, 6, 6).double())
    assert compact.state.size(2) == compact.layer.hidden_size < 8


def test_what_no_input_reaches_is_computed_step_by_step() -> None:
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places, self.layer = nn.Parameter(torch.randn(5, 6)), nn.GRU(6, 8)
            self.a, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.a(x) * self.layer(self.places)[0].sum(0))

    check_exact(Places(), torch.randn(5, 4).double(), torch.randn(2, 4).double())


def test_steps_are_no_channels() -> None:
    """A step that closes would change all states after it."""

    class Across(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.layer, self.head = nn.Conv1d(3, 6, 1), nn.LSTM(7, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(self.a(x))[0])

    assert fxprune.prepare(Across(), torch.randn(5, 3, 7)).fxprune.gates.numel() == 8


def test_a_layer_that_somebody_listens_to_stays_whole() -> None:
    model = Head(nn.LSTM(6, 8))
    model.layer.register_forward_hook(lambda *_: None)
    with pytest.raises(TargetError, match="no channel is left to prune"):
        fxprune.prepare(model, torch.randn(5, 2, 6))


def test_dropout_between_layers_draws_as_it_did() -> None:
    model = Around(nn.GRU(10, 8, 2, dropout=0.5)).train()
    x = torch.randn(3, 4, 6)
    prepared = fxprune.prepare(model, x)
    results = []
    for each in (model, prepared, fxprune.convert(prepared)):
        torch.manual_seed(1)
        results.append(each(x))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(prepared.eval()(x), copy.deepcopy(model).eval()(x), rtol=0, atol=1e-6)


def test_single_weights_of_recurrent_layers_are_masked() -> None:
    model = Around(nn.LSTM(10, 8))
    prepared = fxprune.prune(
        model, torch.randn(3, 4, 6), granularity="weight", target=fxprune.Sparsity(0.8), exclude=["a", "b", "head"]
    ).eval()
    compact, x = fxprune.convert(prepared, align=1), torch.randn(5, 7, 6)
    assert compact.report.masked == pytest.approx(0.8, abs=0.002)
    torch.testing.assert_close(compact(x), prepared(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", ["LSTM", "GRU", "RNN_TANH", "RNN_RELU"])
@pytest.mark.parametrize("biases", [True, False])
def test_the_step_that_stands_for_all_is_one_of_the_layer(mode: str, biases: bool) -> None:
    torch.manual_seed(0)
    kind, options = (mode, {}) if mode in KINDS else ("RNN", {"nonlinearity": mode[4:].lower()})
    layer = getattr(nn, kind)(6, 8, bias=biases, **options).double()
    x, weights = torch.randn(5, 3, 6).double(), list(layer.parameters())
    state = [torch.zeros(3, 8).double()] * (2 if mode == "LSTM" else 1)
    outputs = []
    with torch.no_grad():
        for each in x:
            state = step(mode, each, state, weights, biases)
            outputs.append(state[0])
        ours = run_layers(x, None, mode, biases, 1, 0.0, False, False, *weights)
        torch.testing.assert_close(torch.stack(outputs), layer(x)[0], rtol=0, atol=1e-14)
        torch.testing.assert_close(ours, layer(x), rtol=0, atol=0)


class Packed(nn.Module):
    """Sentences of several lengths, packed for the layer; what it gives for each word, and at the end."""

    def __init__(self, kind: str, is_sorted: bool, given: bool, total: int | None = None) -> None:
        super().__init__()
        self.words, self.a = nn.Embedding(20, 8), nn.Linear(8, 6)
        self.layer = getattr(nn, kind)(6, 8, 2, batch_first=True, bidirectional=True)
        self.start = nn.Linear(8, 8) if given else None
        self.b, self.c, self.head = nn.Linear(16, 12), nn.Linear(8, 12), nn.Linear(12, 3)
        self.is_sorted, self.total = is_sorted, total

    def forward(self, words: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = self.words(words)
        state: Any = None if self.start is None else self.start(x.mean(1)).tanh().repeat(4, 1, 1)
        state = (state, state) if state is not None and isinstance(self.layer, nn.LSTM) else state
        packed = pack_padded_sequence(self.a(x).relu(), lengths, batch_first=True, enforce_sorted=self.is_sorted)
        out, last = self.layer(packed, state)
        states, _ = pad_packed_sequence(out, batch_first=True, padding_value=0.5, total_length=self.total)
        end = last[0][-1] if isinstance(self.layer, nn.LSTM) else last[-1]
        return self.head(self.b(states).relu()), self.head(self.c(end).relu())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("is_sorted", "given", "total"), [(True, False, None), (False, True, None), (False, False, 9)])
def test_packed_sequences(kind: str, is_sorted: bool, given: bool, total: int | None) -> None:
    model = randomise(Packed(kind, is_sorted, given, total))
    example = torch.randint(20, (3, 5)), torch.tensor([5, 3, 2])
    other = torch.randint(20, (2, 7)), torch.tensor([7, 4] if is_sorted else [4, 7])
    prepared = fxprune.prepare(model, example).eval()
    assert not prepared.untraced
    close_units(prepared, 0.5)
    compact = fxprune.convert(prepared)
    assert compact.layer.hidden_size < 8
    assert compact.layer.input_size < 6
    for inputs in (example, other):
        torch.testing.assert_close(compact(*inputs), prepared(*inputs), rtol=0, atol=1e-12)

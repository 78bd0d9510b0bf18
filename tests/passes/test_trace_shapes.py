"""Whether tracing does no more than it must: shapes instead of values, one mode where nothing asks for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import TraceError
from fxprune.model import PreparedModel
from fxprune.passes.trace import trace
from tests.conversion import assert_same, convert_closed, prepare_randomised


class Net(nn.Module):
    """Two layers; `forward` is what a test says."""

    def __init__(self, forward: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.body = nn.Linear(6, 12), nn.Linear(12, 3), forward
        self.register_buffer("seen", torch.zeros(12))

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


class Fused(nn.Module):
    """Switches its branch where its mode is set, and asks for nothing in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.doubled = nn.Linear(6, 12), nn.Linear(12, 3), True

    def train(self, mode: bool = True) -> Fused:
        self.doubled = mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.first(2 * x if self.doubled else x))


def has_modes(model: nn.Module) -> bool:
    region = trace(model, ((torch.randn(2, 6),), {})).graphs.regions[0]
    return region.train is not region.eval


@pytest.mark.parametrize("asks", ["self.training", "a layer's", "getattr"])
def test_code_that_asks_for_its_mode_has_a_graph_for_each(asks: str) -> None:
    modes = {
        "self.training": lambda m, x: m.last(m.first(x).relu() if m.training else m.first(x)),
        "a layer's": lambda m, x: m.last(m.first(x).relu() if m.first.training else m.first(x)),
        "getattr": lambda m, x: m.last(m.first(x) * (1 + getattr(m, "training"))),  # noqa: B009
    }
    assert has_modes(Net(modes[asks]).eval())


def test_a_module_that_overrides_train_has_a_graph_for_each_mode() -> None:
    assert has_modes(Fused())


def test_code_that_never_asks_has_one_graph_though_its_layers_have_modes() -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, 3))
    assert not has_modes(model)
    assert "training" not in vars(nn.Module)


def test_an_op_that_needs_values_gets_them() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        hidden = model.first(x).relu()
        model.seen.copy_(hidden.detach().mean(0))  # a buffer holds values, whatever is written to it
        return model.last(hidden)  # type: ignore[no-any-return]

    x = torch.randn(4, 6, dtype=torch.float64)
    prepared = prepare_randomised(Net(forward).double(), x)
    assert_same(prepared, convert_closed(prepared), x)


def test_code_that_catches_what_fails_without_values_takes_its_own_way() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        try:
            return model.last(torch.linalg.inv(torch.diag(x[0]))[:1] @ model.first.weight.t())  # type: ignore[no-any-return]
        except RuntimeError:
            return model.last(model.first(x))  # type: ignore[no-any-return]

    model = Net(forward)
    traced = trace(model, ((torch.ones(1, 6),), {}))
    assert torch.allclose(traced(torch.ones(1, 6)), model(torch.ones(1, 6)))


def test_inputs_whose_values_a_model_refuses_are_refused_in_a_sentence() -> None:
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with pytest.raises(TraceError, match="does not run on the example inputs in eval mode: index out of range"):
        fxprune.prepare(model, torch.tensor([[1, 30]]))


def test_nothing_is_computed_at_the_size_of_the_image() -> None:
    image = torch.zeros(1, 1, 1, 1).expand(1, 1, 2**20, 2**20)  # as float32 4 TB, had it memory of its own
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    prepared = fxprune.prepare(model, image, check=False)
    assert isinstance(prepared, PreparedModel)


def test_a_compact_model_shares_no_memory_with_the_prepared_one() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    prepared = prepare_randomised(model.double(), torch.randn(2, 3, 8, 8, dtype=torch.float64))
    compact = fxprune.convert(prepared)  # nothing is closed, so that nothing is cut either
    used = {tensor.data_ptr() for tensor in prepared.state_dict().values()}
    assert not [name for name, tensor in compact.state_dict().items() if tensor.data_ptr() in used and tensor.numel()]

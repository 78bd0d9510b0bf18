"""Whether inputs of every kind are taken, what is shared stays shared, and the owner's model stays as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.model import as_inputs
from fxprune.passes.trace import trace
from tests.passes.test_trace import Model, assert_alike, count, images, traced


@pytest.mark.parametrize(
    "inputs",
    [
        (images(),),
        (images(), 3.0),
        {"x": images(), "scale": 0.5},
        {"x": images(), "other": images()},
        {"x": images(), "pair": {"a": images(), "b": [images(), (images(),)]}},
        (images(), torch.tensor(0.5)),
    ],
)
def test_inputs_of_every_kind_are_taken(inputs: Any) -> None:
    def body(self: Model, x: Tensor, other: Any = None, pair: Any = None) -> Tensor:
        x = x if other is None else x + other.mean()
        return x if pair is None else x * pair["a"].sum() + pair["b"][1][0].mean()

    model, graph = traced(body, inputs)
    args, kwargs = as_inputs(inputs)
    assert_alike(model, graph, *args, **kwargs)


def test_the_owners_model_stays_as_it_was() -> None:
    model = Model(lambda self, x: self.head(F.dropout(count(self, x)).mean((2, 3)))).train()
    model.norm.eval(), model.head.weight.requires_grad_(False)
    before, attributes = copy.deepcopy(model), set(vars(model))
    random = torch.get_rng_state()
    graph = trace(model, ((images(),), {}))
    assert torch.equal(torch.get_rng_state(), random)
    assert set(vars(model)) == attributes
    for mine in (model, graph):
        assert [m.training for m in mine.modules()] == [m.training for m in before.modules()]
        assert [p.requires_grad for p in mine.parameters()] == [p.requires_grad for p in before.parameters()]
        torch.testing.assert_close(mine.state_dict(), before.state_dict(), rtol=0, atol=0)
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in graph.parameters()}


def test_shared_modules_and_tied_weights_stay_shared() -> None:
    model = Model(lambda self, x: F.linear(self.again(x.mean((2, 3))), self.tied.weight))
    model.again, model.tied = nn.Linear(4, 2).double(), model.head
    model.again.weight = model.head.weight
    model.tied.weight.data.copy_(torch.randn(2, 4))
    model.body = lambda self, x: self.head(x.mean((2, 3))) + self.again(x.amax((2, 3))) + self.tied(x.sum((2, 3)))
    graph = trace(model, ((images(),), {}))
    assert graph.again.weight is graph.head.weight
    assert graph.tied is graph.head
    assert list(graph.state_dict()) == list(model.state_dict())
    assert_alike(model, graph, images())

"""Whether a model whose code decides is refused where it must be, with the line: by values at once, by sizes later."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxprune.errors import GuardViolated, TraceError
from fxprune.model import as_inputs
from fxprune.passes.trace import trace
from tests.exactness import varied_images


class Model(nn.Module):
    """A convolution, and whatever `body(features)` makes of it."""

    def __init__(self, body: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.body = nn.Conv2d(3, 4, 3, padding=1).double(), body

    def forward(self, x: Tensor, scale: float = 2.0) -> Any:
        return self.body(self.conv(x) * scale)


@pytest.mark.parametrize(
    "body",
    [
        lambda x: x * 2 if x.shape[2] > 8 else x,
        lambda x: sum(x[:, :, i] for i in range(x.shape[2])),
        lambda x: torch.stack([x[i] for i in range(len(x))]),
        lambda x: torch.stack([row for row in x]),  # noqa: C416
        lambda x: sum(part.mean() for part in x.split(2)),
        lambda x: torch.stack([part.mean() for part in torch.chunk(x, 8, 2)]),
        lambda x: x * sum([0.5] * x.shape[0]),
        lambda x: x[:, :, : operator.index(x.shape[2]) // 2],
        lambda x: torch.stack(list(x.unbind(0))),
        lambda x: x * {"12": 2.0}.get(f"{x.shape[2]}", 1.0),
        lambda x: x * (2 if str(tuple(x.shape[2:])) == "(12, 12)" else 1),
        lambda x: x * int(str(x.shape[2])),
        lambda x: x[:, : [1, 2][x.shape[2] % 2]],
    ],
)
def test_another_way_through_the_code_is_refused(body: Callable[..., Any]) -> None:
    model = Model(body)
    graph = trace(model, ((varied_images(2, 3, 12),), {}))
    torch.testing.assert_close(graph(varied_images(2, 3, 12)), model(varied_images(2, 3, 12)), rtol=0, atol=0)
    with pytest.raises(GuardViolated, match=r"test_trace_guards.py:\d+.*was .* when the model was prepared"):
        graph(varied_images(3, 3, 7))


def test_a_size_that_code_takes_as_a_plain_number_says_how_to_keep_it() -> None:
    graph = trace(Model(lambda x: sum(x[:, :, i] for i in range(x.shape[2]))), ((varied_images(2, 3, 12),), {}))
    with pytest.raises(GuardViolated, match=r"was 12 .* is 7 .*range\(n\).*x.shape\[i\] by arithmetic"):
        graph(varied_images(2, 3, 7))


@pytest.mark.parametrize(
    "body",
    [
        lambda x: x * 2 if x.sum() > 0 else x,
        lambda x: x * 2 if x.sum().item() > 0 else x,
        lambda x: x[:, : int(x.max().clamp(1, 2))],
        lambda x: [i for i in range(x.argmax())],  # noqa: C416
        lambda x: x if torch.equal(x, x * 1) else -x,
        lambda x: x if x.tolist()[0][0][0][0] > 0 else -x,
    ],
)
def test_decisions_by_values_are_refused_with_their_line(body: Callable[..., Any]) -> None:
    with pytest.raises(TraceError, match=r"test_trace_guards.py:\d+.*by the values of a tensor"):
        trace(Model(body), ((varied_images(2, 3, 12),), {}))


@pytest.mark.parametrize(
    "inputs",
    [torch.ones(2, 2, 4, 4).double(), (torch.ones(2, 3, 4, 4).double(), 1.0, 2.0), {"y": torch.ones(2, 3, 4, 4)}],
)
def test_inputs_that_the_model_does_not_take_are_refused(inputs: Any) -> None:
    with pytest.raises(TraceError, match=r"does not (run on|take).*example inputs.*tuple"):
        trace(Model(torch.relu), as_inputs(inputs))


def test_an_error_of_the_models_own_names_its_line() -> None:
    with pytest.raises(TraceError, match=r"Model does not run.*shape.*\(at .*test_trace_guards.py:\d+ in <lambda>\)"):
        trace(Model(lambda x: x.view(7, -1)), ((varied_images(2, 3, 12),), {}))


def test_code_that_runs_and_cannot_be_traced_is_told_from_inputs_that_do_not_fit() -> None:
    with pytest.raises(TraceError, match=r"Model runs on the example inputs, but its code fails when.*guards.py:\d+"):
        trace(Model(lambda x: x if type(x) is Tensor else x.no_such_method()), ((varied_images(2, 3, 12),), {}))


def test_an_error_inside_of_numpy_names_the_models_line() -> None:
    body = lambda x: x * float(np.take_along_axis(np.ones(3), np.ones(2), 0)[0])  # noqa: E731
    with pytest.raises(TraceError, match=r"integer.*\(at .*test_trace_guards.py:\d+ in <lambda>\)"):
        trace(Model(body), ((varied_images(2, 3, 12),), {}))


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = Model(torch.relu)
    model.last = model.conv(varied_images(2, 3, 12))
    with pytest.raises(TraceError, match=r"cannot be copied.*no tensors with gradients"):
        trace(model, ((varied_images(2, 3, 12),), {}))

"""Whether a traced model is the model: names, sizes, modes, inputs and outputs; and the owner's stays as it was."""

from __future__ import annotations

import collections
import copy
import logging
import math
from collections.abc import Callable
from math import ceil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.model import TracedModel, as_inputs
from fxprune.passes.trace import trace
from tests.exactness import randomise, varied_images

Pair = collections.namedtuple("Pair", "left right")


class Model(nn.Module):
    """Four channels, a norm, a head, and whatever `body(self, features)` makes of them."""

    def __init__(self, body: Callable[..., Any] = lambda self, x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.table = nn.Parameter(torch.randn(1, 4, 32, 1))
        self.body, self.plain = body, torch.randn(4, 1, 1).double()
        self.register_buffer("calls", torch.zeros(()))
        randomise(self.double())

    def forward(self, x: Tensor, scale: float = 2.0, **more: Any) -> Any:
        return self.body(self, torch.relu(self.norm(self.conv(x))) * scale, **more)


def images(size: int = 12, count: int = 2) -> Tensor:
    return varied_images(count, 3, size)


def traced(body: Callable[..., Any], inputs: Any = None, training: bool = False) -> tuple[Model, TracedModel]:
    model = Model(body).train(training)
    return model, trace(model, as_inputs(images() if inputs is None else inputs))


def assert_alike(model: nn.Module, other: nn.Module, /, *args: Any, **kwargs: Any) -> None:
    """Compare outputs; both draw the same random numbers."""
    torch.manual_seed(1)
    expected = copy.deepcopy(model)(*copy.deepcopy(args), **kwargs)
    torch.manual_seed(1)
    torch.testing.assert_close(copy.deepcopy(other)(*copy.deepcopy(args), **kwargs), expected, rtol=1e-12, atol=1e-12)


def write(self: Model, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, 1:3] = x[:, :2]
    out += x
    out.add_(1).relu_()
    out[:, 0] *= 2
    return out


def cache(self: Model, x: Tensor) -> Tensor:
    if getattr(self, "cached", None) is None:
        self.cached = torch.ones_like(x[:, 0, 0, 0])
    return x + self.cached[:, None, None, None]


def count(self: Model, x: Tensor) -> Tensor:
    self.calls += 1
    return x * self.calls


def say(self: Model, x: Tensor) -> Tensor:
    torch._assert(x.shape[2] > 0, f"no rows in {x.shape}, {x.shape[2]} of them")
    torch._assert(x.dim() == 4, f"four dimensions are wanted, not {x.shape}")
    logging.getLogger(__name__).debug(f"{x.shape[2]} rows")
    return x * 2


BODIES: dict[str, Callable[..., Any]] = {
    "view": lambda self, x: x.view(x.size(0), -1).sum(1),
    "length": lambda self, x: x.reshape(len(x) * 2, -1, x.shape[2], x.shape[3]).amax(1),
    "reshape": lambda self, x: torch.reshape(x, (x.shape[0], x.shape[1], -1)).mean(2),
    "roll": lambda self, x: torch.roll(x, (x.shape[2] // 2, x.shape[3] // 3), (2, 3)),
    "pool": lambda self, x: F.avg_pool2d(x, (x.shape[2], x.shape[3] // 2)),
    "spectrum": lambda self, x: torch.fft.irfft2(torch.fft.rfft2(x) * 2, s=x.shape[-2:]),
    "spectrum of a row": lambda self, x: torch.fft.irfft(torch.fft.rfft(x), n=x.shape[3]),
    "narrowed": lambda self, x: torch.narrow(x, 2, x.shape[2] // 2, x.shape[2] - x.shape[2] // 2).tile(x.shape[0], 1),
    "best": lambda self, x: torch.topk(x, x.shape[3] // 2, 3)[0],
    "broadcast": lambda self, x: x + torch.broadcast_to(x[:1, :1, :1, :1], (x.shape[0], 4, 1, x.shape[3])),
    "arithmetic": lambda self, x: x.reshape(x.shape[0] * 2, x.shape[1] // 2, x.shape[2] * x.shape[3]).amax(2),
    "unpacked": lambda self, x: (lambda b, c, h, w: x.view(b, c, h * w).permute(0, 2, 1).reshape(b * h, w, c))(
        *x.shape
    ),
    "half": lambda self, x: F.interpolate(x, size=(int(x.shape[2] * 0.5), int(float(x.shape[3]) / 3))),
    "multiples": lambda self, x: F.pad(x, (0, math.ceil(x.shape[3] / 7) * 7 - x.shape[3], 0, ceil(x.shape[2] / 5))),
    "square": lambda self, x: x.flatten(2).unflatten(2, (int(math.sqrt(x.shape[2] * x.shape[3])), -1)),
    "divided": lambda self, x: x[:, :, divmod(x.shape[2], 5)[1] :, : math.trunc(x.shape[3] / 2)],
    "centred": lambda self, x: x + (torch.arange(0.5, x.shape[2]) / float(x.shape[2]))[:, None],
    "types": lambda self, x: x * torch.ones(int(x.shape[3] / 3), 1, 1, 1, 1, dtype=float).to(float).sum(0),
    "asked": lambda self, x: x[..., : int(x.shape[3] / 2)] if isinstance(int(x.shape[3] / 2), int) else x,
    "padded": lambda self, x: F.pad(x, (0, -x.shape[3] % 7, 0, 0)) if -x.shape[3] % 7 or not x.shape[0] else x,
    "not empty": lambda self, x: x * 2 if all(x.shape) else x,
    "larger": lambda self, x: F.interpolate(x, size=(max(x.shape[2], x.shape[3] // 2), min(x.shape[3], 10, 20))),
    "callable": lambda self, x: x if callable(x.shape[2]) else x * 2,
    "numbers": lambda self, x: x.reshape(len(x), 4, x.shape[2:].numel()) / x.shape[1:].numel(),
    "said": say,
    "interpolate": lambda self, x: F.interpolate(F.max_pool2d(x, 2), size=x.shape[2:]) + x,
    "zeros": lambda self, x: torch.zeros(x.shape[0], 4, device=x.device, dtype=x.dtype) + x.mean((2, 3)),
    "full": lambda self, x: torch.full((x.size(0), 4), 0.5, device=x.device) + x.mean((2, 3)),
    "arange": lambda self, x: x * torch.arange(x.shape[2], device=x.device)[:, None],
    "new": lambda self, x: torch.cat([x, x.new_ones(x.size(0), 1, *x.shape[2:])], 1),
    "table": lambda self, x: x + self.table[:, :, : x.shape[2]],
    "plain": lambda self, x: x * self.plain,
    "write": write,
    "chained": lambda self, x: self.norm(self.norm(x)).flatten(1).std(1, keepdim=True),
    "isinstance": lambda self, x: x * 3 if isinstance(x, torch.Tensor) else x,
    "namedtuple": lambda self, x: Pair(x, x * 2),
    "dict": lambda self, x: {"out": x, "list": [x.sum(), (x.mean(),)]},
    "values": lambda self, x: x.max(1).values + x.flatten(2).sort(2).values[:, 0, :1, None],
    "cache": cache,
    "count": count,
    "tally": lambda self, x: x * self.calls.add_(1),
    "dropout": lambda self, x: F.dropout(x, 0.5, training=self.training),
    "auxiliary": lambda self, x: (x, self.head(x.mean((2, 3)))) if self.training else x,
    "einsum": lambda self, x: torch.einsum("bchw,bdhw->bcd", x, x) / x.shape[2] ** 0.5,
    "context": lambda self, x: x + torch.no_grad()(lambda y: y.amax((2, 3), keepdim=True))(x),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("training", [False, True])
def test_any_size_runs_after_tracing_at_one(name: str, training: bool) -> None:
    model = Model(BODIES[name]).train(training)
    before = copy.deepcopy(model.state_dict())
    graph = trace(model, ((images(),), {}))
    assert all(torch.equal(before[key], value) for key, value in graph.state_dict().items())
    assert not hasattr(model, "cached")
    for size, count in ((12, 2), (16, 3), (9, 5)):
        assert_alike(model, graph, images(size, count))
    assert type(graph(images())) is type(model(images()))
    assert graph.training == training


def test_names_and_weights_go_both_ways() -> None:
    model, graph = traced(BODIES["view"])
    assert list(graph.state_dict()) == list(model.state_dict())
    assert list(dict(graph.named_modules())) == list(dict(model.named_modules()))
    other = Model(BODIES["view"]).eval()
    randomise(other, seed=5)
    graph.load_state_dict(other.state_dict())
    assert_alike(other, graph, images())
    model.load_state_dict(graph.state_dict())
    assert_alike(model, graph, images())


@pytest.mark.parametrize(("name", "shared"), [("view", True), ("dropout", False), ("auxiliary", False)])
def test_modes_share_a_graph_where_they_do_not_differ(name: str, shared: bool) -> None:
    graphs = traced(BODIES[name])[1].graphs
    assert (graphs.regions[0].train is graphs.regions[0].eval) == shared

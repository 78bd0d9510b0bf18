"""Do channels pass through what takes and puts elements by indexes that depend on the input?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.conversion import close_units

Move = Callable[[Tensor, Tensor], Tensor]


class Tokens(nn.Module):
    """Tokens of 8 channels, [batch, 5, 8], which are moved by their scores, [batch, 5]."""

    def __init__(self, move: Move) -> None:
        super().__init__()
        self.a, self.score, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 1), nn.Linear(8, 7), nn.Linear(7, 2)
        self.move = move

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.head(self.b(self.move(self.score(x).squeeze(-1), x)).relu())


def best(scores: Tensor) -> Tensor:
    return scores.topk(3, 1).indices


def rows(x: Tensor) -> Tensor:
    return torch.arange(len(x)).unsqueeze(1)


def write(out: Tensor, *indexes: Tensor, values: Tensor | float, add: bool = False) -> Tensor:
    if isinstance(values, Tensor):
        return out.index_put_(indexes, values, accumulate=add)
    out[indexes] = values
    return out


KEEPING: dict[str, Move] = {
    "samples": lambda s, x: x.index_select(0, s.sum(1).argsort()),
    "gather": lambda s, x: x.gather(1, best(s).unsqueeze(-1).expand(-1, -1, x.size(-1))),
    "gather by a literal": lambda s, x: x.gather(1, best(s).unsqueeze(-1).expand(-1, -1, 8)),
    "gather by copies": lambda s, x: x.gather(1, best(s).unsqueeze(-1).repeat(1, 1, 8)),
    "gather by a sum": lambda s, x: x.gather(1, (s > 0).long().unsqueeze(-1) + torch.zeros(8).long()),
    "take_along_dim": lambda s, x: x.take_along_dim(best(s).unsqueeze(-1), 1),
    "one of each": lambda s, x: x[torch.arange(len(x)), s.argmax(1)],
    "several of each": lambda s, x: x[rows(x), best(s)],
    "scatter": lambda s, x: torch.zeros_like(x).scatter(1, s.argsort(1).unsqueeze(-1).expand_as(x), x),
    "scatter in place": lambda s, x: torch.ones_like(x).scatter_(1, s.argsort(1).unsqueeze(-1).expand_as(x), x),
    "scatter_add": lambda s, x: x.scatter_add(1, s.argsort(1).unsqueeze(-1).expand_as(x), x.square()),
    "scatter_reduce": lambda s, x: x.scatter_reduce(1, s.argsort(1).unsqueeze(-1).expand_as(x), x * 2, "amax"),
    "index_add": lambda s, x: torch.ones_like(x[0]).index_add(0, s[0].argsort(), x[0]),
    "index_copy": lambda s, x: x.index_copy(1, s[0].argsort()[:2], 3 * x[:, :2]),
    "setitem": lambda s, x: write(torch.ones_like(x), rows(x), s.argsort(1), values=x),
    "accumulate": lambda s, x: write(torch.ones_like(x), s.sum(1).argsort(), values=x, add=True),
    "setitem of a number": lambda s, x: write(x + 1, rows(x), best(s), values=2.0),
    "setitem by a mask": lambda s, x: write(x + 1, s > 0, values=2.0),
}

PINNING: dict[str, Move] = {
    "channels": lambda s, x: x.index_select(2, s.sum(0).argsort().repeat(2)[:8] % 8),
    "gather among channels": lambda s, x: x.gather(2, (x > 0.1).long()),
    "a corner": lambda s, x: x.scatter(1, best(s).unsqueeze(-1).expand(-1, -1, 4), x),
}


def prune_half(move: Move) -> int:
    torch.manual_seed(0)
    model, x = Tokens(move).double().eval(), torch.randn(3, 5, 6).double()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -1, 1)
    prepared = fxprune.prepare(model, x).eval()
    for each in (x, torch.randn(4, 5, 6).double()):
        torch.testing.assert_close(prepared(each), model(each), rtol=0, atol=1e-12)
    units = prepared.fxprune.gates.numel()
    for seed in range(3):
        close_units(prepared, 0.5, seed)
        compact = fxprune.convert(prepared)
        for each in (x, torch.randn(4, 5, 6).double()):
            torch.testing.assert_close(compact(each), prepared(each), rtol=0, atol=1e-12)
    return units


@pytest.mark.parametrize("name", KEEPING)
def test_channels_that_are_not_indexed_go(name: str) -> None:
    assert prune_half(KEEPING[name]) == 8 + 7


@pytest.mark.parametrize("name", PINNING)
def test_channels_among_which_an_index_chooses_stay(name: str) -> None:
    assert prune_half(PINNING[name]) == 7

"""Whether models of other inputs leave exactly: sequences, volumes, rows, words, and sizes written into a view."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.exactness import close_units, randomise, relative_error, zero_filters


class Views(nn.Module):
    """Linear layers behind literal sizes of a view."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.last = nn.Linear(6, 128), nn.Conv2d(8, 10, 3), nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.conv(torch.relu(self.first(x)).view(-1, 8, 4, 4))).view(-1, 40))


class Text(nn.Module):
    """An embedding that feeds a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.last = nn.Embedding(20, 12), nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(self.table(x))).mean(1))


def chain(conv: Any, rank: int) -> tuple[nn.Module, Tensor, Tensor]:
    model = nn.Sequential(conv(3, 8, 3, padding=1), nn.ReLU(), conv(8, 12, 3, 2, groups=2), nn.ReLU(), conv(12, 5, 1))
    return nn.Sequential(model, nn.Flatten(2)), torch.randn(2, 3, *[6] * rank), torch.randn(5, 3, *[9] * rank)


OTHERS: dict[str, Any] = {
    "conv1d": lambda: chain(nn.Conv1d, 1),
    "conv3d": lambda: chain(nn.Conv3d, 3),
    "linear": lambda: (nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 9), nn.Sigmoid(),
                                     nn.Linear(9, 5)), torch.randn(2, 6), torch.randn(7, 6)),
    "views": lambda: (Views(), torch.randn(2, 6), torch.randn(7, 6)),
    "text": lambda: (Text(), torch.randint(20, (2, 7)), torch.randint(20, (9, 3))),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("filters", [False, True])
def test_what_is_closed_leaves_exactly(name: str, filters: bool) -> None:
    torch.manual_seed(0)
    model, x, other = OTHERS[name]()
    model, x, other = model.double().eval(), *(t.double() if t.is_floating_point() else t for t in (x, other))
    randomise(model, share=0.4)
    if filters:
        zero_filters(model, 0.3, seed=1)
        compact = fxprune.convert(model, x)
    else:
        model = fxprune.prepare(model, x)
        close_units(model, 0.4, seed=1)
        compact = fxprune.convert(model)
        assert compact.report.units_removed > 0
    assert relative_error(model, compact, other) < 1e-12

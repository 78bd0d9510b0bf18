"""What cannot be pruned, and whether the analysis says why and where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.shadow.ids import PINNED, IdTable
from tests.conversion import convert_closed, prepare_randomised
from tests.shadow.test_ids import columns, conv, find_channels, rows


def test_inputs_and_outputs_are_pinned() -> None:
    channels = find_channels(lambda m, a, b: m["head"](a + b), head=conv(4, 5))
    assert rows(channels, "layers.head.weight") == [PINNED] * 5
    assert columns(channels, "a.weight") == [PINNED] * 3
    assert any(pin.reason == "an output of the model" for pin in channels.pins)


@pytest.mark.parametrize(
    "size", [lambda a: a.shape, lambda a: a.size(1), lambda a: a.numel() * 2, lambda a: a.shape[:2]]
)
def test_an_output_that_counts_channels_pins_those_alone(size: Callable[[Tensor], Any]) -> None:
    channels = find_channels(lambda m, a, b: (size(a), m["head"](a), m["more"](b)), head=conv(4, 5), more=conv(4, 5))
    assert rows(channels, "a.weight") == [PINNED] * 4
    assert PINNED not in rows(channels, "b.weight")


@pytest.mark.parametrize(
    "size", [lambda a: a.shape[2:], lambda a: a.size(0), lambda a: len(a), lambda a: a.shape[3] // 2]
)
def test_an_output_that_counts_no_channels_pins_none(size: Callable[[Tensor], Any]) -> None:
    channels = find_channels(lambda m, a, b: (size(a), m["head"](torch.relu(a))), head=conv(4, 5))
    assert PINNED not in rows(channels, "a.weight")


@pytest.mark.parametrize(
    ("op", "name"), [(lambda a: torch.cdist(a, a), "cdist"), (lambda a: a.cumsum(1), "cumsum"),
                     (lambda a: torch.sort(a, 1)[0], "sort"), (lambda a: a.cummax(1)[0], "cummax")],
)  # fmt: skip
def test_an_op_without_a_form_for_fewer_channels_pins_and_names_itself(op: Callable[..., Any], name: str) -> None:
    channels = find_channels(lambda m, a, b: op(a).mean() + m["head"](b).mean(), head=conv(4, 5))
    assert rows(channels, "a.weight") == [PINNED] * 4
    assert PINNED not in rows(channels, "b.weight")
    assert any(name in pin.reason and "test_pins.py:" in pin.where and "<lambda>" in pin.where for pin in channels.pins)


def test_one_channel_that_is_taken_alone_stays_and_the_others_go() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv1d(3, 6, 1), nn.Linear(7, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.second(self.first(x)[:, 2])))

    torch.manual_seed(0)
    compact = fxprune.convert(Alone().double(), torch.randn(4, 3, 7).double())
    assert compact.first.out_channels == 1
    assert not compact.report.kept


def test_what_an_embedding_looks_up_is_pinned() -> None:
    """Each channel has a row of the table, and what is found for them lies along a dimension that has no ids."""
    channels = find_channels(
        lambda m, a, b: m["head"](m["table"]((a.mean((2, 3)) > 0).long()).mean(2)) + b.mean((2, 3))[:, :1],
        table=nn.Embedding(2, 6), head=nn.Linear(4, 5),
    )  # fmt: skip
    assert rows(channels, "a.weight") == [PINNED] * 4
    assert "a table of indexes" in {pin.reason for pin in channels.pins}


def test_a_table_unites_chains_and_keeps_the_smallest_id() -> None:
    table = IdTable()
    ids = table.take(8)
    for i in (6, 4, 2, 0):
        table.unite(ids[i : i + 1], ids[i + 1 : i + 2])
    table.unite(ids[1:3], ids[2:4])
    table.pin(ids[7:], "a test")
    assert table.resolve().tolist() == [0, 1, 1, 1, 1, 5, 5, 0, 0]


class Joined(nn.Module):
    """Two streams that are mixed by a convolution, whose spatial dimension is the streams' channels."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
        self.join = nn.Conv1d(2, 1, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.join(torch.stack([self.first(x), self.second(x)], 1)).squeeze(1))


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_along_channels_keeps_them_and_their_neighbours(kernel: int) -> None:
    torch.manual_seed(0)
    prepared = prepare_randomised(Joined(kernel), torch.randn(4, 6, dtype=torch.float64))
    compact = convert_closed(prepared, torch.randn(3, 6, dtype=torch.float64))
    assert compact.head.in_features == compact.first.out_features < 8

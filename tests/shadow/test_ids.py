"""Which channels the analysis ties, which it leaves apart, and what it says of those that it pins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune.passes.analyse import Channels, analyse
from fxprune.passes.decompose import decompose
from fxprune.passes.trace import trace
from fxprune.shadow.ids import PINNED

Layers = dict[str, nn.Module]


class Model(nn.Module):
    """Two convolutions of four channels beside each other, the body under test, and a head."""

    def __init__(self, body: Callable[..., Tensor], layers: Layers) -> None:
        super().__init__()
        self.a, self.b, self.body = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), body
        self.layers = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.layers, self.a(x), self.b(x))


def find_channels(body: Callable[..., Tensor], **layers: nn.Module) -> Channels:
    inputs = ((torch.randn(2, 3, 6, 6),), {})
    traced = trace(Model(body, layers), inputs)
    decompose(traced)
    return analyse(traced, inputs)


def rows(channels: Channels, name: str) -> list[int]:
    return channels.units_along(name, 0).tolist()


def columns(channels: Channels, name: str) -> list[int]:
    return channels.units_along(name, 1).tolist()


def conv(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, **options)


@pytest.mark.parametrize(
    "join", [torch.add, torch.mul, torch.maximum, lambda a, b: a.clone().add_(b), lambda a, b: torch.where(a > 0, a, b)]
)
def test_element_wise_ops_tie_position_by_position(join: Callable[..., Tensor]) -> None:
    channels = find_channels(lambda m, a, b: m["head"](join(a, b)), head=conv(4, 5))
    units = rows(channels, "a.weight")
    assert len(set(units)) == 4
    assert units == rows(channels, "b.weight") == rows(channels, "a.bias") == columns(channels, "layers.head.weight")
    assert PINNED not in units


def test_cat_ties_each_part_to_its_own_columns() -> None:
    channels = find_channels(lambda m, a, b: m["head"](torch.cat([a, b], 1)), head=conv(8, 5))
    units = rows(channels, "a.weight") + rows(channels, "b.weight")
    assert len(set(units)) == 8
    assert units == columns(channels, "layers.head.weight")


def test_a_broadcast_map_ties_nothing_and_is_pinned() -> None:
    channels = find_channels(lambda m, a, b: m["head"](a * m["map"](b)), head=conv(4, 5), map=conv(4, 1))
    assert len({*rows(channels, "a.weight"), *rows(channels, "b.weight")}) == 8
    assert rows(channels, "layers.map.weight") == [PINNED]


def test_an_affine_map_of_channels_is_tied_through_its_broadcast_dimensions() -> None:
    norm = nn.BatchNorm2d(4)
    channels = find_channels(lambda m, a, b: m["head"](m["norm"](a) + b.mean((2, 3), True)), head=conv(4, 5), norm=norm)
    units = rows(channels, "a.weight")
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert channels.units_along(f"layers.norm.{name}", 0).tolist() == units
    assert units == rows(channels, "b.weight")


def test_depthwise_ties_input_to_output() -> None:
    channels = find_channels(lambda m, a, b: m["head"](m["deep"](a)), head=conv(4, 5), deep=conv(4, 4, groups=4))
    assert rows(channels, "layers.deep.weight") == rows(channels, "a.weight") == columns(channels, "layers.head.weight")
    assert len(set(rows(channels, "a.weight"))) == 4


def test_depthwise_with_two_outputs_each_ties_both_to_their_input() -> None:
    channels = find_channels(lambda m, a, b: m["head"](m["deep"](a)), head=conv(8, 5), deep=conv(4, 8, groups=4))
    assert rows(channels, "layers.deep.weight") == [unit for unit in rows(channels, "a.weight") for _ in range(2)]


def test_a_transposed_depthwise_convolution_ties_input_to_output() -> None:
    deep = nn.ConvTranspose2d(4, 4, 2, groups=4)
    channels = find_channels(lambda m, a, b: m["head"](m["deep"](a)), head=conv(4, 5), deep=deep)
    assert rows(channels, "layers.deep.weight") == rows(channels, "a.weight") == columns(channels, "layers.head.weight")
    assert PINNED not in rows(channels, "a.weight")


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_groups_lose_the_same_index_each(kind: Any) -> None:
    layer = kind(4, 8, 1, groups=2)
    channels = find_channels(lambda m, a, b: m["head"](m["grouped"](a)), head=conv(8, 5), grouped=layer)
    first, second, *rest = rows(channels, "a.weight")
    assert rest == [first, second]
    assert first != second
    read = columns(channels, "layers.head.weight")
    assert read[:4] == read[4:]
    assert len(set(read)) == 4
    assert PINNED not in (first, *read)


def test_flattened_channels_tie_their_columns_block_by_block() -> None:
    channels = find_channels(lambda m, a, b: m["head"](a.flatten(1)), head=nn.Linear(4 * 36, 5))
    units = rows(channels, "a.weight")
    assert columns(channels, "layers.head.weight") == [unit for unit in units for _ in range(36)]


def test_a_view_that_splits_channels_keeps_them_apart() -> None:
    shuffled = lambda m, a, b: m["head"](a.view(-1, 2, 2, 6, 6).transpose(1, 2).reshape(-1, 4, 6, 6))  # noqa: E731
    channels = find_channels(shuffled, head=conv(4, 5))
    first, second, third, fourth = rows(channels, "a.weight")
    assert columns(channels, "layers.head.weight") == [first, third, second, fourth]
    assert len({first, second, third, fourth}) == 4


@pytest.mark.parametrize("relu", [torch.relu, torch.relu_])
def test_dimensions_that_a_view_joins_stay_apart_where_they_are_written_in_place(relu: Callable[..., Tensor]) -> None:
    """A linear layer joins all dimensions of its input but the last, and its output is a view of a matrix."""
    channels = find_channels(
        lambda m, a, b: m["head"](a.mean((2, 3)) * relu(m["table"](m["places"].weight)).mean((0, 1))),
        head=nn.Linear(4, 5), places=nn.Conv1d(3, 5, 2), table=nn.Linear(2, 4),
    )  # fmt: skip
    after = [v for n, v in channels.values[0].items() if "relu" in n.name]
    assert [ids.shape for ids in after[0].ids] == [(1, 1, 4), (5, 1, 1), (1, 3, 1)]


def test_writing_into_a_slice_ties_what_is_written() -> None:
    def body(m: Layers, a: Tensor, b: Tensor) -> Tensor:
        out = torch.zeros_like(a)
        out[:, 1:3] = b[:, :2]
        return m["head"](out + a)

    channels = find_channels(body, head=conv(4, 5))
    assert rows(channels, "a.weight")[1:3] == rows(channels, "b.weight")[:2]
    assert len({*rows(channels, "a.weight"), *rows(channels, "b.weight")}) == 6

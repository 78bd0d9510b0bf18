"""Are conversions exact at sizes other than the example's, where a padding, a slice or a table has other elements?"""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from tests.exactness import close_units, randomise, relative_error, varied_images


def write_zeros(y: Tensor) -> Tensor:
    y = y.clone()
    y[..., 8:] = 0
    return y


def write_behind(y: Tensor) -> Tensor:
    y = y.clone()
    y[:, :, 1:] = 3
    return y


CASES: dict[str, tuple[Callable[[Tensor], Tensor], int, int]] = {
    "pad to even": (lambda y: F.pad(y, (0, y.shape[3] % 2)), 8, 9),
    "pad by another value": (lambda y: F.pad(y, (0, y.shape[3] % 2), value=-1.0), 8, 9),
    "pad at the least": (lambda y: F.pad(y, (0, max(0, 10 - y.shape[3]))), 10, 7),
    "pad to a multiple": (lambda y: F.pad(y, (0, (-y.shape[3]) % 4)), 8, 9),
    "cat with zeros": (lambda y: torch.cat([y, y.new_zeros(*y.shape[:2], y.shape[2] % 2, y.shape[3])], 2), 8, 9),
    "cat with an empty slice": (lambda y: torch.cat([y[..., :8], y[..., 8:] * 2], 3), 8, 10),
    "cat with the first ones": (lambda y: torch.cat([y[..., :-4], y[..., -4:] * 2], 3), 4, 6),
    "cat with differences": (lambda y: torch.cat([y, y.diff(dim=3)], 3), 1, 4),
    "roll": (lambda y: torch.cat([y[..., 1:], y[..., :1] * 3], 3), 1, 4),
    "write to an empty slice": (write_zeros, 8, 9),
    "write behind the first": (write_behind, 1, 4),
    "slices of another mean": (lambda y: torch.cat([y[..., :8], y[..., 8:] * 2], 3).mean((2, 3), keepdim=True), 10, 12),
    "pool at the border": (lambda y: F.avg_pool2d(y, 2, ceil_mode=True), 8, 9),
    "scale by a size": (lambda y: y / y.shape[3], 8, 9),
    "ramp": (lambda y: y * (1 + torch.arange(y.shape[3], dtype=y.dtype)), 1, 4),
}


class Net(nn.Module):
    """A layer whose first filters are dead but for their bias, and another behind what a case does."""

    def __init__(self, between: Callable[[Tensor], Tensor], kernel: int) -> None:
        super().__init__()
        self.between = between
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 4, kernel, padding=kernel // 2)
        with torch.no_grad():
            self.a.weight[:4] *= 1e-3
            self.a.bias[:4] = torch.tensor([0.5, 1, 1.5, 2])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.between(self.a(x).relu()))
        return out


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("granularity", ["weight", "stripe", "channel", "none"])
@pytest.mark.parametrize("case", CASES)
def test_what_dead_filters_give_is_constant_at_every_size(case: str, granularity: str, kernel: int) -> None:
    torch.manual_seed(0)
    between, size, other = CASES[case]
    model = Net(between, kernel).double().eval()
    example = torch.randn(2, 3, size, size).double()
    if granularity == "none":
        with torch.no_grad():
            model.a.weight[:4] = 0
        source, compact = model, fxprune.convert(model, example)
    else:
        target = fxprune.Sparsity(0.5)
        source = fxprune.prune(model, example, granularity=granularity, target=target).eval()
        compact = fxprune.convert(source, align=1)
    for each in (size, other, other + 5):
        x = torch.randn(3, 3, each, each).double()
        torch.testing.assert_close(compact(x), source(x), rtol=1e-9, atol=1e-9)


class Classes(nn.Module):
    """Makes one-hot vectors of its input, and another layer of these."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(11, 8), nn.Linear(8, 3)

    def forward(self, index: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(F.one_hot(index, 11).to(self.first.weight.dtype)).relu())
        return out


def test_the_classes_of_one_hot_vectors_are_no_channels() -> None:
    prepared = fxprune.prepare(Classes().double().eval(), torch.zeros(2, 5, dtype=torch.long))
    assert len(prepared.fxprune.gates) == 8
    close_units(prepared, 0.5)
    compact = fxprune.convert(prepared)
    for index in torch.arange(11):
        torch.testing.assert_close(compact(index.expand(2, 5)), prepared(index.expand(2, 5)), rtol=1e-9, atol=1e-9)


def interleave(count: int) -> Tensor:
    table = torch.zeros(count, 16)
    angle = torch.arange(count)[:, None] * torch.exp(torch.arange(0, 16, 2) * (-math.log(1e4) / 16))
    table[:, 0::2], table[:, 1::2] = angle.sin(), angle.cos()
    return table


TABLES: dict[str, Callable[[int], Tensor]] = {
    "sines": lambda n: torch.sin(torch.arange(n)[:, None] * torch.exp(torch.arange(16) * (-4.0 / 16))),
    "sines beside cosines": interleave,
    "cut": lambda n: torch.linspace(0, 1, 20)[:16],
    "row": lambda n: torch.arange(32).view(2, 16)[1].float(),
    "stacked": lambda n: torch.stack([torch.arange(8.0), torch.ones(8)], 1).flatten(),
}


class Positions(nn.Module):
    """Adds a table of numbers that its code makes, along the channels."""

    def __init__(self, table: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.table = table
        self.first, self.up, self.down, self.last = (
            nn.Linear(8, 16),
            nn.Linear(16, 16),
            nn.Linear(16, 16),
            nn.Linear(16, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x) + self.table(x.shape[1]).to(x.dtype)
        out: Tensor = self.last(h + self.down(self.up(h).relu())).mean(1)
        return out


@pytest.mark.parametrize("table", TABLES)
def test_tables_along_channels_lose_what_the_channels_lose(table: str) -> None:
    torch.manual_seed(0)
    prepared = fxprune.prepare(Positions(TABLES[table]).double().eval(), torch.randn(2, 10, 8).double())
    close_units(prepared, 0.5)
    compact = fxprune.convert(prepared)
    assert compact.report is not None
    assert compact.report.kept == {}
    stays = table == "sines beside cosines"  # written by slices with a step: its channels are pinned
    assert (compact.get_submodule("first").out_features == 16) == stays
    for count in (10, 7, 23):
        x = torch.randn(3, count, 8).double()
        torch.testing.assert_close(compact(x), prepared(x), rtol=1e-9, atol=1e-9)


VIEWS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "tokens as channels": (lambda y: y.flatten(2).transpose(1, 2).reshape(y.shape), False),
    "tokens as channels, by what is left": (
        lambda y: y.flatten(2).transpose(1, 2).reshape(len(y), 8, -1).unflatten(2, y.shape[2:]), False
    ),
    "channels as tokens": (lambda y: y.reshape(len(y), -1, 8).transpose(1, 2).reshape(y.shape), False),
    "channels as tokens, like another": (lambda y: y.flatten(2).transpose(1, 2).contiguous().view_as(y), False),
    "channels as pixels": (lambda y: y.permute(0, 2, 3, 1).reshape(len(y), y.shape[2] * 2, y.shape[3] * 2, -1)
                           .repeat(1, 1, 1, 4).permute(0, 3, 1, 2)[:, :, ::2, ::2], False),
    "flattened and back": (lambda y: y.flatten(1).reshape(len(y), 8, y.shape[2], y.shape[3]), True),
    "groups": (lambda y: y.reshape(len(y), 2, -1).relu().reshape(y.shape), True),
    "groups in the batch": (lambda y: (y.reshape(len(y) * 2, 4, *y.shape[2:]) * 2).reshape(y.shape), True),
    "groups by a shape": (lambda y: y.movedim(1, 3).reshape(*y.shape[:1], *y.shape[2:], 2, 4).flip(3).flatten(3)
                          .movedim(3, 1), True),
    "groups by a longer shape": (lambda y: y.movedim(1, 3).reshape(y[:, 0].shape + (4, 2)).flatten(3)  # noqa: RUF005
                                 .movedim(3, 1), True),
}  # fmt: skip


class Viewed(nn.Module):
    """What a case does to the channels of a layer; behind it are two more."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.between, self.a, self.b, self.c = between, nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(self.b(self.between(self.a(x))).relu())
        return out


@pytest.mark.parametrize("case", VIEWS)
def test_channels_that_a_view_cuts_by_the_size_of_an_image_stay(case: str) -> None:
    between, may_go = VIEWS[case]
    torch.manual_seed(0)
    model = Viewed(between).double()
    randomise(model)
    prepared = fxprune.prepare(model, varied_images(2, 3, 2))
    close_units(prepared, 0.5, seed=1)
    compact = fxprune.convert(prepared)
    assert (compact.get_submodule("a").out_channels < 8) == may_go
    assert compact.get_submodule("b").out_channels < 6
    for size in (2, 4, 7):
        assert relative_error(prepared, compact, varied_images(3, 3, size, seed=1), 1e-3) < 1e-12

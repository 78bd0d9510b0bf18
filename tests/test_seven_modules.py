"""Ten-line modules each of which decides a data structure: they broke every simpler design."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from tests.exactness import close_units, randomise, relative_error, settle_statistics, varied_images, zero_filters


class AttentionMap(nn.Module):
    """A one-channel map times eight channels: broadcasting ties nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.map = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 1, 3, padding=1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.features(x)) * torch.sigmoid(self.map(x))).mean((2, 3))


class PadBetween(nn.Module):
    """A row of padding between two convolutions: what is constant inside is zero there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.pad(torch.relu(self.first(x)), (0, 0, 1, 0))).flatten(2).amax(2)


class SliceWrite(nn.Module):
    """Four channels written into a slice of zeros: an in-place write through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.part, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.whole(x)
        out = torch.zeros_like(wide)
        out[:, :4] = self.part(x)
        return self.head(torch.relu(wide + out)).mean((2, 3))


class CountedPad(nn.Module):
    """An average pool that counts its padding, before a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.avg_pool2d(torch.relu(self.first(x)), 3, 1, 1)).flatten(2).amax(2)


class PaddedShortcut(nn.Module):
    """A residual whose shortcut gets zero channels on either side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, 2, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.wide(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))
        return self.head(x.mean((2, 3)))


class TwoModes(nn.Module):
    """Another type of output in each mode, and an auxiliary head that only training has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.auxiliary = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3), nn.Conv2d(8, 7, 3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = torch.relu(self.stem(x))
        out = self.head(x).mean((2, 3))
        return (out, self.auxiliary(x).mean((2, 3))) if self.training else out


class BatchNormAndRelu(nn.Module):
    """A closed unit between batch norm, ReLU and its reader."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.norm(self.first(x)))).mean((2, 3))


SEVEN = [AttentionMap, PadBetween, SliceWrite, CountedPad, PaddedShortcut, TwoModes, BatchNormAndRelu]


def build(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = kind().double()
    randomise(model, seed)
    settle_statistics(model, varied_images(4, 3, 12))
    return model


@pytest.mark.parametrize("kind", SEVEN)
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_closed_units_leave_without_a_trace(kind: type[nn.Module], share: float) -> None:
    prepared = fxprune.prepare(build(kind), varied_images(2, 3, 12))
    close_units(prepared, share, seed=1)
    compact = fxprune.convert(prepared)
    assert compact.report.units_removed > 0
    for size in (12, 17):
        assert relative_error(prepared, compact, varied_images(5, 3, size, seed=3)) < 1e-12


@pytest.mark.parametrize("kind", SEVEN)
def test_zero_filters_leave_their_constants_behind(kind: type[nn.Module]) -> None:
    model = build(kind)
    zero_filters(model, 0.5, seed=2)
    compact = fxprune.convert(model, varied_images(2, 3, 12))
    for size in (12, 17):
        assert relative_error(model, compact, varied_images(5, 3, size, seed=3)) < 1e-12


def test_one_channel_map_does_not_tie_eight_channels() -> None:
    prepared = fxprune.prepare(build(AttentionMap), varied_images(2, 3, 12))
    assert prepared.fxprune.gates.numel() == 8


def test_constants_at_a_padded_border_become_one_channel() -> None:
    class Padded(BatchNormAndRelu):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.Conv2d(8, 5, 3, padding=1)

    model = build(Padded)
    with torch.no_grad():
        model.first.weight[:5] = 0
        model.norm.bias.abs_()  # so that the constants pass the ReLU
        model.norm.running_mean.zero_()
        model.first.bias.zero_()
    compact = fxprune.convert(model, varied_images(2, 3, 12))
    assert compact.first.out_channels == 4  # three that live, and one that carries five constants
    assert relative_error(model, compact, varied_images(5, 3, 15)) < 1e-12


def test_padding_by_a_row_keeps_what_differs_there() -> None:
    model = build(PadBetween)
    with torch.no_grad():
        model.first.weight[:5] = 0
        model.first.bias[:5] = torch.tensor([-1.0, -2.0, 1.0, 2.0, 3.0])
    compact = fxprune.convert(model, varied_images(2, 3, 12))
    assert compact.first.out_channels == 6  # what ReLU made zero goes, at the border and inside
    assert relative_error(model, compact, varied_images(5, 3, 15)) < 1e-12


def test_counted_padding_keeps_a_biased_channel() -> None:
    model = build(CountedPad)
    with torch.no_grad():
        model.first.weight[:2] = 0
        model.first.bias[:2] = torch.tensor([1.0, -1.0])
    compact = fxprune.convert(model, varied_images(2, 3, 12))
    assert compact.first.out_channels == 7
    assert relative_error(model, compact, varied_images(5, 3, 15)) < 1e-12


def test_both_modes_stay_what_they_were() -> None:
    model = build(TwoModes)
    prepared = fxprune.prepare(model, varied_images(2, 3, 12))
    close_units(prepared, 0.5)
    compact = fxprune.convert(prepared)
    x = varied_images(3, 3, 12)
    assert isinstance(prepared.train()(x), tuple)
    assert isinstance(compact.train()(x), tuple)
    assert isinstance(compact.eval()(x), Tensor)
    for ours, theirs in zip(compact.train()(x), prepared.train()(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_closed_units_rest_and_open_ones_learn_behind_batch_norm_and_relu() -> None:
    prepared = fxprune.prepare(build(BatchNormAndRelu), varied_images(2, 3, 12)).train()
    gates = close_units(prepared, 0.5, soft=False)
    assert (gates == 0).any()
    prepared(varied_images(4, 3, 12)).square().sum().backward()
    columns, rows = prepared.second.weight.grad.abs().sum((0, 2, 3)), prepared.first.weight.grad.abs().sum((1, 2, 3))
    assert torch.equal(columns > 0, gates > 0)
    assert torch.equal(rows > 0, gates > 0)

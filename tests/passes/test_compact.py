"""What a compact model is: right in its attributes, trainable, convertible again; and its source stays as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.model import TracedModel
from tests.conversion import leave_as_large
from tests.exactness import close_units, randomise, relative_error, settle_statistics, varied_images


class Small(nn.Module):
    """A stem, a residual block with a depthwise layer, and a head."""

    def __init__(self, wrap: Any = lambda layer: layer) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.wide, self.depth = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.narrow, self.head = wrap(nn.Conv2d(12, 8, 1)), nn.Linear(8, 5)
        randomise(self.double())
        settle_statistics(self, varied_images(4, 3, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.narrow(torch.relu(self.depth(torch.relu(self.wide(x)))))
        return self.head(x.mean((2, 3)))


def prepare_closed(model: nn.Module | None = None, share: float = 0.5) -> Any:
    prepared = fxprune.prepare(model or Small(), varied_images(2, 3, 12))
    close_units(prepared, share, seed=1)
    return prepared


def step(model: nn.Module) -> Tensor:
    """Train one step; return the loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = model(varied_images(4, 3, 12)).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def test_modules_have_the_attributes_of_their_new_size() -> None:
    compact = fxprune.convert(prepare_closed())
    kept, wide = compact.stem.weight.size(0), compact.wide.weight.size(0)
    assert (kept, wide) < (8, 12)
    assert (compact.stem.in_channels, compact.stem.out_channels, compact.norm.num_features) == (3, kept, kept)
    assert (compact.wide.in_channels, compact.wide.out_channels) == (kept, wide)
    assert (compact.depth.in_channels, compact.depth.out_channels, compact.depth.groups) == (wide, wide, wide)
    assert (compact.narrow.in_channels, compact.narrow.out_channels) == (wide, kept)
    assert (compact.head.in_features, compact.head.out_features) == (kept, 5)
    x = varied_images(2, 3, 12)  # each layer runs by itself
    x = compact.norm(compact.stem(x))
    assert compact.head((x + compact.narrow(compact.depth(compact.wide(x)))).mean((2, 3))).shape == (2, 5)


def test_a_branch_that_is_dead_throughout_goes_with_all_that_fed_it() -> None:
    prepared = prepare_closed(share=0)
    with torch.no_grad():
        prepared.narrow.weight.zero_()
    compact = fxprune.convert(prepared)
    graph = compact.graphs.regions[0].eval
    assert sum("conv" in getattr(node.target, "__name__", "") for node in graph.nodes) == 1
    assert not [name for name, _ in compact.named_parameters() if name.startswith(("wide", "depth", "narrow"))]
    assert relative_error(prepared, compact, varied_images(4, 3, 15)) < 1e-12


def test_a_dead_branch_leaves_what_depends_on_the_image_size() -> None:
    class Ramp(Small):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            ramp = torch.linspace(0, 1, x.shape[3], dtype=x.dtype)
            return self.head(torch.relu(x + (self.narrow(self.wide(x)) + ramp)).amax((2, 3)))

    model = Ramp()
    with torch.no_grad():
        model.narrow.weight.zero_()
    compact = fxprune.convert(model, varied_images(2, 3, 12))
    assert relative_error(model, compact, varied_images(4, 3, 15)) < 1e-12


def test_a_dense_concat_loses_a_dead_operand() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.part, self.other = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 1), nn.Conv2d(8, 1, 1)
            self.last = nn.Conv2d(12, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.last(torch.relu(torch.cat([x, self.part(x), self.other(x)], 1))).mean((2, 3))

    model = Dense().double().eval()
    randomise(model)
    with torch.no_grad():
        model.part.weight.zero_()
    compact = fxprune.convert(model, varied_images(2, 3, 12))
    assert compact.last.in_channels == 9
    assert not hasattr(compact, "part") or not list(compact.part.parameters())
    assert relative_error(model, compact, varied_images(4, 3, 15)) < 1e-12


def test_a_compact_model_trains_on_is_copied_and_converted_again() -> None:
    compact = fxprune.convert(prepare_closed().train())
    clone = copy.deepcopy(compact)
    assert isinstance(clone, TracedModel)
    before = copy.deepcopy(compact.state_dict())
    assert step(clone) > 0
    assert step(clone) < step(compact)
    assert any(not torch.equal(before[name], value) for name, value in clone.state_dict().items())
    again = prepare_closed(compact.eval(), share=0.3)
    smaller = fxprune.convert(again)
    assert smaller.report.units_removed > 0
    assert smaller.wide.out_channels <= compact.wide.out_channels
    assert relative_error(again, smaller, varied_images(4, 3, 15)) < 1e-12


def test_a_conversion_before_anything_closed_says_so() -> None:
    assert "none is closed as a whole" in str(fxprune.convert(prepare_closed(share=0.0)).report)
    assert "none is closed" not in str(fxprune.convert(prepare_closed()).report)


def test_everything_closed_still_converts() -> None:
    prepared = prepare_closed(share=1.1)
    compact = fxprune.convert(prepared)
    assert "strongest unit" in str(compact.report)
    x = varied_images(3, 3, 15)
    torch.testing.assert_close(compact(x), prepared(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_nothing_closed_changes_nothing(granularity: str) -> None:
    prepared = fxprune.prepare(Small(), varied_images(2, 3, 12), granularity=granularity)
    compact = fxprune.convert(prepared)
    assert compact.report.units_removed == 0
    torch.testing.assert_close(compact.state_dict(), Small().state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_roll_over_channels_stays_one_over_channels(batch: int) -> None:
    """Rolling a batch of two by two is nothing at all, and says nothing of other batches."""

    class Rolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).roll(2, 1).relu())

    torch.manual_seed(0)
    prepared = fxprune.prepare(Rolled().double(), varied_images(batch, 3, 8))
    prepared.fxprune.set_gates(torch.tensor([1.0] * 6 + [0.0] * 2))
    compact = fxprune.convert(prepared)
    assert compact.first.out_channels == 6
    assert relative_error(prepared, compact, varied_images(3, 3, 8, 1)) < 1e-12


def test_what_is_muted_twice_is_muted_by_two_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a layer closed channels stay, which a norm over channels has to leave out, then and once more."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.GroupNorm(1, 16), nn.Conv2d(16, 4, 1)).double()
    x = varied_images(2, 3, 8)
    randomise(model)
    leave_as_large(monkeypatch, "_0")
    once = fxprune.prepare(model, x)
    close_units(once, 0.4, seed=1)
    compact = fxprune.convert(once)
    twice = fxprune.prepare(compact, x)
    close_units(twice, 0.3, seed=2)
    last = fxprune.convert(twice)
    assert all(step.muted for step in last.steps)
    assert compact.get_submodule("0").out_channels == last.get_submodule("0").out_channels == 16
    assert len([name for name, _ in last.named_buffers() if name.startswith("open_")]) > 1
    other = varied_images(3, 3, 8, 1)
    torch.testing.assert_close(last(other), twice(other), rtol=1e-12, atol=1e-12)

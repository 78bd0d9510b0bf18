"""Does every filter keep the rectangle of its kernel that is worth most?"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import TargetError
from fxprune.methods.base import Method
from fxprune.methods.shapes import MOST_SHAPES, choose_rectangles, list_rectangles, select_rectangle_threshold
from fxprune.methods.threshold import count_closed
from fxprune.stripes.rectangles import find_hull
from fxprune.vector_width import VECTOR
from tests.methods.test_contract import Residual, make_optimizer, train

METHODS = [
    fxprune.Feather(),
    fxprune.ST3(),
    fxprune.ST3(sigma=True),
    fxprune.GMP(),
    fxprune.FilterSkeleton(alpha=1e-3, delta=None),
    fxprune.FilterSkeleton(alpha=1e-3, delta=0.6),
]


def keep(layers: dict[str, Tensor], thresholds: Mapping[str, Tensor | float]) -> dict[str, Tensor]:
    return {name: magnitudes > 0 for name, magnitudes in choose_rectangles(layers, thresholds).items()}


def values_of(magnitudes: Tensor, inside: Tensor, threshold: float) -> Tensor:
    return ((magnitudes.square() - threshold**2) * inside).flatten(1).sum(1)


def test_a_kernel_of_three_has_49_and_the_empty_one() -> None:
    assert list_rectangles(3, 3).shape == (1 + 49, 9)
    assert list_rectangles(1, 1).tolist() == [[0.0], [1.0]]


def test_one_filter_takes_the_best_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        magnitudes = torch.rand(1, 3, 3, generator=generator).sqrt()
        chosen = keep({"a": magnitudes}, {"a": 0.75})["a"]
        best = max(0.0, *(float(values_of(magnitudes, each.view(1, 3, 3), 0.75)) for each in list_rectangles(3, 3)))
        assert float(values_of(magnitudes, chosen, 0.75)) == pytest.approx(best, abs=1e-6)


def test_a_layer_shares_few_shapes() -> None:
    magnitudes = torch.rand(200, 3, 3, generator=torch.Generator().manual_seed(0)).sqrt()
    inside = keep({"a": magnitudes}, {"a": 0.7})["a"]
    assert 2 <= len({tuple(each.flatten().tolist()) for each in inside if each.any()}) <= MOST_SHAPES


@pytest.mark.parametrize("filters", [12, 16, 40, 200])
def test_blocks_of_filters_share_a_shape(filters: int) -> None:
    magnitudes = torch.rand(filters, 3, 3, generator=torch.Generator().manual_seed(1)).sqrt()
    inside = keep({"other": magnitudes[:7], "a": magnitudes}, {"a": 0.7, "other": 0.6})["a"]
    _, counts = inside.flatten(1).unique(dim=0, return_counts=True)
    assert sum(count % VECTOR != 0 for count in counts.tolist()) == (filters % VECTOR != 0)
    together = (magnitudes.square() - 0.7**2).sum(0).flatten() @ list_rectangles(3, 3).T
    assert float(values_of(magnitudes, inside, 0.7).sum()) >= float(together.max()) - 1e-4  # all alike at the least


def test_a_block_is_of_filters_that_would_take_alike_shapes() -> None:
    magnitudes = torch.full((2 * VECTOR, 3, 3), 0.1)
    magnitudes[::2, 1] = 1.0
    magnitudes[1::2, :, 1] = 1.0
    assert torch.equal(keep({"a": magnitudes}, {"a": 0.5})["a"], magnitudes > 0.5)


def test_whole_filters_stay_in_multiples_and_those_that_are_worth_most() -> None:
    magnitudes = torch.rand(64, 1, 1, generator=torch.Generator().manual_seed(0))
    kept = keep({"a": magnitudes}, {"a": 0.7})["a"].flatten()
    own = (magnitudes > 0.7).flatten()
    assert int(kept.sum()) == VECTOR == int(kept[own].sum())
    assert int(own.sum()) > VECTOR


def test_no_layer_closes_as_a_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = {name: scale * torch.rand(40, 3, 3, generator=generator) for name, scale in (("a", 1.0), ("b", 1e-6))}
    kept = {name: int(each.sum()) for name, each in keep(layers, {"a": 9.0, "b": 0.5}).items()}
    assert kept in ({"a": 16, "b": 16}, {"a": 8, "b": 16}, {"a": 16, "b": 8}, {"a": 8, "b": 8})  # a position of a block


def test_magnitudes_are_those_of_the_block_and_above_the_threshold() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = {"a": torch.rand(40, 3, 3, generator=generator), "b": 1e-6 * torch.rand(16, 3, 3, generator=generator)}
    chosen = choose_rectangles(layers, {"a": 0.6, "b": 0.6})
    for pattern in (chosen["a"] > 0).flatten(1).unique(dim=0)[1:]:
        of_shape = ((chosen["a"] > 0).flatten(1) == pattern).all(1)
        values = chosen["a"][of_shape].flatten(1)[:, pattern]
        assert (values > 0.6).all()
        mean = layers["a"][of_shape].flatten(1)[:, pattern].square().mean()
        torch.testing.assert_close(values.square().mean(), mean)
    assert chosen["b"].max() > 1000  # what stays for its layer's sake, far above the threshold


@pytest.mark.parametrize("method", [m for m in METHODS if m.takes_target], ids=str)
def test_what_lies_in_a_rectangle_is_open(method: Method) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    options = {"granularity": "stripe", "shapes": "rectangles", "target": fxprune.Sparsity(0.6)}
    prepared = fxprune.prepare(Residual(96, 128), x, method=method, **options)
    for variable in prepared.fxprune.variables.values():
        variable.data.uniform_()
    fxprune.prune(prepared)
    for mask in prepared.fxprune.weight_masks.values():
        masked = mask(prepared.get_parameter(mask.parameter))
        assert torch.equal((masked != 0).any(1), (mask.inside > 0).squeeze(1))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_the_price_closes_the_share(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    squares = {"a": torch.rand(640, 3, 3, generator=generator), "b": 0.3 * torch.rand(320, 5, 5, generator=generator)}
    layers = {name: each.sqrt() for name, each in squares.items()}
    total = sum(magnitudes.numel() for magnitudes in layers.values())
    threshold = select_rectangle_threshold(layers, count_closed(total, share))
    inside = keep(layers, dict.fromkeys(layers, threshold))
    closed = float(torch.cat([each.flatten() for each in inside.values()]).logical_not().double().mean())
    assert closed == pytest.approx(share, abs=0.03)
    assert closed >= share


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_what_training_prunes_is_rectangles_and_can_be_lowered(method: Method) -> None:
    torch.manual_seed(0)
    target = fxprune.Sparsity(0.6) if method.takes_target else None
    x = torch.randn(2, 3, 8, 8)
    model = Residual(192, 256)
    prepared = fxprune.prepare(model, x, method=method, target=target, granularity="stripe", shapes="rectangles")
    if not method.takes_target:
        for mask in prepared.fxprune.weight_masks.values():
            mask.variable.data.uniform_(0.3, 1)
    fxprune.Scheduler(prepared, optimizer := make_optimizer(prepared), total_steps=20)
    train(prepared, optimizer, 20)
    prepared.eval()
    open_, total = 0, 0
    for mask in prepared.fxprune.weight_masks.values():
        masked = mask(prepared.get_parameter(mask.parameter))
        alive = (masked != 0).any(1)
        for each in alive:
            pattern = frozenset(itertools.chain((int(i), int(j)) for i, j in each.nonzero()))
            assert not pattern or find_hull(pattern).positions == pattern
        open_, total = open_ + int(alive.sum()), total + alive.numel()
    assert 0 < open_ < total
    if target is not None:
        assert 0.59 <= 1 - open_ / total <= 0.6 + 9 * VECTOR / total  # a block of filters
    compact = fxprune.convert(prepared)
    lowered = fxprune.lower_stripes(compact)
    torch.testing.assert_close(lowered(x), prepared(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "target",
    [
        fxprune.Macs(remaining=0.5),
        fxprune.Params(remaining=0.5),
        fxprune.Sparsity(0.5, scope="layer"),
        fxprune.Macs(remaining=0.5, overrides={"second": 0.2}),
    ],
    ids=str,
)
def test_rectangles_meet_every_target_of_stripes(target: fxprune.Target) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    prepared = fxprune.prepare(Residual(96, 128), x, target=target, granularity="stripe", shapes="rectangles")
    fxprune.Scheduler(prepared, optimizer := make_optimizer(prepared), total_steps=5)
    train(prepared, optimizer, 5)
    masks = list(prepared.fxprune.weight_masks.values())
    closed = {mask.parameter: int((mask.inside == 0).sum()) for mask in masks}
    sizes = {mask.parameter: mask.inside.numel() for mask in masks}
    if target.scope == "layer":
        assert all(0.5 <= closed[name] / sizes[name] < 0.5 + 1 / 6 for name in closed)  # of 6 blocks
    if target.overrides:
        assert 0.8 <= closed["second.weight"] / sizes["second.weight"] < 0.8 + 1 / 6
    costs = prepared.fxprune.costs
    gone = costs.sum_costs(closed) / costs.count_total(sizes)
    assert 0.5 <= gone < 0.5 + 1 / 8  # of a layer's 8 blocks, one goes from a rectangle to another at a time


@pytest.mark.parametrize(
    ("layers", "x"),
    [
        ((nn.Conv1d(3, 32, 5), nn.ReLU(), nn.Conv1d(32, 64, 1)), torch.randn(2, 3, 20)),
        ((nn.Conv3d(3, 32, 3), nn.ReLU(), nn.Conv3d(32, 64, 1)), torch.randn(2, 3, 6, 6, 6)),
        ((nn.ConvTranspose2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 1)), torch.randn(2, 3, 6, 6)),
    ],
    ids=["one dimension", "three dimensions", "transposed"],
)
def test_kernels_of_all_dimensions_keep_rectangles(layers: tuple[nn.Module, ...], x: Tensor) -> None:
    model = nn.Sequential(*layers).double()
    prepared = fxprune.prune(
        model, x.double(), granularity="stripe", shapes="rectangles", target=fxprune.Sparsity(0.5, scope="layer")
    ).eval()
    assert all(0.5 <= float((m.inside == 0).double().mean()) < 1 for m in prepared.fxprune.weight_masks.values())
    compact = fxprune.convert(prepared)
    torch.testing.assert_close(compact(x.double()), prepared(x.double()), rtol=1e-10, atol=1e-12)


def test_rectangles_are_for_stripes() -> None:
    with pytest.raises(TargetError, match="goes with granularity='stripe'"):
        fxprune.prepare(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), shapes="rectangles")
    with pytest.raises(TargetError, match="shapes='round'"):
        fxprune.prepare(Residual(), granularity="stripe", shapes="round")  # type: ignore[arg-type]

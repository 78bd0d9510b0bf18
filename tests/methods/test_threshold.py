"""Is the threshold the order statistic, whatever the weights look like?"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxprune.errors import FxpruneError, TargetError
from fxprune.methods import magnitudes
from fxprune.methods import threshold as module
from fxprune.methods.threshold import layer_threshold, select_priced_threshold, select_threshold

VECTOR = torch.tensor([0.9, -0.1, 0.4, -0.35, 0.05, 0.7, -0.2, 0.15, 0.6, -0.8])


def sorted_threshold(weights: dict[str, Tensor], sparsity: float, scales: dict[str, float] | None = None) -> Tensor:
    dtype = torch.float64 if any(w.dtype == torch.float64 for w in weights.values()) else torch.float32
    values = torch.cat([w.reshape(-1).to(dtype).abs() / (scales or {}).get(name, 1.0) for name, w in weights.items()])
    wanted = math.floor((values.numel() - 1) * sparsity) + 1
    return priced_threshold(values, torch.ones(values.numel(), dtype=torch.int64), wanted)


def priced_threshold(values: Tensor, costs: Tensor, wanted: int) -> Tensor:
    """The first magnitude up to which all cost as much as wanted, or just below it where that is nearer."""
    ordered, order = values.sort()
    spent = costs[order].cumsum(0)
    value = ordered[torch.searchsorted(spent, wanted)]
    below, upto = int(costs[values < value].sum()), int(costs[values <= value].sum())
    several = int((values == value).sum()) > 1
    if several and upto > wanted and (upto == spent[-1] or wanted - below < upto - wanted):
        return value.nextafter(torch.zeros_like(value)) if below else torch.zeros_like(value)
    return value.clamp_min(torch.finfo(values.dtype).tiny)


@pytest.mark.parametrize(("sparsity", "threshold", "zeros"), [(0.5, 0.35, 5), (0.75, 0.6, 7), (0.9, 0.8, 9)])
def test_published_vector_closes_as_many_as_the_interpolated_quantile(
    sparsity: float, threshold: float, zeros: int
) -> None:
    found = select_threshold({"w": VECTOR}, sparsity)
    assert found.item() == pytest.approx(threshold)
    interpolated = torch.quantile(VECTOR.abs(), sparsity)
    assert torch.equal(VECTOR.abs() > found, VECTOR.abs() > interpolated)
    assert int((VECTOR.abs() <= found).sum()) == zeros


@given(
    values=st.lists(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=30), min_size=1, max_size=4),
    sparsity=st.floats(0.001, 0.999),
    few=st.sampled_from([0, 4, 1 << 16]),
)
@settings(max_examples=150, deadline=None)
def test_any_weights_give_the_order_statistic(values: list[list[float]], sparsity: float, few: int) -> None:
    weights = {f"layer{number}": torch.tensor(layer) for number, layer in enumerate(values)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_FEW", few)  # so that small examples are bracketed, sampled and narrowed too
        patch.setattr(magnitudes, "_CPU_BLOCK", 16)
        if sum(map(len, values)) < 8:
            patch.setattr(module, "_FEW", 1 << 16)
        assert torch.equal(select_threshold(weights, sparsity), sorted_threshold(weights, sparsity))


@pytest.mark.parametrize("sparsity", [0.0001, 0.1, 0.5, 0.9, 0.9999])
def test_a_million_weights_give_the_order_statistic(sparsity: float) -> None:
    torch.manual_seed(0)
    weights = {"a": torch.randn(700, 999), "b": 0.1 * torch.randn(300, 33, 3, 3), "c": torch.randn(7)}
    assert torch.equal(select_threshold(weights, sparsity), sorted_threshold(weights, sparsity))


def test_a_sample_that_misleads_costs_passes_and_not_exactness(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weights = {"a": torch.rand(300_000)}
    highest = module._to_bits(1.0, torch.float32)
    monkeypatch.setattr(module, "_sample_bracket", lambda search, deviations: (highest - 5, highest - 1))
    assert torch.equal(select_threshold(weights, 0.3), sorted_threshold(weights, 0.3))
    monkeypatch.setattr(module, "_sample_bracket", lambda search, deviations: (3, 7))
    assert torch.equal(select_threshold(weights, 0.3), sorted_threshold(weights, 0.3))


@pytest.mark.parametrize("share", [0.2, 0.99, 1.0])
def test_ties_are_found_where_most_magnitudes_are_one_value(share: float) -> None:
    torch.manual_seed(0)
    weight = torch.rand(400_000)
    weight[: int(share * 400_000)] = 0.25
    weights = {"w": weight[torch.randperm(400_000)]}
    for sparsity in (0.1, 0.5, 0.95):
        assert torch.equal(select_threshold(weights, sparsity), sorted_threshold(weights, sparsity))


@pytest.mark.parametrize(("sparsity", "closed"), [(0.1, 0), (0.2, 0), (0.3, 6), (0.6, 6), (0.7, 8), (0.9, 9)])
def test_equal_magnitudes_close_where_that_is_nearer_to_the_share_and_never_all(sparsity: float, closed: int) -> None:
    weight = torch.tensor([0.5] * 6 + [1.0] * 2 + [1.5, 2.0])
    assert int((weight <= select_threshold({"w": weight}, sparsity)).sum()) == closed
    signs = torch.tensor([1.0, -1.0]).repeat(5)
    assert select_threshold({"w": signs}, sparsity) == 0  # open, not dead


@pytest.mark.parametrize("sparsity", [0.4, 0.5, 0.7])
def test_zeros_that_are_more_than_the_share_close_all_the_same(sparsity: float) -> None:
    weight = torch.cat([torch.zeros(70), torch.rand(30) + 0.1])
    assert int((weight <= select_threshold({"w": weight}, sparsity)).sum()) == 70
    assert select_threshold({"w": weight}, sparsity) > 0  # 0 would open all gates


def test_one_dear_weight_is_no_tie() -> None:
    weights = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])}
    assert select_priced_threshold(weights, 3, prices={"b": 100}) == 3.0  # no less than what was asked


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.81, 0.99])
def test_many_zeros_cost_one_pass(sparsity: float, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight = torch.rand(2_000_000)
    weight[: int(0.8 * 2_000_000)] = 0
    passes: list[int] = []
    survey = module._survey
    monkeypatch.setattr(module, "_survey", lambda *options: passes.append(1) or survey(*options))
    weights = {"w": weight[torch.randperm(2_000_000)]}
    assert torch.equal(select_threshold(weights, sparsity), sorted_threshold(weights, sparsity))
    assert len(passes) == 1  # what sticky masks have closed is all zeros


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_type_gives_one_of_its_own_magnitudes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weights = {"a": torch.randn(300, 1000).to(dtype), "b": torch.randn(50).to(dtype)}
    threshold = select_threshold(weights, 0.7)
    assert torch.equal(threshold, sorted_threshold(weights, 0.7))
    assert threshold.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_layouts_do_not_matter() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 32, 3, 3)
    plain = select_threshold({"w": weight}, 0.6)
    assert torch.equal(select_threshold({"w": weight.to(memory_format=torch.channels_last)}, 0.6), plain)
    assert torch.equal(select_threshold({"w": weight.transpose(0, 1)}, 0.6), plain)
    assert torch.equal(
        select_threshold({"w": torch.stack([weight, weight])[:, ::2]}, 0.6), select_threshold({"w": weight[::2]}, 0.6)
    )


def test_the_weights_stay_as_they_are() -> None:
    weight = torch.randn(200_000)
    before = weight.clone()
    select_threshold({"w": weight}, 0.5, {"w": 2.0})
    assert torch.equal(weight, before)


def test_scaled_layers_are_compared_by_their_scaled_magnitudes() -> None:
    torch.manual_seed(0)
    weights = {"a": torch.randn(400, 400), "b": torch.randn(333, 100)}
    scales = {"a": 1 / math.sqrt(800), "b": 0.3}
    threshold = select_threshold(weights, 0.8, scales)
    assert torch.equal(threshold, sorted_threshold(weights, 0.8, scales))
    closed = sum(int((w.abs() <= layer_threshold(threshold, scales[name])).sum()) for name, w in weights.items())
    assert closed == sum(int((w.abs() / scales[name] <= threshold).sum()) for name, w in weights.items())


def test_a_layers_threshold_separates_exactly_what_the_global_one_separates() -> None:
    torch.manual_seed(0)
    for scale in torch.rand(30).tolist():
        weight = torch.rand(50)
        for threshold in weight / scale:
            assert torch.equal(weight > layer_threshold(threshold, scale), weight / scale > threshold)


def test_a_layers_threshold_is_the_largest_that_divides_to_no_more_than_the_global_one() -> None:
    torch.manual_seed(0)
    for scale in torch.rand(500).tolist():
        threshold = torch.rand(())
        tau = layer_threshold(threshold, scale)
        assert tau / scale <= threshold
        assert torch.nextafter(tau, torch.tensor(2.0)) / scale > threshold


def test_no_sparsity_gives_no_threshold() -> None:
    assert select_threshold({"w": VECTOR}, 0.0).item() == 0
    assert select_threshold({}, 0.5).item() == 0


def test_distinct_magnitudes_close_floor_plus_one() -> None:
    weight = torch.randperm(100_001).float()
    for sparsity in (0.1, 0.29, 0.9):
        closed = int((weight <= select_threshold({"w": weight}, sparsity)).sum())
        assert closed == math.floor(100_000 * sparsity) + 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_unfinite_weights_are_refused_by_name(bad: float) -> None:
    weight = torch.randn(100_000)
    weight[17] = bad
    with pytest.raises(FxpruneError, match=r"conv\.weight: 1 of 100000 weights are NaN or infinite"):
        select_threshold({"other": torch.randn(5), "conv.weight": weight}, 0.5)


def test_huge_finite_weights_are_not_refused() -> None:
    assert select_threshold({"w": 3e38 * torch.linspace(0.5, 1, 65)}, 0.5).item() == pytest.approx(3e38 * 0.75)


def test_a_sparsity_of_one_is_refused() -> None:
    with pytest.raises(TargetError, match="closes everything"):
        select_threshold({"w": VECTOR}, 1.0)


@given(
    layers=st.lists(
        st.tuples(st.lists(st.floats(-4, 4, width=32), min_size=8, max_size=40), st.integers(0, 30)),
        min_size=1,
        max_size=4,
    ),
    share=st.floats(0.001, 1),
    few=st.sampled_from([0, 4, 1 << 16]),
)
@settings(max_examples=150, deadline=None)
def test_what_weights_cost_decides_where_they_have_prices(
    layers: list[tuple[list[float], int]], share: float, few: int
) -> None:
    weights = {str(number): torch.tensor(values) for number, (values, _) in enumerate(layers)}
    prices = {str(number): price for number, (_, price) in enumerate(layers)}
    closed = math.ceil(share * sum(price * len(values) for values, price in layers))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_FEW", few)
        patch.setattr(magnitudes, "_CPU_BLOCK", 16)
        found = select_priced_threshold(weights, closed, prices=prices)
    values = torch.cat([weight.abs() for weight in weights.values()])
    costs = torch.cat([torch.full(weight.shape, prices[name]) for name, weight in weights.items()])
    assert found == (priced_threshold(values, costs, closed) if closed else 0)


def test_a_sample_of_what_costs_nothing_tells_nothing() -> None:
    weights = {"free": torch.rand(1_000_000), "dear": torch.linspace(0.1, 0.8, 8)}
    found = select_priced_threshold(weights, 4, prices={"free": 0, "dear": 1})
    assert int((weights["dear"] <= found).sum()) == 4


def test_a_million_weights_of_two_prices_give_the_threshold_of_the_cost() -> None:
    torch.manual_seed(0)
    weights = {"a": torch.randn(700, 999), "b": 0.1 * torch.randn(300, 33, 3, 3), "c": torch.randn(7)}
    prices = {"a": 49, "b": 3136}
    values = torch.cat([w.flatten().abs() for w in weights.values()])
    costs = torch.cat([torch.full((w.numel(),), prices.get(name, 1)) for name, w in weights.items()])
    for share in (0.0001, 0.1, 0.5, 0.9, 0.9999):
        closed = int(share * int(costs.sum()))
        found = select_priced_threshold(weights, closed, prices=prices)
        assert torch.equal(found, priced_threshold(values, costs, closed))

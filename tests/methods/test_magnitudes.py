"""Do blocks and threads count what one look at all magnitudes counts?"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.methods import magnitudes as module
from fxprune.methods.magnitudes import Count, Layer, count_magnitudes

NUMBERS = st.lists(st.floats(-4, 4, width=16), max_size=60)
LAYERS = st.lists(st.tuples(NUMBERS, st.sampled_from([1.0, 0.3]), st.integers(1, 2)), min_size=1, max_size=5)
TYPES = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])


@given(LAYERS, TYPES, st.floats(-1, 3, width=32), st.floats(0, 2, width=32), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_blocks_count_what_the_whole_counts(
    given: list[tuple[list[float], float, int]], dtype: torch.dtype, low: float, span: float, threads: int
) -> None:
    layers = [Layer(str(n), torch.tensor(w, dtype=dtype), scale, price) for n, (w, scale, price) in enumerate(given)]
    counted = torch.float64 if dtype == torch.float64 else torch.float32
    high = float(torch.tensor(low + span, dtype=counted))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CPU_BLOCK", 16)
        patch.setattr(module, "_SERIAL", 5)
        patch.setattr(torch, "get_num_threads", lambda: threads)
        counts = count_magnitudes(layers, low, high, counted, limit=1000)
        bracket = module._Bracket(low, high, counted, module._Room(1000))
        elsewhere = [module._count_elsewhere(block, bracket) for block in module._divide(layers)]
    for price in (1, 2):
        whole = [layer.flat.to(counted).abs() / layer.scale for layer in layers if layer.price == price]
        values = torch.cat([*whole, torch.empty(0, dtype=counted)])
        for found in (counts, elsewhere):
            assert sum(count.above_low for count in found if count.price == price) == int((values > low).sum())
            assert sum(count.above_high for count in found if count.price == price) == int((values > high).sum())
            inside = values[(values > low) & (values <= high)]
            assert torch.equal(take_inside(found, price, counted).sort().values, inside.sort().values)
            assert max([count.largest for count in found if count.price == price], default=0) == max(
                values.tolist(), default=0
            )


def take_inside(counts: list[Count], price: int, dtype: torch.dtype) -> torch.Tensor:
    parts = [count.inside for count in counts if count.price == price and count.inside is not None]
    return torch.cat([*parts, torch.empty(0, dtype=dtype)])


@pytest.mark.parametrize("threads", [1, 3])
def test_more_than_the_limit_are_counted_and_no_longer_collected(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(module, "_CPU_BLOCK", 100)
    layers = [Layer("w", torch.full((1000,), 0.5), 1.0, 1)]
    counts = count_magnitudes(layers, 0.4, 0.6, torch.float32, limit=250)
    assert sum(count.above_low - count.above_high for count in counts) == 1000
    assert sum(count.inside.numel() for count in counts if count.inside is not None) == 200


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_largest_tells_of_what_is_not_finite(bad: float) -> None:
    flat = torch.zeros(50)
    flat[7] = bad
    for count in (
        *count_magnitudes([Layer("w", flat, 1.0, 1)], 0.1, 0.2, torch.float32, limit=5),
        *(
            module._count_elsewhere(block, module._Bracket(0.1, 0.2, torch.float32, module._Room(5)))
            for block in module._divide([Layer("w", flat, 1.0, 1)])
        ),
    ):
        assert not abs(count.largest) < float("inf")


def test_weights_that_no_gradient_may_reach_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CPU_BLOCK", 16)
    with torch.inference_mode():
        flat = torch.linspace(-1, 1, 101)
    counts = count_magnitudes([Layer("w", flat, 1.0, 1)], 0.5, 2.0, torch.float32, limit=101)
    assert sum(count.above_low for count in counts) == 50

"""Do the methods that learn, or prune in one go, compute what their papers say?"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import TargetError
from fxprune.mask_modules import WeightMask
from fxprune.methods.base import Method
from fxprune.methods.scores import Slice


def stripes_of(method: Method, weight: Tensor, threshold: float) -> Tensor:
    mask = WeightMask("w", weight, method, 1.0, rows=0, shared=(1,))
    mask.refresh(weight, torch.tensor(threshold, dtype=weight.dtype))
    return mask(weight)


@pytest.mark.parametrize(
    ("p", "gates"), [(1.0, [0, 0, 0.453370, 0.506536]), (3.0, [0, 0, 0.942288, 0.958225]), (math.inf, [0, 0, 1, 1])]
)
def test_stripes_are_gated_by_their_root_mean_square(p: float, gates: list[float]) -> None:
    weight = torch.arange(1.0, 13).div(10).view(2, 3, 1, 2)
    wanted = weight * torch.tensor(gates).view(2, 1, 1, 2)
    torch.testing.assert_close(stripes_of(fxprune.Feather(p=p), weight, 0.5), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", [fxprune.Feather(), fxprune.ST3(), fxprune.GMP(), fxprune.GMP(sticky=False)])
def test_stripes_of_one_input_channel_are_weights_to_the_last_bit(method: Method) -> None:
    weight = torch.randn(8, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    single = WeightMask("w", weight, method, 1.0, rows=0)
    single.refresh(weight, torch.tensor(0.7))
    assert torch.equal(stripes_of(method, weight, 0.7), single(weight))


def test_the_filter_skeleton_steps_as_published() -> None:
    method = fxprune.FilterSkeleton(alpha=1e-5, delta=0.01)
    skeleton = nn.Parameter(torch.tensor([1, 0.5, 0.012, 0.009]))
    skeleton.grad = torch.tensor([0.01, -0.02, 0.001, 0.3])
    method.before_step(skeleton, torch.tensor(0.01))
    torch.testing.assert_close(skeleton.data, torch.tensor([1, 0.5, 0.012, 0]), atol=1e-7, rtol=0)
    torch.testing.assert_close(skeleton.grad, torch.tensor([0.01001, -0.01999, 0.00101, 0]), atol=1e-7, rtol=0)
    torch.optim.SGD([skeleton], lr=0.1, weight_decay=1e-4).step()
    torch.testing.assert_close(skeleton.data, torch.tensor([0.998989, 0.501994, 0.011899, 0]), atol=1e-6, rtol=0)


def test_the_filter_skeleton_has_both_gradients() -> None:
    torch.manual_seed(0)
    mask = WeightMask("w", torch.randn(2, 3, 3, 3), fxprune.FilterSkeleton(), 1.0, rows=0, shared=(1,))
    weight, upstream = torch.randn(2, 3, 3, 3, requires_grad=True), torch.randn(2, 3, 3, 3)
    assert mask.variable is not None
    mask.variable.data = torch.rand(2, 1, 3, 3) + 0.1
    mask(weight).backward(upstream)
    torch.testing.assert_close(weight.grad, upstream * mask.variable.data)
    torch.testing.assert_close(mask.variable.grad, (upstream * weight.detach()).sum(1, keepdim=True))


@pytest.mark.parametrize(("g", "shift", "push"), [(0.0, 0.0, 0.17329), (0.0, 3.0, 0.002195), (-1.1769, 0.0, 0.26035)])
def test_neurons_recede_as_published(g: float, shift: float, push: float) -> None:
    weight = torch.tensor([g], requires_grad=True)
    term = fxprune.RNI(strength=1.0, shift=shift).penalty([weight])
    assert term is not None
    term.backward()
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(push, abs=1e-5)


def test_receding_stays_finite_and_vanishes_at_both_ends() -> None:
    weight = torch.tensor([-200.0, -104.0, 40.0], requires_grad=True)
    term = fxprune.RNI(strength=1.0).penalty([weight])
    assert term is not None
    term.backward()
    assert term.isfinite()
    assert weight.grad is not None
    assert weight.grad.abs().max() < 1e-15


def test_slimming_adds_the_sum_of_scales_and_uniform_scaling_nothing() -> None:
    scales = [torch.tensor([1.0, -2.0]), torch.tensor([0.5])]
    term = fxprune.NetworkSlimming(strength=0.1).penalty(scales)
    assert term is not None
    assert term.item() == pytest.approx(0.35)
    assert fxprune.UCS().penalty(scales) is None


def test_scales_score_units_as_they_are() -> None:
    """Layers are compared by their scales, and a unit that several norms scale has the mean."""
    parameters = {"a": torch.tensor([-1.0, 0.2]), "b": torch.tensor([3.0, 5.0])}
    slices = [Slice("a", 0, torch.tensor([0, 1])), Slice("b", 0, torch.tensor([0, -1]))]
    scores = fxprune.NetworkSlimming().score_units(parameters, slices, 2)
    torch.testing.assert_close(scores, torch.tensor([2.0, 0.2]))


def test_str_learns_its_threshold() -> None:
    """da = -sum sign(w) 1[|w| > T] T (1 - T) g, with T = sigmoid(a)."""
    method = fxprune.STR(start=-1.0)
    weight = torch.tensor([0.5, -0.3, 0.1, -0.9], requires_grad=True)
    a = method.make_variable(weight, ()).requires_grad_()
    upstream = torch.tensor([1.0, 2.0, 3.0, 4.0])
    method.mask(weight, a, torch.tensor(0.0), torch.tensor(0.0), True).backward(upstream)
    t = 1 / (1 + math.exp(1))
    kept = torch.tensor([1.0, 1, 0, 1])
    torch.testing.assert_close(weight.grad, upstream * kept)
    signed = (weight.detach().sign() * kept * upstream).sum()
    torch.testing.assert_close(a.grad, (-signed * t * (1 - t)).view(1))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9])
def test_probabilities_are_projected_onto_the_budget(sparsity: float) -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [1.5 * torch.rand(40, 30, generator=generator) - 0.2, torch.rand(70, generator=generator)]
    before = torch.cat([p.flatten() for p in layers]).clone()
    budget = (1 - sparsity) * sum(p.numel() for p in layers)
    fxprune.ProbMask().after_step(layers, budget, [1, 1])
    after = torch.cat([p.flatten() for p in layers])
    total = before.clamp(0, 1).sum()
    assert after.sum().item() == pytest.approx(min(budget, total.item()), rel=1e-4)
    assert after.min() >= 0
    assert after.max() <= 1
    inside = (after > 0) & (after < 1)  # all of those went down by the same
    shifts = (before - after)[inside]
    assert (shifts.max() - shifts.min()).item() < 1e-5


def test_probabilities_are_projected_by_what_weights_cost() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [torch.rand(300, generator=generator), torch.rand(500, generator=generator)]
    before = [p.clone() for p in layers]
    fxprune.ProbMask().after_step(layers, 400.0, [4, 1])
    assert 4 * float(layers[0].sum()) + float(layers[1].sum()) == pytest.approx(400, rel=1e-4)
    shifts = [(b - a)[a > 0].mean() for b, a in zip(before, layers, strict=True)]
    assert float(shifts[0]) == pytest.approx(4 * float(shifts[1]), rel=1e-3)


@pytest.mark.parametrize(
    "target",
    [
        fxprune.Sparsity(0.6),
        fxprune.Sparsity(0.6, scope="layer"),
        fxprune.Sparsity(0.6, overrides={"0": 0.9}),
        fxprune.Macs(remaining=0.4),
    ],
    ids=str,
)
def test_probabilities_of_the_training_are_those_of_the_mask(target: fxprune.Sparsity) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3, stride=2))
    x = torch.randn(2, 3, 9, 9)
    prepared = fxprune.prepare(model, x, method=fxprune.ProbMask(), target=target, granularity="weight")
    masks = prepared.fxprune
    for variable in masks.variables.values():
        variable.data.uniform_(0.5, 1)
    parameters = dict(prepared.named_parameters())
    masks.after_step(parameters, target.share, 1.0)
    prepared.eval()
    kept = {m.parameter: int((m(parameters[m.parameter]) != 0).sum()) for m in masks.weight_masks.values()}
    expected = {m.parameter: float(m.variable.detach().sum()) for m in masks.weight_masks.values()}
    if target.scope == "layer" or target.overrides:  # each layer has its own share
        assert expected == pytest.approx(kept, abs=2)
    prices = masks.costs.prices
    cost, wanted = (sum(prices.get(name, 1) * number for name, number in each.items()) for each in (expected, kept))
    assert cost == pytest.approx(wanted, rel=0.02)


def test_cycles_close_a_fifth_of_the_rest_up_to_the_target() -> None:
    method = fxprune.LRR()
    shares = [0.5 * method.share_of(cycle, 0.5) for cycle in (1, 2, 3, 4)]
    assert shares == pytest.approx([0.2, 0.36, 0.488, 0.5])


@pytest.mark.parametrize(
    "make",
    [
        lambda: fxprune.FilterSkeleton(alpha=-1.0),
        lambda: fxprune.FilterSkeleton(delta=0.0),
        lambda: fxprune.LRR(rate=1.0),
        lambda: fxprune.RNI(strength=-1.0),
        lambda: fxprune.UCS(strength=-1.0),
        lambda: fxprune.Feather(p="3"),
    ],
)
def test_bad_settings_are_refused(make: type) -> None:
    with pytest.raises(TargetError, match=r"published|usual"):
        make()

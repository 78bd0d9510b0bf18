"""Do the methods compute what their papers say?"""

import math

import pytest
import torch
from torch import Tensor

import fxprune
from fxprune.errors import TargetError
from fxprune.methods.base import Method
from fxprune.methods.feather import Feather
from fxprune.methods.probmask import ProbMask
from fxprune.methods.st3 import ST3

WEIGHT = torch.tensor([0.5, -0.3, 0.1, -0.05])
METHODS = [Feather(), Feather(p=1.0), Feather(p=2.5), Feather(p=math.inf), ST3(), ST3(sigma=True)]


def threshold_weight(method: Method, weight: Tensor, threshold: float) -> Tensor:
    return weight * method.gate(weight.abs(), torch.tensor(threshold, dtype=weight.dtype))


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (1.0, [0.3, -0.1, 0, 0]),
        (2.0, [0.458258, -0.223607, 0, 0]),
        (3.0, [0.489097, -0.266840, 0, 0]),
        (math.inf, [0.5, -0.3, 0, 0]),
    ],
)
def test_feather_thresholds_the_published_vector(p: float, expected: list[float]) -> None:
    torch.testing.assert_close(threshold_weight(Feather(p=p), WEIGHT, 0.2), torch.tensor(expected), atol=1e-6, rtol=0)


def test_st3_thresholds_and_rescales_the_published_vector() -> None:
    method = ST3()
    kept, total = (WEIGHT.abs() * (WEIGHT.abs() > 0.2)).mean(), WEIGHT.abs().mean()
    assert ((kept + 1e-6) / (total + 1e-6)).item() == pytest.approx(0.842106, abs=1e-6)
    factor = method.rescale(kept, total)
    assert factor.item() == pytest.approx(1.185299, abs=1e-5)
    expected = torch.tensor([0.355590, -0.118530, 0, 0])
    torch.testing.assert_close(factor * threshold_weight(method, WEIGHT, 0.2), expected, atol=1e-5, rtol=0)


def test_a_dead_filter_is_rescaled_by_at_most_101() -> None:
    assert ST3().rescale(torch.tensor(0.0), torch.tensor(1.0)).item() == pytest.approx(101, rel=1e-3)


def test_gaussian_weights_keep_the_published_share_of_their_norm() -> None:
    torch.manual_seed(0)
    weight = torch.randn(1_000_000, dtype=torch.float64)
    for sparsity, feather, st3 in [(0.5, 0.723, 0.468), (0.8, 0.348, 0.266), (0.9, 0.189, 0.197), (0.95, 0.100, 0.153)]:
        threshold = weight.abs().quantile(sparsity).item()
        assert threshold_weight(Feather(), weight, threshold).abs().sum() / weight.abs().sum() == pytest.approx(
            feather, abs=2e-3
        )
        kept = (weight.abs() * (weight.abs() > threshold)).mean()
        factor = ST3().rescale(kept, weight.abs().mean())
        rescaled = factor * threshold_weight(ST3(), weight, threshold)
        assert rescaled.abs().sum() / weight.abs().sum() == pytest.approx(st3, abs=2e-3)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_gate_is_zero_exactly_up_to_the_threshold(method: Method) -> None:
    threshold = torch.tensor(0.3)
    around = torch.stack([torch.nextafter(threshold, torch.tensor(0.0)), threshold])
    above = torch.nextafter(threshold, torch.tensor(1.0)).reshape(1)
    assert (method.gate(torch.cat([around, torch.zeros(40)]), threshold) == 0).all()
    assert (method.gate(above.expand(40), threshold) > 0).all()
    assert (method.gate(torch.full((40,), 1e30), threshold) == 1).all()
    tiny = torch.tensor([1e-40, 2e-40, 4e-40])
    assert (method.gate(tiny, tiny[1]) > 0).tolist() == [False, False, True]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("threshold", [0.0, -1.0])
def test_a_threshold_of_zero_opens_all_gates(method: Method, threshold: float) -> None:
    assert (method.gate(torch.tensor([0.0, 1e-40, 0.1, 5.0]), torch.tensor(threshold)) == 1).all()


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_gates_grow_with_magnitude_within_zero_and_one(method: Method) -> None:
    magnitude = torch.linspace(0, 3, 1000)
    before = magnitude.clone()
    gate = method.gate(magnitude, torch.tensor(1.0))
    assert torch.equal(magnitude, before)
    assert (gate.diff() >= -1e-6).all()
    assert gate.min() == 0
    assert gate.max() <= 1


def test_stripes_of_the_published_tensor_get_the_published_gates() -> None:
    weight = torch.arange(1, 13).reshape(2, 3, 1, 2) / 10
    magnitude = weight.square().mean(1).sqrt().flatten()  # [N * kh * kw]
    torch.testing.assert_close(magnitude, torch.tensor([0.341565, 0.432049, 0.914695, 1.013246]), atol=1e-6, rtol=0)
    soft = Feather(p=1.0).gate(magnitude, torch.tensor(0.5))
    torch.testing.assert_close(soft, torch.tensor([0, 0, 0.453370, 0.506536]), atol=1e-6, rtol=0)
    cubic = Feather().gate(magnitude, torch.tensor(0.5))
    torch.testing.assert_close(cubic, torch.tensor([0, 0, 0.942288, 0.958225]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("sparsity", "theta"), [(0.5, 1.0), (0.95, 1.0), (0.9501, 0.5), (0.99, 0.5)])
def test_feather_halves_closed_gradients_above_95_percent(sparsity: float, theta: float) -> None:
    assert Feather().closed_gradient(sparsity) == theta
    assert ST3().closed_gradient(sparsity) == 1.0


def test_sigma_is_one_over_the_root_of_the_sum_of_sizes() -> None:
    assert 1 / ST3(sigma=True).scale(torch.empty(64, 64, 3, 3)) == pytest.approx(11.58, abs=0.005)
    assert 1 / ST3(sigma=True).scale(torch.empty(256, 64, 1, 1)) == pytest.approx(17.94, abs=0.005)
    assert ST3().scale(torch.empty(64, 64, 3, 3)) == Feather().scale(torch.empty(3, 3)) == 1.0


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_methods_of_this_file_have_no_penalty(method: Method) -> None:
    assert method.penalty([torch.ones(3)]) is None


@pytest.mark.parametrize("p", [0.5, 0.0, -1.0, math.nan])
def test_a_power_below_one_is_refused(p: float) -> None:
    with pytest.raises(TargetError, match="the power is 1"):
        Feather(p=p)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fxprune.FilterSkeleton(alpha="1"), r"alpha='1'"),
        (lambda: fxprune.FilterSkeleton(delta="a"), r"delta='a'"),
        (lambda: fxprune.RNI(strength="a"), r"RNI\(strength='a'\)"),
        (lambda: fxprune.RNI(shift=math.nan), r"RNI\(shift=nan\)"),
        (lambda: fxprune.UCS(None), r"UCS\(strength=None\)"),
        (lambda: fxprune.LRR("0.2"), r"LRR\(rate='0.2'\)"),
        (lambda: fxprune.STR(math.inf), r"STR\(start=inf\)"),
        (lambda: fxprune.Cubic("a", 0.5), r"Cubic\(begin='a'"),
        (lambda: fxprune.Feather("3"), r"Feather\(p='3'\)"),
    ],
)
def test_what_is_no_number_is_refused(make, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        make()


@pytest.mark.parametrize("ratio", [0, -1.0, float("nan"), float("inf"), "10"])
def test_a_ratio_of_learning_rates_that_is_none_is_refused(ratio: object) -> None:
    with pytest.raises(TargetError, match=r"ProbMask\(lr_ratio=.*10 is for hundreds of epochs"):
        ProbMask(lr_ratio=ratio)


def test_probabilities_that_no_gradient_reaches_close_up_to_the_target() -> None:
    """As those of pixels that are never lit: of equal ones all would close, or none."""
    torch.manual_seed(0)
    lit = (torch.arange(200) % 4 > 0).float()
    model = torch.nn.Sequential(torch.nn.Linear(200, 32), torch.nn.ReLU(), torch.nn.Linear(32, 5))
    target = fxprune.Sparsity(0.5)
    options = {"method": fxprune.ProbMask(), "target": target, "granularity": "weight"}
    prepared = fxprune.prepare(model, torch.rand(4, 200), **options)
    optimizer = torch.optim.SGD(fxprune.param_groups(prepared, lr=0.05), momentum=0.9)
    fxprune.Scheduler(prepared, optimizer, total_steps=200)
    for _ in range(200):
        x = torch.rand(32, 200) * lit
        torch.nn.functional.cross_entropy(prepared(x), x[:, 9:14].argmax(1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert fxprune.convert(prepared.eval(), align=1).report.masked == pytest.approx(0.5, abs=0.01)


def test_stripes_that_no_gradient_reaches_close_up_to_the_target() -> None:
    """As those behind units that are dead from the start: of equal ones all would close, or none."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(16 * 36, 5),
    )  # fmt: skip
    model[0].bias.data[2:] = -1e3
    options = {"method": fxprune.FilterSkeleton(delta=None), "target": fxprune.Sparsity(0.5), "granularity": "stripe"}
    prepared = fxprune.prepare(model, torch.rand(4, 3, 8, 8), **options)
    optimizer = torch.optim.SGD(fxprune.param_groups(prepared, lr=0.05, weight_decay=1e-4), momentum=0.9)
    fxprune.Scheduler(prepared, optimizer, total_steps=30)
    for _ in range(30):
        x = torch.rand(8, 3, 8, 8)
        torch.nn.functional.cross_entropy(prepared(x), torch.randint(5, (8,))).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert fxprune.convert(prepared.eval(), align=1).report.masked == pytest.approx(0.5, abs=0.01)

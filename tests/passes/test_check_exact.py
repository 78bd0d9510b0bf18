"""The comparison behind conversion's check: what it calls a difference, and what cannot be compared."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import ExactnessError, FxpruneError
from fxprune.passes import check_exact
from fxprune.passes.check_exact import measure
from tests.exactness import close_units, randomise

NAN, INF = math.nan, math.inf


def compare_rows(expected: list[list[float]], actual: list[list[float]]) -> float:
    """Compare two outputs of one run."""
    return measure([([torch.tensor(expected)], [torch.tensor(actual)])])


def test_differences_are_relative_to_the_spread_over_the_batch() -> None:
    assert compare_rows([[1.0, 5.0], [3.0, 6.0]], [[1.0, 5.0], [3.0, 6.5]]) == pytest.approx(0.25)


def test_small_columns_are_compared_beside_large_ones() -> None:
    large = torch.randn(6, 50, 4).double()
    expected, actual = (torch.cat([1e6 * large, large + change], 2) for change in (0.0, 1e-3))
    assert measure([([expected], [actual])]) > 1e-6  # of what all vary by it is less than 1e-9
    assert measure([([expected], [expected * (1 + 1e-12)])]) < 1e-10


def test_what_lies_beside_a_mask_that_moves_is_compared() -> None:
    scores, hidden = torch.randn(6, 3, 20, 20).double(), torch.rand(6, 3, 20, 20) < 0.2
    expected, actual = ((scores + change).masked_fill(hidden, -1e9) for change in (0.0, 1e-3))
    assert measure([([expected], [actual])]) > 1e-6


def test_channels_that_hardly_vary_are_held_to_no_more_than_rounding() -> None:
    alive = torch.randn(6, 8, 30).double()
    dead = 1e-17 * torch.randn(6, 1, 30).double()  # what rounding leaves of a sum that is zero
    expected, actual = (torch.cat([alive * (1 + change), dead * (1 + change * 1e15)], 1) for change in (0.0, 1e-15))
    assert measure([([expected], [actual])]) < 1e-9


@pytest.mark.parametrize("odd", [NAN, INF, -INF])
def test_numbers_beside_what_is_none_are_compared(odd: float) -> None:
    expected = [[odd, 0.0], [1.0, 1.0]]
    assert compare_rows(expected, expected) == 0
    assert compare_rows(expected, [[odd, 0.0], [1.0, 1.5]]) == pytest.approx(0.5)


@pytest.mark.parametrize("odd", [NAN, INF, -INF])
def test_what_is_no_number_in_one_model_only_is_a_difference(odd: float) -> None:
    assert compare_rows([[odd, 0.0], [1.0, 1.0]], [[2.0, 0.0], [1.0, 1.0]]) == INF
    assert compare_rows([[2.0, 0.0], [1.0, 1.0]], [[odd, 0.0], [1.0, 1.0]]) == INF


class Masked(nn.Module):
    """Two layers, and a first output that is never chosen."""

    def __init__(self, never: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)
        self.never = never

    def forward(self, x: Tensor) -> Tensor:
        scores = self.second(self.first(x).relu())
        return torch.cat([torch.full_like(scores[:, :1], self.never), scores[:, 1:]], dim=1)


@pytest.mark.parametrize("never", [-INF, NAN])
def test_models_with_outputs_that_are_no_numbers_are_converted(never: float) -> None:
    model, x = Masked(never), torch.randn(4, 8)
    randomise(model)
    prepared = fxprune.prepare(model.eval(), x, target=fxprune.Sparsity(0.5))
    fxprune.prune(prepared)
    compact = fxprune.convert(prepared)
    assert compact.report.error is not None
    assert compact.report.error < 1e-5
    torch.testing.assert_close(compact(x), prepared(x), equal_nan=True)


def test_a_difference_beside_nan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Masked(NAN), torch.randn(4, 8)
    prepared = fxprune.prepare(model.eval(), x, target=fxprune.Sparsity(0.5))
    fxprune.prune(prepared)
    real = fxprune.api.shrink_all

    def damage(*args, **kwargs):
        compact, plan = real(*args, **kwargs)
        compact.second.bias = nn.Parameter(compact.second.bias.detach() + 1e-2)
        return compact, plan

    monkeypatch.setattr(fxprune.api, "shrink_all", damage)
    with pytest.raises(ExactnessError):
        fxprune.convert(prepared)


class Decided(nn.Module):
    """Half of the filters are dead, and rounding decides about what lies near zero."""

    def __init__(self, decide: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 3)
        self.decide = decide

    def forward(self, x: Tensor) -> Tensor:
        return self.decide(self.last(self.middle(nn.functional.silu(self.first(x))).relu()))


@pytest.mark.parametrize(
    "decide",
    [lambda f: f > 0, lambda f: f.argmax(1), lambda f: f.sqrt(), lambda f: f.masked_fill(f < 0, -INF)],
    ids=["sign", "argmax", "root", "mask"],
)
def test_what_rounding_decides_in_half_precision_is_no_difference(decide: Callable[[Tensor], Tensor]) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        model = Decided(decide)
        with torch.no_grad():
            for layer in (model.first, model.middle):
                layer.weight[::2] = 0
        model = model.bfloat16().eval()
        compact = fxprune.convert(model, torch.randn(4, 3, 24, 24).bfloat16())
        assert compact.first.out_channels == 8


def test_both_parts_of_complex_outputs_are_compared() -> None:
    output = torch.tensor([[1 + 2j], [2 + 4j]])
    assert measure([([output], [output])]) == 0
    assert measure([([output], [output.real + 1j * (output.imag + 1)])]) == pytest.approx(0.5)


class AsksPrecision(nn.Module):
    """Code that goes another way in half precision, as that of Whisper and T5 does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        if x.dtype == torch.float16:
            x = x.clamp(-60000, 60000)
        return self.second(x) if x.dtype == torch.float32 else x


def test_code_that_asks_for_the_precision_is_compared_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_exact, "SINGLE", 0.0)
    prepared = fxprune.prepare(AsksPrecision(), torch.randn(4, 8))
    fxprune.prune(prepared)
    monkeypatch.setattr(check_exact, "MOST_LOSS", math.inf)  # which is in units of SINGLE, too
    assert fxprune.convert(prepared).first.out_features == 8


def test_a_model_of_nan_is_refused_by_name() -> None:
    prepared = fxprune.prepare(Masked(0.0), torch.randn(4, 8))
    with torch.no_grad():
        prepared.get_submodule("first").weight.fill_(NAN)
    fxprune.convert(prepared)  # the constant is a number: the others are NaN in both
    plain = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    prepared = fxprune.prepare(plain, torch.randn(4, 8))
    with torch.no_grad():
        prepared.get_submodule("0").weight[0, 0] = NAN
    with pytest.raises(
        FxpruneError, match=r"NaN or infinite, so nothing can be compared: look at the weights 0\.weight"
    ):
        fxprune.convert(prepared)


def test_inputs_of_nan_are_refused() -> None:
    prepared = fxprune.prepare(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(4, 8))
    with pytest.raises(FxpruneError, match="nothing can be compared: look at the inputs"):
        fxprune.convert(prepared, torch.full((4, 8), NAN))


def test_each_model_runs_once_in_each_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    prepared = fxprune.prepare(model.eval(), torch.randn(4, 8))
    fxprune.prune(prepared)
    calls: list[str] = []
    prepared.register_forward_hook(lambda module, args, output: calls.append(str(output.dtype)))  # copies keep hooks
    monkeypatch.setattr(check_exact, "SINGLE", 0.0)
    monkeypatch.setattr(check_exact, "MOST_LOSS", INF)
    monkeypatch.setattr(check_exact, "MUCH", INF)
    fxprune.convert(prepared)
    assert sorted(calls) == 4 * ["torch.float32"] + 4 * ["torch.float64"]  # both models, on two inputs


def test_a_copy_in_double_precision_leaves_the_model_as_it_is() -> None:
    prepared = fxprune.prepare(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(4, 8))
    fxprune.prune(prepared)
    before = {name: tensor.clone() for name, tensor in prepared.named_parameters()}
    copied = check_exact.make_double(check_exact.freeze_masks(prepared))
    assert {p.dtype for p in copied.parameters()} == {torch.float64}
    for name, tensor in prepared.named_parameters():
        assert torch.equal(tensor, before[name])


class Tied(nn.Module):
    """Two batch norms of one scale."""

    def __init__(self, other: str = "weight") -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)
        self.norm, self.last = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        if other == "weight":
            self.last.weight = self.norm.weight
        else:
            self.norm.weight = self.first.bias

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        return self.head(self.last(self.second(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_of_one_scale_recede_together(dtype: torch.dtype) -> None:
    model, x = Tied().to(dtype).eval(), torch.randn(4, 3, 12, 12, dtype=dtype)
    prepared = fxprune.prepare(model, x, method=fxprune.RNI())
    fxprune.prune(prepared)
    torch.testing.assert_close(fxprune.convert(prepared)(x), prepared(x))


def test_a_scale_that_is_something_else_too_is_refused() -> None:
    with pytest.raises(FxpruneError, match=r"(first\.bias|norm\.weight) is a batch norm's scale or shift, too"):
        fxprune.prepare(Tied("bias"), torch.randn(4, 3, 12, 12), method=fxprune.RNI())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_stands_for_the_model_in_double_is_compared_with_it(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restore(self: fxprune.RNI, model: nn.Module) -> None:
        real(self, model)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data = module.weight.data.sigmoid()  # once more, in all that is compared

    real = fxprune.RNI.restore
    model, x = Tied().to(dtype).eval(), torch.randn(4, 3, 12, 12, dtype=dtype)
    prepared = fxprune.prepare(model, x, method=fxprune.RNI())
    fxprune.prune(prepared)
    monkeypatch.setattr(fxprune.RNI, "restore", restore)
    with pytest.raises(ExactnessError, match="from its own in double precision"):
        fxprune.convert(prepared)


def test_damage_is_seen_beside_the_rounding_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    x = torch.randn(4, 3, 12, 12).bfloat16()
    prepared = fxprune.prepare(model.bfloat16().eval(), x)
    fxprune.prune(prepared)
    real = fxprune.api.shrink_all

    def damage(*args, **kwargs):
        compact, plan = real(*args, **kwargs)
        compact.get_submodule("2").weight.data[0, 0, 0, 0] += 1.0
        return compact, plan

    fxprune.convert(prepared)
    monkeypatch.setattr(fxprune.api, "shrink_all", damage)
    with pytest.raises(ExactnessError):
        fxprune.convert(prepared)


def test_the_random_state_and_a_backward_that_waits_are_left_alone() -> None:
    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.first(x)).relu()
            return self.second(x + 0 * torch.randn_like(x))

    prepared = fxprune.prepare(Draws(), torch.randn(4, 8))
    loss = prepared(torch.randn(4, 8)).sum()
    before = torch.get_rng_state()
    fxprune.convert(prepared)
    assert torch.equal(torch.get_rng_state(), before)
    loss.backward()


def test_what_is_wrong_at_another_size_only_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The channels of a view that no rule pins: pieces of the old ones, cut where the size of the image says."""
    monkeypatch.setattr("fxprune.shadow.moves.find_cut_by_size", lambda *_: ())

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y.flatten(2).transpose(1, 2).reshape(y.shape))

    torch.manual_seed(0)
    prepared = fxprune.prepare(Turned(), torch.randn(2, 3, 2, 2))
    close_units(prepared, 0.5, seed=1)
    with pytest.raises(ExactnessError, match=r"by .* of their range. This is a bug in fxprune"):
        fxprune.convert(prepared)


def test_a_converted_model_that_fails_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = fxprune.prepare(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4))
    close_units(prepared, 0.5, seed=1)

    def fail(model: nn.Module, given: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("fxprune.passes.check_exact.run_all", fail)
    with pytest.raises(ExactnessError, match=r"fails where the prepared one runs \(shapes do not fit\). This is a bug"):
        fxprune.convert(prepared)

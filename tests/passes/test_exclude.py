"""Whether what the user excludes is found, kept, and left without a mask; and whether a typing error is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import fxprune
from fxprune.errors import FxpruneError, PatternError, TargetError
from fxprune.passes.exclude import find_excluded
from tests.exactness import close_units, randomise, relative_error, varied_images


def build() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(i, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for i in (3, 8, 8)]
    model = nn.Sequential(*blocks, nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    randomise(model)
    return model


PATTERNS: list[tuple[Any, set[str]]] = [
    ("1.0", {"1.0.weight", "1.0.bias"}),
    ("1", {"1.0.weight", "1.0.bias", "1.1.weight", "1.1.bias"}),
    ("1.0.weight", {"1.0.weight"}),
    ("[01].1", {"0.1.weight", "0.1.bias", "1.1.weight", "1.1.bias"}),
    ("?.*.weight", {f"{i}.{j}.weight" for i in range(3) for j in range(2)}),
    (nn.BatchNorm2d, {f"{i}.1.{name}" for i in range(3) for name in ("weight", "bias")}),
    (lambda name, m: isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1), {"3.weight", "3.bias"}),
]


@pytest.mark.parametrize(("pattern", "expected"), PATTERNS)
def test_patterns_find_parameters_by_name_glob_type_and_predicate(pattern: Any, expected: set[str]) -> None:
    assert find_excluded(build(), [pattern]) == expected


def test_several_patterns_add_up_and_none_excludes_nothing() -> None:
    assert find_excluded(build(), []) == set()
    assert find_excluded(build(), ["1.0", "3"]) == {"1.0.weight", "1.0.bias", "3.weight", "3.bias"}


@pytest.mark.parametrize("pattern", ["layer9", "1.0.gamma", nn.Linear, lambda name, m: False])
def test_a_pattern_that_matches_nothing_is_refused(pattern: Any) -> None:
    with pytest.raises(PatternError, match=r"matches no module.*names look like 0, 0\.0"):
        fxprune.prepare(build(), varied_images(2, 3, 8), exclude=[pattern])


def test_a_bare_text_is_refused_with_the_list_to_write() -> None:
    with pytest.raises(PatternError, match=r"exclude=\['1.0'\]"):
        fxprune.prepare(build(), varied_images(2, 3, 8), exclude="1.0")


@pytest.mark.parametrize("pattern", [3, None, int])
def test_a_pattern_of_no_known_kind_is_refused(pattern: Any) -> None:
    with pytest.raises(PatternError):
        fxprune.prepare(build(), varied_images(2, 3, 8), exclude=[pattern])


@pytest.mark.parametrize("pattern", ["1.0", "1", lambda name, m: name == "1.0"])
def test_an_excluded_layer_keeps_its_shape(pattern: Any) -> None:
    prepared = fxprune.prepare(build(), varied_images(2, 3, 8), exclude=[pattern])
    assert prepared.fxprune.gates.numel() == 8  # those between the last two convolutions
    close_units(prepared, 0.5, seed=2)
    compact = fxprune.convert(prepared)
    assert compact.get_submodule("1.0").weight.shape == (8, 8, 3, 3)
    assert compact.get_submodule("2.0").out_channels < 8
    assert relative_error(prepared, compact, varied_images(3, 3, 9)) < 1e-12


def test_an_excluded_layer_has_no_mask_over_its_weights() -> None:
    model = build()
    prepared = fxprune.prepare(model, varied_images(2, 3, 8), granularity="weight", exclude=["1.0", "3"])
    assert sorted(prepared.fxprune.weight_masks) == ["0-0-weight", "2-0-weight"]
    prepared.fxprune.refresh(dict(prepared.named_parameters()), 0.5)
    compact = fxprune.convert(prepared)
    torch.testing.assert_close(compact.get_submodule("1.0").weight, model.get_submodule("1.0").weight, rtol=0, atol=0)
    assert (compact.get_submodule("2.0").weight == 0).any()


@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_excluding_everything_is_refused(granularity: str) -> None:
    with pytest.raises(TargetError, match="left to prune"):
        fxprune.prepare(build(), varied_images(2, 3, 8), granularity=granularity, exclude=[nn.Conv2d])


def test_tied_weights_are_excluded_under_either_name() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    model[2].weight = model[0].weight
    for name in ("0", "2"):
        prepared = fxprune.prepare(model, torch.randn(4, 6).double(), granularity="weight", exclude=[name])
        assert list(prepared.fxprune.weight_masks) == ["4-weight"]


def test_a_parametrized_weight_that_is_excluded_gets_no_mask() -> None:
    weight_norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), weight_norm(nn.Linear(8, 6)), nn.ReLU(), nn.Linear(6, 2))
    prepared = fxprune.prepare(model, torch.randn(2, 4), granularity="weight", exclude=["2"])
    assert sorted(prepared.fxprune.weight_masks) == ["0-weight", "4-weight"]
    prepared = fxprune.prepare(nn.Sequential(model, nn.Linear(2, 3)), torch.randn(2, 4), exclude=["0.2"])
    assert "0-2-weight" not in prepared.fxprune.unit_masks


def test_what_is_no_list_of_patterns_is_refused_in_a_sentence() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(PatternError, match=r"exclude=Linear is one pattern.*exclude=\[Linear\]"):
        fxprune.prepare(model, torch.randn(2, 3), exclude=nn.Linear)  # type: ignore[arg-type]
    with pytest.raises(PatternError, match=r"cannot be called with \(name, module\)"):
        fxprune.prepare(model, torch.randn(2, 3), exclude=[lambda name: True])  # type: ignore[list-item,misc]


def test_a_compiled_model_is_refused_in_a_sentence() -> None:
    model = torch.compile(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    with pytest.raises(FxpruneError, match=r"compiled: pass the one that torch\.compile was given"):
        fxprune.prepare(model, torch.randn(2, 3))


class Reading(nn.Module):
    """A weight-normed layer, and products with a table of constants and with a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = weight_norm(nn.Linear(6, 16)), nn.Linear(16, 4)
        self.table, self.vector = nn.Buffer(torch.rand(16, 16)), nn.Parameter(torch.rand(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu() @ self.table
        return self.last(x * (x @ self.vector)[:, None])


def test_what_training_learns_as_a_matrix_is_masked_and_nothing_else() -> None:
    prepared = fxprune.prepare(Reading(), torch.randn(5, 6), granularity="weight")
    assert sorted(prepared.fxprune.weight_masks) == ["first-weight", "last-weight"]
    fxprune.prune(prepared)
    compact = fxprune.convert(prepared, align=1)
    assert sum(int((p == 0).sum()) for p in compact.parameters() if p.dim() == 2) >= 0.4 * (16 * 6 + 16 * 4)

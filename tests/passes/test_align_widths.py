"""Whether widths become multiples by units that could have gone, and nothing else changes."""

import pytest
import torch
from torch import nn
from torchvision import models

import fxprune
from fxprune.errors import FxpruneError
from fxprune.model import find_tensor
from tests.exactness import close_units, randomise, relative_error, settle_statistics, varied_images


def make_network() -> nn.Module:
    model = models.resnet18(num_classes=10).double()
    randomise(model)
    settle_statistics(model, varied_images(4, 3, 32))
    return model


@pytest.mark.parametrize("align", [8, 16, 24])
def test_widths_are_multiples_and_the_outputs_are_the_same(align: int) -> None:
    model, x = make_network(), varied_images(2, 3, 32)
    prepared = fxprune.prepare(model, x)
    close_units(prepared, 0.6, seed=1)
    free, aligned = fxprune.convert(prepared), fxprune.convert(prepared, align=align)
    widths = [(m.out_channels, aligned.get_submodule(name).out_channels, model.get_submodule(name).out_channels)
              for name, m in free.named_modules() if isinstance(m, nn.Conv2d)]  # fmt: skip
    assert all(wide % align == 0 or wide == dense for _, wide, dense in widths)
    assert all(narrow <= wide < narrow + align for narrow, wide, _ in widths)
    assert any(narrow % align for narrow, _, _ in widths)
    assert relative_error(prepared, aligned, varied_images(3, 3, 40, seed=3), 1e-3) < 1e-11
    assert f"closed units stay: widths are multiples of {align}" in str(aligned.report)


def test_a_unit_that_stays_may_need_others_to_stay() -> None:
    """Single weights: the filter of a dead unit reads what nothing else reads."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3)).double()
    prepared = fxprune.prepare(model, torch.randn(4, 6, dtype=torch.float64), granularity="weight")
    with torch.no_grad():
        model_0, model_2, model_4 = (find_tensor(prepared, f"{n}.weight") for n in (0, 2, 4))
        model_4[:, 5:] *= 1e-9  # 15 of the second layer's units are not read
        model_2[:5, 4:] *= 1e-9  # and the five that are read need four of the first layer's
    prepared.fxprune.refresh({n: find_tensor(prepared, n) for n in prepared.fxprune.parameter_names}, 0.4)
    free, aligned = fxprune.convert(prepared, align=1), fxprune.convert(prepared, align=8)
    assert [free.get_submodule(n).out_features for n in "02"] == [4, 5]
    assert aligned.get_submodule("2").out_features == 8
    assert aligned.get_submodule("0").out_features % 8 == 0 or aligned.get_submodule("0").out_features == len(model_0)
    x = torch.randn(50, 6, dtype=torch.float64)
    assert (prepared.eval()(x) - aligned.eval()(x)).abs().max() < 1e-14


@pytest.mark.parametrize("granularity", ["weight", "stripe"])
def test_where_units_die_by_accident_widths_stay_multiples_of_16(granularity: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 48, 3), nn.ReLU(), nn.Conv2d(48, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).double()
    prepared = fxprune.prepare(model, torch.randn(1, 3, 9, 9, dtype=torch.float64), granularity=granularity)
    with torch.no_grad():
        find_tensor(prepared, "0.weight")[:20] *= 1e-9  # 28 live, which is no multiple of 16
        find_tensor(prepared, "2.weight")[:1] *= 1e-9  # 7 of 8
    prepared.fxprune.refresh({n: find_tensor(prepared, n) for n in prepared.fxprune.parameter_names}, 0.36)
    assert [fxprune.convert(prepared, align=1).get_submodule(n).out_channels for n in "02"] == [28, 7]
    assert [fxprune.convert(prepared).get_submodule(n).out_channels for n in "02"] == [32, 8]


def test_a_layer_that_is_closed_as_a_whole_is_reported() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 3)).double()
    prepared = fxprune.prepare(model, torch.randn(1, 3, 9, 9, dtype=torch.float64), granularity="stripe")
    with torch.no_grad():
        find_tensor(prepared, "2.weight").mul_(1e-9)
    prepared.fxprune.refresh({n: find_tensor(prepared, n) for n in prepared.fxprune.parameter_names}, 0.48)
    for align in (1, 16):
        assert "the strongest unit of a layer that would be empty stays" in str(
            fxprune.convert(prepared, align=align).report
        )


def test_units_that_were_closed_all_go() -> None:
    model = nn.Sequential(nn.Conv2d(3, 48, 3), nn.ReLU(), nn.Conv2d(48, 8, 3))
    prepared = fxprune.prepare(model, torch.randn(1, 3, 9, 9))
    prepared.fxprune.set_gates(torch.tensor([0.0] * 20 + [1.0] * 28))
    assert fxprune.convert(prepared).get_submodule("0").out_channels == 28


def test_what_a_norm_counts_is_not_widened() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    prepared = fxprune.prepare(model, torch.randn(4, 6, dtype=torch.float64))
    prepared.fxprune.set_gates(torch.tensor([1.0] * 11 + [0.0] * 5).repeat(2))
    aligned = fxprune.convert(prepared, align=8)
    assert aligned.get_submodule("0").out_features == 11
    assert aligned.get_submodule("2").out_features == 16


def test_an_aligned_model_is_saved_and_loaded(tmp_path: object) -> None:
    model, x = make_network(), varied_images(2, 3, 32)
    prepared = fxprune.prepare(model, x)
    close_units(prepared, 0.6, seed=1)
    aligned = fxprune.convert(prepared, align=16)
    fxprune.save(aligned, f"{tmp_path}/aligned.safetensors")
    loaded = fxprune.load(model, f"{tmp_path}/aligned.safetensors")
    assert torch.equal(loaded.eval()(x), aligned.eval()(x))


def test_a_multiple_of_less_than_one_is_refused() -> None:
    with pytest.raises(FxpruneError, match="align=0: give 1 or more"):
        fxprune.convert(nn.Linear(3, 4), torch.randn(2, 3), align=0)

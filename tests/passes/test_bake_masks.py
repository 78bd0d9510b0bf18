"""Whether what checks a conversion in double precision holds the very weights that single precision gave."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import fxprune
from fxprune.methods.base import Method
from fxprune.passes.bake_masks import bake_masks, freeze_masks
from fxprune.passes.check_exact import as_double
from tests.exactness import randomise, varied_images


def build(second: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), second, nn.BatchNorm2d(8), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(4)).eval()
    model(varied_images(2, 3, 8).float())
    randomise(model)
    return model


@pytest.mark.parametrize("method", [fxprune.RNI(), fxprune.Feather(), fxprune.ST3(), fxprune.GMP()], ids=str)
@pytest.mark.parametrize("norm", [lambda layer: layer, weight_norm, spectral_norm], ids=["plain", "weight", "spectral"])
def test_frozen_weights_are_the_baked_ones_in_any_precision(method: Method, norm) -> None:
    prepared = fxprune.prepare(build(norm(nn.Conv2d(16, 8, 3))), varied_images(2, 3, 8).float(), method=method)
    fxprune.prune(prepared)
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    frozen, baked = as_double(freeze_masks(prepared)), as_double(bake_masks(prepared))
    x = varied_images(4, 3, 8).double()
    torch.testing.assert_close(frozen(x), baked(x), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(prepared.state_dict(), before, rtol=0, atol=0)

"""Whether the networks of the examples are those that the papers train: counted in parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from calls import read_call
from models import build_model, initialise


@pytest.mark.parametrize(
    ("name", "classes", "parameters", "prunable"),
    [
        ("resnet20(width=32)", 100, 1_096_196, 1_092_960),  # Feather
        ("mobilenet_v1", 100, 3_315_428, 3_287_488),
        ("densenet40_24", 100, 714_196, 703_920),
        ("resnet20(head_bias=False)", 10, 272_464, 270_896),  # ST-3
        ("vgg16", 10, 14_724_042, 14_715_584),  # Filter Skeleton counts 38,016 of its skeleton with it: 14,762,058
        ("resnet56", 10, 855_770, 851_504),  # and 18,384 here: 874,154
        ("resnet56(shortcut='padding')", 10, 853_018, 848_944),  # He et al. 2016: 0.85 million
        ("resnet32(shortcut='padding')", 10, 464_154, 461_872),  # 0.46 million
    ],
)
def test_a_network_has_the_published_number_of_parameters(
    name: str, classes: int, parameters: int, prunable: int
) -> None:
    model = build_model(read_call(name), classes)
    weights = [m.weight.numel() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(weights) == prunable


@pytest.mark.parametrize("name", ["resnet20(width=4)", "resnet20(width=4, shortcut='padding')"])
@pytest.mark.parametrize("size", [28, 32])
def test_a_network_takes_small_images_of_any_size(name: str, size: int) -> None:
    assert build_model(read_call(name), 7)(torch.randn(2, 3, size, size)).shape == (2, 7)


def test_other_names_are_those_of_torchvision() -> None:
    assert build_model(read_call("squeezenet1_1(dropout=0.1)"), 7).classifier[0].p == 0.1
    with pytest.raises(SystemExit, match="resnet21: give one of resnet8, resnet20"):
        build_model(read_call("resnet21"), 7)


def test_weights_are_drawn_as_the_paper_says() -> None:
    model = build_model(read_call("resnet20(width=32)"), 100)
    initialise(model, "fan_out", 0.5)
    convolution = model.layer3[1].conv1.weight
    assert convolution.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert model.linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert all((m.weight == 0.5).all() for m in model.modules() if isinstance(m, nn.BatchNorm2d))

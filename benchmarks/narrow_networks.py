"""Which network is the uniformly narrower one of an architecture, at a share of its multiply-accumulates?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models.efficientnet import EfficientNet, _efficientnet_conf
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.vgg import VGG, cfgs, make_layers
from torchvision.models.vision_transformer import VisionTransformer

import fxprune

MULTIPLE = 16
CLASSES = 1000


def narrow(name: str, share: float, image: Tensor) -> nn.Module:
    """Build the architecture with all widths times one number, such that this share of the multiply-accumulates stays.

    Widths are rounded as the architecture rounds them: MobileNetV2 and EfficientNet to multiples of 8, others of 16.
    """
    build = BUILDERS[name]
    wanted = share * fxprune.export.count(build(1.0), image).macs
    low, high = 0.1, 1.0
    tried: list[tuple[float, nn.Module]] = []
    for _ in range(8):
        model = build((low + high) / 2)
        macs = fxprune.export.count(model, image).macs
        tried.append((abs(macs - wanted), model))
        low, high = ((low + high) / 2, high) if macs < wanted else (low, (low + high) / 2)
    return min(tried, key=lambda pair: pair[0])[1].eval()


def scale(width: int, factor: float) -> int:
    return max(MULTIPLE, round(width * factor / MULTIPLE) * MULTIPLE)


class NarrowResNet(ResNet):
    """ResNet-50 with all widths times `factor`."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        super().__init__(Bottleneck, [3, 4, 6, 3])
        self.fc = nn.Linear(self.inplanes, CLASSES)

    def _make_layer(self, block: Any, planes: int, *others: Any, **options: Any) -> nn.Sequential:
        if planes == 64:
            self.inplanes = scale(64, self.factor)
            self.conv1 = nn.Conv2d(3, self.inplanes, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(self.inplanes)
        return super()._make_layer(block, scale(planes, self.factor), *others, **options)


def build_vgg(factor: float) -> nn.Module:
    layers = [layer if isinstance(layer, str) else scale(layer, factor) for layer in cfgs["D"]]
    model = VGG(make_layers(layers, batch_norm=True), init_weights=False)
    hidden = scale(4096, factor)
    first, last = nn.Linear(int(layers[-2]) * 49, hidden), nn.Linear(hidden, CLASSES)
    model.classifier = nn.Sequential(first, nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last)
    return model


def build_efficientnet(factor: float) -> nn.Module:
    settings, last = _efficientnet_conf("efficientnet_b0", width_mult=factor, depth_mult=1.0)
    return EfficientNet(settings, dropout=0.2, last_channel=last)


def build_vit(factor: float) -> nn.Module:
    """Build a ViT-B/16 with as many heads of about 64 as divide its width."""
    width = scale(768, factor)
    heads = min((h for h in range(1, 13) if width % h == 0), key=lambda h: abs(width / h - 64))
    model = VisionTransformer(224, 16, 12, heads, width, 4 * width)
    nn.init.normal_(model.heads[0].weight)
    return model


BUILDERS: dict[str, Callable[[float], nn.Module]] = {
    "resnet50": NarrowResNet,
    "mobilenet_v2": lambda factor: torchvision.models.mobilenet_v2(width_mult=factor),
    "vgg16_bn": build_vgg,
    "efficientnet_b0": build_efficientnet,
    "vit_b_16": build_vit,
}

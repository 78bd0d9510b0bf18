"""Which networks do the papers train? CIFAR's ResNets, VGG-16, MobileNetV1 and DenseNet-BC; others are torchvision's.

All take images [count, 3, height, width] of about 32 x 32 and end in a global mean.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models as torchvision_models

from calls import Call

Shortcut = Literal["projection", "padding"]
Initial = Literal["torch", "fan_in", "fan_out"]


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution with batch norm, or zero channels added."""

    def __init__(self, inputs: int, outputs: int, shortcut: Shortcut) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs and shortcut == "projection":
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        elif inputs != outputs:
            self.shortcut = ZeroPad((outputs - inputs) // 2)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ZeroPad(nn.Module):
    """Take every other row and column, and put so many zero channels on either side (He et al. 2016, option A)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.channels, self.channels))


class ResNet(nn.Module):
    """CIFAR's ResNet of 6 * blocks + 2 layers, `width`, 2 and 4 times `width` channels wide (He et al. 2016)."""

    def __init__(self, blocks: int, classes: int, width: int, shortcut: Shortcut, head_bias: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = make_stage(blocks, width, width, shortcut)
        self.layer2 = make_stage(blocks, width, 2 * width, shortcut)
        self.layer3 = make_stage(blocks, 2 * width, 4 * width, shortcut)
        self.linear = nn.Linear(4 * width, classes, bias=head_bias)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.linear(out.mean((2, 3)))
        return logits


def make_stage(blocks: int, inputs: int, outputs: int, shortcut: Shortcut) -> nn.Module:
    return nn.Sequential(*(Block(outputs if number else inputs, outputs, shortcut) for number in range(blocks)))


def resnet8(width: int = 16, shortcut: Shortcut = "projection", head_bias: bool = True, *, classes: int) -> nn.Module:
    return ResNet(1, classes, width, shortcut, head_bias)  # of no paper here: for quick trials


def resnet20(width: int = 16, shortcut: Shortcut = "projection", head_bias: bool = True, *, classes: int) -> nn.Module:
    return ResNet(3, classes, width, shortcut, head_bias)


def resnet32(width: int = 16, shortcut: Shortcut = "projection", head_bias: bool = True, *, classes: int) -> nn.Module:
    return ResNet(5, classes, width, shortcut, head_bias)


def resnet56(width: int = 16, shortcut: Shortcut = "projection", head_bias: bool = True, *, classes: int) -> nn.Module:
    return ResNet(9, classes, width, shortcut, head_bias)


def vgg16(conv_bias: bool = False, *, classes: int) -> nn.Module:
    """Make VGG-16 with batch norm for small images: one linear layer, and the last pooling is a global mean."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, 1, 1, bias=conv_bias), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return join_classifier(layers, channels, classes)


def join_classifier(layers: list[nn.Module], channels: int, classes: int) -> nn.Module:
    """Put a global mean and a linear layer behind the layers."""
    head = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "linear": nn.Linear(channels, classes)}
    return nn.Sequential(OrderedDict(features=nn.Sequential(*layers), **head))


def mobilenet_v1(*, classes: int) -> nn.Module:
    """Make MobileNetV1 for small images as Feather trains it: a stem of stride 1, biases in the pointwise layers."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    channels = 32
    for width in (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024):
        stride = 1 if width in (channels, 64) else 2
        layers += [nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False), nn.BatchNorm2d(channels)]
        layers += [nn.ReLU(), nn.Conv2d(channels, width, 1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return join_classifier(layers, channels, classes)


class Bottleneck(nn.Module):
    """A dense layer: 1x1 to four times the growth, 3x3 to the growth, concatenated with the input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x)))
        return torch.cat([x, self.conv2(F.relu(self.bn2(out)))], 1)


def densenet40_24(depth: int = 40, growth: int = 24, *, classes: int) -> nn.Module:
    """Make DenseNet-BC: three blocks, and between them the channels and the resolution are halved."""
    channels = 2 * growth
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
    for block in range(3):
        for _ in range((depth - 4) // 6):
            layers.append(Bottleneck(channels, growth))
            channels += growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        if block < 2:
            layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
    return join_classifier(layers, channels, classes)


MODELS: dict[str, Callable[..., nn.Module]] = {
    builder.__name__: builder for builder in (resnet8, resnet20, resnet32, resnet56, vgg16, mobilenet_v1, densenet40_24)
}


def build_model(call: Call, classes: int) -> nn.Module:
    """Make the model that a call such as `resnet20(width=32)` names: one of MODELS, else one of torchvision's."""
    known = torchvision_models.list_models(module=torchvision_models)
    if call.name in MODELS:
        build: Callable[..., nn.Module] = MODELS[call.name]
        options: dict[str, Any] = {"classes": classes}
    elif call.name in known:
        build = torchvision_models.get_model_builder(call.name)
        options = {"num_classes": classes, "weights": None}
        if call.name in ("googlenet", "inception_v3"):
            options["init_weights"] = True  # what they do anyway, without the warning
    else:
        raise SystemExit(f"--model {call.name}: give one of {', '.join(MODELS)}, or a classifier of torchvision")
    return build(*call.positional, **options, **call.options)


def initialise(model: nn.Module, weights: Initial, norm_scale: float) -> None:
    """Draw the weights anew as a paper does, in place.

    "torch" leaves them as they are; "fan_in" is N(0, 2 / fan_in) for convolutions and linear layers (ST-3); "fan_out"
    is N(0, 2 / fan_out) for convolutions and N(0, 0.01^2) for linear layers (Feather, RNI). Batch norms get the scale.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, norm_scale)
        elif isinstance(module, (nn.Conv2d, nn.Linear)) and weights != "torch":
            if isinstance(module, nn.Linear) and weights == "fan_out":
                nn.init.normal_(module.weight, std=0.01)
            else:
                nn.init.kaiming_normal_(module.weight, mode=weights, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)

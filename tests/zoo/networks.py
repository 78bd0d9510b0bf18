"""The models on which exactness is measured: torchvision's classifiers, and CIFAR's ResNet-20."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

PRUNABLE = {
    "resnet18": (4800, 5800),
    "resnet50": (26560, 27560),
    "resnext50_32x4d": (34112, 35112),
    "vgg16_bn": (12416, 13416),
    "alexnet": (9344, 10344),
    "mobilenet_v2": (17056, 18056),
    "mobilenet_v3_large": (18560, 19560),
    "mnasnet1_0": (18960, 19960),
    "densenet121": (10240, 11240),
    "efficientnet_b0": (30348, 31348),
    "shufflenet_v2_x1_0": (8090, 9090),
    "googlenet": (9584, 12584),  # three heads of 1000 outputs each
    "inception_v3": (18112, 20112),  # two
    "squeezenet1_1": (2944, 3944),
    "regnet_y_400mf": (18784, 19784),
    "convnext_tiny": (41184, 42184),
    "resnet20": (688, 698),
}
"""How many rows of weight matrices and filters each model has that may go, and how many in all."""


class Block(nn.Module):
    """A residual block of CIFAR's ResNets; a shortcut that grows takes zero channels on either side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.grow = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.grow:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.grow // 2, self.grow // 2))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """ResNet-20 of He et al. 2016 for 32 x 32 images: 16, 32 and 64 channels, shortcuts without parameters."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[Block(16, 16) for _ in range(blocks)])
        self.layer2 = nn.Sequential(Block(16, 32), *[Block(32, 32) for _ in range(blocks - 1)])
        self.layer3 = nn.Sequential(Block(32, 64), *[Block(64, 64) for _ in range(blocks - 1)])
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(out))).mean((2, 3)))


def build(name: str) -> nn.Module:
    """Build a model of the list with random weights."""
    torch.manual_seed(0)
    if name == "resnet20":
        return CifarResNet()
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **options)


def image_sizes(name: str) -> tuple[int, int]:
    """Two image sizes that the model takes, small ones."""
    return {"inception_v3": (299, 331), "resnet20": (32, 40), "alexnet": (96, 128)}.get(name, (96, 128))

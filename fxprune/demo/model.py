"""Which network does the demo train, and which images does it take?"""

import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from fxprune.demo.choices import DIGIT_NET
from fxprune.demo.data import CLASSES
from fxprune.demo.settings import DemoError

SIZES = (32, 64, 128, 224, 299)
"""The image sizes that are tried for torchvision's models, the cheapest first."""


class Subject(NamedTuple):
    """A fresh model, and the size and channels of its square images."""

    model: nn.Module
    size: int
    channels: int


class Block(nn.Module):
    """A residual block: two 3x3 convolutions with batch norm, beside the input or a 1x1 convolution of it."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.append(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class DigitNet(nn.Module):
    """A small ResNet: [count, 1, 16, 16] -> [count, 10], in three stages of one resolution each."""

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 128), blocks: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        self.stages = nn.Sequential()
        channels = widths[0]
        for stage, width in enumerate(widths):
            stride = 1 if stage == 0 else 2
            self.stages.append(Block(channels, width, stride))
            self.stages.extend(Block(width, width, 1) for _ in range(blocks - 1))
            channels = width
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features = self.stages(F.relu(self.norm(self.stem(x))))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def build_model(name: str, seed: int) -> Subject:
    """Build a fresh model with ten classes and random weights, in train mode; the same for the same seed.

    `name` is `digitnet` or any classifier of torchvision's. Raises DemoError if that takes none of SIZES.
    """
    torch.manual_seed(seed)
    if name == DIGIT_NET:
        return Subject(DigitNet(), 16, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # googlenet and inception_v3 announce other initial weights
        model = models.get_model(name, weights=None, num_classes=CLASSES)
    return Subject(model.train(), _find_size(model, name), 3)


def _find_size(model: nn.Module, name: str) -> int:
    for size in SIZES:
        if _takes(model.eval(), size):
            model.train()
            return size
    raise DemoError(f"{name} takes images of none of the sizes {', '.join(map(str, SIZES))}; choose another model")


@torch.no_grad()
def _takes(model: nn.Module, size: int) -> bool:
    try:
        model(torch.zeros(2, 3, size, size))
    except (RuntimeError, ValueError, AssertionError, IndexError):
        return False
    return True

"""How timm's models are built, and which image sizes they take."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from tests.zoo.cases import Candidate, Draw, Source, draw_images

SIZES = ((64, 96), (96, 128), (112, 128), (128, 160), (160, 192), (192, 224), (224, 256), (256, 288))
"""Image sizes that are tried in turn, and the second size that goes with each."""

SMALLEST = Path(__file__).with_name("timm_smallest.txt")
"""The names of the smallest models, one line each; `python -m tests.zoo.timm_models` writes it."""


def list_smallest() -> list[str]:
    """The smallest model of each of timm's architecture files, as they were counted once."""
    return SMALLEST.read_text(encoding="utf-8").split()


def list_all() -> list[str]:
    """All models of timm."""
    return list(timm.list_models())


def candidates(name: str) -> Iterator[Candidate]:
    """Small images, for which the model is built where its constructor takes their size; its own size at last."""
    resizable = takes_size(name)
    for size, other in SIZES:
        yield Candidate({"img_size": size} if resizable else {}, size, other)
    own = timm.get_pretrained_cfg(name, allow_unregistered=False)
    size = own.input_size[-1] if own is not None else 224
    yield Candidate({}, size, size + 32)


def takes_size(name: str) -> bool:
    """Whether a model is built for an image size."""
    own = timm.get_pretrained_cfg(name)
    try:
        with torch.device("meta"):
            timm.create_model(name, pretrained=False, img_size=own.input_size[-1] if own is not None else 224)
    except TypeError:
        return False
    return True


def build(name: str, options: dict[str, Any]) -> nn.Module:
    """Build a model with random weights."""
    return timm.create_model(name, pretrained=False, **options)


def draw(name: str, model: nn.Module) -> Draw:
    """The inputs of a model: images of as many channels as it takes."""
    own = timm.get_pretrained_cfg(name)
    return functools.partial(draw_images, channels=own.input_size[0] if own is not None else 3)


def find_smallest() -> list[str]:
    """Find the model with the fewest parameters in each architecture file; takes minutes."""
    smallest = []
    for module in timm.list_modules():
        counts = {name: count_parameters(name) for name in timm.list_models(module=module)}
        smallest += sorted(counts, key=lambda name: counts[name])[:1]
    return sorted(smallest)


def count_parameters(name: str) -> int:
    """Count a model's parameters on the meta device, where weights take no room."""
    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(name, pretrained=False).parameters())


TIMM = Source(candidates, build, draw)

if __name__ == "__main__":
    SMALLEST.write_text("\n".join(find_smallest()) + "\n", encoding="utf-8")

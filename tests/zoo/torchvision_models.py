"""How torchvision's models are built, and what they take: classifiers, segmentation, video, detectors, optical flow."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torchvision
from torch import nn
from torchvision.models.video import mvit

from tests.zoo.cases import Candidate, Draw, Source, draw_image_list, draw_images, draw_pair, draw_video

SIZES = ((64, 96), (96, 128), (128, 160), (224, 256), (299, 331))
"""Image sizes that are tried in turn, and the second size that goes with each."""

DETECTOR = {"min_size": 128, "max_size": 192}
"""Options that keep detectors from scaling their images up to 800 pixels."""

FEW_BOXES = {"box_score_thresh": 0.0, "box_detections_per_img": 10, "rpn_post_nms_top_n_test": 50}
"""Options of two-stage detectors: random weights give low scores, and few boxes are enough."""

FEW_CANDIDATES = {"score_thresh": 0.0, "detections_per_img": 10, "topk_candidates": 50}
"""The same for one-stage detectors."""


def list_names() -> list[str]:
    """All models of torchvision but the quantized ones, which have no floating-point weights."""
    return [name for name in torchvision.models.list_models() if not name.startswith("quantized_")]


def find_part(name: str) -> str:
    """The folder or file of torchvision that a model comes from: detection, segmentation, video, resnet and so on."""
    part: str = torchvision.models.get_model_builder(name).__module__.split(".")[2]
    return part


def candidates(name: str) -> Iterator[Candidate]:
    """The options and sizes to try."""
    if name.startswith("ssd"):
        yield Candidate({"weights_backbone": None, "score_thresh": 0.0, "detections_per_img": 10}, 320, 256)
    elif "rcnn" in name:
        yield Candidate({"weights_backbone": None, **DETECTOR, **FEW_BOXES}, 128, 160)
    elif find_part(name) == "detection":
        yield Candidate({"weights_backbone": None, **DETECTOR, **FEW_CANDIDATES}, 128, 160)
    elif name.startswith("raft"):
        yield Candidate({}, 128, 160)
    elif name.startswith("mvit"):
        yield from (Candidate({"image_size": size}, size, other) for size, other in SIZES)
    elif name.startswith("vit_"):
        sizes = ((56, 70), (112, 126), (224, 238)) if name.endswith("14") else SIZES
        yield from (Candidate({"image_size": size}, size, other) for size, other in sizes)
    else:
        options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        options |= {"weights_backbone": None} if find_part(name) == "segmentation" else {}
        yield from (Candidate(options, size, other) for size, other in SIZES)


def build(name: str, options: dict[str, Any]) -> nn.Module:
    """Build a model with random weights."""
    if name.startswith("mvit"):
        return build_small_mvit(name, **options)
    model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return model


def build_small_mvit(name: str, image_size: int) -> nn.Module:
    """Build a multiscale vision transformer for short clips of small images, which its builder does not offer."""
    make, size = mvit._mvit, {"spatial_size": (image_size, image_size), "temporal_size": 8}
    with patch.object(mvit, "_mvit", lambda **options: make(**(options | size))):
        model: nn.Module = torchvision.models.get_model(name, weights=None)
    return model


def draw(name: str, model: nn.Module) -> Draw:
    """The inputs of a model."""
    part = find_part(name)
    if part == "video":
        return functools.partial(draw_video, frames=16 if name == "s3d" else 8)
    return {"detection": draw_image_list, "optical_flow": draw_pair}.get(part, draw_images)


TORCHVISION = Source(candidates, build, draw)

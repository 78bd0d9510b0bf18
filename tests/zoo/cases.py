"""One model of the zoo with random weights, and the inputs that it takes: the smallest that keep it quick."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fxprune.model import Inputs
from fxprune.passes.check_exact import default_precision
from tests.exactness import varied_images

HUGE = 700_000_000
"""Models of more parameters lose blocks before they are measured: no usual machine has room for several copies."""

Draw = Callable[[int, int, int], Inputs]
"""Make inputs in double precision of a batch size, an image size (or a length), and a seed."""


class Candidate(NamedTuple):
    """A way to build a model, tried before the next one: options of its constructor, and the sizes it then takes."""

    options: dict[str, Any]
    size: int
    other: int


@dataclass(frozen=True)
class Case:
    """A model in single precision, its inputs, and two sizes of them, of which the model takes the first."""

    model: nn.Module
    draw: Draw
    size: int
    other: int
    left_out: int = 0  # blocks of a huge model


@dataclass(frozen=True)
class Source:
    """Where a family's models come from. `candidates` and `build` take the model's name."""

    candidates: Callable[[str], Iterator[Candidate]]
    build: Callable[[str, dict[str, Any]], nn.Module]
    draw: Callable[[str, nn.Module], Draw]


def make_case(source: Source, name: str) -> Case:
    """Build the first candidate that runs in both modes on the meta device; if none does, the last one."""
    chosen = None
    for candidate in source.candidates(name):
        chosen = candidate
        if runs_on_meta(source, name, candidate):
            break
    if chosen is None:
        raise ValueError(f"{name}: there is no way to build it")
    is_huge = sum(p.numel() for p in build_on_meta(source, name, chosen.options).parameters()) > HUGE
    torch.manual_seed(0)
    with default_precision(torch.bfloat16 if is_huge else torch.float32):
        model = source.build(name, chosen.options).eval()
    left_out = leave_out_blocks(model) if is_huge else 0
    return Case(model.float(), source.draw(name, model), chosen.size, chosen.other, left_out)


def leave_out_blocks(model: nn.Module, ends: int = 2) -> int:
    """Leave out the middle of every row of blocks that are alike, all but a few at both ends; return how many went."""
    left_out = 0
    for row in [part for part in model.modules() if type(part) in (nn.Sequential, nn.ModuleList)]:
        kept: list[tuple[str, nn.Module]] = []
        for _, alike in itertools.groupby(row.named_children(), lambda child: describe_block(child[1])):
            blocks = list(alike)
            kept += blocks if len(blocks) <= 2 * ends else [*blocks[:ends], *blocks[-ends:]]
        left_out += len(row) - len(kept)
        row._modules.clear()
        row._modules.update({str(i) if name.isdigit() else name: block for i, (name, block) in enumerate(kept)})
    return left_out


def describe_block(block: nn.Module) -> tuple[Any, ...]:
    """What blocks have in common that are alike: their class, and the shapes of their parameters."""
    return type(block), tuple((name, p.shape) for name, p in block.named_parameters())


def runs_on_meta(source: Source, name: str, candidate: Candidate) -> bool:
    """Whether a candidate runs in both modes; on the meta device, which computes shapes alone, so that it is quick."""
    try:
        model = build_on_meta(source, name, candidate.options)
        args, kwargs = cast(source.draw(name, model)(2, candidate.size, 0), torch.float32)
        args, kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
        for training in (False, True):
            model.train(training)(*args, **kwargs)
    except Exception:  # noqa: BLE001 - whatever it is, the next candidate is tried
        return False
    return True


def build_on_meta(source: Source, name: str, options: dict[str, Any]) -> nn.Module:
    """Build a model without memory for its weights; with it, where the constructor reads values, as RegNet's does."""
    try:
        with torch.device("meta"):
            return source.build(name, options)
    except RuntimeError:
        return source.build(name, options).to("meta")


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Turn the floating-point tensors among the inputs to a precision."""
    return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, inputs)  # type: ignore[no-any-return]


def draw_images(batch: int, size: int, seed: int, channels: int = 3) -> Inputs:
    """A batch of images, [batch, channels, size, size]."""
    return (varied_images(batch, channels, size, seed),), {}


def draw_video(batch: int, size: int, seed: int, frames: int = 8) -> Inputs:
    """A batch of clips, [batch, 3, frames, size, size]."""
    return (varied_images(batch * frames, 3, size, seed).unflatten(0, (batch, frames)).transpose(1, 2),), {}


def draw_pair(batch: int, size: int, seed: int) -> Inputs:
    """Two batches of images, between which something moves."""
    first = varied_images(batch, 3, size, seed)
    return (first, first.roll(2, dims=3) + 0.1 * varied_images(batch, 3, size, seed + 100)), {}


def draw_image_list(batch: int, size: int, seed: int) -> Inputs:
    """A list of images as a detector takes them, [3, size, size] each."""
    return (list(0.45 + 0.2 * varied_images(batch, 3, size, seed)),), {}

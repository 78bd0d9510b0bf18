"""Functions that remember their results: what stands for sizes must not get into their memory, nor be frozen."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.passes.proxies import ValueProxy
from tests.conversion import convert_closed, prepare_randomised


@functools.lru_cache(16)
def split_heads(shape: tuple[int, ...], lengths: tuple[tuple[str, int], ...]) -> list[int]:
    """As einops does: the shape, and the lengths of axes by their names."""
    heads = dict(lengths)["heads"]
    if shape[-1] % heads:
        raise ValueError("heads have one width")
    return [*shape[:-1], heads, shape[-1] // heads]


class Grid:
    """A class with a method that remembers."""

    @functools.lru_cache  # noqa: B019
    def step(self, size: int) -> float:
        return 1 / size


class Attention(nn.Module):
    """Attention over the tokens of an image, whose code calls functions that remember."""

    def __init__(self, scale: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.qkv, self.out, self.grid, self.scale = nn.Linear(16, 48), nn.Linear(32, 4), Grid(), scale

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (t.reshape(split_heads(t.shape, (("heads", 4),))).transpose(1, 2) for t in (q, k, v))
        seen = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(torch.cat([x, seen], -1)) * self.scale(self, x)


SCALES: dict[str, Callable[[Any, Tensor], Any]] = {
    "a module's": lambda m, x: split_heads(x.shape, (("heads", 2),))[1],
    "another module's": lambda m, x: sys.modules[__name__].split_heads(x.shape, (("heads", 2),))[1],
    "a class's": lambda m, x: Grid.step(m.grid, x.shape[1]),
}  # fmt: skip


@pytest.mark.parametrize("name", SCALES)
def test_sizes_stay_symbolic_and_nothing_is_remembered_of_what_stands_for_them(name: str) -> None:
    torch.manual_seed(0)
    split_heads.cache_clear(), Grid.step.cache_clear()
    model = Attention(SCALES[name])
    prepared = prepare_randomised(model, torch.randn(2, 5, 16).double())
    compact = convert_closed(prepared, torch.randn(3, 5, 16).double(), torch.randn(2, 9, 16).double())
    assert compact.get_submodule("qkv").out_features < 48
    gc.collect()
    assert not any(type(each) is ValueProxy for each in gc.get_objects())
    assert model(torch.randn(2, 5, 16).double()).shape == (2, 5, 4)
    assert isinstance(vars(sys.modules[__name__])["split_heads"], functools._lru_cache_wrapper)
    assert isinstance(vars(Grid)["step"], functools._lru_cache_wrapper)
    x = torch.randn(2, 7, 16).double()
    torch.testing.assert_close(fxprune.prepare(model, x)(x), model(x))

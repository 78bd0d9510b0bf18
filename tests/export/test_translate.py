"""Does what torch's exporter does not know reach the file in words that it knows?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.export import to_onnx, verify


class Attention(nn.Module):
    """Attention whose batch has so many dimensions more, with a mask of this shape."""

    def __init__(self, outer: tuple[int, ...], mask: tuple[int, ...] | None, by_name: bool) -> None:
        super().__init__()
        self.outer, self.by_name = outer, by_name
        self.projection = nn.Linear(8, 24)
        self.mask = None if mask is None else nn.Parameter(torch.randn(mask))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.projection(x).view(x.shape[0], *self.outer, -1, 24).chunk(3, -1)
        if self.by_name:
            result = F.scaled_dot_product_attention(value=value, key=key, query=query, attn_mask=self.mask, scale=0.7)
        else:
            result = F.scaled_dot_product_attention(query, key, value, self.mask)
        return result.reshape(x.shape)


CASES: list[tuple[tuple[int, ...], tuple[int, ...] | None, bool]] = [
    ((), None, False),
    ((), (24, 24), True),
    ((3,), (3, 8, 8), False),
    ((2, 3), None, True),
    ((2, 3), (4, 4), False),
    ((2, 3), (2, 1, 4, 4), True),
    ((2, 2, 3), (3, 2, 2), False),
]


@pytest.mark.parametrize(("outer", "mask", "by_name"), CASES)
def test_attention_of_every_rank_is_exported(
    outer: tuple[int, ...], mask: tuple[int, ...] | None, by_name: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, path = Attention(outer, mask, by_name).eval(), tmp_path / "attention.onnx"
    to_onnx(model, torch.randn(2, 24, 8), path)
    assert verify(model, path, torch.randn(5, 24, 8)).passed

"""Do random models compute what differences can be seen in?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.exactness import varied_images
from tests.zoo.meaning import compare, outputs_of, randomise, settle


class Gated(nn.Module):
    """A layer and a gate over its channels' means, as in an EfficientNet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.squeeze, self.excite = nn.Conv2d(width, 8, 1), nn.Conv2d(8, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.norm(self.conv(x)))
        return x * self.excite(nn.functional.silu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()


def test_rounding_hardly_grows_over_many_norms() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), *[Gated(16) for _ in range(60)]).double()
    randomise(model, 0.5)
    settle(model, ((varied_images(4, 3, 8, seed=2),), {}))
    x = varied_images(3, 3, 8, seed=1)
    disturbed = x * (1 + 1e-12 * torch.randn(x.shape, dtype=x.dtype))
    found = compare(outputs_of(model, ((x,), {})), outputs_of(model, ((disturbed,), {})))
    assert found.error < 2e-11
    assert not found.is_vacuous

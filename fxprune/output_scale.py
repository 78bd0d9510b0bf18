"""By what are differences between outputs divided? By how much these vary, here and not only somewhere."""

import torch
from torch import Tensor

LOCAL = 100.0
"""How much more of what an element itself varies by a difference may be than of what the whole output does."""

HUGE = 1e6
"""How many times as large as the middle one of an output's values those are that are compared by themselves."""


def find_scale(samples: Tensor) -> Tensor:
    """Give what differences are divided by: how much the output varies over [samples, ...].

    It is no more than `LOCAL` times what the element itself varies by, or others of its channel, row or column, and
    values that are far larger than most, as masks are, are held to their own size: nothing hides what lies beside it.
    """
    size = torch.where(samples.isfinite(), samples, 0.0).abs()
    is_huge = size > HUGE * torch.where(size > 0, size, torch.nan).nanmedian()
    usual = samples.isfinite() & ~is_huge
    highest, lowest = torch.where(usual, samples, -torch.inf).amax(0), torch.where(usual, samples, torch.inf).amin(0)
    spread, largest = (highest - lowest).clamp(min=0), torch.where(usual, size, 0.0).amax(0)
    if not spread.max() > 1e-6 * largest.max():
        return torch.where(is_huge, size, largest.max().clamp(min=1e-30))
    varied = torch.where(spread > 0, spread, torch.nan)
    near = torch.full_like(spread, torch.nan)
    for dim in range(spread.dim() if spread.dim() > 1 else 0):
        median = varied.movedim(dim, 0).flatten(1).nanmedian(1).values
        near = near.fmin(median.view([-1] + [1] * (spread.dim() - dim - 1)))
    own = spread.fmax(near).maximum(1e-4 * largest).maximum(1e-8 * varied.nanmedian())
    return torch.where(is_huge, size, spread.max().minimum(LOCAL * own))

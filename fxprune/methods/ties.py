"""How do the variables of masks start that are all one? Each a little below, so that no two are equal for long.

Of equal ones where no gradient reaches them a threshold closes all or none, and misses its target.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def make_ones_apart(sizes: Sequence[int], apart: float, like: Tensor) -> Tensor:
    """Give numbers in (1 - apart, 1], the same ones every time, of the type and on the device of a tensor."""
    draw = torch.Generator().manual_seed(0)
    return 1 - apart * torch.rand(tuple(sizes), generator=draw).to(like)

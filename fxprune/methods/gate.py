"""Which share of its value does a weight, a stripe or a unit keep, given its magnitude and the threshold?"""

import torch
from torch import Tensor


def power_gate(magnitude: Tensor, threshold: Tensor, p: float) -> Tensor:
    """Give the gate (1 - (T / m)^p)^(1/p) of every magnitude m above the threshold T, and 0 to the others.

        m * gate = (m^p - T^p)^(1/p);  p = 1 is soft thresholding, p = inf hard    (Feather, BMVC 2023, eq. 3)

    A gate is 0 exactly where m <= T; T <= 0 opens all of them. Written by the ratio T / m, for m^p underflows.
    `magnitude` is non-negative and at least float32, `threshold` 0-dimensional and of the same type; the
    result is a new tensor of the magnitude's shape. Its temporaries are as large as that: call it on pieces
    that fit into the cache.
    """
    threshold = torch.where(threshold > 0, threshold, -1)  # below all magnitudes, and -1 / 0 is no NaN
    is_open = magnitude.clone().gt_(threshold)  # as 0.0 and 1.0, much faster than bool and a cast
    if p == torch.inf:
        return is_open
    rest = torch.div(threshold, magnitude).clamp_(0, 1).pow_(p).neg_().add_(1)
    return _take_root(rest, p).mul_(is_open)


def _take_root(values: Tensor, p: float) -> Tensor:
    """Give v^(1/p), in place, of values in [0, 1]; of 0 next to nothing, for its logarithm takes ten times as long.

    By logarithms it is a third of the time of torch's own power.
    """
    if p == 1:
        return values
    return values.clamp_(min=torch.finfo(values.dtype).tiny).log2_().div_(p).exp2_()

"""Gates as bits: as bools they would take a quarter of the memory that the weights take."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pack(gates: Tensor) -> Tensor:
    """Give bool gates [rows, ...] as bits, uint8 [rows, m]: bit i of byte j is gate i m + j of a row."""
    rows = gates.reshape(gates.shape[0], -1).to(torch.uint8)
    planes: Tensor = F.pad(rows, (0, -rows.shape[1] % 8)).reshape(len(rows), 8, -1)
    return planes.bitwise_left_shift(_places(planes)).sum(1, dtype=torch.uint8)


def unpack(bits: Tensor, sizes: torch.Size | tuple[int, ...]) -> Tensor:
    """Give gates, uint8 [rows of the bits, *sizes], 1 where they are open and 0 where they are closed."""
    gates = bits.unsqueeze(1).bitwise_right_shift(_places(bits)).bitwise_and_(1).flatten(1)
    return gates[:, : torch.Size(sizes).numel()].reshape(-1, *sizes)


def _places(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device).unsqueeze(1)

"""Gates as bits: as bools they would take a quarter of the memory that the weights take."""

import torch
import torch.nn.functional as F
from torch import Tensor

_ODD = -0x61C8864680B583EB  # 2^64 over the golden ratio, whose multiples lie far apart


def pack(gates: Tensor) -> Tensor:
    """Give bool gates [rows, ...] as bits, uint8 [rows, m]: bit i of byte j is gate i m + j of a row."""
    rows = gates.reshape(gates.shape[0], -1).view(torch.uint8)
    if rows.shape[1] % 8:
        rows = F.pad(rows, (0, -rows.shape[1] % 8))
    planes = rows.reshape(len(rows), 8, -1)
    for half in (4, 2, 1):
        planes = planes[:, half:].bitwise_left_shift(half).bitwise_or_(planes[:, :half])
    return planes.flatten(1)


def unpack(bits: Tensor, sizes: torch.Size | tuple[int, ...]) -> Tensor:
    """Give gates, uint8 [rows of the bits, *sizes], 1 where they are open and 0 where they are closed."""
    gates = bits.unsqueeze(1).bitwise_right_shift(_places(bits)).bitwise_and_(1).flatten(1)
    return gates[:, : torch.Size(sizes).numel()].reshape(-1, *sizes)


def count(bits: Tensor) -> int:
    """Count the gates that are open: in pairs of bits, in fours, in bytes, and then all."""
    pairs = bits - (bits >> 1 & 0b01010101)
    fours = (pairs & 0b00110011) + (pairs >> 2 & 0b00110011)
    return int((fours + (fours >> 4) & 0b00001111).sum())


def digest(bits: Tensor) -> Tensor:
    """Give eight bytes, uint8 [8], that other bits would not have: a sum over words, each mixed with its place."""
    flat = F.pad(bits.flatten(), (0, -bits.numel() % 8)).view(torch.int64)
    words = flat ^ torch.arange(1, len(flat) + 1, device=bits.device) * _ODD
    words = (words ^ words >> 29) * _ODD
    return (words ^ words >> 32).sum().reshape(1).view(torch.uint8)


def _places(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device).unsqueeze(1)

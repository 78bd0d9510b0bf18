"""Where is it kept which gates of a weight are open still? As bits, under a seal, in the buffers of a module."""

import math

import torch
from torch import Tensor, nn

from fxprune.bits import count, digest, pack, unpack


class KeptGates(nn.Module):
    """Gates that only ever close, for a weight whose gates have `sizes`; all are open at first.

    Buffers: `bits` (uint8 [rows, m], see `pack`) and `seal` (uint8 [8], their digest). Whoever averages buffers, as
    `torch.optim.swa_utils.AveragedModel(use_buffers=True)`, makes other bits of bits: then the seal is broken.
    """

    bits: Tensor
    seal: Tensor

    def __init__(self, sizes: tuple[int, ...], device: torch.device) -> None:
        super().__init__()
        self.sizes = sizes
        self.register_buffer("bits", pack(torch.ones(sizes, dtype=torch.bool, device=device)))
        self.register_buffer("seal", digest(self.bits))
        self._sound = (0, 0)  # which tensor was looked at last, and which of its versions

    def is_sound(self) -> bool:
        """Whether the bits are what was written here; looked at again only where somebody has written to them."""
        if torch.compiler.is_compiling() or self.bits.is_meta or self.bits.is_inference():
            return True
        if self._sound != self._version_of_bits:
            if not torch.equal(digest(self.bits), self.seal):
                return False
            self._sound = self._version_of_bits
        return True

    def write(self, gates: Tensor) -> None:
        """Take other gates, bool of the `sizes`."""
        self.bits.copy_(pack(gates))
        self.set_seal()

    def close(self, rows: slice, gates: Tensor) -> None:
        """Close those that are False among the gates of some rows; call `set_seal` after the last of them."""
        self.bits[rows] &= pack(gates)

    def set_seal(self) -> None:
        """Declare the bits to be what was meant."""
        self.seal.copy_(digest(self.bits))
        self._sound = self._version_of_bits

    def read(self) -> Tensor:
        """Give the gates, uint8 of the `sizes`, 1 where they are open and 0 where they are closed."""
        return unpack(self.bits, self.sizes[1:])

    def count_closed(self) -> int:
        """Count the gates that are closed."""
        return math.prod(self.sizes) - count(self.bits)

    @property
    def _version_of_bits(self) -> tuple[int, int]:
        return id(self.bits), self.bits._version

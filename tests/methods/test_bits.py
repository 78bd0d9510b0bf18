"""Are gates as bits the gates that they were made of?"""

import pytest
import torch

from fxprune.bits import count, digest, pack, unpack


@pytest.mark.parametrize("sizes", [(3, 16), (5, 7), (4, 1, 3, 3), (2, 9, 1, 1), (1, 8), (6, 1)])
def test_gates_come_back(sizes: tuple[int, ...]) -> None:
    gates = torch.rand(sizes) < 0.5
    bits = pack(gates)
    assert bits.dtype == torch.uint8
    assert bits.shape == (sizes[0], -(-gates[0].numel() // 8))
    assert torch.equal(unpack(bits, sizes[1:]).bool(), gates)
    assert torch.equal(unpack(bits[1:], sizes[1:]).bool(), gates[1:])
    assert count(bits) == int(gates.sum())


def test_bits_are_closed_as_gates_are() -> None:
    first, second = torch.rand(4, 21) < 0.5, torch.rand(4, 21) < 0.5
    assert torch.equal(unpack(pack(first) & pack(second), (21,)).bool(), first & second)


def test_other_bits_have_another_digest() -> None:
    bits = torch.randint(256, (7, 3), dtype=torch.uint8)
    changed = bits.repeat(168, 1, 1).flatten(1)  # each of the 168 bits flipped once
    changed[torch.arange(168), torch.arange(168) // 8] ^= (1 << torch.arange(168) % 8).to(torch.uint8)
    swapped = bits.flip(0)
    averaged = (bits * 0.9 + pack(torch.zeros(7, 24, dtype=torch.bool)) * 0.1).to(torch.uint8)
    digests = [tuple(digest(each).tolist()) for each in (bits, *changed, swapped, averaged, torch.zeros_like(bits))]
    assert len(set(digests)) == len(digests)
    assert torch.equal(digest(bits), digest(bits.clone()))

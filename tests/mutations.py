"""How is a file damaged? Bits flip, stretches are overwritten, emptied, lost, doubled or put in, the end is missing."""

import random
from collections.abc import Iterator


def mutate(blob: bytes, number: int = 200) -> Iterator[bytes]:
    """Yield so many damaged files, always the same ones, none of them equal to the original."""
    generator = random.Random(0)
    ways = (flip, overwrite, empty, lose, double, insert, cut)
    count = 0
    while count < number:
        mutant = ways[count % len(ways)](blob, generator)
        if mutant != blob:
            count += 1
            yield mutant


def flip(blob: bytes, generator: random.Random) -> bytes:
    at = generator.randrange(len(blob))
    return blob[:at] + bytes([blob[at] ^ 1 << generator.randrange(8)]) + blob[at + 1 :]


def overwrite(blob: bytes, generator: random.Random) -> bytes:
    start, end = choose_stretch(blob, generator)
    return blob[:start] + generator.randbytes(end - start) + blob[end:]


def empty(blob: bytes, generator: random.Random) -> bytes:
    start, end = choose_stretch(blob, generator)
    return blob[:start] + bytes(end - start) + blob[end:]


def lose(blob: bytes, generator: random.Random) -> bytes:
    start, end = choose_stretch(blob, generator)
    return blob[:start] + blob[end:]


def double(blob: bytes, generator: random.Random) -> bytes:
    start, end = choose_stretch(blob, generator)
    return blob[:end] + blob[start:end] + blob[end:]


def insert(blob: bytes, generator: random.Random) -> bytes:
    at = generator.randrange(len(blob) + 1)
    return blob[:at] + generator.randbytes(generator.randrange(1, 40)) + blob[at:]


def cut(blob: bytes, generator: random.Random) -> bytes:
    return blob[: generator.randrange(len(blob))]


def choose_stretch(blob: bytes, generator: random.Random) -> tuple[int, int]:
    """Choose up to a tenth of the file, or a few bytes."""
    start = generator.randrange(len(blob))
    longest = generator.choice([8, max(8, len(blob) // 10)])
    return start, min(len(blob), start + generator.randrange(1, longest))

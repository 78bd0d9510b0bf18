"""How does a file tell that it is as it was written?

By the sha256 of its bytes, with zeros in the digest's own place.
"""

from __future__ import annotations

import hashlib

EMPTY = b"0" * 64
"""What stands in the digest's place until the file is sealed."""


def seal(blob: bytes, mark: bytes) -> tuple[bytes, bytes, bytes]:
    """Put the digest into the place behind `mark`, where `EMPTY` stands; return the file in three pieces."""
    start = blob.index(mark + EMPTY) + len(mark)
    return blob[:start], hashlib.sha256(blob).hexdigest().encode(), blob[start + len(EMPTY) :]


def is_sealed(blob: bytes, mark: bytes) -> bool:
    """Whether the file, in which `mark` stands, has the digest that stands behind it."""
    start = blob.index(mark) + len(mark)
    digest = hashlib.sha256(blob[:start])
    digest.update(EMPTY)
    digest.update(memoryview(blob)[start + len(EMPTY) :])
    return digest.hexdigest().encode() == blob[start : start + len(EMPTY)]

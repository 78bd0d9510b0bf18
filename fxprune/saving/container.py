"""What the file is made of: one safetensors file, the plan as its metadata, and one digest over every byte.

One file rather than a folder, so that it is written and replaced at once, and neither half can be lost or swapped.
Any safetensors reader shows its tensors. The digest is that of the file with zeros in the digest's own place.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from fxprune.digest import EMPTY, is_sealed, seal
from fxprune.errors import PlanError

FORMAT = "fxprune 1"
DIGEST = b'"sha256":"'


def write_file(path: str | Path, plan: str, tensors: dict[str, Tensor]) -> None:
    """Write a file beside `path` and put it into its place, so that what was there stays whole until then.

    Raises:
        PlanError: the folder is missing or cannot be written to.
    """
    path = Path(path)
    blob = safetensors.torch.save(tensors, {"format": FORMAT, "plan": plan, "sha256": EMPTY.decode()})
    try:
        handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise PlanError(f"{path} cannot be written: {error.strerror}; give a path in a folder that you own") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(seal(blob, DIGEST))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, path.stat().st_mode if path.exists() else 0o666 & ~current_umask())
        os.replace(beside, path)
    except OSError as error:
        raise PlanError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        Path(beside).unlink(missing_ok=True)


def current_umask() -> int:
    """What the process leaves out of the rights of new files; to be read, it has to be set."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def read_file(path: str | Path) -> tuple[str, dict[str, Tensor]]:
    """Read the plan and the tensors of a file, after its digest is found right.

    Raises:
        PlanError: there is no such file, `fxprune.save` did not write it, or it is not as it was written.
    """
    try:
        blob = Path(path).read_bytes()
    except OSError as error:
        raise PlanError(f"{path} cannot be read: {error.strerror}") from error
    size = int.from_bytes(blob[:8], "little")
    if not blob[8:].startswith(b'{"__metadata__":{') or DIGEST not in blob[: 8 + size]:
        raise PlanError(f"{path} is no file of fxprune.save, or what is left of one; save the compact model again")
    if not is_sealed(blob, DIGEST):
        expected = expected_size(blob, size)
        if expected is not None and len(blob) < expected:
            raise PlanError(f"{path} is cut off: it has {len(blob):,} of {expected:,} bytes; copy it or save it again")
        raise PlanError(f"{path} is damaged: its bytes do not give the digest in it; copy it or save it again")
    metadata = json.loads(blob[8 : 8 + size])["__metadata__"]
    if metadata.get("format") != FORMAT:
        raise PlanError(
            f"{path} has the format {metadata.get('format')!r}, and this fxprune reads {FORMAT!r}; load it with the "
            "version of fxprune that wrote it"
        )
    return metadata["plan"], safetensors.torch.load(blob)


def expected_size(blob: bytes, size: int) -> int | None:
    """How long the header says that the file is; None if the header itself does not end, or is not whole."""
    try:
        header: dict[str, Any] = json.loads(blob[8 : 8 + size])
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return 8 + size + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError):
        return 8 + size if len(blob) < 8 + size else None

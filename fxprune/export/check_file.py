"""Is an ONNX file whole and well formed, before a runtime reads it?

Files that fxprune writes say so at both ends, by their producer and by the digest over their bytes (`seal_file`), so
that what is damaged or cut off anywhere is told from a file of another tool. Those are checked by onnx, which also
refuses weights outside of the file's folder. Nothing of a file is ever run.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import onnx
from onnxscript import ir

from fxprune.digest import EMPTY, is_sealed, seal
from fxprune.errors import ExportError

PRODUCER = "fxprune"
DIGEST, WEIGHTS = "fxprune.sha256", "fxprune.weights.sha256"
"""The entries of the metadata with the digest of the file, and of the file of weights beside it where there is one."""

_PRODUCER_FIELD = b"\x12" + bytes([len(PRODUCER)]) + PRODUCER.encode()
_DIGEST_FIELD = DIGEST.encode() + b"\x12" + bytes([len(EMPTY)])  # the key, and the head of its value
_HEAD = 32
"""How many bytes the producer's name lies within: only the version of the format stands before it."""


def prepare_seal(model: ir.Model, version: str) -> None:
    """Name fxprune as the producer, and make the digest's place, before a model is written."""
    model.producer_name, model.producer_version = PRODUCER, version
    model.metadata_props[DIGEST] = EMPTY.decode()


def seal_file(path: Path, weights: Path | None = None) -> None:
    """Put the digest into a file that was written after `prepare_seal`, and that of the weights beside it."""
    blob = path.read_bytes()
    if weights is not None:
        proto = onnx.ModelProto.FromString(blob)
        onnx.helper.set_model_props(proto, {**_read_metadata(proto), WEIGHTS: _digest_file(weights)})
        blob = proto.SerializeToString()
    path.write_bytes(b"".join(seal(blob, _DIGEST_FIELD)))


def seal_proto(proto: onnx.ModelProto, path: Path, version: str) -> None:
    """Write a graph that another tool made of a file of ours, under a digest of its own."""
    proto.producer_name, proto.producer_version = PRODUCER, version
    onnx.helper.set_model_props(proto, {**_read_metadata(proto), DIGEST: EMPTY.decode()})
    path.write_bytes(b"".join(seal(proto.SerializeToString(), _DIGEST_FIELD)))


def check_file(path: Path) -> None:
    """Refuse a file that is missing, damaged, no ONNX file, or that refers to files outside of its folder.

    What was checked in this process and has not been written since is not read again. Raises ExportError.
    """
    try:
        now = path.stat()
        weights = _check_contents(path.resolve(), now.st_ino, now.st_size, now.st_mtime_ns)
    except FileNotFoundError as error:
        raise ExportError(f"there is no file {path}.") from error
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}.") from error
    _require_weights(path, weights)


@lru_cache(maxsize=64)
def _check_contents(path: Path, *_: int) -> dict[str, str | None]:
    """Check a file; give the digests of the weights beside it, if it is ours. The numbers tell when it was written."""
    blob = path.read_bytes()
    is_ours = _PRODUCER_FIELD in blob[:_HEAD] or DIGEST.encode() in blob
    if is_ours and (_DIGEST_FIELD not in blob or not is_sealed(blob, _DIGEST_FIELD)):
        raise ExportError(
            f"{path} is damaged: its bytes do not give the digest in it; copy or export it again. If another tool "
            f"changed it on purpose, let that take out the producer {PRODUCER!r} and the metadata entry {DIGEST!r}."
        )
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise ExportError(f"{path} is no valid ONNX file: {_shorten(error)}") from error
    if not is_ours:
        return {}
    proto = onnx.ModelProto.FromString(blob)
    names = {e.value for tensor in proto.graph.initializer for e in tensor.external_data if e.key == "location"}
    return dict.fromkeys(sorted(names), _read_metadata(proto).get(WEIGHTS))


def _require_weights(path: Path, digests: Mapping[str, str | None]) -> None:
    """Refuse a file whose weights, in the file beside it, are not those that it was written with."""
    for name, expected in digests.items():
        if _digest_file(path.parent / name) != expected:
            raise ExportError(
                f"{path.parent / name} does not hold the weights of {path.name}; copy or export both again."
            )


def _read_metadata(proto: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in proto.metadata_props}


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shorten(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__

"""What do batches of a user's own inputs look like in a file?"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneError

BATCH = 32


def read_batches(path: Path) -> list[Tensor | dict[str, Tensor]]:
    """Read an .npz file of inputs: one array for the model's first input, or one by the name of each.

    The first dimension of each array counts the samples; they come in batches of 32.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise FxpruneError(f"--calibrate {path} cannot be read ({error}); write it by numpy.savez") from error
    lengths = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise FxpruneError(f"--calibrate {path}: give arrays of the same number of samples, at least one")
    return list(cut(arrays, lengths.pop()))


def require_fit(model: nn.Module, path: Path, batches: list[Tensor | dict[str, Tensor]]) -> None:
    """Refuse inputs that the model does not run on, before the time is spent; the model is in eval mode."""
    first = batches[0]
    try:
        with torch.no_grad():
            model(**first) if isinstance(first, dict) else model(first)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        arrays = first if isinstance(first, dict) else {"its array": first}
        found = ", ".join(f"{name} {tuple(array.shape)} of {array.dtype}" for name, array in arrays.items())
        reason = str(error).partition("\n")[0]
        raise FxpruneError(
            f"--calibrate {path}: the model does not run on its first batch, {found} ({reason}); give inputs as the "
            "model takes them, one array, or one by the name of each input"
        ) from error


def cut(arrays: dict[str, Tensor], samples: int) -> Iterator[Tensor | dict[str, Tensor]]:
    """Cut arrays into batches; numbers become single precision, as models are."""
    single = {name: t.float() if t.is_floating_point() else t for name, t in arrays.items()}
    for start in range(0, samples, BATCH):
        batch = {name: tensor[start : start + BATCH] for name, tensor in single.items()}
        yield batch if len(batch) > 1 else next(iter(batch.values()))

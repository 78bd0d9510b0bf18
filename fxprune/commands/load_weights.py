"""How do weights in a file get into a model? From safetensors; from a pickle only where the user trusts it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from fxprune.errors import FxpruneError
from fxprune.saving.load import load


class WeightsError(FxpruneError):
    """A file whose weights cannot be read, or are not the model's."""


def load_weights(model: nn.Module, path: Path | None, trust: bool) -> nn.Module:
    """Return the model with the weights of a file, or the compact model if `fxprune.save` wrote it.

    Where a file is a dict with the weights inside, under "state_dict" or "model", these are taken; the names may begin
    with "module.", as those of a model trained in parallel do.

    Raises:
        WeightsError: the file cannot be read, is a pickle that is not trusted, or does not fit the model.
    """
    if path is None:
        return model
    if not path.is_file():
        raise WeightsError(f"--weights {path}: there is no such file")
    if path.suffix == ".safetensors":
        if (metadata := read_metadata(path)).get("format", "").startswith("fxprune") and "plan" in metadata:
            return load(model, path)
        states = safetensors.torch.load_file(path)
    elif trust:
        states = unpickle(path)
    else:
        raise WeightsError(
            f"--weights {path} is no .safetensors file, and other files can run code as they are read: write the "
            "weights by safetensors.torch.save_file(model.state_dict(), ...), or give --trust if you know its maker"
        )
    consume_prefix_in_state_dict_if_present(states, "module.")
    require_same_names(model, states, path)
    model.load_state_dict(states)
    return model


def read_metadata(path: Path) -> dict[str, str]:
    """Read the header of a safetensors file."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"--weights {path} cannot be read as safetensors ({error}); copy it again") from error


def unpickle(path: Path) -> dict[str, Tensor]:
    """Read a file of torch.save that its user trusts, and find the weights in it."""
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # whatever a foreign file may raise
        raise WeightsError(f"--weights {path} cannot be read ({type(error).__name__}: {error})") from error
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and key in found and not isinstance(found[key], Tensor):
            found = found[key]
    if isinstance(found, nn.Module):
        found = found.state_dict()
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise WeightsError(f"--weights {path} holds a {type(found).__name__}; save model.state_dict() instead")
    return dict(found)


def require_same_names(model: nn.Module, states: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights of another model, by the first name that is why."""
    own = model.state_dict()
    for name, value in states.items():
        if name not in own:
            raise WeightsError(f"--weights {path} holds {name}, which the model has not; give weights of this model")
        if own[name].shape != value.shape:
            raise WeightsError(
                f"--weights {path}: {name} is {tuple(value.shape)}, and {tuple(own[name].shape)} in the model"
            )
    missing = [name for name in own if name not in states]
    if missing:
        raise WeightsError(
            f"--weights {path} lacks {missing[0]} and {len(missing) - 1} more; give weights of this model"
        )

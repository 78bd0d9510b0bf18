"""Which model does the command line mean? torchvision:NAME, timm:NAME, or a function of the user's own."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.commands.settings import read_size
from fxprune.errors import FxpruneError
from fxprune.model import TracedModel
from fxprune.passes.guess_inputs import guess_inputs

FORMS = "torchvision:NAME, timm:NAME or package.module:function"


class ModelNameError(FxpruneError):
    """No model can be made of this name."""


def load_model(name: str) -> nn.Module:
    """Make a model with random weights; nothing is downloaded.

    Raises:
        ModelNameError: the name has no known form, its package is not installed, it is unknown, or what it
            names makes no module.
    """
    source, colon, rest = name.partition(":")
    if not colon or not source or not rest:
        raise ModelNameError(f"{name!r} names no model; give {FORMS}")
    if source == "torchvision":
        return load_torchvision(rest)
    if source == "timm":
        return load_timm(rest)
    return load_function(source, rest)


def load_torchvision(name: str) -> nn.Module:
    """Make one of torchvision's models."""
    models = import_package("torchvision").models
    check_name(name, "torchvision", models.list_models())
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # seconds, and a warning
    return build(f"torchvision:{name}", lambda: models.get_model(name, **options))


def load_timm(name: str) -> nn.Module:
    """Make one of timm's models."""
    timm = import_package("timm")
    check_name(name.partition(".")[0], "timm", timm.list_models())
    return build(f"timm:{name}", lambda: timm.create_model(name, pretrained=False))


def load_function(module_name: str, function: str) -> nn.Module:
    """Call a function, or take a module, of an importable file; the working folder counts as importable."""
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = f"{module_name}:{function}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ModelNameError(f"{name}: there is no module {error.name!r}; give {FORMS}") from error
        raise ModelNameError(f"{name}: {module_name} needs {error.name!r}, which is not installed") from error
    except Exception as error:
        raise ModelNameError(f"{name}: {module_name} cannot be imported ({describe(error)})") from error
    found = module.__dict__.get(function, getattr(module, function, None))
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        what = "is no function" if found is not None else "is not there"
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise ModelNameError(f"{name}: {function} {what}{suggest(function, known)}")
    return build(name, found)


def build(name: str, make: Callable[[], Any]) -> nn.Module:
    """Call what makes a model; any error becomes a sentence, because the code is not ours."""
    try:
        model = make()
    except Exception as error:
        raise ModelNameError(f"{name}: it could not be made without arguments ({describe(error)})") from error
    if not isinstance(model, nn.Module):
        raise ModelNameError(f"{name}: it gives a {type(model).__name__}; it must return a torch.nn.Module")
    return model


def import_package(package: str) -> ModuleType:
    """Import an optional package, or say how to get it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ModelNameError(f"{package} cannot be imported ({error}); run: pip install {package}") from error


def check_name(name: str, package: str, known: Iterable[str]) -> None:
    """Refuse a name that a package does not know; suggest the nearest."""
    known = list(known)
    if name not in known:
        raise ModelNameError(f"{package} has no model {name!r}{suggest(name, known)}")


def suggest(name: str, known: list[str]) -> str:
    """Name what may have been meant."""
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def describe(error: Exception) -> str:
    """An error's type and first line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def make_inputs(model: nn.Module, name: str, sizes: list[str] | None) -> tuple[Any, ...]:
    """Make a batch of the sizes asked for, or else of two at the size that the model was made for, or of its layers."""
    if sizes:
        return tuple(make_input(model, read_size("--input", size)) for size in sizes)
    if isinstance(model, TracedModel):
        args, kwargs = model.inputs
        return (*args, *kwargs.values())
    settings = getattr(model, "default_cfg", None) if name.startswith("timm:") else None
    if settings and settings.get("input_size"):
        return (make_input(model, (2, *settings["input_size"])),)
    if name.startswith("torchvision:") and isinstance(find_first_layer(model), nn.Conv2d):
        side = 299 if "inception" in name else 224
        return (make_input(model, (2, 3, side, side)),)
    args, _ = guess_inputs(model)
    return args


def make_input(model: nn.Module, sizes: tuple[int, ...]) -> Tensor:
    """Draw numbers, or words where the first layer is an embedding; the random state stays as it was."""
    draw = torch.Generator().manual_seed(0)
    first = find_first_layer(model)
    if isinstance(first, nn.Embedding):
        return torch.randint(first.num_embeddings, sizes, generator=draw)
    return torch.randn(sizes, generator=draw)


def find_first_layer(model: nn.Module) -> nn.Module | None:
    """The first layer that says what the model takes."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding)
    return next((module for module in model.modules() if isinstance(module, kinds)), None)

"""What does a graph not see of the modules that were traced through? Hooks on blocks, and settings that are changed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from fxprune.compile_graph import count_hooks

PLAIN = (bool, int, float, str)

Settings = dict[str, Any]
"""A module's plain attributes, by name."""


class Unseen:
    """The modules whose code was traced through, with their hooks and plain attributes of that time.

    `run` is the module that a graph runs, `path` its own in the model, and `heard` are those of the modules inside that
    the graph calls; the code of those that are `asking` goes by their mode. A warning is given once.
    """

    def __init__(self, run: nn.Module, path: str, heard: Iterable[str], asking: Iterable[str] = ()) -> None:
        inside = {f"{path}.{name}".strip("."): module for name, module in run.named_modules() if name}
        called = set(heard)
        silent = {name: each for name, each in inside.items() if not is_inner(name) and not is_behind(name, called)}
        self.hooks = {name: (module, count_hooks(module)) for name, module in silent.items()}
        self.settings = {name: (module, read_settings(module)) for name, module in silent.items()}
        self.newest = RemovableHandle.next_id
        self.asking = {name: inside[name] for name in asking if name in inside}

    def warn_of_hooks(self) -> None:
        """Warn of hooks that came since; as long as none was made anywhere, this costs nothing."""
        if self.newest == RemovableHandle.next_id:
            return
        self.newest = RemovableHandle.next_id
        for name, (module, known) in list(self.hooks.items()):
            if count_hooks(module) > known:
                del self.hooks[name]
                warnings.warn(
                    f"the hook on {name} does not run: the graph of this model does not call {name}; put the hook on a "
                    "layer that it calls, or let the model return what the hook is to see",
                    stacklevel=6,  # at the call of the model
                )

    def warn_of_modes(self, training: bool) -> None:
        """Warn of modules whose code chose by their mode when it was traced, and that are in another than the model."""
        for name, module in list(self.asking.items()):
            if module.training != training:
                del self.asking[name]
                mode, other = ("training", "eval") if training else ("eval", "training")
                warnings.warn(
                    f"{name} is in {other} mode, but its code, which asks for it, was traced in {mode} mode, as "
                    "the whole model. Of layers (dropout, batch norms) the mode is followed; put the others into that "
                    "of the model, or keep them out of what is prepared",
                    stacklevel=6,  # at the call of the model
                )

    def warn_of_settings(self) -> None:
        """Warn of plain attributes that have other values by now."""
        for name, (module, known) in self.settings.items():
            warn_of_changes(name, module, known, calls=4)


def warn_of_changes(name: str, module: nn.Module, known: Settings, calls: int = 3) -> None:
    """Warn of a module's attributes that have other values by now, at the line so many calls up, and forget them."""
    for attribute, was in list(known.items()):
        now = vars(module).get(attribute, was)
        if now is was or (type(now) in PLAIN and now == was):
            continue
        del known[attribute]
        full = f"{name}.{attribute}".strip(".")
        warnings.warn(
            f"{full} was {was!r} when the model was traced and is {now!r} by now: the graph goes on with what the "
            "model's code made of the first; set it before, or make it a buffer, which the graph reads",
            stacklevel=calls,
        )


def is_inner(name: str) -> bool:
    """Whether a module is none of the user's: a mask, or what parametrizes a weight."""
    return not {"fxprune", "parametrizations"}.isdisjoint(name.split("."))


def is_behind(name: str, called: set[str]) -> bool:
    """Whether a module is called, or lies inside of one that is."""
    parts = name.split(".")
    return any(".".join(parts[:count]) in called for count in range(1, len(parts) + 1))


def read_settings(module: nn.Module) -> Settings:
    """Read a module's plain attributes: numbers, truths and words."""
    return {
        name: value
        for name, value in vars(module).items()
        if type(value) in PLAIN and name != "training" and not name.startswith("_")
    }

"""What does a graph not see of the modules that were traced through? Hooks on blocks, and settings that are changed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from fxprune.compile_graph import count_hooks

_OWN = ("fxprune", "parametrizations")
"""Parts of a path behind which lies what the user does not call."""

Settings = dict[str, Any]
"""A module's plain attributes, by name."""


class Unseen:
    """The modules whose code was traced through, with their hooks and plain attributes of that time.

    `root` is the model, whose `settings` were those of the user's own; `path` is the module that a graph runs, and
    `heard` are the modules inside of it that the graph calls. A warning is given once.
    """

    def __init__(self, root: nn.Module, settings: Settings, path: str, heard: Iterable[str]) -> None:
        run = root.get_submodule(path)
        inside = {f"{path}.{name}".strip("."): module for name, module in run.named_modules() if name}
        silent = {name: module for name, module in inside.items() if not is_behind(name, set(heard))}
        self.hooks = {name: (module, count_hooks(module)) for name, module in silent.items()}
        self.settings = {name: (module, read_settings(module)) for name, module in silent.items()}
        if not path:
            self.settings[""] = (root, settings)
        self.newest = RemovableHandle.next_id

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

    def warn_of_settings(self) -> None:
        """Warn of plain attributes that have other values by now."""
        for name, (module, known) in self.settings.items():
            now = read_settings(module)
            for attribute in [each for each in known if each in now and now[each] != known[each]]:
                was = known.pop(attribute)
                full = f"{name}.{attribute}".strip(".")
                warnings.warn(
                    f"{full} was {was!r} when the model was traced and is {now[attribute]!r} by now: the graph goes on "
                    "with what the model's code made of the first; set it before, or make it a buffer, which the graph "
                    "reads",
                    stacklevel=4,  # at the call of train()
                )


def is_behind(name: str, heard: set[str]) -> bool:
    """Whether a module is called, lies inside of one that is called, or is not the user's."""
    parts = name.split(".")
    return any(part in _OWN for part in parts) or any(
        ".".join(parts[:count]) in heard for count in range(1, len(parts) + 1)
    )


def read_settings(module: nn.Module) -> Settings:
    """Read a module's plain attributes: numbers, truths and words."""
    attributes: Mapping[str, Any] = vars(module)
    return {
        name: value
        for name, value in attributes.items()
        if type(value) in (bool, int, float, str) and name != "training" and not name.startswith("_")
    }

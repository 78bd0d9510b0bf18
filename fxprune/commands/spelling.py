"""What is a setting, which errors name as it is called in Python, called on the command line?"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection
from typing import Any, get_type_hints

from typer.models import OptionInfo

from fxprune.commands.settings import TARGETS

NAMES = {"example_inputs": "input", "input_shapes": "input_shape", "batch_sizes": "batch", "runtimes": "runtime"}
"""Options by the names of the same in Python, where they differ."""

_SETTING = re.compile(
    rf"\b(?P<name>{'|'.join(NAMES)}|[a-z_]+(?==))(=(?P<value>\.\.\.|\(.*?\)|\[.*?\]|\{{.*?\}}|'.*?'|[\w.-]*\w))?"
)

_TARGETS = {kind: name for name, kind in TARGETS.items()}
_TARGET = re.compile(rf"\b({'|'.join(_TARGETS)})\((?:remaining=)?([\w.-]+)\)")


def speak_options(message: str, options: Collection[str]) -> str:
    """Spell settings as options where they are: `batch_sizes=(1, 8)` becomes `--batch 1,8`, Macs(0.5) macs=0.5."""

    def spell(found: re.Match[str]) -> str:
        name = NAMES.get(found["name"], found["name"])
        if name not in options:
            return found[0]
        option = f"--{name.replace('_', '-')}"
        try:
            return f"{option} {spell_value(ast.literal_eval(found['value']))}" if found["value"] else option
        except (ValueError, SyntaxError):  # no literal
            return found[0]

    return _TARGET.sub(lambda found: f"{_TARGETS[found[1]]}={found[2]}", _SETTING.sub(spell, message))


def spell_value(value: Any) -> str:
    """Spell a value as an option takes it: numbers with commas between, the sizes of an input with x between."""
    if isinstance(value, dict):
        return ",".join(f"{name}={'x'.join(map(str, sizes))}" for name, sizes in value.items())
    if isinstance(value, tuple | list):
        return ",".join(map(spell_value, value))
    return "..." if value is ... else str(value)


def list_options(command: Callable[..., None]) -> set[str]:
    """List the options of a command, by the names of its parameters."""
    hints = get_type_hints(command, include_extras=True)
    return {name for name, hint in hints.items() if isinstance(getattr(hint, "__metadata__", [None])[0], OptionInfo)}

"""How is the command line read? Every field of a recipe and of the place is an option, described where it is typed."""

from __future__ import annotations

import argparse
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated as As
from typing import Any, Literal, get_args, get_origin, get_type_hints

from recipes import RECIPES, Recipe


@dataclass(frozen=True)
class Place:
    """Where and how a run takes place; it decides nothing of what is learnt but for rounding."""

    out: As[Path, "the folder for everything that is written"] = Path("runs/train")
    data: As[Path, "the folder where torchvision keeps data sets, and `imagenet`"] = Path("runs/data")
    resume: As[bool, "go on from the last epoch in the out folder"] = False
    device: As[str, "cpu or cuda; 'auto' takes a GPU where there is one"] = "auto"
    threads: As[int | None, "threads on the CPU; 'none' leaves torch's choice"] = None
    workers: As[int, "processes that load an image folder"] = 8
    bf16: As[bool, "train under autocast in bfloat16"] = False
    channels_last: As[bool, "keep images and weights channels last"] = False
    compile: As[bool, "train through torch.compile"] = False
    align: As[int | None, "dead channels stay so that widths are multiples of this; 'none': fxprune.convert's"] = None
    seconds: As[float, "measuring time of the latency, a file and batch size; 0 exports and measures nothing"] = 3.0
    quiet: As[bool, "show no progress"] = False


def read_command_line(arguments: Sequence[str] | None = None) -> tuple[Recipe, Place]:
    """Read a recipe by name, with what the options change in it, and the place of the run."""
    parser = argparse.ArgumentParser(
        description="Train, prune, convert, export and measure.", argument_default=argparse.SUPPRESS
    )
    parser.add_argument("--recipe", choices=RECIPES, default="feather-cifar10", metavar="NAME", help=", ".join(RECIPES))
    for kind in (Recipe, Place):
        add_options(parser.add_argument_group((kind.__doc__ or "").splitlines()[0]), kind)
    given = vars(parser.parse_args(arguments))
    recipe = RECIPES[given.pop("recipe")]
    where = {field.name: given.pop(field.name) for field in fields(Place) if field.name in given}
    return replace(recipe, **given), Place(**where)


def add_options(group: Any, kind: type) -> None:
    """Add an option for every field of a dataclass; options that are not given leave no trace in what is parsed."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        inner, help_text = get_args(hint)
        group.add_argument(f"--{name.replace('_', '-')}", help=help_text, **_describe(inner))


def _describe(hint: Any) -> dict[str, Any]:
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if get_origin(hint) is tuple:
        return {"nargs": "*", "type": get_args(hint)[0], "action": _AsTuple}
    if get_origin(hint) is types.UnionType:
        return {"type": _or_none(get_args(hint)[0])}
    return {"type": hint}


class _AsTuple(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, tuple(values))


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        return None if text == "none" else kind(text)

    read.__name__ = f"{kind.__name__} or none"
    return read

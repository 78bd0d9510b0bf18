"""Which method, target and lists of numbers do the options of a command mean?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, cast

import fxprune
from fxprune.errors import FxpruneError

if TYPE_CHECKING:  # torch takes seconds, and the help needs the names alone
    from fxprune.methods.base import Method
    from fxprune.methods.targets import Target

TARGETS = {
    "macs": "Macs",
    "params": "Params",
    "sparsity": "Sparsity",
    "latency": "Latency",  # on ONNX Runtime's CPU kernels, one thread, batch 1
}
"""Targets by their names on the command line, and in Python."""

METHODS = {
    "gmp": "GMP",
    "feather": "Feather",
    "st3": "ST3",
    "rni": "RNI",
    "slimming": "NetworkSlimming",
    "ucs": "UCS",
}
"""Those that reach a target in one go, by the same names."""


def read_target(text: str, align: int) -> Target:
    """Read a target such as macs=0.5."""
    name, _, share = text.partition("=")
    kind = getattr(fxprune, find("--target", name, TARGETS))
    try:
        return cast("Target", kind(float(share), align=align))
    except ValueError as error:
        if isinstance(error, FxpruneError):
            raise
        raise FxpruneError(
            f"--target {text}: give a share, as in {' or '.join(f'{n}=0.5' for n in TARGETS)}"
        ) from error


def read_method(text: str) -> Method:
    """Make a method by its name, with its defaults."""
    return cast("Method", getattr(fxprune, find("--method", text, METHODS))())


def find(option: str, name: str, known: Mapping[str, str]) -> str:
    """Look a name up; suggest the nearest."""
    if name in known:
        return known[name]
    near = get_close_matches(name, known, n=1)
    suggestion = f"; did you mean {near[0]}?" if near else ""
    raise FxpruneError(f"{option} {name} is not known, there are {', '.join(known)}{suggestion}")


def read_numbers(option: str, text: str) -> tuple[int, ...]:
    """Read whole numbers with commas between."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise FxpruneError(f"{option} {text}: give whole numbers with commas between, such as 1,8") from error


def read_size(option: str, text: str) -> tuple[int, ...]:
    """Read sizes such as 1x3x224x224."""
    try:
        sizes = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        sizes = (0,)
    if min(sizes) < 1:
        raise FxpruneError(f"{option} {text}: give whole numbers from 1 with x between, such as 1x3x224x224")
    return sizes


def read_shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Read shapes by name, such as image=3x224x224."""
    shapes = {}
    for text in texts:
        name, sign, size = text.rpartition("=")
        if not sign or not name:
            raise FxpruneError(f"--input-shape {text}: give the input's name and a sample's sizes, as image=3x224x224")
        shapes[name] = read_size("--input-shape", size)
    return shapes

"""What a graph checks when it runs: that the input takes the way through the model's code that was traced."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxprune.errors import GuardViolated

FAILURES = (RuntimeError, ValueError, TypeError, LookupError)
"""What torch raises where it is given the wrong shapes, and Python where something is missing."""


def check_guard(actual: Any, expected: Any, where: str) -> None:
    """Raise where an input makes the model's Python code decide otherwise than it did when it was traced."""
    if torch.compiler.is_exporting():  # with sizes that stand for all, of which nothing can be asked
        return
    if actual is not None if expected is None else actual != expected:
        way = "which takes another way through the model's code; call prepare with example_inputs of this kind"
        if isinstance(expected, int | float) and not isinstance(expected, bool):
            way = (
                "and the code asks for the plain number, as range(n), a list's index and a text do, so that the graph "
                "holds for one size only; compute sizes of x.shape[i] by arithmetic, loop by torch functions, or call "
                "prepare with example_inputs of this size"
            )
        raise GuardViolated(
            f"{where}: this was {expected!r} when the model was prepared and is {show(actual)} for this input, {way}"
        )


def show(value: Any) -> str:
    """Write a value, of tensors only what they are."""
    if isinstance(value, torch.Tensor):
        return repr(value.item()) if value.numel() == 1 else f"a {type(value).__name__}"
    return repr(value)


def check_failure(method: str, where: str, x: Any, *args: Any, **kwargs: Any) -> None:
    """Raise where a method does not fail whose failure the model's Python code caught when it was traced."""
    if torch.compiler.is_exporting():
        return
    try:
        getattr(x, method)(*args, **kwargs)
    except FAILURES:
        return
    raise GuardViolated(
        f"{where}: this failed when the model was prepared and does not for this input, which takes another way "
        "through the model's code; call prepare with example_inputs of this kind"
    )


fx.node.has_side_effect(check_guard)
fx.node.has_side_effect(check_failure)

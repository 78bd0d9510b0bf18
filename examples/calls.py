"""How is a model, a method or a target named in a recipe? As the call that makes it: `ST3(sigma=True)`, `resnet50`."""

from __future__ import annotations

import ast
from typing import Any, NamedTuple

import fxprune


class Call(NamedTuple):
    """A name, and what it is called with by name and by position."""

    name: str
    options: dict[str, Any]
    positional: tuple[Any, ...] = ()


def read_call(text: str) -> Call:
    """Read `name` or `name(...)`, whose arguments are literals, or such calls of what fxprune exports."""
    try:
        return _read(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError) as error:
        raise SystemExit(
            f"{text!r}: give a name, or a call such as 'ST3(sigma=True)' or 'resnet20(width=32)'"
        ) from error


def make(text: str) -> Any:
    """Make what a call names among fxprune's public names, a method or a target."""
    return _make(read_call(text))


def _read(node: ast.expr) -> Call:
    if isinstance(node, ast.Name):
        return Call(node.id, {})
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError(ast.unparse(node))
    options = {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg is not None}
    return Call(node.func.id, options, tuple(_value(argument) for argument in node.args))


def _value(node: ast.expr) -> Any:
    return _make(_read(node)) if isinstance(node, ast.Call) else ast.literal_eval(node)


def _make(call: Call) -> Any:
    if call.name not in fxprune.__all__:
        raise SystemExit(f"{call.name}: fxprune has no such name; it has {', '.join(fxprune.__all__)}")
    return getattr(fxprune, call.name)(*call.positional, **call.options)

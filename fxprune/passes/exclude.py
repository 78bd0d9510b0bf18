"""Which parameters the user leaves out: patterns by name, glob, type or predicate."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence

from torch import nn

from fxprune.errors import PatternError

Pattern = str | type[nn.Module] | Callable[[str, nn.Module], bool]
"""A module's name or a glob over names, a type of module, or a predicate of name and module."""


def find_excluded(model: nn.Module, patterns: Sequence[Pattern], option: str = "exclude") -> set[str]:
    """Return the names of all parameters inside the modules that the patterns match; `option` is where they stand.

    Raises:
        PatternError: a pattern matches nothing, or is no name, type or predicate.
    """
    if not isinstance(patterns, (list, tuple)):
        shown = patterns.__name__ if isinstance(patterns, type) else repr(patterns)
        raise PatternError(f"{option}={shown} is one pattern, or none; give a list: {option}=[{shown}]")
    excluded: set[str] = set()
    for pattern in patterns:
        modules = model.named_modules(remove_duplicate=False)
        owners = [name for name, module in modules if matches(pattern, name, module, option)]
        named = {n for n, _ in all_parameters(model) if isinstance(pattern, str) and fnmatch.fnmatchcase(n, pattern)}
        if not owners and not named:
            known = ", ".join([n for n, _ in model.named_modules() if n][:5])
            raise PatternError(f"{option}={pattern!r} matches no module or parameter; names look like {known}, ...")
        prefixes = tuple(f"{owner}." if owner else "" for owner in owners)
        excluded.update(name for name, _ in all_parameters(model) if name in named or name.startswith(prefixes))
    tensors = {id(parameter) for name, parameter in all_parameters(model) if name in excluded}
    names = {name for name, parameter in all_parameters(model) if id(parameter) in tensors}
    return names | {name_computed(name) for name in names}


def name_computed(name: str) -> str:
    """The name of what a parametrization computes of this parameter; the name itself where there is none."""
    owner, found, rest = f".{name}".partition(".parametrizations.")
    return f"{owner}.{rest.partition('.')[0]}".removeprefix(".") if found else name


def all_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """List parameters under all their names, tied ones too."""
    return list(model.named_parameters(remove_duplicate=False))


def matches(pattern: Pattern, name: str, module: nn.Module, option: str = "exclude") -> bool:
    """Whether one pattern matches one module."""
    if isinstance(pattern, str):
        return bool(name) and fnmatch.fnmatchcase(name, pattern)
    if isinstance(pattern, type):
        return issubclass(pattern, nn.Module) and isinstance(module, pattern)
    if callable(pattern):
        try:
            return bool(name) and bool(pattern(name, module))
        except TypeError as error:
            raise PatternError(f"the predicate {pattern!r} cannot be called with (name, module): {error}") from error
    raise PatternError(
        f"{option} takes names, globs, types of modules and predicates of (name, module); not {pattern!r}"
    )

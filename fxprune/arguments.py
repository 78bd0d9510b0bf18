"""Which arguments does a traced model take, and for which of them does its graph hold?

Code asks of an optional argument whether it was given (`if mask is not None`), of a text which one it is, of a tensor
how many dimensions it has, and the graph holds for one answer. A call that gives another is refused, instead of
computing something else than the code would.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fxprune.errors import GuardViolated, TraceError

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

TEXTS = (str, bytes, enum.Enum)

SETTINGS = (*TEXTS, torch.dtype, torch.device)
"""What an argument may be that is no part of a computation, but says which one it is to be."""

GIVEN = object()
"""Stands for any value but None, in the place of an optional argument that the example inputs hold."""


@dataclass(frozen=True)
class Arguments:
    """The parameters of a module's forward, without `self`, as the example inputs have filled them.

    `choices` holds the value of each argument for which the graph holds: the default where the example inputs lack it,
    None where they hold None, the setting where they hold one, GIVEN where they hold something in the place of None.
    The graph has no placeholder for what is `left_out`.
    """

    owner: str  # the class
    signature: inspect.Signature
    names: tuple[str, ...]  # of the positional ones; those of `*args` as the graph names them
    choices: dict[str, Any]
    left_out: frozenset[str]
    is_open: bool  # whether it takes `*args` or `**kwargs`, of which the graph knows those of the example inputs
    ranks: dict[str, list[int]]  # how many dimensions the tensors of each argument have, where the code asks for that

    def fit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give the arguments that the graph takes of those of a call; raises GuardViolated where it does not hold."""
        if self.is_open:
            self.refuse_unknown(args, kwargs)
        if not (self.choices or self.ranks) or len(args) > len(self.names):
            return args, kwargs
        named = dict(zip(self.names, args))  # noqa: B905  # the rest may come by name
        if any(name in named for name in kwargs):
            return args, kwargs  # Python says which came twice
        named.update(kwargs)
        if not torch.compiler.is_exporting():  # when code runs on sizes that stand for all, and may take any way
            self.refuse_others(named)
        return (), {name: value for name, value in named.items() if name not in self.left_out}

    def refuse_others(self, named: dict[str, Any]) -> None:
        """Refuse arguments for which the graph does not hold."""
        for name, wanted in self.choices.items():
            value = named[name] if name in named else self.find_default(name)
            if (value is None) if wanted is GIVEN else not is_same(value, wanted):
                raise GuardViolated(f"{self.owner}: " + describe_other(name, value, wanted, name in self.left_out))
        for name, ranks in self.ranks.items():
            found = ranks_of(named.get(name))
            if found != ranks and name in named:
                raise GuardViolated(
                    f"{self.owner}: the tensors of the argument `{name}` have {write_ranks(found)} dimensions in this "
                    f"call, and had {write_ranks(ranks)} in the example inputs, for which the model's code asks; call "
                    "prepare with example_inputs of this kind"
                )

    def find_default(self, name: str) -> Any:
        """What an argument is that a call lacks."""
        parameter = self.signature.parameters.get(name)
        return None if parameter is None else parameter.default

    def refuse_unknown(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse arguments that the module takes, though there were none of them among the example inputs."""
        kinds = [parameter.kind for parameter in self.signature.parameters.values()]
        plain = sum(kind in POSITIONAL for kind in kinds)
        if inspect.Parameter.VAR_POSITIONAL in kinds and max(len(args), plain) != len(self.names):
            raise GuardViolated(
                f"{self.owner}: this call gives another number of arguments by position, {len(args)}, than the example "
                f"inputs, {len(self.names)}; call prepare with example_inputs that hold as many"
            )
        known = {*self.names, *self.choices, *self.signature.parameters}
        for name in kwargs if inspect.Parameter.VAR_KEYWORD in kinds else ():
            if name not in known:
                raise GuardViolated(
                    f"{self.owner}: the argument `{name}` was not among the example inputs; call prepare with "
                    "example_inputs that hold it"
                )

    def with_ranks(self, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Arguments:
        """Hold the tensors of a call to the numbers of dimensions that those of the example inputs have."""
        args, kwargs = inputs
        named = {**dict(zip(self.names, args)), **kwargs}  # noqa: B905
        return replace(self, ranks={name: ranks_of(value) for name, value in named.items() if ranks_of(value)})


def read_arguments(forward: Callable[..., Any], inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Arguments:
    """Read what example inputs leave of the choices that a module's forward has, a function whose first is `self`.

    Raises TraceError where they do not fit it.
    """
    whole = inspect.signature(forward)
    args, kwargs = inputs
    try:
        bound = whole.bind(None, *args, **kwargs).arguments
    except TypeError as error:
        raise TraceError(
            f"{forward.__qualname__}{whole} does not take these example inputs: {error}; "
            "pass them as a tensor, a tuple of positional arguments, or a dict of keyword arguments"
        ) from error
    parameters = list(whole.parameters.values())[1:]
    choices = {name: choice for parameter in parameters for name, choice in read_choices(parameter, bound)}
    names: list[str] = []
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{number}" for number in range(len(bound.get(parameter.name, ())))]
        elif parameter.kind in POSITIONAL:
            names.append(parameter.name)
    left_out = frozenset(parameter.name for parameter in parameters if parameter.name not in bound)
    is_open = any(parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in parameters)
    signature = whole.replace(parameters=parameters)
    owner = forward.__qualname__.rpartition(".")[0]
    return Arguments(owner, signature, tuple(names), choices, left_out, is_open, {})


def read_choices(parameter: inspect.Parameter, bound: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Go through the choices that a parameter leaves, by the names of the arguments."""
    name, given = parameter.name, bound.get(parameter.name)
    if parameter.kind is parameter.VAR_KEYWORD:
        for key, value in bound.get(name, {}).items():
            yield key, value if value is None or isinstance(value, SETTINGS) else GIVEN
    elif parameter.kind is parameter.VAR_POSITIONAL:
        for number, value in enumerate(bound.get(name, ())):
            if value is None or isinstance(value, SETTINGS):
                yield f"{name}_{number}", value
    elif name not in bound:
        yield name, parameter.default
    elif given is None or isinstance(given, SETTINGS):
        yield name, given
    elif parameter.default is None:
        yield name, GIVEN


def is_same(value: Any, wanted: Any) -> bool:
    """Whether an argument is what another was, as far as code can tell; no tensor is compared."""
    if value is wanted:
        return True
    return type(value) is type(wanted) and not isinstance(value, Tensor) and bool(value == wanted)


def ranks_of(value: Any) -> list[int]:
    """List how many dimensions the tensors of an argument have."""
    if isinstance(value, Tensor):
        return [value.dim()]
    if value is None or isinstance(value, (int, float, *SETTINGS)):
        return []
    return [leaf.dim() for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def write_ranks(ranks: list[int]) -> str:
    """Write numbers of dimensions into a sentence."""
    return ", ".join(map(str, ranks)) or "no"


def describe_other(name: str, value: Any, wanted: Any, is_left_out: bool) -> str:
    """Say that the graph does not hold for an argument."""
    given = f"a {type(value).__name__}" if isinstance(value, Tensor) else repr(value)
    if is_left_out:
        was = f"was not among the example inputs, so that the graph holds for its default, {wanted!r}"
    elif wanted is GIVEN:
        was = "was given in the example inputs"
    else:
        was = f"was {wanted!r} in the example inputs"
    return (
        f"the argument `{name}` {was}, and this call gives {given}, for which the model's code may take another way; "
        "call prepare with example_inputs that hold it as it will be"
    )

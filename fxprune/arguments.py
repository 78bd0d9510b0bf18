"""Which arguments does a traced model take, and for which values of its optional ones does its graph hold?

Code asks of an optional argument whether it was given (`if mask is not None`), and the graph holds for one answer. A
call that gives another is refused, instead of computing something else than the code would.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fxprune.errors import GuardViolated, TraceError

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

GIVEN = object()
"""Stands for any value but None, in the place of an optional argument that the example inputs hold."""


@dataclass(frozen=True)
class Arguments:
    """The parameters of a module's forward, without `self`, as the example inputs have filled them.

    `choices` holds the value of each optional argument for which the graph holds: the default where the example inputs
    lack it, None where they hold None, GIVEN where they hold something in the place of None. The graph has no
    placeholder for what is `left_out`.
    """

    owner: str  # the class
    signature: inspect.Signature
    names: tuple[str, ...]  # of the positional ones; those of `*args` as the graph names them
    choices: dict[str, Any]
    left_out: frozenset[str]
    is_open: bool  # whether it takes `*args` or `**kwargs`, of which the graph knows those of the example inputs

    def fit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give the arguments that the graph takes of those of a call; raises GuardViolated where it does not hold."""
        if self.is_open:
            self.refuse_unknown(args, kwargs)
        if not self.choices or len(args) > len(self.names):
            return args, kwargs
        named = dict(zip(self.names, args))  # noqa: B905  # the rest may come by name
        if any(name in named for name in kwargs):
            return args, kwargs  # Python says which came twice
        named.update(kwargs)
        for name, wanted in self.choices.items():
            value = named.get(name, None if wanted is GIVEN else wanted)
            if (value is None) if wanted is GIVEN else not is_same(value, wanted):
                raise GuardViolated(f"{self.owner}: " + describe_other(name, value, wanted, name in self.left_out))
            if name in self.left_out:
                named.pop(name, None)
        return (), named

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
    names: list[str] = []
    choices: dict[str, Any] = {}
    for parameter in parameters:
        name, default = parameter.name, parameter.default
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{name}_{number}" for number in range(len(bound.get(name, ())))]
        elif parameter.kind in POSITIONAL:
            names.append(name)
        if default is not parameter.empty and name not in bound:
            choices[name] = default
        elif name in bound and bound[name] is None:
            choices[name] = None
        elif name in bound and default is None:
            choices[name] = GIVEN
    left_out = frozenset(name for name in choices if name not in bound)
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            choices |= {name: None if value is None else GIVEN for name, value in bound.get(parameter.name, {}).items()}
    is_open = any(parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in parameters)
    owner = forward.__qualname__.rpartition(".")[0]
    return Arguments(owner, whole.replace(parameters=parameters), tuple(names), choices, left_out, is_open)


def is_same(value: Any, wanted: Any) -> bool:
    """Whether an argument is what another was, as far as code can tell; no tensor is compared."""
    if value is wanted:
        return True
    return type(value) is type(wanted) and not isinstance(value, Tensor) and bool(value == wanted)


def describe_other(name: str, value: Any, wanted: Any, is_left_out: bool) -> str:
    """Say that the graph does not hold for an optional argument."""
    given = f"a {type(value).__name__}" if isinstance(value, Tensor) else repr(value)
    if is_left_out:
        was = f"was not among the example inputs, so that the graph holds for its default, {wanted!r}"
    else:
        was = "was None in the example inputs" if wanted is None else "was given in the example inputs"
    return (
        f"the argument `{name}` {was}, and this call gives {given}, for which the model's code may take another way; "
        "call prepare with example_inputs that hold it as it will be"
    )

"""How steps become JSON, and back: names, numbers and nested containers; tensors of the inputs lie beside it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fxprune.errors import PlanError
from fxprune.model import Inputs, Rewrite, Step
from fxprune.saving.stripe_text import read_layer, read_race, write_layer
from fxprune.stripes.step import StripeStep

PLAIN = (bool, int, float, str, type(None))
CONTAINERS: dict[str, type[tuple[Any, ...]] | type[list[Any]]] = {"tuple": tuple, "list": list}
DTYPES = {str(t).removeprefix("torch."): t for t in vars(torch).values() if isinstance(t, torch.dtype)}


class About(NamedTuple):
    """What a file says besides the steps: the numbers of the report, and names that are one tensor with another."""

    report: dict[str, Any] | None
    tied: dict[str, str]


def write_steps(steps: tuple[Rewrite, ...], about: About) -> tuple[str, dict[str, Tensor]]:
    """Write steps and what is said besides as JSON; return it and the tensors of the inputs by name.

    Raises:
        PlanError: an input is an object of some class.
    """
    tensors: dict[int, tuple[str, Tensor]] = {}
    written = [write_step(step, tensors) for step in steps]
    text = json.dumps({"torch": torch.__version__, **about._asdict(), "steps": written})
    return text, dict(tensors.values())


def digest_steps(steps: tuple[Rewrite, ...]) -> str:
    """The sha256 of what steps did, whatever inputs they were checked on; a loaded model has that of the saved one."""
    return hashlib.sha256(json.dumps([list_changes(step) for step in steps]).encode()).hexdigest()


def list_changes(step: Rewrite) -> list[Any]:
    """What one step changed, for the digest."""
    if isinstance(step, StripeStep):
        return [step.class_name, {name: write_layer(layer)["lowering"] for name, layer in step.layers.items()}]
    assert isinstance(step, Step)
    return [step.class_name, step.kept, step.biased, step.constants, step.muted]


def write_step(step: Rewrite, tensors: dict[int, tuple[str, Tensor]]) -> dict[str, Any]:
    """Write one step; `tensors`, by identity, gets those of its inputs."""
    plain = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
    plain["tensors"] = {name: [list(shape), name_of(dtype)] for name, (shape, dtype) in step.tensors.items()}
    if isinstance(step, StripeStep):
        layers = {name: write_layer(layer) for name, layer in step.layers.items()}
        return {**plain, "layers": layers, "race": dataclasses.asdict(step.race) if step.race else None}
    assert isinstance(step, Step)
    return {
        **plain,
        "inputs": write_value(step.inputs, tensors),
        "traced": {path: write_value(inputs, tensors) for path, inputs in step.traced.items()},
        "converted": {path: write_value(inputs, tensors) for path, inputs in step.converted.items()},
    }


def write_value(value: Any, tensors: dict[int, tuple[str, Tensor]]) -> Any:
    """Write one input: plain values as they are, all others as an object with one key that says their kind."""
    if type(value) in PLAIN:
        return value
    if isinstance(value, Tensor):
        name, _ = tensors.setdefault(id(value), (f"inputs.{len(tensors)}", value))
        return {"tensor": name}
    if isinstance(value, torch.dtype):
        return {"dtype": name_of(value)}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: write_value(item, tensors) for key, item in value.items()}}
    for name, kind in CONTAINERS.items():
        if type(value) is kind:
            return {name: [write_value(item, tensors) for item in value]}
    raise PlanError(
        f"an example input is a {type(value).__name__}, and a file holds tensors, numbers, texts and tuples, lists and "
        "dicts of them; convert with example_inputs of these kinds, or save compact.state_dict()"
    )


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def read_steps(text: str, tensors: dict[str, Tensor]) -> tuple[tuple[Rewrite, ...], About]:
    """Read what `write_steps` wrote.

    Raises:
        PlanError: something is missing, or of another kind.
    """
    try:
        about = json.loads(text)
        return tuple(read_step(step, tensors) for step in about["steps"]), About(about["report"], dict(about["tied"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise PlanError(f"the plan in the file cannot be read ({error!r}); save the compact model again") from error


def read_step(step: dict[str, Any], tensors: dict[str, Tensor]) -> Rewrite:
    """Read one step: with layers, a lowering of stripes; else a conversion."""
    class_name = str(step["class_name"])
    before = {name: (whole(shape), DTYPES[dtype]) for name, (shape, dtype) in step["tensors"].items()}
    if "layers" in step:
        layers = {str(name): read_layer(layer) for name, layer in step["layers"].items()}
        return StripeStep(class_name, before, layers, read_race(step["race"]))
    if step["traced"].keys() != step["converted"].keys():
        raise ValueError("not every region has its inputs")
    return Step(
        class_name=class_name,
        tensors=before,
        inputs=read_inputs(step["inputs"], tensors),
        traced={path: read_inputs(inputs, tensors) for path, inputs in step["traced"].items()},
        converted={path: read_inputs(inputs, tensors) for path, inputs in step["converted"].items()},
        untraced={str(path): str(reason) for path, reason in step["untraced"].items()},
        masked=bool(step["masked"]),
        whole_heads=bool(step["whole_heads"]),
        kept={n: {int(dim): list(whole(i)) for dim, i in dims.items()} for n, dims in step["kept"].items()},
        biased=tuple((int(graph), str(name)) for graph, name in step["biased"]),
        constants=tuple((int(graph), str(name), whole(shape)) for graph, name, shape in step["constants"]),
        muted=tuple((int(number), str(name)) for number, name in step["muted"]),
    )


def whole(numbers: list[Any]) -> tuple[int, ...]:
    """Read sizes or indexes, none of them negative."""
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"{numbers} are no sizes")
    return tuple(numbers)


def read_inputs(value: Any, tensors: dict[str, Tensor]) -> Inputs:
    """Read positional and keyword inputs."""
    args, kwargs = read_value(value, tensors)
    if type(args) is not tuple or type(kwargs) is not dict:
        raise ValueError("the inputs are no pair of positional and keyword ones")
    return args, kwargs


def read_value(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Read what `write_value` wrote."""
    if type(value) in PLAIN:
        return value
    ((kind, held),) = value.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "dtype":
        return DTYPES[held]
    if kind == "dict":
        return {key: read_value(item, tensors) for key, item in held.items()}
    return CONTAINERS[kind](read_value(item, tensors) for item in held)

"""What goes into a model and what comes out of it, as flat lists of named tensors?"""

import dataclasses
import inspect
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.errors import ExportError

ExampleInputs = Tensor | Sequence[Any] | dict[str, Any]
"""One tensor, the positional arguments, or the keyword arguments of a model's forward."""


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call of a model, with the tensors in them taken out.

    `tensors` and `names` are in the order of forward's signature. Whatever is no tensor
    (None, numbers, flags) is a constant of the call, and stays in `leaves`, where the class
    Tensor stands for each tensor.
    """

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    leaves: tuple[Any, ...]
    tree: pytree.TreeSpec
    signature: inspect.Signature

    @property
    def batch(self) -> int:
        """Return the number of samples: the first dimension of the first tensor that has one (1 without any)."""
        return next((tensor.shape[0] for tensor in self.tensors if tensor.ndim > 0), 1)

    def is_batched(self, index: int) -> bool:
        """Say whether tensor `index` has one entry a sample along its first dimension."""
        tensor = self.tensors[index]
        return tensor.ndim > 0 and tensor.shape[0] == self.batch

    def rebuild(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and keyword arguments of the same call with other tensors."""
        remaining = iter(tensors)
        leaves = [next(remaining) if leaf is Tensor else leaf for leaf in self.leaves]
        arguments = pytree.tree_unflatten(leaves, self.tree)
        bound = inspect.BoundArguments(self.signature, OrderedDict(arguments))
        return bound.args, bound.kwargs

    def resize_batch(self, batch: int) -> tuple[Tensor, ...]:
        """Return the tensors with `batch` samples: the first ones, repeated in turn where there are too few."""
        rows = torch.arange(batch) % self.batch
        return tuple(
            tensor.index_select(0, rows) if self.is_batched(index) else tensor
            for index, tensor in enumerate(self.tensors)
        )


def read_inputs(model: nn.Module, example_inputs: ExampleInputs) -> Inputs:
    """Match example inputs with the parameters of the model's forward; the tensors are detached copies on the CPU.

    Raises ExportError if they do not fit the signature, or hold no tensor with a sample in it.
    """
    signature = getattr(model, "forward_signature", None) or inspect.signature(model.forward)
    args, kwargs = _split_arguments(example_inputs)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ExportError(f"example_inputs do not fit {type(model).__name__}.forward{signature}: {error}.") from error
    pairs, tree = pytree.tree_flatten_with_path(dict(bound.arguments))
    keywords = {p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD}
    names: list[str] = []
    tensors: list[Tensor] = []
    leaves: list[Any] = []
    for keys, leaf in pairs:
        path = [_read_key(key) for key in keys]
        name = _spell(path[1:] if path[0] in keywords else path)
        _refuse_opaque(name, leaf)
        leaves.append(Tensor if isinstance(leaf, Tensor) else leaf)
        if isinstance(leaf, Tensor):
            names.append(name)
            tensors.append(leaf.detach().cpu())
    if not tensors:
        raise ExportError(
            "example_inputs hold no tensor; pass what forward takes, such as torch.zeros(1, 3, 224, 224)."
        )
    inputs = Inputs(_make_unique(names), tuple(tensors), tuple(leaves), tree, signature)
    if inputs.batch == 0:
        raise ExportError("example_inputs hold an empty batch; pass at least one sample.")
    return inputs


def flatten_outputs(outputs: Any) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    """Return names and tensors of a model's outputs, whatever tuples, dicts and dataclasses they come in.

    A lone tensor is called "output"; others by their keys, fields and positions. What is no
    tensor is left out.

    Raises ExportError if there is no tensor at all.
    """
    found = [(path, leaf) for path, leaf in _walk(outputs, ()) if isinstance(leaf, Tensor)]
    if not found:
        raise ExportError(f"the model returns no tensor but {type(outputs).__name__}; there is nothing to export.")
    names = [_spell(path if path and not path[0].isdigit() else ("output", *path)) for path, _ in found]
    return _make_unique(names), tuple(leaf for _, leaf in found)


def _split_arguments(example_inputs: ExampleInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, np.ndarray):
        return (example_inputs,), {}
    if isinstance(example_inputs, dict):
        return (), example_inputs
    if isinstance(example_inputs, list | tuple):
        return tuple(example_inputs), {}
    raise ExportError(
        f"example_inputs is a {type(example_inputs).__name__}; pass a tensor, a tuple of positional arguments "
        "or a dict of keyword arguments."
    )


def _refuse_opaque(name: str, leaf: object) -> None:
    """Refuse an input object whose tensors pytree cannot see: they would become constants of the file."""
    if isinstance(leaf, np.ndarray):
        raise ExportError(f"input {name} is a NumPy array; pass torch.from_numpy(...) of it, in the model's precision.")
    if dataclasses.is_dataclass(leaf):
        raise ExportError(
            f"input {name} is a {type(leaf).__name__}, whose tensors the exporter cannot see; "
            f"call torch.export.register_dataclass({type(leaf).__name__}) first."
        )


def _walk(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for keys, leaf in pytree.tree_flatten_with_path(tree, is_leaf=_is_nameless)[0]:
        here = (*path, *(_read_key(key) for key in keys))
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            for field in dataclasses.fields(leaf):
                yield from _walk(getattr(leaf, field.name), (*here, field.name))
        elif _is_nameless(leaf):
            for number, part in enumerate(pytree.SUPPORTED_NODES[type(leaf)].flatten_fn(leaf)[0]):
                yield from _walk(part, (*here, str(number)))
        else:
            yield here, leaf


def _is_nameless(value: Any) -> bool:
    """Whether pytree knows what a container holds, but not by which names, as of outputs in diffusers."""
    node = pytree.SUPPORTED_NODES.get(type(value))
    return node is not None and node.flatten_with_keys_fn is None


def _read_key(key: Any) -> str:
    """Return what a pytree key stands for: a position, a dict's key or an attribute's name."""
    if isinstance(key, pytree.SequenceKey):
        return str(key.idx)
    if isinstance(key, pytree.GetAttrKey):
        return key.name
    return str(getattr(key, "key", key))


def _spell(path: Sequence[str]) -> str:
    return re.sub(r"\W", "_", "_".join(path))


def _make_unique(names: Sequence[str]) -> tuple[str, ...]:
    unique: list[str] = []
    for name in names:
        copies = (f"{name}_{number}" for number in range(2, len(names) + 2))
        unique.append(name if name not in unique else next(copy for copy in copies if copy not in (*unique, *names)))
    return tuple(unique)

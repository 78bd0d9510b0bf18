"""How does torch's exporter turn a model into an ONNX graph?

The batch is made two samples or more, because torch.export makes constants of sizes of 1. Its optimizer is left out:
its fusion of batch norms gives wrong results (see fold_batchnorm).
"""

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
import torch.nn.functional as F
from onnxscript import ir
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxprune.errors import ExportError
from fxprune.export.interface import Inputs, flatten_outputs
from fxprune.onnx_choices import OPSET

Axes = Mapping[str, Mapping[int, str]]
"""The dimensions that stay open, by input: {"x": {0: "batch", 2: "height", 3: "width"}}."""


def choose_axes(inputs: Inputs, dynamic_batch: bool, dynamic_axes: Axes | None) -> dict[str, dict[int, str]]:
    """Return all open dimensions by input: the batch of those that have one, where wanted, and the user's own.

    Raises ExportError if an axis belongs to no input, or its size is 1.
    """
    given = {} if dynamic_axes is None else dynamic_axes
    if not isinstance(given, Mapping) or not all(isinstance(own, Mapping) for own in given.values()):
        raise ExportError(
            f"dynamic_axes={given!r}: give the open dimensions of inputs by name, such as {{'x': {{2: 'height'}}}}."
        )
    axes: dict[str, dict[int, str]] = {name: {} for name in inputs.names}
    for index, name in enumerate(inputs.names):
        if dynamic_batch and inputs.is_batched(index):
            axes[name][0] = "batch"
    for name, own in given.items():
        if name not in axes:
            raise ExportError(f"dynamic_axes names {name!r}; the model's inputs are {list(inputs.names)}.")
        shape = tuple(inputs.tensors[inputs.names.index(name)].shape)
        for dim, label in own.items():
            if dim not in range(len(shape)) or not str(label).isidentifier():
                raise ExportError(
                    f"dynamic_axes={{{name!r}: {{{dim!r}: {label!r}}}}}: give a dimension of {name}, whose shape is "
                    f"{shape}, counted from 0, and a name for its size, such as 'height'."
                )
            if shape[dim] == 1 and dim not in axes[name]:
                raise ExportError(
                    f"dimension {dim} of {name} is 1 in example_inputs, which torch's exporter takes for a constant; "
                    "give an example with 2 or more."
                )
        axes[name].update(own)
    return axes


def translate(
    model: nn.Module,
    inputs: Inputs,
    output_names: Sequence[str],
    opset: int,
    axes: Axes,
) -> torch.onnx.ONNXProgram:
    """Run torch's exporter without its optimizer; open dimensions get their names.

    Raises ExportError if the model cannot be translated, or its code depends on the size of an open dimension.
    """
    batched = [index for index, name in enumerate(inputs.names) if 0 in axes[name] and inputs.is_batched(index)]
    tensors = inputs.resize_batch(max(2, inputs.batch)) if batched else inputs.tensors
    shapes = tuple(dict.fromkeys(axes[name], torch.export.Dim.DYNAMIC) or None for name in inputs.names)
    try:
        with silence():
            program = torch.onnx.export(
                _Flat(model, inputs).eval(),
                tensors,
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=opset,
                dynamic_shapes=(shapes,),
                input_names=list(inputs.names),
                output_names=list(output_names),
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(_explain(type(model).__name__, error, axes)) from error
    assert program is not None
    if program.model.opset_imports[""] != opset:
        raise ExportError(
            f"{type(model).__name__} cannot be written in opset {opset}: torch translates to opset {OPSET}, "
            "and not all of it can be said in another; leave out `opset`."
        )
    _part_inputs_from_outputs(program.model.graph, inputs.names)
    _name_axes(program.model, axes)
    return program


class _Flat(nn.Module):
    """A model whose inputs and outputs are flat lists of tensors, as an ONNX graph's are."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model = model
        self._inputs = inputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = self._inputs.rebuild(tensors)
        with _AttentionOfRankFour():
            return flatten_outputs(self.model(*args, **kwargs))[1]


class _AttentionOfRankFour(TorchFunctionMode):
    """Gives torch's attention [batch, heads, tokens, channels], the one shape that the exporter translates."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        given = dict(zip(_OF_ATTENTION, args, strict=False), **kwargs)
        outer = given["query"].shape[:-2]
        if len(outer) == 2:
            return func(*args, **kwargs)

        def fold(x: Tensor) -> Tensor:
            heads = outer[-1] if len(outer) > 1 else 1
            return x.expand(*outer, *x.shape[-2:]).reshape(-1, heads, *x.shape[-2:])

        for name, value in given.items():
            if isinstance(value, Tensor) and (value.dim() > 2 or name != "attn_mask"):
                given[name] = fold(value)
        result = func(**given)
        return result.reshape(*outer, *result.shape[-2:])


_OF_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


@contextmanager
def silence() -> Iterator[None]:
    """Keep the exporter's own warnings, log lines and prints, which its user can do nothing about, to itself."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


def _explain(name: str, error: BaseException, axes: Axes) -> str:
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    reason = f"{type(cause).__name__}: {' '.join(lines[:2])[:300].rstrip('.')}"
    if "user-specified" not in reason and "onstraint" not in reason:
        return f"torch's exporter cannot translate {name}; write the operation with others ({reason})."
    if all(set(own) <= {0} for own in axes.values()):
        return (
            f"{name}'s code depends on the batch size, so no file can serve all; pass dynamic_batch=False ({reason})."
        )
    return (
        f"{name}'s code depends on the size of an open dimension, so no file can serve all; leave it out of "
        f"dynamic_axes, or pass dynamic_batch=False if it is the batch ({reason})."
    )


def _part_inputs_from_outputs(graph: ir.Graph, names: Sequence[str]) -> None:
    """Give back its name to an input that is an output, too: torch's exporter knows it by the output's name only."""
    for value, name in zip(graph.inputs, names, strict=True):
        if value.is_graph_output():
            label, value.name = value.name, name
            identity = ir.node("Identity", [value])
            copied = identity.outputs[0]
            copied.name, copied.shape, copied.type = label, value.shape, value.type
            graph.append(identity)
            graph.outputs[:] = [copied if output is value else output for output in graph.outputs]


def _name_axes(graph: ir.Model, axes: Axes) -> None:
    """Replace torch's symbols by the names of the axes, in the shapes of all values."""
    labels: dict[str, str] = {}
    for value, own in zip(graph.graph.inputs, axes.values(), strict=True):
        for dim, label in own.items():
            size = value.shape[dim] if value.shape is not None else None
            if isinstance(size, ir.SymbolicDim) and size.value is not None:
                labels.setdefault(size.value, label)
    if not labels:
        return
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, labels))})\b")
    for value in (*graph.graph.inputs, *(output for node in graph.graph for output in node.outputs)):
        if value.shape is not None:
            sizes = (size.value if isinstance(size, ir.SymbolicDim) else size for size in value.shape)
            value.shape = ir.Shape(
                [pattern.sub(lambda m: labels[m[0]], size) if isinstance(size, str) else size for size in sizes]
            )

"""How does a model become an ONNX file that is known to be right?"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import onnx
import torch
from onnxscript import ir, optimizer
from onnxscript.ir.passes import common
from torch import nn

from fxprune.errors import ExactnessError, ExportError, FxpruneError
from fxprune.export.check_file import prepare_seal, seal_file
from fxprune.export.check_outputs import ROUNDING_FACTOR, ROUNDING_LIMIT
from fxprune.export.evaluation import copy_for_evaluation, no_trace
from fxprune.export.fold_batchnorm import Folding, fold_batchnorm
from fxprune.export.fold_pad import fold_pads
from fxprune.export.graph_constants import get_input, read_constant
from fxprune.export.half import convert_to_half
from fxprune.export.interface import ExampleInputs, flatten_outputs, read_inputs
from fxprune.export.lift_over_joins import lift_over_joins
from fxprune.export.metadata import describe_model
from fxprune.export.runtimes.interface import Session
from fxprune.export.runtimes.ort_cpu import OrtCpu
from fxprune.export.slice_splits import slice_splits
from fxprune.export.translate import Axes, choose_axes, silence, translate
from fxprune.export.verify import Verification, compare
from fxprune.is_number import is_whole
from fxprune.onnx_choices import OPSET, Precision

ONE_FILE_LIMIT = 2_000_000_000
"""Bytes of weights that fit into one file: protobuf refuses messages of 2 GiB."""

OLDEST_OPSET, NEWEST_OPSET = 11, onnx.defs.onnx_opset_version()


@dataclass(frozen=True)
class OnnxFile:
    """A file that was written, and what was done and found on the way."""

    path: Path
    size: int  # bytes
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    folding: Folding
    verification: Verification | None  # None if verify=False

    def __str__(self) -> str:
        """Return the file's description and the verdict."""
        head = f"{self.path}: {self.size / 1e6:.2f} MB, opset {self.opset}, {', '.join(self.inputs)} -> "
        verdict = "not verified" if self.verification is None else str(self.verification)
        return "\n".join([head + ", ".join(self.outputs), str(self.folding), verdict])


def to_onnx(
    model: nn.Module,
    example_inputs: ExampleInputs,
    path: str | os.PathLike[str],
    *,
    opset: int = OPSET,
    precision: Precision = "fp32",
    dynamic_batch: bool = True,
    dynamic_axes: Axes | None = None,
    verify: bool = True,
    tolerance: float = 1e-4,
) -> OnnxFile:
    """Write a model in eval mode as one ONNX file, its batch norms folded, and compare the file with the model.

    `example_inputs` is a tensor, the positional arguments, or a dict of keyword arguments.
    Every input whose first dimension is the batch of the first one gets a dynamic batch; other
    dimensions are opened by `dynamic_axes={"x": {2: "height", 3: "width"}}`. Inputs are named as
    in forward's signature, outputs by their keys and fields. Weights of more than 2 GB go into
    a file of the same name with ".data" at the end. With `precision="fp16"` weights and values
    are float16, and inputs and outputs stay what they are. The metadata hold fxprune's version, of a
    converted model its plan's digest, method and target, and a digest over every byte, by
    which `verify` and `benchmark` refuse a damaged file.

    The model stays as it is: modes, parameters, random state. The file appears at `path` when
    it is complete and verified, and not before; a failure leaves what was there.

    Raises ExportError if the file cannot be written or the model not be exported, and
    ExactnessError if an output differs by more than `tolerance` of how much it varies (see
    `verify`).
    """
    if not isinstance(model, nn.Module) or not isinstance(path, str | os.PathLike):
        raise ExportError(
            "to_onnx takes the model, example inputs and the file, as in to_onnx(model, images, 'model.onnx'); it got "
            f"{type(model).__name__}, {type(example_inputs).__name__} and {type(path).__name__}."
        )
    destination = Path(path)
    if not is_whole(opset, OLDEST_OPSET) or opset > NEWEST_OPSET:
        raise ExportError(f"opset={opset!r}: this version of onnx has the opsets {OLDEST_OPSET} to {NEWEST_OPSET}.")
    if precision not in get_args(Precision):
        raise ExportError(f"precision={precision!r}: give 'fp32', the model's own, or 'fp16'.")
    with _create_workplace(destination) as workplace, no_trace():
        inputs = read_inputs(model, example_inputs)
        copy = copy_for_evaluation(model)
        args, kwargs = inputs.rebuild([tensor.clone() for tensor in inputs.tensors])
        output_names, _ = flatten_outputs(_run(copy, args, kwargs))
        output_names = tuple(f"output_{name}" if name in inputs.names else name for name in output_names)
        axes = choose_axes(inputs, dynamic_batch, dynamic_axes)
        graph = translate(copy, inputs, output_names, opset, axes).model
        folding = _simplify(graph)
        if precision == "fp16":
            graph = convert_to_half(graph)
        graph.metadata_props.update(describe_model(model))
        draft = workplace / destination.name
        _write(graph, draft)
        verification = None
        if verify:
            verification = compare(copy, draft, _load(draft), inputs, tolerance)
            _require_agreement(verification, type(model).__name__)
        _publish(workplace, destination)
    return OnnxFile(destination, destination.stat().st_size, opset, inputs.names, output_names, folding, verification)


@contextmanager
def _create_workplace(destination: Path) -> Iterator[Path]:
    """Make a temporary folder beside the file to come, which refuses early whatever could not be written later."""
    if destination.is_dir():
        raise ExportError(f"{destination} is a folder; give the name of the file to write in it.")
    if not destination.parent.is_dir():
        raise ExportError(f"there is no folder {destination.parent}; create it first, or write elsewhere.")
    try:
        workplace = tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}.")
    except OSError as error:
        raise ExportError(f"{destination.parent} cannot be written ({error.strerror}); write elsewhere.") from error
    with workplace as folder:
        yield Path(folder)


def _drop_wrong_biases(graph: ir.Model) -> None:
    """Take away the zeros that torch's exporter gives a Conv3d as a bias: [channels, 2], which no runtime takes."""
    for node in graph.graph:
        bias = get_input(node, 2) if node.op_type == "Conv" else None
        value = read_constant(bias) if bias is not None else None
        if value is not None and value.ndim != 1 and not value.any():
            node.replace_input_with(2, None)


def _run(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run a model on its example inputs."""
    try:
        return model(*args, **kwargs)
    except FxpruneError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ExportError(
            f"{type(model).__name__} does not run on example_inputs ({reason}); give some it takes."
        ) from error


def _simplify(graph: ir.Model) -> Folding:
    """Fold constants and batch norms and drop what nothing uses, in place."""
    for value in list(graph.graph.initializers.values()):
        value.name = str(value.name).removeprefix("model.")  # as in the model's state dict
    with silence():
        optimizer.inline(graph)
        slice_splits(graph)
        optimizer.fold_constants(graph, should_fold=_is_rearranged_constant)
    _drop_wrong_biases(graph)
    folding = fold_batchnorm(graph)
    fold_pads(graph)
    lift_over_joins(graph)
    tidy = (
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.ClearMetadataAndDocStringPass(),  # stack traces, with the paths of the user's sources
    )
    ir.passes.Sequential(*tidy)(graph)
    return folding


def _is_rearranged_constant(node: ir.Node) -> bool | None:
    """Fold transposed weights of any size: the folder's limit on sizes is for constants that would grow."""
    is_constant = node.op_type == "Transpose" and node.inputs[0] is not None and node.inputs[0].is_initializer()
    return True if is_constant else None


def _write(graph: ir.Model, draft: Path) -> None:
    """Write a file and put the digest of its bytes into it."""
    prepare_seal(graph, version("fxprune"))
    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value)
    weights = draft.with_name(f"{draft.name}.data") if size > ONE_FILE_LIMIT else None
    try:
        ir.save(graph, draft, external_data=None if weights is None else weights.name)
        seal_file(draft, weights)
    except OSError as error:
        raise ExportError(f"{draft.name} cannot be written: {error.strerror}.") from error


def _load(draft: Path) -> Session:
    try:
        return OrtCpu().load(draft, threads=torch.get_num_threads())
    except ExportError as error:
        reason = str(error).replace(str(draft), draft.name)
        raise ExportError(f"{reason}; for another runtime, write it with verify=False.") from error


def _require_agreement(verification: Verification, name: str) -> None:
    if verification.passed:
        return
    worst, first = verification.worst, verification.first_difference
    found = (
        f"{worst.name} differs by {worst.difference:.2g} where it varies by {worst.variation:.2g}, an error of "
        f"{worst.error:.2g}"
    )
    if worst.is_rounding:
        raise ExactnessError(
            f"the exported {name} loses too much to rounding: {found}, where {ROUNDING_LIMIT:g} is the most that is "
            f"accepted; the model itself, computed in the file's precision, has one of {worst.rounding:.2g}; nothing "
            "was written. Export it in a higher precision, or pass verify=False to keep the file as it is."
        )
    where = "" if first is None else f"; the first node that differs is {first}"
    raise ExactnessError(
        f"the exported {name} does not compute what the model computes: {found}, where {verification.tolerance:g} is "
        f"allowed, and up to {ROUNDING_FACTOR} times the model's own rounding error of {worst.rounding:.2g}{where}; "
        "nothing was written. Pass verify=False to keep the file and look into it."
    )


def _publish(workplace: Path, destination: Path) -> None:
    """Move the finished files to their places, the one that refers to the other last."""
    try:
        for file in sorted(workplace.iterdir(), key=lambda file: file.name == destination.name):
            os.replace(file, destination.parent / file.name)
    except OSError as error:
        raise ExportError(f"{destination} cannot be replaced: {error.strerror}.") from error

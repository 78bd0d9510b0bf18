"""Does an ONNX file compute what the model computes?"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from fxprune.errors import ExportError
from fxprune.export.check_outputs import OutputCheck, check_outputs
from fxprune.export.evaluation import copy_for_evaluation, no_trace
from fxprune.export.find_difference import find_first_difference
from fxprune.export.interface import ExampleInputs, Inputs, flatten_outputs, read_inputs
from fxprune.export.runtimes.interface import Array, Session
from fxprune.export.runtimes.ort_cpu import OrtCpu
from fxprune.export.samples import draw_batches, draw_sizes


@dataclass(frozen=True)
class Verification:
    """What the comparison of a file with a model found."""

    outputs: tuple[OutputCheck, ...]
    batch_sizes: tuple[int, ...]
    tolerance: float
    shapes: tuple[tuple[tuple[int, ...], ...], ...] = ()  # of the inputs, in runs at other sizes than the example's
    first_difference: str | None = None  # the node of the file that is wrong, where it is and one was found

    @property
    def worst(self) -> OutputCheck:
        """Return the output that differs most, of those beyond the tolerance if there are any."""
        return max(self.outputs, key=lambda output: (not output.is_within(self.tolerance), output.error))

    @property
    def passed(self) -> bool:
        """Say whether every output is within the tolerance, or differs by the model's own rounding only."""
        return all(output.is_within(self.tolerance) for output in self.outputs)

    @property
    def is_vacuous(self) -> bool:
        """Say whether no output varies with the input, so that agreement shows little."""
        return all(output.is_vacuous for output in self.outputs)

    def __str__(self) -> str:
        """Return a verdict, and a line for each output."""
        verdict = f"agrees with the model within {self.tolerance:g}"
        if not self.passed:
            verdict = f"differs from the model by more than {self.tolerance:g}"
        elif self.worst.error > self.tolerance:
            verdict = "agrees with the model up to rounding"
        head = f"{verdict} at batch sizes {', '.join(str(size) for size in self.batch_sizes)}"
        if self.shapes:
            head += f", and inputs of {', '.join(_spell(shapes) for shapes in self.shapes)}"
        lines = [head, *(f"  {output}" for output in self.outputs)]
        if self.first_difference is not None:
            lines.append(f"  the first node that differs is {self.first_difference}")
        return "\n".join(lines)


def _spell(shapes: tuple[tuple[int, ...], ...]) -> str:
    return " with ".join("x".join(str(size) for size in shape) for shape in shapes)


def verify(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: ExampleInputs,
    *,
    more_inputs: Iterable[ExampleInputs] = (),
    tolerance: float = 1e-4,
) -> Verification:
    """Compare an ONNX file on ONNX Runtime's CPU kernels with the model in eval mode on the CPU.

    The example inputs and `more_inputs` are run as given, and random ones of the example's shape
    and spread: at batch sizes 1, 2 and the example's (the example's only, where the file fixes
    the batch), and with each dimension that the file leaves open halved, or doubled, where the
    model takes that. Tensors are matched by name where the file has the model's names, else by
    position.

    Very deep networks and half precision amplify rounding: an output beyond the tolerance is
    accepted if the model itself, in the file's precision, differs from a float64 copy by a
    quarter as much. If one is not accepted, the first node that differs is looked for.

    The model stays as it is, random state included. Raises ExportError if the file is damaged,
    is no ONNX file or has another number of inputs or outputs.
    """
    if not isinstance(model, nn.Module) or not isinstance(path, str | os.PathLike):
        raise ExportError(
            "verify takes the model, the file and example inputs, as in verify(model, 'model.onnx', images); it got "
            f"{type(model).__name__}, {type(path).__name__} and {type(example_inputs).__name__}."
        )
    session = OrtCpu().load(Path(path), threads=torch.get_num_threads())
    inputs = read_inputs(model, example_inputs)
    more = [read_inputs(model, each) for each in more_inputs]
    with no_trace():
        return compare(copy_for_evaluation(model), Path(path), session, inputs, tolerance, more)


def compare(
    model: nn.Module, path: Path, session: Session, inputs: Inputs, tolerance: float, more: Sequence[Inputs] = ()
) -> Verification:
    """Compare a loaded file with a model that is on the CPU and in eval mode; see verify."""
    names = _match_inputs(session, inputs)
    described = {info.name: info for info in session.inputs}
    infos = [described[name] for name in names]
    generator = torch.Generator().manual_seed(0)
    batches = draw_batches(model, inputs, infos, generator)
    sizes = draw_sizes(model, inputs, infos, generator)
    given = [(inputs, inputs.tensors), *((each, each.tensors) for each in more)]
    samples = given + [(inputs, tensors) for tensors in (*batches, *sizes)]
    labels = tuple(info.name for info in session.outputs)
    expected = [_run_model(model, each, tensors, labels) for each, tensors in samples]
    found = [session.run({n: t.numpy() for n, t in zip(names, tensors, strict=True)}) for _, tensors in samples]
    checks = check_outputs(labels, expected, found, [_count_samples(tensors) for _, tensors in samples])
    if not all(check.error <= tolerance for check in checks):
        checks = _measure_rounding(model, _is_half(path), samples, expected, checks)
    result = Verification(
        outputs=checks,
        batch_sizes=tuple(sorted({_count_samples(tensors) for tensors in batches})),
        tolerance=tolerance,
        shapes=tuple(tuple(tuple(tensor.shape) for tensor in tensors) for tensors in sizes),
    )
    if result.passed:
        return result
    allowed = max(check.allow(tolerance) for check in checks)
    return replace(result, first_difference=find_first_difference(model, path, names, inputs, allowed))


def _count_samples(tensors: Sequence[Tensor]) -> int:
    return next((tensor.shape[0] for tensor in tensors if tensor.ndim > 0), 1)


def _run_model(model: nn.Module, inputs: Inputs, tensors: Sequence[Tensor], labels: tuple[str, ...]) -> list[Array]:
    args, kwargs = inputs.rebuild([tensor.clone() for tensor in tensors])
    keys, outputs = flatten_outputs(model(*args, **kwargs))
    if len(keys) != len(labels):
        raise ExportError(f"the file has the outputs {labels}, the model {keys}.")
    return [output.numpy(force=True) for output in outputs]


def _measure_rounding(
    model: nn.Module,
    is_half: bool,
    samples: Sequence[tuple[Inputs, tuple[Tensor, ...]]],
    expected: list[list[Array]],
    checks: tuple[OutputCheck, ...],
) -> tuple[OutputCheck, ...]:
    """Add the error of the model itself against a copy in float64, where its code runs in float64 at all.

    For a file in half precision it is that of the model in half precision.
    """
    labels = tuple(check.name for check in checks)
    try:
        truth = _run_in(model, torch.float64, samples, labels)
        own = _run_in(model, torch.float16, samples, labels) if is_half else expected
    except RuntimeError:  # the code creates tensors of another type, so nothing is known about rounding
        return checks
    rounded = check_outputs(labels, truth, own, [_count_samples(tensors) for _, tensors in samples])
    return tuple(replace(check, rounding=own.error) for check, own in zip(checks, rounded, strict=True))


def _run_in(
    model: nn.Module,
    dtype: torch.dtype,
    samples: Sequence[tuple[Inputs, tuple[Tensor, ...]]],
    labels: tuple[str, ...],
) -> list[list[Array]]:
    """Run a copy of the model in another precision."""
    copy = copy_for_evaluation(model).to(dtype)
    cast = [(inputs, [t.to(dtype) if t.is_floating_point() else t for t in tensors]) for inputs, tensors in samples]
    return [_run_model(copy, inputs, tensors, labels) for inputs, tensors in cast]


def _is_half(path: Path) -> bool:
    """Whether a file computes in half precision: its weights are."""
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    return any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in tensors)


def _match_inputs(session: Session, inputs: Inputs) -> tuple[str, ...]:
    """Return the file's name of each tensor: the model's own where the file has them all, else by position."""
    names = tuple(info.name for info in session.inputs)
    if len(names) != len(inputs.names):
        raise ExportError(f"the file takes the inputs {names}, example_inputs hold {inputs.names}.")
    return inputs.names if set(names) == set(inputs.names) else names

"""Which random inputs fit an ONNX file at a given batch size?"""

from collections.abc import Mapping, Sequence

import numpy as np

from fxprune.errors import ExportError
from fxprune.export.runtimes.interface import Array, TensorInfo


def draw_inputs(
    inputs: Sequence[TensorInfo], batch_size: int, sample_shapes: Mapping[str, Sequence[int]]
) -> dict[str, Array]:
    """Draw inputs by a file's description, always the same: normal floats, and integers of 0 and 1.

    An open first dimension is the batch. `sample_shapes` gives, by input, the shape of one
    sample (without the batch) where a file leaves other dimensions open.

    Raises ExportError if a size remains open, or the file fixes another batch or shape.
    """
    names = [info.name for info in inputs]
    unknown = sorted(set(sample_shapes) - set(names))
    if unknown:
        raise ExportError(f"input_shapes names {unknown}; the file's inputs are {names}.")
    if not any(info.shape[:1] == (None,) for info in inputs):
        _require_batch(inputs, batch_size)
    generator = np.random.default_rng(0)
    feed: dict[str, Array] = {}
    for info in inputs:
        drawn = generator.standard_normal(_resolve_shape(info, batch_size, sample_shapes.get(info.name)))
        feed[info.name] = drawn.astype(info.dtype) if info.dtype.kind == "f" else (drawn > 0).astype(info.dtype)
    return feed


def _require_batch(inputs: Sequence[TensorInfo], batch_size: int) -> None:
    fixed = next((info for info in inputs if info.shape), None)
    if fixed is not None and fixed.shape[0] != batch_size:
        raise ExportError(f"{fixed.name} has the fixed shape {fixed.shape}; pass batch_sizes=({fixed.shape[0]},).")


def _resolve_shape(info: TensorInfo, batch_size: int, sample: Sequence[int] | None) -> tuple[int, ...]:
    if not info.shape:
        return ()
    batch, *declared = info.shape
    wanted = declared if sample is None else list(sample)
    if len(wanted) != len(declared) or any(d not in (None, w) for d, w in zip(declared, wanted, strict=True)):
        raise ExportError(
            f"a sample of {info.name} has the shape {tuple(declared)}; input_shapes says {tuple(wanted)}."
        )
    sizes = [size for size in wanted if size is not None]
    if len(sizes) < len(wanted):
        raise ExportError(
            f"a sample of {info.name} has the shape {tuple(declared)}, where None is left open by the file; "
            f"give a shape, such as input_shapes={{{info.name!r}: {tuple(size or 64 for size in wanted)}}}."
        )
    return (batch_size if batch is None else batch, *sizes)

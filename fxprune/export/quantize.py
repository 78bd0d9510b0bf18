"""How does an ONNX file become one that computes in 8 bits, and what does that cost in accuracy?

Static quantisation by ONNX Runtime's own quantiser: pairs of QuantizeLinear and DequantizeLinear around what runs in
integers, one scale a channel of weights, ranges of values from the user's images.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from fxprune.errors import ExportError
from fxprune.export.check_file import PRODUCER, check_file, seal_proto
from fxprune.export.onnx_file import describe_inputs
from fxprune.export.runtimes.interface import Array, Session
from fxprune.export.runtimes.ort_cpu import OrtCpu
from fxprune.export.runtimes.ort_session import ORT_ERRORS, shorten
from fxprune.export.translate import silence

REFUSALS: tuple[type[Exception], ...] = (*ORT_ERRORS, ValueError, RuntimeError, TypeError, KeyError)
"""What ONNX Runtime's quantiser raises, and the runtime in it."""


@dataclass(frozen=True)
class QuantizedFile:
    """A file in 8 bits, and what it costs beside the one that it was made from, on the batches that were given.

    `agreement` is the share of samples with the same argmax of the first output. Accuracies are None without labels.
    """

    path: Path
    size: int  # bytes
    size_before: int
    samples: int
    agreement: float
    accuracy: float | None
    accuracy_before: float | None

    def __str__(self) -> str:
        """Return sizes and the cost."""
        sizes = f"{self.path}: {self.size / 1e6:.2f} MB in 8 bits, {self.size_before / 1e6:.2f} MB before"
        cost = f"same argmax in {self.agreement:.1%} of {self.samples} samples"
        if self.accuracy is None or self.accuracy_before is None:
            return f"{sizes}; {cost}"
        return f"{sizes}; {cost}, accuracy {self.accuracy:.1%}, {self.accuracy_before:.1%} before"


def quantize(
    source: str | os.PathLike[str],
    loader: Iterable[Any],
    path: str | os.PathLike[str],
    *,
    calibration_batches: int = 8,
) -> QuantizedFile:
    """Write a copy of an ONNX file that computes in 8 bits, and compare both on all batches of `loader`.

    A batch is a tensor, or a tuple of the file's inputs in their order; integers behind them, one a
    sample, are labels. The first `calibration_batches` set the ranges of values. The loader is gone
    through twice.

    Raises ExportError if the file is damaged or cannot be quantised, or the batches do not fit it.
    """
    before, destination = Path(source), Path(path)
    check_file(before)
    if before.resolve() == destination.resolve():
        raise ExportError(f"{destination} is the file to quantise; give another one for the result.")
    if not destination.parent.is_dir():
        raise ExportError(f"there is no folder {destination.parent}; create it first, or write elsewhere.")
    _require_floats(before)
    original = OrtCpu().load(before, torch.get_num_threads())
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}.") as folder:
        draft = Path(folder) / destination.name
        _quantize(before, draft, (feed for feed, _ in islice(_read(original, loader), calibration_batches)))
        cost = _compare(original, OrtCpu().load(draft, torch.get_num_threads()), loader)
        os.replace(draft, destination)
    return QuantizedFile(destination, destination.stat().st_size, before.stat().st_size, *cost)


def _require_floats(path: Path) -> None:
    """Refuse a file that does not compute in single precision, which is all that the quantiser reads."""
    graph = onnx.load(path, load_external_data=False).graph
    quantised = next(
        (node.op_type for node in graph.node if "Quantize" in node.op_type or "Integer" in node.op_type), None
    )
    if quantised is not None:
        raise ExportError(f"{path} computes in 8 bits already, by {quantised}; give the file that it was made from.")
    if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer):
        raise ExportError(
            f"{path} computes in half precision, which ONNX Runtime does not quantise; export it in float32 first."
        )


class _Feeds(CalibrationDataReader):  # type: ignore[misc]
    """The user's batches, as the quantiser asks for them."""

    def __init__(self, feeds: Iterator[dict[str, Array]]) -> None:
        self._feeds = feeds

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


def _quantize(source: Path, draft: Path, feeds: Iterator[dict[str, Array]]) -> None:
    proto = onnx.load(source)
    is_ours = proto.producer_name == PRODUCER
    producer_version = proto.producer_version
    try:
        with silence():
            quantize_static(
                proto,
                str(draft),
                _Feeds(feeds),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
    except REFUSALS as error:
        raise ExportError(
            f"ONNX Runtime cannot quantise {source} on these batches ({shorten(error)}); give batches of what the file "
            f"takes, {', '.join(map(str, describe_inputs(proto.graph)))}."
        ) from error
    if is_ours:
        seal_proto(onnx.load(draft), draft, producer_version)


def _read(session: Session, loader: Iterable[Any]) -> Iterator[tuple[dict[str, Array], Array | None]]:
    """Read batches as inputs by name, and labels where there are any."""
    names = [info.name for info in session.inputs]
    for batch in loader:
        parts = [np.asarray(part) for part in (batch if isinstance(batch, list | tuple) else (batch,))]
        if len(parts) < len(names):
            raise ExportError(f"a batch of the loader holds {len(parts)} tensors, and the file takes {names}.")
        feed = {info.name: part.astype(info.dtype) for info, part in zip(session.inputs, parts, strict=False)}
        label = parts[len(names)] if len(parts) == len(names) + 1 else None
        yield feed, label if label is not None and label.ndim == 1 and label.dtype.kind in "iu" else None


def _compare(
    original: Session, quantised: Session, loader: Iterable[Any]
) -> tuple[int, float, float | None, float | None]:
    """Return the number of samples, the agreement, and both accuracies."""
    count, same, labelled, right, right_before = 0, 0, 0, 0, 0
    for feed, label in _read(original, loader):
        before, after = (session.run(feed)[0].argmax(1) for session in (original, quantised))
        count, same = count + len(before), same + int((before == after).sum())
        if label is not None:
            labelled += len(label)
            right, right_before = right + int((after == label).sum()), right_before + int((before == label).sum())
    if count == 0:
        raise ExportError(
            "the loader holds no batch; a generator is empty the second time, so pass a list or a loader."
        )
    accuracies = (right / labelled, right_before / labelled) if labelled else (None, None)
    return count, same / count, *accuracies

"""How does ONNX Runtime load a file for one of its execution providers, and run it?"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from fxprune.errors import ExportError, RuntimeUnavailable
from fxprune.export.check_file import check_file
from fxprune.export.runtimes.interface import Array, Session, TensorInfo

ORT_ERRORS: tuple[type[Exception], ...] = (
    errors.EPFail,
    errors.EngineError,
    errors.Fail,
    errors.InvalidArgument,
    errors.InvalidGraph,
    errors.InvalidProtobuf,
    errors.NoModel,
    errors.NoSuchFile,
    errors.NotImplemented,
    errors.RuntimeException,
)
"""What ONNX Runtime raises; its errors have no base class of their own."""

Provider = tuple[str, dict[str, str]]
"""The name of an execution provider, and its options."""

LONGEST = 200
"""Characters of ONNX Runtime's own words in a message."""

_NUMPY_NAMES = {"float": "float32", "double": "float64"}


class OrtSession(Session):
    """A file loaded by ONNX Runtime."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs = tuple(_read_info(node) for node in session.get_inputs())
        self.outputs = tuple(_read_info(node) for node in session.get_outputs())
        self.threads = int(session.get_session_options().intra_op_num_threads)

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """Return all outputs; raises ExportError if the runtime refuses the inputs or fails."""
        try:
            return list(self._session.run(None, dict(feed)))
        except ORT_ERRORS as error:
            shapes = {name: array.shape for name, array in feed.items()}
            raise ExportError(
                f"ONNX Runtime failed on inputs of shapes {shapes} ({shorten(error)}); give what the file takes, "
                f"{', '.join(map(str, self.inputs))}, or export it again."
            ) from error


def make_options(threads: int) -> Any:
    """Return session options: `threads` threads in an operator, and operators one after the other."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # fatal: what goes wrong arrives as an exception
    # Idle threads of one session would otherwise spin while another session is being timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def create_session(path: Path, options: Any, providers: Sequence[Provider]) -> Any:
    """Load a file for the first of `providers`; the others run the nodes that it has no kernels for.

    Raises RuntimeUnavailable if this build of ONNX Runtime lacks the first one, or the session
    that it made goes without it (as it does, with a line in its log, where a driver is missing),
    and ExportError if the file is missing, is damaged or no ONNX file, or holds what the runtime lacks.
    """
    wanted = providers[0][0]
    require_provider(wanted)
    check_file(path)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except ORT_ERRORS as error:
        raise ExportError(
            f"{path} is no file that ONNX Runtime {onnxruntime.__version__} runs ({shorten(error)}); export it with "
            "ops and types that this runtime has."
        ) from error
    if session.get_providers()[0] != wanted:
        raise RuntimeUnavailable(
            f"ONNX Runtime could not start {wanted} and took {session.get_providers()[0]} instead; "
            "install the driver and libraries that its release notes name."
        )
    return session


def require_provider(name: str) -> None:
    """Raise RuntimeUnavailable if this build of ONNX Runtime is without that execution provider."""
    available = onnxruntime.get_available_providers()
    if name not in available:
        raise RuntimeUnavailable(
            f"ONNX Runtime {onnxruntime.__version__} is built without {name} (it has {', '.join(available)}); "
            "install onnxruntime-gpu in its place."
        )


def shorten(error: Exception) -> str:
    """Return a message on one line, without codes, places in ONNX Runtime's source and the path, which callers name."""
    line = " ".join(str(error).split())
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed: ?)?", "", line)
    line = re.sub(
        r"Non-zero status code returned while running (\w+) node\. Name:'(.*?)' Status Message: ", r"\1 \2: ", line
    )
    line = re.sub(r"/\S+\.(cc|h|cpp):\d+ \S*( \[with.*?\])?", "", line)
    return textwrap.shorten(line, LONGEST, placeholder=" ...").rstrip(".")


def _read_info(node: Any) -> TensorInfo:
    element = node.type.removeprefix("tensor(").removesuffix(")")
    try:
        dtype = np.dtype(_NUMPY_NAMES.get(element, element))
    except TypeError as error:
        raise ExportError(f"{node.name} is a {node.type}, which has no NumPy type; export it as float32.") from error
    return TensorInfo(node.name, tuple(size if isinstance(size, int) else None for size in node.shape), dtype)

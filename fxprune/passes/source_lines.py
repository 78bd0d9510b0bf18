"""Where in the user's own code something happened: file, line and function; torch's, numpy's and ours passed over."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from types import FrameType

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_OTHERS = [spec.origin for spec in map(find_spec, ("torch", "numpy")) if spec is not None and spec.origin]
_LIBRARIES = (_OURS, *(os.path.dirname(os.path.abspath(origin)) + os.sep for origin in _OTHERS))


def find_user_line() -> str:
    """Name file, line and function of the innermost code on the stack that is neither a library's nor ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "trace_mode":  # further out is not the model's code
        file = frame.f_code.co_filename
        if is_users(file):
            return f"{file}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return "torch's own code"


def find_error(error: BaseException) -> str:
    """Name the line of the user's code at which an exception was raised."""
    where = "in torch's own code"
    traceback = error.__traceback__
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if is_users(file):
            where = f"at {file}:{traceback.tb_lineno} in {traceback.tb_frame.f_code.co_name}"
        traceback = traceback.tb_next
    return where


def is_users(file: str) -> bool:
    """Whether a file holds the user's code, and not a library's, ours, or a graph's."""
    return not file.startswith(_LIBRARIES) and not file.startswith("<")

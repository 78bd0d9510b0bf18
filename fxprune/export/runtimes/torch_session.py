"""How does PyTorch run a module for a runtime: with which threads, types and memory, and what counts as one run?"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fxprune.errors import ExportError
from fxprune.export.interface import Inputs, flatten_outputs
from fxprune.export.runtimes.cuda_events import time_on_stream
from fxprune.export.runtimes.interface import Array, Session, TensorInfo

Run = Callable[[], Any]


class Placement(Protocol):
    """Where and in which form a module runs."""

    @property
    def device(self) -> str: ...

    @property
    def channels_last(self) -> bool: ...

    @property
    def autocast(self) -> str | None: ...

    def capture(self, run: Run) -> Run:
        """Return what does the same as `run`, on the same tensors."""
        ...


class Callee(NamedTuple):
    """A module on its device, in eval mode, and what it takes and returns."""

    call: Callable[..., Any]
    example_inputs: Inputs
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


class TorchSession(Session):
    """A module that is ready to run."""

    def __init__(self, callee: Callee, placement: Placement, threads: int) -> None:
        self._callee, self._placement, self._wanted = callee, placement, threads
        self.inputs, self.outputs = callee.inputs, callee.outputs
        self.device = placement.device
        with use_threads(threads):
            self.threads = torch.get_num_threads()

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """Return all outputs; raises ExportError if the module fails on these inputs."""
        with use_threads(self._wanted):
            _, outputs = flatten_outputs(self._prepare(feed)())
        wide = [output.float() if output.dtype == torch.bfloat16 else output for output in outputs]
        return [output.numpy(force=True) for output in wide]

    def bind(self, feed: Mapping[str, Array]) -> Callable[[], float]:
        """Return a call that runs once on tensors on the device: by the clock on the CPU, by events on a card."""
        with use_threads(self._wanted):
            run = self._prepare(feed)
        if self.device == "cuda":
            return time_on_stream(run, torch.cuda.current_stream())

        def time_run() -> float:
            with use_threads(self._wanted):
                start = time.perf_counter()
                run()
                return time.perf_counter() - start

        return time_run

    def _prepare(self, feed: Mapping[str, Array]) -> Run:
        """Move the inputs to the device, run once, and return what runs again."""
        tensors = [self._move(torch.from_numpy(np.array(feed[info.name]))) for info in self.inputs]
        args, kwargs = self._callee.example_inputs.rebuild(tensors)
        dtype = getattr(torch, self._placement.autocast or "float32")

        def run() -> Any:
            with torch.inference_mode(), torch.autocast(self.device, dtype, enabled=dtype != torch.float32):
                return self._callee.call(*args, **kwargs)

        try:
            run()
            return self._placement.capture(run)
        except (RuntimeError, ValueError, TypeError) as error:
            shapes = {name: array.shape for name, array in feed.items()}
            reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            raise ExportError(f"PyTorch failed on inputs of shapes {shapes}: {reason}") from error

    def _move(self, tensor: Tensor) -> Tensor:
        is_image = self._placement.channels_last and tensor.ndim == 4
        tensor = tensor.to(self.device)
        return tensor.contiguous(memory_format=torch.channels_last) if is_image else tensor


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Let torch compute with this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

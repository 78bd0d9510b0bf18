"""How does PyTorch run a module that torch.compile has compiled?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxprune.export.runtimes.torch_eager import TorchEager


@dataclass(frozen=True)
class TorchCompile(TorchEager):
    """PyTorch with `torch.compile`: once for each batch size and number of threads, in the warm-up."""

    @property
    def mode(self) -> str:
        """Return how the operations of a module are run."""
        return "compiled"

    def compile(self, module: nn.Module) -> Callable[..., Any]:
        """Compile a module for the very shapes that it is called with."""
        compiled: Callable[..., Any] = torch.compile(module, dynamic=False)
        return compiled

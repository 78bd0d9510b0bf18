"""How is a model run for inspection without leaving a trace in it?"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fxprune.errors import ExportError


def copy_for_evaluation(model: nn.Module) -> nn.Module:
    """Return a copy of the model on the CPU, every submodule in eval mode; the model itself stays as it is.

    Raises ExportError if the model cannot be copied.
    """
    try:
        return copy.deepcopy(model).cpu().eval()
    except (RuntimeError, TypeError) as error:
        raise ExportError(
            f"{type(model).__name__} cannot be copied ({error}); keep computed tensors out of its attributes."
        ) from error


@contextmanager
def no_trace() -> Iterator[None]:
    """Run the body without gradients, and put torch's random state on the CPU back afterwards."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        yield

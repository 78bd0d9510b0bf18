"""On which inputs is a file compared with its model? The example, and random ones of other batch and image sizes."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneError, GuardViolated
from fxprune.export.interface import Inputs
from fxprune.export.runtimes.interface import TensorInfo

Tensors = tuple[Tensor, ...]


def draw_batches(
    model: nn.Module, inputs: Inputs, infos: Sequence[TensorInfo], generator: torch.Generator
) -> list[Tensors]:
    """Draw two random batches each of 1, 2 and the example's samples, or of the example's alone where a file fixes it.

    `infos` describes the file's inputs in the order of the model's. A size that the model refuses is left out.
    """
    is_fixed = any(inputs.is_batched(index) and info.shape[:1] != (None,) for index, info in enumerate(infos))
    sizes = (inputs.batch,) if is_fixed else tuple(sorted({1, 2, inputs.batch}))
    resized = [inputs.resize_batch(size) for size in sizes]
    taken = [
        tensors
        for size, tensors in zip(sizes, resized, strict=True)
        if size == inputs.batch or takes(model, inputs, tensors)
    ]
    return [draw_like(tensors, generator) for tensors in (*taken, *taken)]


def draw_sizes(
    model: nn.Module, inputs: Inputs, infos: Sequence[TensorInfo], generator: torch.Generator
) -> list[Tensors]:
    """Draw random inputs with each open dimension but the batch halved, then all of them, or doubled.

    A size that the model refuses is left out.
    """
    axes = [
        (index, dim) for index, info in enumerate(infos) for dim, size in enumerate(info.shape)
        if size is None and not (dim == 0 and inputs.is_batched(index))
    ]  # fmt: skip
    choices = [[axis] for axis in axes] + ([axes] if len(axes) > 1 else [])
    drawn = []
    for chosen in choices:
        for factor in (0.5, 2):
            tensors = resize(inputs.tensors, chosen, factor)
            if takes(model, inputs, tensors):
                drawn.append(draw_like(tensors, generator))
                break
    return drawn


def resize(tensors: Tensors, axes: Sequence[tuple[int, int]], factor: float) -> Tensors:
    """Repeat or cut tensors along dimensions, given as (index of the tensor, dimension)."""
    resized = list(tensors)
    for index, dim in axes:
        size = resized[index].shape[dim]
        indexes = torch.arange(max(1, int(size * factor))) % size
        resized[index] = resized[index].index_select(dim, indexes)
    return tuple(resized)


def takes(model: nn.Module, inputs: Inputs, tensors: Tensors) -> bool:
    """Whether a model runs on inputs of these sizes: its layers may ask for others, and its code decide by them."""
    args, kwargs = inputs.rebuild([tensor.clone() for tensor in tensors])
    try:
        model(*args, **kwargs)
    except GuardViolated as error:  # which the file cannot say when it runs
        sizes = ", ".join("x".join(map(str, tensor.shape)) for tensor in tensors)
        warnings.warn(
            f"the file leaves sizes open for which the model refuses to run, and computes something else there: "
            f"{sizes}; {error}. Fix these sizes in the file (dynamic_batch=False, no dynamic_axes), or keep to others",
            stacklevel=2,
        )
        return False
    except (FxpruneError, RuntimeError, ValueError, IndexError, AssertionError):
        return False
    return True


def draw_like(tensors: Tensors, generator: torch.Generator) -> Tensors:
    """Draw tensors of the same shape, type and spread; integers stay in the example's range, booleans as they are."""
    return tuple(_draw(tensor, generator) for tensor in tensors)


def _draw(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if tensor.is_floating_point():
        spread = float(tensor.std(correction=0)) or 1.0
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        return (noise * spread + float(tensor.mean())).to(tensor.dtype)
    if tensor.dtype == torch.bool or tensor.numel() == 0:
        return tensor
    low, high = int(tensor.min()), int(tensor.max())
    return torch.randint(low, high + 1, tensor.shape, generator=generator, dtype=tensor.dtype)

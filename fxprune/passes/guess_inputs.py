"""Which input a model takes when its owner gives none: one made from its first layer."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fxprune.errors import TraceError
from fxprune.model import Inputs, in_eval_mode
from fxprune.run_alone import all_threads

SIZES = (224, 32, 28, 64, 8, 299)


@all_threads()
def guess_inputs(model: nn.Module) -> Inputs:
    """Make a batch of two from the first layer's channels, features or vocabulary, of the first size that runs.

    Raises:
        TraceError: no size runs, or no first layer tells what to make.
    """
    probe = copy.deepcopy(model)
    tried = []
    with torch.no_grad(), in_eval_mode(probe), torch.random.fork_rng(devices=[]):
        for candidate in candidates(model):
            try:
                probe(candidate)
            except Exception as error:  # noqa: BLE001 - the model's own code may raise anything
                tried.append(f"{tuple(candidate.shape)}: {str(error).splitlines()[0] if str(error) else error!r}")
                continue
            return (candidate,), {}
    reason = (
        f"it does not run on {tried[0]}" if tried else "its first layer is no convolution, linear layer or embedding"
    )
    raise TraceError(f"no example input could be made for {type(model).__name__} ({reason}); pass example_inputs")


def candidates(model: nn.Module) -> Iterator[Tensor]:
    """Make inputs that the first layer would take."""
    parameter = next(model.parameters(), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            rank = len(module.kernel_size)
            for size in SIZES if rank < 3 else (32, 64):
                yield torch.randn(2, module.in_channels, *[size] * rank, generator=generator).to(parameter)
            return
        if isinstance(module, nn.Linear):
            yield torch.randn(2, module.in_features, generator=generator).to(parameter)
            return
        if isinstance(module, nn.Embedding):
            yield torch.randint(module.num_embeddings, (2, 16), generator=generator).to(parameter.device)
            return

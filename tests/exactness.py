"""How tests make a comparison that means something: randomised models, closed gates, errors relative to variation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxprune.masks import Masks
from fxprune.model import PreparedModel


def randomise(model: nn.Module, seed: int = 0, share: float = 0.0) -> None:
    """Give scales, shifts, biases and layer scales random values, so that nothing is zero or one by initialisation.

    Where no norm restores the size of the activations, weights get He's variance over the share that stays open:
    with PyTorch's own initialisation the biases drown the input.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(t: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(t.shape, generator=generator, dtype=t.dtype)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.numel() == parameter.shape[:1].numel() or "layer_scale" in name:  # one for each channel
                low, high = (-0.3, 0.3) if name.endswith("bias") else (0.5, 1.5)
                parameter.copy_(uniform(parameter, low, high))
            elif not any(isinstance(m, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)) for m in model.modules()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
                parameter.mul_((2 / (1 - share) / parameter[0].numel()) ** 0.5)


@torch.no_grad()
def settle_statistics(model: nn.Module, x: Tensor, seed: int = 0) -> None:
    """Set batch-norm statistics by a training-mode forward pass, then disturb them by 20%; leaves eval mode."""
    generator = torch.Generator().manual_seed(seed)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    with torch.random.fork_rng(devices=[]):
        model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        for statistic in (norm.running_mean, norm.running_var):
            statistic.mul_(0.8 + 0.4 * torch.rand(statistic.shape, generator=generator, dtype=statistic.dtype))
    model.eval()


def varied_images(count: int, channels: int, size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Images that differ in contrast, brightness and scale of their patterns, as real ones do."""
    generator = torch.Generator().manual_seed(seed)
    fine = torch.randn(count, channels, size, size, generator=generator, dtype=dtype)
    coarse = torch.randn(count, channels, 4, 4, generator=generator, dtype=dtype)
    coarse = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    contrast = torch.linspace(0.2, 2.0, count, dtype=dtype).view(-1, 1, 1, 1)
    return (0.5 * fine + coarse) * contrast + torch.randn(count, channels, 1, 1, generator=generator, dtype=dtype)


def close_units(prepared: PreparedModel, share: float, seed: int = 0, soft: bool = True) -> Tensor:
    """Close a random share of the units; the gates of the others lie between 0.5 and 1."""
    generator = torch.Generator().manual_seed(seed)
    masks: Masks = prepared.fxprune
    dice = torch.rand(masks.gates.shape, generator=generator)
    gates = 0.5 + 0.5 * torch.rand(masks.gates.shape, generator=generator) if soft else torch.ones_like(masks.gates)
    gates[dice < share] = 0
    masks.set_gates(gates)
    return gates


@torch.no_grad()
def zero_filters(model: nn.Module, share: float, seed: int = 0) -> None:
    """Set a random share of all filters and rows to zero; biases and batch-norm shifts stay."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter[torch.rand(parameter.size(0), generator=generator) < share] = 0


@torch.no_grad()
def relative_error(source: nn.Module, compact: nn.Module, x: Tensor, least_variation: float = 0.01) -> float:
    """The largest difference of the outputs, relative to how much they vary over the inputs, which must not be 0."""
    source.eval(), compact.eval()
    expected, actual = source(x), compact(x)
    assert expected.shape == actual.shape
    variation = (expected.amax(0) - expected.amin(0)).max()
    assert variation >= least_variation * expected.abs().max(), "the outputs hardly depend on the input: vacuous"
    return float((expected - actual).abs().max() / variation)

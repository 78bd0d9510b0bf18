"""How gates become weights: the prepared model without its masks, every weight as its mask leaves it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fxprune.mask_modules import UnitMask, WeightMask
from fxprune.model import PreparedModel, TracedModel, find_tensor, in_eval_mode, share_tensors
from fxprune.passes.analyse import Channels


@torch.no_grad()
def bake_masks(prepared: PreparedModel) -> TracedModel:
    """Return a copy without masks that computes the same, but for ops that count closed channels alike.

    Parametrizations (weight norm, spectral norm) are baked too; `prepared` stays as it was. Parameters without a mask
    hold its memory, and nodes are its own: neither may be changed.
    """
    by_name = {mask.parameter: mask for _, _, mask in masks_of(prepared)}
    with in_eval_mode(prepared):  # spectral norm goes on estimating whenever its weight is read in training mode
        own = {name: find_tensor(prepared, name) for name in by_name}
        values = {name: mask(own[name]) for name, mask in by_name.items()}
    ready = {id(own[name]): nn.Parameter(value, own[name].requires_grad) for name, value in values.items()}
    unmasked, masks = share_tensors(prepared.parameters()), {id(prepared.fxprune): None}
    shell = prepared.copy_shell(unmasked | ready | masks)
    shell._modules.pop("fxprune", None)  # the code of the user that runs does not have it
    bake_parametrizations(shell)
    prepared.fxprune.method.restore(shell)
    for name, value in values.items():  # what a parametrization computed is a parameter only now
        find_tensor(shell, name).data = value
    graphs = prepared.plain.map(lambda graph: graph)
    return TracedModel(shell, graphs, prepared.class_name, prepared.inputs, prepared.untraced)


class FrozenMask(nn.Module):
    """A mask whose result no longer follows the weight."""

    def __init__(self, masked: Tensor) -> None:
        super().__init__()
        self.register_buffer("masked", masked)

    def forward(self, weight: Tensor) -> Tensor:
        return self.masked  # type: ignore[return-value]


@torch.no_grad()
def freeze_masks(prepared: PreparedModel) -> PreparedModel:
    """Return a copy whose weights are what they are now, to the last bit, in whatever precision it runs.

    That is what masks make of them, parametrizations, and the layers of the method's own. What is masked is nowhere
    read without its mask, and keeps no values of its own; all else holds the memory of `prepared`.
    """
    frozen = copy.deepcopy(prepared, share_tensors(prepared.parameters()))
    masked = [mask.parameter for _, _, mask in masks_of(frozen)]
    with in_eval_mode(frozen):
        for masks, key, mask in masks_of(frozen):
            masks[key] = FrozenMask(mask(find_tensor(frozen, mask.parameter)))
        bake_parametrizations(frozen)
    for name in masked:
        find_tensor(frozen, name).data = torch.empty(0)
    frozen.fxprune.method.restore(frozen)
    return frozen


def masks_of(prepared: PreparedModel) -> list[tuple[nn.ModuleDict, str, WeightMask | UnitMask]]:
    """List the masks of a prepared model: the container, the key, and the mask."""
    found = []
    for container in (prepared.fxprune.weight_masks, prepared.fxprune.unit_masks):
        found += [(container, key, mask) for key, mask in container.items() if isinstance(mask, (WeightMask, UnitMask))]
    return found


@torch.enable_grad()  # without gradients, torch makes a buffer of a weight that two parameters give
def bake_parametrizations(model: nn.Module) -> None:
    """Replace each parametrized tensor by what its parametrization computes in eval mode."""
    for module in [part for part in model.modules() if hasattr(part, "parametrizations")]:
        kind = type(module)  # a copy shares its class with the original: give it its own
        module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
        with in_eval_mode(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def find_closed(prepared: PreparedModel, channels: Channels) -> Tensor:
    """Which units the gates close, bool [units]: all that read or count them leave them out."""
    closed = torch.zeros(len(channels.units), dtype=torch.bool)
    gates = torch.cat([prepared.fxprune.gates.cpu(), torch.ones(1)])  # index -1 is the one at the end
    for place in prepared.fxprune.slices:
        units = channels.units_along(place.parameter, place.dim)
        closed[units[gates[place.index.cpu()] == 0]] = True
    return closed

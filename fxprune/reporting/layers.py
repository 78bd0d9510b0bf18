"""What did each layer lose?"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from fxprune.export.cost import count_by_weight
from fxprune.export.interface import ExampleInputs
from fxprune.reporting.comparison import LayerChange


def compare_layers(before: nn.Module, after: nn.Module, example_inputs: ExampleInputs) -> tuple[LayerChange, ...]:
    """Compare the weights that take part in multiplications, by name, in the order of the forward pass."""
    macs_before, macs_after = count_by_weight(before, example_inputs), count_by_weight(after, example_inputs)
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    changes = []
    for name, macs in macs_before.items():
        if not name:  # products of activations
            continue
        parts = [name] if name in new else find_parts(name, new)
        changes.append(
            LayerChange(
                name=name.removesuffix(".weight"),
                kind=describe(before, name, old[name]),
                width_before=width_of(before, name, old[name]),
                width_after=width_of(after, name, new[name]) if name in new else None if parts else 0,
                weights_before=old[name].numel(),
                weights_after=sum(new[part].numel() for part in parts),
                macs_before=macs,
                macs_after=sum(macs_after.get(part, 0) for part in parts),
            )
        )
    return tuple(changes)


def find_parts(name: str, parameters: dict[str, nn.Parameter]) -> list[str]:
    """The weights that took a layer's place: those under its name, as stripes leave them."""
    owner = name.rpartition(".")[0]
    return [other for other, value in parameters.items() if owner and other.startswith(f"{owner}.") and value.ndim > 1]


def width_of(model: nn.Module, name: str, weight: Tensor) -> int:
    """The output channels: rows of the weight, but for transposed convolutions."""
    owner = model.get_submodule(name.rpartition(".")[0])
    return owner.out_channels if isinstance(owner, _ConvTransposeNd) else weight.shape[0]


def describe(model: nn.Module, name: str, weight: Tensor) -> str:
    """A layer's type, and its kernel's size where it has one."""
    kind = type(model.get_submodule(name.rpartition(".")[0])).__name__
    return f"{kind} {'x'.join(map(str, weight.shape[2:]))}".strip()

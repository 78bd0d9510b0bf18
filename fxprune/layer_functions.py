"""Which function computes a layer, and of what: `nn.Conv2d` is `F.conv2d(x, weight, bias, stride, padding, ...)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


def normalise_instances(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise each channel of each image, without statistics to keep."""
    return F.instance_norm(x, weight=weight, bias=bias, eps=eps)


class LayerFunction(NamedTuple):
    """The function of a layer type, and the attributes that it takes: the extent, the parameters, the options."""

    function: Callable[..., Any]
    options: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ("weight", "bias")
    extent: str | None = None  # what a norm runs over, between the input and the weight

    def list_arguments(self, module: nn.Module, x: Any, parameters: Sequence[Any]) -> list[Any]:
        """List what the function takes to compute what the layer computes of `x`."""
        extent = [] if self.extent is None else [getattr(module, self.extent)]
        return [x, *extent, *parameters, *(getattr(module, name) for name in self.options)]


_OPTIONS = ("stride", "padding", "dilation", "groups")
_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")

PADDING = 4
"""Where the padding stands among the arguments of a convolution."""

LAYERS: dict[type[nn.Module], LayerFunction] = {
    nn.Conv1d: LayerFunction(F.conv1d, _OPTIONS),
    nn.Conv2d: LayerFunction(F.conv2d, _OPTIONS),
    nn.Conv3d: LayerFunction(F.conv3d, _OPTIONS),
    nn.ConvTranspose1d: LayerFunction(F.conv_transpose1d, _TRANSPOSED),
    nn.ConvTranspose2d: LayerFunction(F.conv_transpose2d, _TRANSPOSED),
    nn.ConvTranspose3d: LayerFunction(F.conv_transpose3d, _TRANSPOSED),
    nn.Linear: LayerFunction(F.linear),
    nn.LayerNorm: LayerFunction(F.layer_norm, ("eps",), extent="normalized_shape"),
    nn.GroupNorm: LayerFunction(F.group_norm, ("eps",), extent="num_groups"),
    nn.RMSNorm: LayerFunction(F.rms_norm, ("eps",), ("weight",), "normalized_shape"),
    nn.InstanceNorm1d: LayerFunction(normalise_instances, ("eps",)),
    nn.InstanceNorm2d: LayerFunction(normalise_instances, ("eps",)),
    nn.InstanceNorm3d: LayerFunction(normalise_instances, ("eps",)),
    nn.Softmax: LayerFunction(F.softmax, ("dim",), ()),
    nn.LogSoftmax: LayerFunction(F.log_softmax, ("dim",), ()),
}


def find_layer(module: nn.Module) -> type[nn.Module] | None:
    """The layer type that computes this module: its own, or, with parametrizations, the one before them."""
    kinds = [type(module), type(module).__bases__[0]] if hasattr(module, "parametrizations") else [type(module)]
    return next((kind for kind in kinds if kind in LAYERS), None)

"""Which function computes a layer, and of what: `nn.Conv2d` is `F.conv2d(x, weight, bias, stride, padding, ...)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.recurrent import run_cell, run_layers


def normalise_instances(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise each channel of each image, without statistics to keep."""
    return F.instance_norm(x, weight=weight, bias=bias, eps=eps)


class LayerFunction(NamedTuple):
    """The function of a layer type, and the attributes that it takes: the extent, the parameters, the options."""

    function: Callable[..., Any]
    options: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ("weight", "bias")
    extent: str | None = None  # what a norm runs over, between the input and the weight
    inputs: int = 1

    def list_parameters(self, module: nn.Module) -> Sequence[str]:
        """List the names of the parameters that the function takes."""
        return self.parameters

    def list_arguments(
        self, module: nn.Module, inputs: Sequence[Any], parameters: Sequence[Any], training: bool
    ) -> list[Any]:  # fmt: skip
        """List what the function takes to compute what the layer computes of the inputs, in a mode."""
        extent = [] if self.extent is None else [getattr(module, self.extent)]
        return [*inputs, *extent, *parameters, *(getattr(module, name) for name in self.options)]


class RecurrentFunction(LayerFunction):
    """The function of a recurrent layer, whose second input is the state or None, and whose weights come last."""

    def list_parameters(self, module: nn.Module) -> Sequence[str]:
        return self.parameters or list(module._flat_weights_names)  # type: ignore[arg-type]

    def list_arguments(
        self, module: nn.Module, inputs: Sequence[Any], parameters: Sequence[Any], training: bool
    ) -> list[Any]:  # fmt: skip
        options = {name: getattr(module, name) for name in self.options}
        if "dropout" in options and (not training or module.num_layers == 1):
            options["dropout"] = 0.0
        state = [None] * (self.inputs - len(inputs))
        return [*inputs, *state, find_mode(module), *options.values(), *parameters]


def find_mode(module: nn.Module) -> str:
    """Say what a recurrent layer or cell computes: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU"."""
    if isinstance(module, nn.RNNBase):
        return module.mode
    return f"RNN_{module.nonlinearity}".upper() if isinstance(module, nn.RNNCell) else type(module).__name__[:-4]


def has_dropout(module: nn.Module) -> bool:
    """Whether a layer drops values between those that it is made of, in training only."""
    return isinstance(module, nn.RNNBase) and module.dropout > 0 and module.num_layers > 1


_OPTIONS = ("stride", "padding", "dilation", "groups")
_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")

PADDING = 4
"""Where the padding stands among the arguments of a convolution."""

_RECURRENT = RecurrentFunction(
    run_layers, ("bias", "num_layers", "dropout", "bidirectional", "batch_first"), parameters=(), inputs=2
)
_CELL = RecurrentFunction(run_cell, parameters=("weight_ih", "weight_hh", "bias_ih", "bias_hh"), inputs=2)

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
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), _RECURRENT),
    **dict.fromkeys((nn.LSTMCell, nn.GRUCell, nn.RNNCell), _CELL),
}

INPUTS = {layer.function: layer.inputs for layer in LAYERS.values()}
"""How many of a function's first arguments are inputs of the layer."""


def find_layer(module: nn.Module) -> type[nn.Module] | None:
    """The layer type that computes this module: its own, or, with parametrizations, the one before them."""
    kind = find_kind(module)
    return kind if kind in LAYERS else None


def find_kind(module: nn.Module) -> type[nn.Module]:
    """The class of a module; with parametrizations, which make one of their own, that before them."""
    return type(module).__bases__[0] if hasattr(module, "parametrizations") else type(module)

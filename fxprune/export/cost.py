"""How many parameters and multiply-accumulates does a model have?"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry, shape_wrapper

from fxprune.errors import ExportError
from fxprune.export.evaluation import copy_for_evaluation, no_trace
from fxprune.export.interface import ExampleInputs, Inputs, read_inputs
from fxprune.passes.guess_inputs import guess_inputs


@dataclass(frozen=True)
class Cost:
    """What a model costs to store and to run."""

    parameters: int
    macs: int  # multiply-accumulates a sample

    def __str__(self) -> str:
        """Return both numbers in millions."""
        return f"{self.parameters / 1e6:.3f} M parameters, {self.macs / 1e6:.3f} M multiply-accumulates a sample"


def count(model: nn.Module, example_inputs: ExampleInputs | None = None) -> Cost:
    """Count parameters (shared ones once) and the multiply-accumulates of one forward pass in eval mode.

    Multiply-accumulates are those of convolutions, matrix products and attention, divided by
    the batch size of the example inputs, which are made from the first layer unless given. The
    model stays as it is, random state included. Raises TraceError if none can be made.
    """
    if not isinstance(model, nn.Module):
        raise ExportError(f"count takes a torch.nn.Module, not a {type(model).__name__}.")
    if example_inputs is None:
        args, kwargs = guess_inputs(model)
        example_inputs = kwargs or args
    inputs = read_inputs(model, example_inputs)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, sum(_count_flops(model, inputs).values()) // (2 * inputs.batch))


def count_by_weight(model: nn.Module, example_inputs: ExampleInputs) -> dict[str, int]:
    """Count the same multiply-accumulates by the parameter that takes part, in the order of the forward pass.

    Products of activations alone, as in attention, stand under "".
    """
    inputs = read_inputs(model, example_inputs)
    return {name: flops // (2 * inputs.batch) for name, flops in _count_flops(model, inputs).items()}


def _count_flops(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """Count the floating point operations of one forward pass by parameter, known by its storage through all views."""
    copy = copy_for_evaluation(model).requires_grad_(False)  # to views of parameters the counter would attach hooks
    names = {
        parameter.untyped_storage().data_ptr(): name
        for name, parameter in copy.named_parameters()
        if parameter.ndim > 1
    }
    found: dict[str, int] = {}

    def note(formula: Callable[..., int]) -> Callable[..., int]:
        def count_op(*args: Any, **kwargs: Any) -> int:
            flops = formula(*args, **kwargs)
            operands = (arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor))
            name = next((names[place] for place in operands if place in names), "")
            found[name] = found.get(name, 0) + flops
            return flops

        count_op._get_raw = True  # type: ignore[attr-defined]  # torch: give tensors, not shapes
        return count_op

    extra = {op: shape_wrapper(formula) for op, formula in _EXTRA_RULES.items()}
    rules = {op: note(formula) for op, formula in {**flop_registry, **extra}.items()}
    args, kwargs = inputs.rebuild(inputs.tensors)
    with no_trace(), _without_fused_attention(), FlopCounterMode(display=False, custom_mapping=rules):
        copy(*args, **kwargs)
    return found


@contextmanager
def _without_fused_attention() -> Iterator[None]:
    """Switch off the fused attention layers, which arrive as single ops that the counter does not know."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


def _count_recurrent_flops(
    input_shape: Sequence[int], input_weight: Sequence[int], hidden_weight: Sequence[int], *_: object, **__: object
) -> int:
    """Count one direction of one LSTM layer, an op that torch's counter leaves out: input [steps, batch, features]."""
    steps, batch, _features = input_shape
    return 2 * steps * batch * (math.prod(input_weight) + math.prod(hidden_weight))


_EXTRA_RULES = {torch.ops.aten.mkldnn_rnn_layer: _count_recurrent_flops}

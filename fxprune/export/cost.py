"""How many parameters and multiply-accumulates does a model have?"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fxprune.export.evaluation import copy_for_evaluation, no_trace
from fxprune.export.interface import ExampleInputs, read_inputs
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
    if example_inputs is None:
        args, kwargs = guess_inputs(model)
        example_inputs = kwargs or args
    inputs = read_inputs(model, example_inputs)
    args, kwargs = inputs.rebuild(inputs.tensors)
    copy = copy_for_evaluation(model)
    with no_trace(), _without_fused_attention(), FlopCounterMode(display=False, custom_mapping=_EXTRA_RULES) as counter:
        copy(*args, **kwargs)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, counter.get_total_flops() // (2 * inputs.batch))


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

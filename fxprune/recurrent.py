"""Which functions compute recurrent layers? `nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells, of their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _VariableFunctions
from torch.nn.utils.rnn import PackedSequence

State = Any
"""What a layer starts from: h, [layers * directions, batch, hidden], of an LSTM (h, c); None is zeros."""

_LAYERS: dict[str, Callable[..., Any]] = {
    "LSTM": _VariableFunctions.lstm, "GRU": _VariableFunctions.gru,
    "RNN_TANH": _VariableFunctions.rnn_tanh, "RNN_RELU": _VariableFunctions.rnn_relu,
}  # fmt: skip
_CELLS: dict[str, Callable[..., Any]] = {
    "LSTM": _VariableFunctions.lstm_cell, "GRU": _VariableFunctions.gru_cell,
    "RNN_TANH": _VariableFunctions.rnn_tanh_cell, "RNN_RELU": _VariableFunctions.rnn_relu_cell,
}  # fmt: skip


def run_layers(
    x: Any, state: State, mode: str, biases: bool, layers: int, dropout: float, bidirectional: bool,
    batch_first: bool, *weights: Tensor,
) -> tuple[Any, State]:  # fmt: skip
    """Compute what `nn.LSTM`, `nn.GRU` or `nn.RNN` computes of `x`, [steps, batch, features] or without the batch.

    `x` may be packed, too. `weights` are those of the layers and directions, in the order of the module; `dropout` is
    that between layers, 0 in eval mode. Returns the output and the state at the end, as the module does.
    """
    options = (list(weights), biases, layers, dropout, dropout > 0, bidirectional)
    rows = layers * (2 if bidirectional else 1)
    if isinstance(x, PackedSequence):
        parts = start(x.data.new_empty(int(x.batch_sizes[0]), 0), state, mode, rows, weights)
        if state is not None and x.sorted_indices is not None:
            parts = [part.index_select(1, x.sorted_indices) for part in parts]
        output, *last = _LAYERS[mode](x.data, x.batch_sizes, join(parts, mode), *options)
        if x.unsorted_indices is not None:
            last = [part.index_select(1, x.unsorted_indices) for part in last]
        return PackedSequence(output, *x[1:]), join(last, mode)
    if x.dim() == 2:
        return run_without_batch(run_layers, x, state, (mode, biases, layers, dropout, bidirectional), weights)
    parts = start(x if batch_first else x.transpose(0, 1), state, mode, rows, weights)
    output, *last = _LAYERS[mode](x, join(parts, mode), *options, batch_first)
    return output, join(last, mode)


def run_without_batch(
    function: Callable[..., Any], x: Tensor, state: State, options: tuple[Any, ...], weights: Sequence[Tensor]
) -> tuple[Tensor, State]:  # fmt: skip
    """Let a function of batches compute one sequence, [steps, features]."""
    mode = options[0]
    batch = None if state is None else join([part.unsqueeze(1) for part in split(state, mode)], mode)
    output, last = function(x.unsqueeze(1), batch, *options, False, *weights)
    return output.squeeze(1), join([part.squeeze(1) for part in split(last, mode)], mode)


def split(state: State, mode: str) -> list[Tensor]:
    """List what a state is made of: h, and c of an LSTM."""
    return list(state) if mode == "LSTM" else [state]


def join(parts: Sequence[Tensor], mode: str) -> State:
    """Make a state of h, and of c of an LSTM."""
    return tuple(parts) if mode == "LSTM" else parts[0]


def start(x: Tensor, state: State, mode: str, rows: int, weights: Sequence[Tensor]) -> list[Tensor]:
    """Give the parts of the state for `x`, [batch, ...]: each [rows, batch, hidden], zeros where none is given."""
    if state is not None:
        return split(state, mode)
    hidden = weights[1].size(1)  # weight_hh reads h
    zeros = x.new_zeros(rows, len(x), hidden)
    if mode != "LSTM":
        return [zeros]
    cells = weights[1].size(0) // 4
    return [zeros, zeros if cells == hidden else x.new_zeros(rows, len(x), cells)]


def run_cell(
    x: Tensor, state: State, mode: str, rows: Tensor, columns: Tensor, bias: Tensor | None, again: Tensor | None
) -> State:  # fmt: skip
    """Compute what `nn.LSTMCell`, `nn.GRUCell` or `nn.RNNCell` computes of `x`, [batch, features] or [features].

    The parameters are `weight_ih`, `weight_hh`, `bias_ih` and `bias_hh`.
    """
    if state is None:
        zeros = x.new_zeros(*x.shape[:-1], columns.size(1))
        state = join([zeros, zeros], mode)
    if x.dim() == 2:
        return _CELLS[mode](x, state, rows, columns, bias, again)
    batch = join([part.unsqueeze(0) for part in split(state, mode)], mode)
    last = _CELLS[mode](x.unsqueeze(0), batch, rows, columns, bias, again)
    return join([part.squeeze(0) for part in split(last, mode)], mode)


def step(mode: str, x: Tensor, before: Sequence[Tensor], weights: Sequence[Tensor], biases: bool) -> list[Tensor]:
    """Compute one step of one layer, in one direction, of as many samples as `x` has rows: h, and c of an LSTM."""
    rows, columns = (weights[2], weights[3]) if biases else (None, None)
    given = nn.functional.linear(x, weights[0], rows)
    again = nn.functional.linear(before[0], weights[1], columns)
    if mode == "GRU":
        (reset, update, new), (reset_h, update_h, new_h) = given.chunk(3, -1), again.chunk(3, -1)
        keep = (update + update_h).sigmoid()
        return [(1 - keep) * (new + (reset + reset_h).sigmoid() * new_h).tanh() + keep * before[0]]
    if mode != "LSTM":
        return [(given + again).tanh() if mode == "RNN_TANH" else (given + again).relu()]
    enter, forget, new, leave = (given + again).chunk(4, -1)
    cell = forget.sigmoid() * before[1] + enter.sigmoid() * new.tanh()
    hidden = leave.sigmoid() * cell.tanh()
    projection = weights[4 if biases else 2 :]
    return [nn.functional.linear(hidden, projection[0]) if projection else hidden, cell]


def follow_layers(
    x: Any, state: State, mode: str, biases: bool, layers: int, dropout: float, bidirectional: bool,
    batch_first: bool, *weights: Tensor,
) -> tuple[Any, State]:  # fmt: skip
    """Do as `run_layers` does to shapes and channels, not to values."""
    options = (mode, biases, layers, dropout, bidirectional)
    if isinstance(x, PackedSequence):  # as if all were of one sample
        alone = None if state is None else join([part[:, :1] for part in split(state, mode)], mode)
        output, last = follow_layers(x.data.unsqueeze(1), alone, *options, False, *weights)
        batch = len(x.data) // len(x.batch_sizes) if x.unsorted_indices is None else len(x.unsorted_indices)
        parts = [part.expand(-1, batch, -1) for part in split(last, mode)]
        return PackedSequence(output.squeeze(1), *x[1:]), join(parts, mode)
    if x.dim() == 2:
        return run_without_batch(follow_layers, x, state, options, weights)
    directions = 2 if bidirectional else 1
    x = x.transpose(0, 1) if batch_first else x
    parts = start(x.transpose(0, 1), state, mode, layers * directions, weights)
    each = len(weights) // len(parts[0])
    ends = []
    for layer in range(layers):
        rows = range(layer * directions, (layer + 1) * directions)
        run = [
            follow_steps(x, [part[row] for part in parts], mode, biases, weights[row * each : (row + 1) * each])
            for row in rows
        ]
        ends += [[part[-1] for part in states] for states in run]
        x = torch.cat([states[0] for states in run], -1) if bidirectional else run[0][0]
    last = join([torch.stack(rows) for rows in zip(*ends, strict=True)], mode)
    return x.transpose(0, 1) if batch_first else x, last


def follow_steps(
    x: Tensor, before: Sequence[Tensor], mode: str, biases: bool, weights: Sequence[Tensor]
) -> list[Tensor]:  # fmt: skip
    """Give the states after all steps of one layer in one direction: after the first, and after all others at once.

    The state after a step has the channels of that before it. Sums over the steps, whose values nobody knows, have the
    channels of the states, and let no step go, which would change all after it.
    """
    before = [part + 0 for part in before]  # one that is a parameter is no weight
    states = step(mode, x[:1], [part.unsqueeze(0) for part in before], weights, biases)
    for old, new in zip(before, states, strict=True):
        _ = new + old
    if len(x) > 1:
        rest = [part.expand(len(x) - 1, *part.shape[1:]) for part in states]
        states = [torch.cat(pair) for pair in zip(states, step(mode, x[1:], rest, weights, biases), strict=True)]
    return [part.cumsum(0) for part in states]


def follow_packing(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """Do as `_pack_padded_sequence` does to channels, as if all samples were as long as they can be."""
    x = (x.transpose(0, 1) if batch_first else x).cumsum(0).cumsum(1)  # steps and samples are no channels
    return x.flatten(0, 1), lengths.new_zeros(len(x))


def follow_padding(data: Tensor, counts: Tensor, batch_first: bool, value: float, total: int) -> tuple[Tensor, Tensor]:
    """Do as `_pad_packed_sequence` does to channels, as if all samples were equally long."""
    steps, batch = max(total, len(counts)), max(1, len(data) // len(counts))
    x = data.cumsum(0)[:1].unsqueeze(0).expand(steps, batch, *data.shape[1:]) + value
    return x.transpose(0, 1) if batch_first else x, counts.new_zeros(batch)


FOLLOWED: dict[Callable[..., Any], Callable[..., Any]] = {
    run_layers: follow_layers,
    _VariableFunctions._pack_padded_sequence: follow_packing,
    _VariableFunctions._pad_packed_sequence: follow_padding,
}
"""What stands for functions where no values are known."""

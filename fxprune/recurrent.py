"""Which functions compute recurrent layers? `nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells, of their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _VariableFunctions

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
    x: Tensor, state: State, mode: str, biases: bool, layers: int, dropout: float, bidirectional: bool,
    batch_first: bool, *weights: Tensor,
) -> tuple[Tensor, Any]:  # fmt: skip
    """Compute what `nn.LSTM`, `nn.GRU` or `nn.RNN` computes of `x`, [steps, batch, features] or without the batch.

    `weights` are those of the layers and directions, in the order of the module; `dropout` is that between layers, 0 in
    eval mode. Returns the output and the state at the end, as the module does.
    """
    batched = x.dim() == 3
    if not batched:
        x = x.unsqueeze(0 if batch_first else 1)
    parts = start(x, state, mode, layers * (2 if bidirectional else 1), batch_first, weights, batched)
    options = (list(weights), biases, layers, dropout, dropout > 0, bidirectional, batch_first)
    output, *last = _LAYERS[mode](x, parts if mode == "LSTM" else parts[0], *options)
    if not batched:
        output, last = output.squeeze(0 if batch_first else 1), [part.squeeze(1) for part in last]
    return output, tuple(last) if mode == "LSTM" else last[0]


def start(
    x: Tensor, state: State, mode: str, rows: int, batch_first: bool, weights: Sequence[Tensor], batched: bool
) -> list[Tensor]:  # fmt: skip
    """Give the state from which layers start, [rows, batch, hidden] each: zeros where none is given."""
    if state is not None:
        parts = list(state) if mode == "LSTM" else [state]
        return parts if batched else [part.unsqueeze(1) for part in parts]
    batch, hidden = x.size(0 if batch_first else 1), weights[1].size(1)  # weight_hh reads h
    zeros = x.new_zeros(rows, batch, hidden)
    if mode != "LSTM":
        return [zeros]
    cells = weights[1].size(0) // 4
    return [zeros, zeros if cells == hidden else x.new_zeros(rows, batch, cells)]


def run_cell(
    x: Tensor, state: State, mode: str, rows: Tensor, columns: Tensor, bias: Tensor | None, again: Tensor | None
) -> Any:  # fmt: skip
    """Compute what `nn.LSTMCell`, `nn.GRUCell` or `nn.RNNCell` computes of `x`, [batch, features] or [features].

    The parameters are `weight_ih`, `weight_hh`, `bias_ih` and `bias_hh`.
    """
    if state is None:
        zeros = x.new_zeros(*x.shape[:-1], columns.size(1))
        state = (zeros, zeros) if mode == "LSTM" else zeros
    parts = state if mode == "LSTM" else (state,)
    if x.dim() == 1:
        x, parts = x.unsqueeze(0), tuple(part.unsqueeze(0) for part in parts)
        result = _CELLS[mode](x, parts if mode == "LSTM" else parts[0], rows, columns, bias, again)
        return tuple(part.squeeze(0) for part in result) if mode == "LSTM" else result.squeeze(0)
    return _CELLS[mode](x, parts if mode == "LSTM" else parts[0], rows, columns, bias, again)


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
    x: Tensor, state: State, mode: str, biases: bool, layers: int, dropout: float, bidirectional: bool,
    batch_first: bool, *weights: Tensor,
) -> tuple[Tensor, Any]:  # fmt: skip
    """Do as `run_layers` does to shapes and channels, not to values: the first step, and all others at once.

    The state after a step has the channels of that before it, and the sum over the steps, whose values nobody knows,
    has those of the states.
    """
    batched = x.dim() == 3
    if not batched:
        x = x.unsqueeze(0 if batch_first else 1)
    directions = 2 if bidirectional else 1
    parts = start(x, state, mode, layers * directions, batch_first, weights, batched)
    each = len(weights) // (layers * directions)
    x = x.transpose(0, 1) if batch_first else x
    last: list[list[Tensor]] = [[] for _ in parts]
    for layer in range(layers):
        outputs = []
        for row in range(layer * directions, (layer + 1) * directions):
            own = weights[row * each : (row + 1) * each]
            before = [part[row] + 0 for part in parts]  # a state that is a parameter is no weight
            states = step(mode, x[:1], [part.unsqueeze(0) for part in before], own, biases)
            for old, new in zip(before, states, strict=True):
                _ = new + old
            if len(x) > 1:
                rest = [part.expand(len(x) - 1, *part.shape[1:]) for part in states]
                later = step(mode, x[1:], rest, own, biases)
                states = [torch.cat(pair) for pair in zip(states, later, strict=True)]
            states = [part.cumsum(0) for part in states]
            outputs.append(states[0])
            for rows, part in zip(last, states, strict=True):
                rows.append(part[-1])
        x = torch.cat(outputs, -1) if bidirectional else outputs[0]
    output, final = x.transpose(0, 1) if batch_first else x, [torch.stack(rows) for rows in last]
    if not batched:
        output, final = output.squeeze(0 if batch_first else 1), [part.squeeze(1) for part in final]
    return output, tuple(final) if mode == "LSTM" else final[0]

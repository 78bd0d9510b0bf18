"""How many multiply-accumulates does an op take, and with which channels of its operands do they grow?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from fxprune.shadow.ids import IdTable, Layer, Product, Side
from fxprune.shadow.tensor import Call, ShadowTensor

aten = torch.ops.aten

CONVOLUTIONS = {aten.convolution, aten._convolution}
"""Ops of (input, weight, ...): every element of the weight is used once at each position and sample."""

MATRIX_PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm}
"""Ops whose last two operands are the factors."""


def note_product(table: IdTable, call: Call) -> None:
    """Note the multiply-accumulates of a call, if it takes any.

    They grow with the lengths of all `sides`; those of an op of neither kind stay as they are.
    """
    formula: Any = flop_registry.get(call.op.overloadpacket)
    if formula is None or table.node is None:
        return
    macs = formula(*call.args, **call.kwargs, out_val=call.outputs[0]) // 2
    factors: list[Any] = []
    sides: list[Side] = []
    if call.op.overloadpacket in CONVOLUTIONS:
        factors = [call.args[1]]
        sides = [side_of(call.args[0], 0), side_of(call.args[1], 0), side_of(call.args[1], 1)]
    elif call.op.overloadpacket in MATRIX_PRODUCTS:
        factors = list(call.args[-2:])
        sides = [*(side_of(factors[0], dim) for dim in range(factors[0].dim())), side_of(factors[1], -1)]
    source = next((f.source for f in factors if f.source is not None), None)
    table.products.append(Product(table.node, macs, source, tuple(sides), find_layer(call)))


def find_layer(call: Call) -> Layer | None:
    """Say how a call applies a weight to an activation; None where it does something else."""
    if call.op.overloadpacket in CONVOLUTIONS and not call.argument("transposed"):
        x, weight = call.args[:2]
        stride, padding, dilation = (
            tuple(int(size) for size in call.argument(name)) for name in ("stride", "padding", "dilation")
        )
        kernel, rows, columns = tuple(weight.shape[2:]), side_of(weight, 0), side_of(weight, 1)
        return Layer(tuple(x.shape), kernel, stride, padding, dilation, call.argument("groups"), rows, columns)
    if call.op.overloadpacket in (aten.mm, aten.addmm):
        x, weight = call.args[-2:]
        if weight.source is not None and x.source is None:
            return Layer(tuple(x.shape), (), (), (), (), 1, side_of(weight, 1), side_of(weight, 0))
    return None


def side_of(t: Tensor, dim: int) -> Side:
    """One dimension of an operand."""
    assert isinstance(t, ShadowTensor)
    return Side(t.ids, dim % t.dim(), t.size(dim))

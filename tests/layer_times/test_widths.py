"""Does a table of few timed widths give the others? (Never: how long do they take?)"""

import math

import numpy as np
import pytest

from fxprune.layer_times.graph import Convolution, LayerGraph, Linear
from fxprune.layer_times.widths import WideLayer, Width

KERNEL = ((3, 3), (2, 2), (1, 1), (1, 1))


def ceil_to(block: int, width: int) -> int:
    return math.ceil(width / block) * block


def take_blocks(graph: LayerGraph) -> float:
    """Time by blocks of 16 outputs and inputs, and of both together in each group."""
    ((layer,),) = graph.parts
    if isinstance(layer, Linear):
        return float(ceil_to(16, layer.features) * ceil_to(16, graph.shape[1]))
    own = ceil_to(16, graph.shape[1]) / layer.groups
    return ceil_to(16, layer.filters) * own * math.prod(layer.kernel) * math.prod(graph.shape[2:])


@pytest.mark.parametrize(
    "layer",
    [
        WideLayer(1, (8, 8), Width(200, 16), Width(72, 16), 1, False, *KERNEL),
        WideLayer(1, (8, 8), Width(128, 16), Width(3, 3), 1, False, *KERNEL),
        WideLayer(1, (8, 8), Width(128, 16), Width(16, 4), 4, False, *KERNEL),
        WideLayer(10, (), Width(1000, 1000), Width(520, 16), 1, False, (), (), (), ()),
    ],
    ids=["plain", "image", "groups", "linear"],
)
def test_every_width_takes_as_long_as_its_block(layer: WideLayer) -> None:
    table = layer.spread(take_blocks)
    rows, columns = layer.widths
    assert table.shape == (len(rows.steps), len(columns.steps))
    for i, row in enumerate(rows.steps):
        for j, column in enumerate(columns.steps):
            assert table[i, j] == pytest.approx(take_blocks(layer.cut((row, column))) if row and column else 0)
    assert len(layer.points) <= 16


def test_a_depthwise_layer_has_one_width() -> None:
    layer = WideLayer(2, (8, 8), Width(96, 16), Width(1, 1), 96, True, *KERNEL)
    assert layer.cut((32,)) == LayerGraph((2, 32, 8, 8), ((Convolution(32, (3, 3), (1,) * 4, (2, 2), (1, 1), 32),),))
    table = layer.spread(lambda graph: float(graph.shape[1]))
    assert table.tolist() == [0, 16, 32, 48, 64, 80, 96]


def test_a_layer_with_two_outputs_of_each_input_loses_both() -> None:
    layer = WideLayer(1, (8, 8), Width(96, 16), Width(1, 1), 48, True, *KERNEL)
    graph = layer.cut((32,))
    assert graph.shape[1] == 16
    assert graph.parts[0][0].groups == 16


def test_more_channels_never_seem_to_take_less() -> None:
    layer = WideLayer(1, (8, 8), Width(64, 16), Width(64, 16), 1, False, *KERNEL)
    table = layer.spread(lambda graph: take_blocks(graph) if graph.shape[1] > 16 else 1e9)
    assert (np.diff(table, axis=0) >= 0).all()
    assert (np.diff(table, axis=1) >= 0).all()

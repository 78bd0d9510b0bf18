"""Is a graph whose convolutions pad by themselves the same function, and does what must stay stay?"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fxprune.export.fold_pad import fold_pads
from tests.export.test_fold_batchnorm import build, count_ops, rewrite, run

IMAGE = "(float[2,4,7,6] x) => (float[b,6,h,w] y) "
CONV = "y = Conv <kernel_shape = [3, 3]{pads}> (c, w)"


def fold(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    return rewrite(model, fold_pads)


def make(
    sides: list[int], conv: str = CONV.format(pads=""), mode: str = "constant", value: str = "0.0"
) -> onnx.ModelProto:
    pads = f"<int64[8] p = {{{', '.join(map(str, sides))}}}, float v = {{{value}}}> "
    return build(IMAGE + pads + f'{{ c = Pad <mode = "{mode}"> (x, p, v) {conv} }}', w=(6, 4, 3, 3))


@pytest.mark.parametrize("sides", [[0, 0, 1, 0, 0, 0, 0, 1], [0, 0, 2, 1, 0, 0, 0, 3], [0] * 8])
@pytest.mark.parametrize("pads", ["", ", pads = [1, 0, 2, 1]"])
def test_a_convolution_pads_by_itself(sides: list[int], pads: str) -> None:
    model = make(sides, CONV.format(pads=pads))
    folded, count = fold(model)
    assert count == 1
    assert count_ops(folded, "Pad") == 0
    np.testing.assert_allclose(run(folded)[0], run(model)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        make([0, 0, -1, 0, 0, 0, 1, 0]),
        make([0, 0, 1, 1, 0, 0, 1, 1], mode="reflect"),
        make([0, 0, 1, 1, 0, 0, 1, 1], value="0.5"),
        make([1, 0, 1, 1, 0, 0, 1, 1]),
        make([0, 0, 1, 1, 0, 0, 1, 1], 'y = Conv <kernel_shape = [3, 3], auto_pad = "SAME_UPPER"> (c, w)'),
    ],
    ids=["it cuts", "it reflects", "not zeros", "the batch", "the convolution pads automatically"],
)
def test_what_is_no_padding_with_zeros_stays(model: onnx.ModelProto) -> None:
    folded, count = fold(model)
    assert count == 0
    assert count_ops(folded, "Pad") == 1
    np.testing.assert_allclose(run(folded)[0], run(model)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [", v", ""])
def test_zeros_around_negative_numbers_reach_a_max_pool(value: str) -> None:
    """ONNX Runtime folds the Pad into the MaxPool, which then pads with the least number."""
    sides = "0, 0, 1, 0, 0, 0, 0, 1"
    model = build(
        IMAGE + f"<int64[8] p = {{{sides}}}, float v = {{0.0}}> {{ k = Conv <kernel_shape = [3, 3]> (x, w) a = Abs (k) "
        f"n = Neg (a) c = Pad (n, p{value}) y = MaxPool <kernel_shape = [2, 2]> (c) }}",
        w=(6, 4, 3, 3),
    )
    folded, count = fold(model)
    assert count == 0
    expected = run(model)[0]
    assert (expected == 0).any()
    np.testing.assert_allclose(run(folded, optimize=True)[0], expected, rtol=1e-5, atol=1e-5)


def test_what_something_else_reads_stays_for_that() -> None:
    model = make(
        [0, 0, 1, 0, 0, 0, 0, 1],
        "d = Conv <kernel_shape = [3, 3]> (c, w) e = ReduceSum <keepdims = 1> (c) y = Add (d, e)",
    )
    folded, count = fold(model)
    assert count == 0
    conv = next(node for node in folded.graph.node if node.op_type == "Conv")
    assert conv.input[0] == "x"
    np.testing.assert_allclose(run(folded)[0], run(model)[0], rtol=1e-5, atol=1e-5)

"""Is a graph whose activations stand in front of its joins the same function, and does what must stay stay?"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fxprune.export.lift_over_joins import lift_over_joins
from tests.export.test_fold_batchnorm import build, count_ops, rewrite, run

IMAGE = "(float[2,4,5,5] x) => (float[2,6,h,w] y) <int64[6] order = {5, 0, 3, 1, 4, 2}, float low = {-0.5}> { "
PARTS = "a = Conv <kernel_shape = [1, 1]> (x, v) b = Conv <kernel_shape = [1, 1]> (x, w) "
HALVE = "MaxPool <kernel_shape = [2, 2], strides = [2, 2]>"
SHAPES = {"v": (2, 4, 1, 1), "w": (4, 4, 1, 1), "z": (6, 4, 1, 1)}


def make(text: str, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    return build(f"{IMAGE}{PARTS}{text} }}", **(SHAPES | shapes))


@pytest.mark.parametrize(
    ("text", "op", "parts"),
    [
        ("c = Concat <axis = -3> (a, b) y = Relu (c)", "Relu", 2),
        ("c = Concat <axis = 1> (a, b) y = LeakyRelu <alpha = 0.3> (c)", "LeakyRelu", 2),
        ("c = Concat <axis = 1> (a, b) y = Clip (c, low)", "Clip", 2),
        ("c = Concat <axis = 1> (a, b) d = Gather <axis = 1> (c, order) y = Relu (d)", "Relu", 2),
        ("e = Conv (x, v) s = Add (a, e) c = Concat <axis = 1> (s, b) y = Sigmoid (c)", "Sigmoid", 2),
        ("c = Concat <axis = 1> (a, b) d = Relu (c) e = Relu (d) y = Tanh (e)", "Relu", 2),
    ],
)
def test_activations_go_to_the_convolutions(text: str, op: str, parts: int) -> None:
    model = make(text)
    lifted, count = rewrite(model, lift_over_joins)
    assert count == 1
    behind = [node for node in lifted.graph.node if node.op_type == op and node.input[0] in ("a", "b", "s")]
    assert len(behind) == parts
    concat = next(node for node in lifted.graph.node if node.op_type == "Concat")
    assert [attribute.i for attribute in concat.attribute] == [1]
    np.testing.assert_array_equal(run(lifted)[0], run(model)[0])


@pytest.mark.parametrize(
    ("pool", "kept"),
    [
        (HALVE, (2, 2)),
        ("MaxPool <kernel_shape = [3, 2], strides = [2, 1], pads = [1, 0, 1, 0], ceil_mode = 1>", (3, 4)),
        ("AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1>", (3, 3)),
        ("GlobalMaxPool", (1, 1)),
        ("GlobalAveragePool", (1, 1)),
    ],
)
@pytest.mark.parametrize(
    "join", ["c = Concat <axis = -3> (a, b)", "d = Concat <axis = 1> (a, b) c = Gather <axis = 1> (d, order)"]
)
def test_pooling_goes_behind_the_activations_that_went_to_the_convolutions(
    join: str, pool: str, kept: tuple[int, int]
) -> None:
    model = make(f"{join} r = Relu (c) y = {pool} (r)")
    lifted, count = rewrite(model, lift_over_joins)
    assert count == 2
    op = pool.split()[0]
    behind = {node.output[0]: node.op_type for node in lifted.graph.node}
    assert [behind[node.input[0]] for node in lifted.graph.node if node.op_type == op] == ["Relu", "Relu"]
    assert lifted.graph.node[-1].op_type in ("Concat", "Gather")
    shapes = {value.name: value.type.tensor_type.shape.dim for value in lifted.graph.value_info}
    pooled = [shapes[node.output[0]] for node in lifted.graph.node[:-1] if node.op_type in (op, "Concat")]
    assert {tuple(each.dim_value for each in dims[2:]) for dims in pooled} == {kept}
    np.testing.assert_array_equal(run(lifted)[0], run(model)[0])


@pytest.mark.parametrize(
    "text",
    [
        "c = Concat <axis = 1> (a, b) y = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (c)",
        f"c = Concat <axis = 1> (a, b) y, i = {HALVE} (c)",
        f"e = Conv (x, z) f = Conv (x, z) c = Concat <axis = 3> (e, f) y = {HALVE} (c)",
        f"c = Concat <axis = 1> (a, b) m = {HALVE} (c) n = ReduceSum (c) y = Add (m, n)",
        "c = Concat <axis = 1> (a, b) y = Erf (c)",
        "c = Concat <axis = 1> (a, b) r = Relu (c) y = Add (r, c)",
        "c = Concat <axis = 1> (a, b) r = Relu (c) m = GlobalAveragePool (a) p = ReduceSum (m) y = Add (r, p)",
        "p = MaxPool <kernel_shape = [1, 1]> (a) c = Concat <axis = 1> (p, b) y = Relu (c)",
        "r = Relu (a) c = Concat <axis = 1> (r, b) y = Identity (c)",
    ],
    ids=[
        "pooling that leaves all",
        "indices, too",
        "joined along the width",
        "pooled and read",
        "no activation",
        "the join is read twice",
        "a part is read twice",
        "a part is pooled",
        "nothing to move",
    ],
)
def test_what_must_stay_stays(text: str) -> None:
    model = make(text)
    lifted, count = rewrite(model, lift_over_joins)
    assert count == 0
    assert [node.op_type for node in lifted.graph.node] == [node.op_type for node in model.graph.node]


def test_a_limit_that_is_computed_stays() -> None:
    model = make("l = ReduceMin <keepdims = 0> (x) c = Concat <axis = 1> (a, b) y = Clip (c, l)")
    lifted, count = rewrite(model, lift_over_joins)
    assert count == 0
    assert count_ops(lifted, "Clip") == 1

"""Is a folded graph the same function, and does what must not be folded stay?"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnxscript import ir

from fxprune.export.fold_batchnorm import Folding, fold_batchnorm

Result = TypeVar("Result")
HEAD = '<ir_version: 8, opset_import: ["" : 18]> g '
BATCHNORM = " y = BatchNormalization <epsilon = 0.01> (c, gamma, beta, mean, var)"


def build(text: str, channels: int = 6, **weights: tuple[int, ...]) -> onnx.ModelProto:
    """Parse a graph and give it random weights of these shapes, and a batch norm's parameters."""
    generator = np.random.default_rng(0)
    model = onnx.parser.parse_model(HEAD + text)
    shapes = {**weights, **dict.fromkeys(("gamma", "beta", "mean", "var"), (channels,))}
    for name, shape in shapes.items():
        values = generator.uniform(0.5, 2.0, shape) if name in ("gamma", "var") else generator.normal(size=shape)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def rewrite(model: onnx.ModelProto, change: Callable[[ir.Model], Result]) -> tuple[onnx.ModelProto, Result]:
    """Change a copy of a graph, and check that it is a valid one still."""
    graph = ir.serde.deserialize_model(model)
    result = change(graph)
    changed = ir.serde.serialize_model(graph)
    onnx.checker.check_model(changed, full_check=True)
    return changed, result


def fold(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Folding]:
    return rewrite(model, fold_batchnorm)


def run(model: onnx.ModelProto, optimize: bool = False) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(1)
    feed = {node.name: generator.normal(size=node.shape).astype(np.float32) for node in session.get_inputs()}
    return session.run(None, feed)


def count_ops(model: onnx.ModelProto, op_type: str) -> int:
    return sum(node.op_type == op_type for node in model.graph.node)


IMAGE = "(float[2,4,5,5] x) => (float[2,6,h,w] y) {"
ORDERED = "(float[2,4,5,5] x) => (float[2,6,h,w] y) <int64[6] order = {{{order}}}> {{"
MATRIX = "(float[3,4] x) => (float[3,6] y) {"

FOLDABLE = {
    "conv": (IMAGE + " c = Conv <pads = [1,1,1,1]> (x, w)", {"w": (6, 4, 3, 3)}),
    "conv_with_bias": (IMAGE + " c = Conv (x, w, b)", {"w": (6, 4, 3, 3), "b": (6,)}),
    "grouped_conv": (IMAGE + " c = Conv <group = 2> (x, w)", {"w": (6, 2, 3, 3)}),
    "transposed_conv": (IMAGE + " c = ConvTranspose (x, w, b)", {"w": (4, 6, 3, 3), "b": (6,)}),
    "grouped_transposed_conv": (IMAGE + " c = ConvTranspose <group = 2> (x, w)", {"w": (4, 3, 3, 3)}),
    "gemm": (MATRIX + " c = Gemm (x, w, b)", {"w": (4, 6), "b": (6,)}),
    "gemm_with_factors": (
        MATRIX + " c = Gemm <transB = 1, alpha = 0.5, beta = 3.0> (x, w, b)",
        {"w": (6, 4), "b": (1, 6)},
    ),
    "gemm_with_a_bias_a_row": (MATRIX + " c = Gemm (x, w, b)", {"w": (4, 6), "b": (3, 1)}),
    "matmul": (MATRIX + " c = MatMul (x, w)", {"w": (4, 6)}),
    "matmul_and_add": (MATRIX + " m = MatMul (x, w) c = Add (b, m)", {"w": (4, 6), "b": (6,)}),
    "conv_and_constant": (IMAGE + " m = Conv (x, w) c = Add (m, b)", {"w": (6, 4, 3, 3), "b": (6, 1, 3)}),
    "sum_of_convs": (
        IMAGE + " p = Conv (x, w) q = Conv (x, v, b) c = Add (p, q)",
        {"w": (6, 4, 3, 3), "v": (6, 4, 3, 3), "b": (6,)},
    ),
    "concat_of_convs": (
        IMAGE + " p = Conv (x, w) q = Conv (x, v, b) c = Concat <axis = 1> (p, q)",
        {"w": (4, 4, 3, 3), "v": (2, 4, 3, 3), "b": (2,)},
    ),
    "permuted_conv": (
        ORDERED.format(order="5, 0, 3, 1, 4, 2") + " p = Conv (x, w) c = Gather <axis = 1> (p, order)",
        {"w": (6, 4, 3, 3)},
    ),
}


@pytest.mark.parametrize("name", FOLDABLE)
def test_batch_norm_disappears_and_the_function_stays(name: str) -> None:
    text, weights = FOLDABLE[name]
    model = build(text + BATCHNORM + " }", **weights)
    folded, folding = fold(model)
    assert count_ops(folded, "BatchNormalization") == 0
    assert len(folding.folded) == 1
    assert folding.kept == ()
    np.testing.assert_allclose(run(folded)[0], run(model)[0], rtol=1e-5, atol=1e-5)


def test_weights_are_scaled_in_float64() -> None:
    model = build(IMAGE + " c = Conv (x, w, b)" + BATCHNORM + " }", w=(6, 4, 3, 3), b=(6,))
    before = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    folded, _ = fold(model)
    after = {t.name: onnx.numpy_helper.to_array(t) for t in folded.graph.initializer}
    epsilon = float(np.float32(0.01))
    scale = before["gamma"] / np.sqrt(before["var"] + epsilon)
    np.testing.assert_array_equal(after["w"], (before["w"] * scale[:, None, None, None]).astype(np.float32))
    expected = before["b"] * scale + (before["beta"] - before["mean"] * scale)
    np.testing.assert_array_equal(after["b"], expected.astype(np.float32))


NOT_FOLDABLE = {
    "has another consumer": (
        "(float[2,4,5,5] x) => (float[2,6,h,w] y, float[2,6,h,w] z) { c = Conv (x, w) z = Relu (c)",
        {"w": (6, 4, 3, 3)},
    ),
    "has another consumer ": (
        "(float[2,4,5,5] x) => (float[2,6,h,w] y, float[2,6,h,w] c) { c = Conv (x, w)",
        {"w": (6, 4, 3, 3)},
    ),
    "computed by no node": ("(float[2,6,5,5] c) => (float[2,6,5,5] y) {", {}),
    "computed by Relu": (IMAGE + " p = Conv (x, w) c = Relu (p)", {"w": (6, 4, 3, 3)}),
    "is not a constant": ("(float[2,4,5,5] x, float[6,4,3,3] w) => (float[2,6,3,3] y) { c = Conv (x, w)", {}),
    "along another dimension": ("(float[2,6,4] x) => (float[2,6,6] y) { c = MatMul (x, w)", {"w": (4, 6)}),
    "another dimension than the channels": (
        "(float[2,4,5,5] x) => (float[2,6,h,w] y) { p = Conv (x, w) q = Conv (x, v) c = Concat <axis = 2> (p, q)",
        {"w": (6, 4, 3, 3), "v": (6, 4, 3, 3)},
    ),
    "picks not each channel once": (
        ORDERED.format(order="5, 0, 3, 1, 4, 4") + " p = Conv (x, w) c = Gather <axis = 1> (p, order)",
        {"w": (6, 4, 3, 3)},
    ),
    "p has another consumer": (IMAGE + " p = Conv (x, w) c = Add (p, p)", {"w": (6, 4, 3, 3)}),
}


@pytest.mark.parametrize("reason", NOT_FOLDABLE)
def test_batch_norm_stays_and_says_why(reason: str) -> None:
    text, weights = NOT_FOLDABLE[reason]
    model = build(text + BATCHNORM + " }", **weights)
    folded, folding = fold(model)
    assert count_ops(folded, "BatchNormalization") == 1
    assert folding.folded == ()
    assert reason.strip() in folding.kept[0][1]
    for before, after in zip(run(model), run(folded), strict=True):
        np.testing.assert_array_equal(before, after)


def test_nothing_changes_if_one_part_of_a_concat_cannot_be_folded() -> None:
    text = IMAGE + " p = Conv (x, w) r = Conv (x, v) q = Relu (r) c = Concat <axis = 1> (p, q)" + BATCHNORM + " }"
    model = build(text, w=(4, 4, 3, 3), v=(2, 4, 3, 3))
    folded, folding = fold(model)
    assert folding.folded == ()
    np.testing.assert_array_equal(run(model)[0], run(folded)[0])


def test_a_weight_that_two_convolutions_share_stays_for_the_other() -> None:
    outputs = "(float[2,4,5,5] x) => (float[2,6,h,w] y, float[2,6,h,w] z)"
    text = outputs + " { c = Conv (x, w, b) r = Relu (x) z = Conv (r, w, b)" + BATCHNORM + " }"
    model = build(text, w=(6, 4, 3, 3), b=(6,))
    folded, folding = fold(model)
    assert len(folding.folded) == 1
    for before, after in zip(run(model), run(folded), strict=True):
        np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-5)


def test_two_batch_norms_in_a_row_both_fold() -> None:
    text = IMAGE + " p = Conv (x, w) c = BatchNormalization (p, mean, beta, gamma, var)" + BATCHNORM + " }"
    model = build(text, w=(6, 4, 3, 3))
    folded, folding = fold(model)
    assert len(folding.folded) == 2
    np.testing.assert_allclose(run(model)[0], run(folded)[0], rtol=1e-4, atol=1e-4)

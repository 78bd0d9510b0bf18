"""Does the graph of a layer hold the layer, and nothing else but its frame?"""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from fxprune.layer_times.graph import Convolution, LayerGraph, Linear, build_graph

WHOLE = Convolution(8, (3, 3), (1, 1, 1, 1), (1, 1), (1, 1))
ROW = Convolution(8, (1, 3), (0, 1, 0, 1), (1, 1), (1, 1))
LAST_ROW = ROW._replace(pads=(1, 1, -1, 1))  # reads one row above each position, and not the last one


def run(layer: LayerGraph) -> tuple[onnx.ModelProto, np.ndarray]:
    model = build_graph(layer, layer.is_linear)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (fed,) = session.get_inputs()
    return model, session.run(None, {"x": np.ones(fed.shape, np.float32)})[0]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (LayerGraph((2, 4, 6, 6), ()), (2, 4, 1, 1)),
        (LayerGraph((2, 4, 6, 6), ((WHOLE,),)), (2, 8, 1, 1)),
        (LayerGraph((2, 4, 6, 6), ((WHOLE,), (ROW, LAST_ROW)), reordered=True), (2, 16, 1, 1)),
        (LayerGraph((2, 4, 6, 6), ((WHOLE._replace(stride=(2, 2), dilation=(1, 2), groups=4),),)), (2, 8, 1, 1)),
        (LayerGraph((2, 4, 9), ((Convolution(6, (5,), (2, 2), (1,), (1,)),),)), (2, 6, 1)),
        (LayerGraph((5, 4), ((Linear(7),),)), (5, 7)),
        (LayerGraph((2, 5, 4), ((Linear(7),), (Linear(3), Linear(3)))), (2, 5, 10)),
    ],
)
def test_every_kind_of_layer_runs(layer: LayerGraph, shape: tuple[int, ...]) -> None:
    _, output = run(layer)
    assert output.shape == shape
    assert np.isfinite(output).all()
    assert (output > 0).any()


def test_a_layer_has_the_weights_that_it_says() -> None:
    model, _ = run(LayerGraph((2, 4, 6, 6), ((WHOLE,), (ROW, LAST_ROW))))
    sizes = [tuple(t.dims) for t in model.graph.initializer if len(t.dims) == 4]
    assert sizes == [(4, 1, 1, 1), (8, 4, 3, 3), (8, 4, 1, 3), (8, 4, 1, 3)]
    frame, _ = run(LayerGraph((2, 4, 6, 6), ()))
    assert [tuple(t.dims) for t in frame.graph.initializer if len(t.dims) == 4] == [(4, 1, 1, 1)]


def test_what_negative_pads_cut_off_is_not_read() -> None:
    model, _ = run(LayerGraph((2, 4, 6, 6), ((LAST_ROW,),)))
    (pad,) = (node for node in model.graph.node if node.op_type == "Pad")
    sides = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == pad.input[1])
    assert sides.tolist() == [0, 0, 1, 1, 0, 0, -1, 1]

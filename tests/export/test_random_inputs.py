"""Do the inputs made from a file's description fit it?"""

import numpy as np
import pytest

from fxprune.errors import ExportError
from fxprune.export.random_inputs import draw_inputs
from fxprune.export.runtimes.interface import TensorInfo

FLOAT, INTEGER = np.dtype("float32"), np.dtype("int64")
IMAGE = TensorInfo("image", (None, 3, None, None), FLOAT)
TOKENS = TensorInfo("tokens", (None, 7), INTEGER)
FIXED = TensorInfo("fixed", (4, 3), FLOAT)


def test_the_batch_replaces_the_open_first_dimension() -> None:
    feed = draw_inputs([TOKENS, FIXED, TensorInfo("scale", (), FLOAT)], 5, {})
    assert {name: array.shape for name, array in feed.items()} == {"tokens": (5, 7), "fixed": (4, 3), "scale": ()}
    assert {name: array.dtype for name, array in feed.items()} == {"tokens": INTEGER, "fixed": FLOAT, "scale": FLOAT}
    assert set(np.unique(feed["tokens"])) == {0, 1}


def test_inputs_are_the_same_every_time() -> None:
    np.testing.assert_array_equal(draw_inputs([TOKENS], 2, {})["tokens"], draw_inputs([TOKENS], 2, {})["tokens"])


def test_sizes_left_open_have_to_be_given() -> None:
    assert draw_inputs([IMAGE], 2, {"image": (3, 8, 8)})["image"].shape == (2, 3, 8, 8)
    with pytest.raises(ExportError, match=r"such as input_shapes=\{'image': \(3, 64, 64\)\}"):
        draw_inputs([IMAGE], 2, {})


def test_shapes_that_contradict_the_file_are_refused() -> None:
    with pytest.raises(ExportError, match="a sample of image has the shape"):
        draw_inputs([IMAGE], 2, {"image": (4, 8, 8)})
    with pytest.raises(ExportError, match=r"names \['picture'\]"):
        draw_inputs([IMAGE], 2, {"picture": (3, 8, 8)})


def test_a_fixed_batch_is_refused_with_the_size_that_runs() -> None:
    assert draw_inputs([FIXED], 4, {})["fixed"].shape == (4, 3)
    with pytest.raises(ExportError, match=r"batch_sizes=\(4,\)"):
        draw_inputs([FIXED], 2, {})

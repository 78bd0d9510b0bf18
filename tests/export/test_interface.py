"""Are a model's inputs and outputs found, named and put back together?"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.errors import ExportError
from fxprune.export.interface import flatten_outputs, read_inputs


class Model(nn.Module):
    def forward(self, image: Tensor, masks: Any = None, *rest: Tensor, scale: float = 1.0, **more: Tensor) -> Tensor:
        return image


IMAGE, MASK = torch.ones(3, 4), torch.zeros(3)


def test_a_lone_tensor_is_the_first_argument() -> None:
    assert read_inputs(Model(), IMAGE).names == ("image",)


def test_inputs_are_named_by_the_signature_and_by_their_place_in_it() -> None:
    assert read_inputs(Model(), (IMAGE, {"near": MASK, "far": [MASK]}, MASK)).names == (
        "image",
        "masks_near",
        "masks_far_0",
        "rest_0",
    )


def test_keyword_inputs_stand_in_the_order_of_the_signature() -> None:
    inputs = read_inputs(Model(), {"extra": MASK, "scale": 2.0, "masks": MASK, "image": IMAGE})
    assert inputs.names == ("image", "masks", "extra")
    args, kwargs = inputs.rebuild([IMAGE + 1, MASK, MASK])
    assert torch.equal(args[0], IMAGE + 1)
    assert kwargs["scale"] == 2.0
    assert set(kwargs) == {"scale", "extra"}


def test_only_tensors_with_the_batch_are_resized() -> None:
    inputs = read_inputs(Model(), (IMAGE, torch.ones(5, 2), torch.tensor(1.0)))
    assert inputs.batch == 3
    assert [tuple(tensor.shape) for tensor in inputs.resize_batch(7)] == [(7, 4), (5, 2), ()]


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ((), "do not fit Model.forward"),
        ({"image": 3}, "hold no tensor"),
        (torch.ones(0, 3), "empty batch"),
        (3, "pass a tensor, a tuple"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(example: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        read_inputs(Model(), example)


def test_an_input_whose_tensors_are_hidden_is_refused() -> None:
    @dataclasses.dataclass
    class Hidden:
        tensor: Tensor

    with pytest.raises(ExportError, match=r"masks is a Hidden.*register_dataclass"):
        read_inputs(Model(), (IMAGE, Hidden(MASK)))


def test_outputs_are_named_by_keys_fields_and_positions() -> None:
    @dataclasses.dataclass
    class Output:
        logits: Tensor
        levels: tuple[Tensor, dict[str, Tensor]]
        loss: Tensor | None = None

    names, tensors = flatten_outputs(Output(IMAGE, (MASK, {"a-b": IMAGE})))
    assert names == ("logits", "levels_0", "levels_1_a_b")
    assert tensors[1] is MASK
    assert flatten_outputs(IMAGE)[0] == ("output",)
    assert flatten_outputs((IMAGE, 3, [MASK]))[0] == ("output_0", "output_2_0")


def test_outputs_of_containers_whose_parts_torch_has_no_names_for_are_named() -> None:
    """As those of diffusers: a dataclass, or another class, that is registered without its keys."""

    @dataclasses.dataclass
    class Sample:
        sample: Tensor

    class Pair:
        def __init__(self, *parts: Tensor) -> None:
            self.parts = parts

    pytree.register_pytree_node(Sample, lambda s: ([s.sample], None), lambda parts, _: Sample(*parts))
    pytree.register_pytree_node(Pair, lambda pair: (list(pair.parts), None), lambda parts, _: Pair(*parts))
    assert flatten_outputs(Sample(IMAGE))[0] == ("sample",)
    assert flatten_outputs({"pair": Pair(IMAGE, MASK)})[0] == ("pair_0", "pair_1")


def test_names_that_would_coincide_are_numbered() -> None:
    assert flatten_outputs({"a.b": IMAGE, "a_b": MASK})[0] == ("a_b", "a_b_2")


def test_a_model_that_returns_no_tensor_is_refused() -> None:
    with pytest.raises(ExportError, match="returns no tensor but dict"):
        flatten_outputs({"loss": 3.0})


def test_numpy_arrays_are_refused_with_the_way_out() -> None:
    for inputs in (np.ones((2, 3)), (np.ones((2, 3)),), {"input": np.ones((2, 3))}):
        with pytest.raises(ExportError, match=r"input input is a NumPy array; pass torch.from_numpy"):
            read_inputs(nn.Linear(3, 2), inputs)

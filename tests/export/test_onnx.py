"""Does to_onnx write the file that it promises, and nothing else?"""

import copy
import dataclasses
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from torch import Tensor, nn

from fxprune.errors import ExactnessError, ExportError
from fxprune.export import fold_batchnorm, to_onnx
from fxprune.export import onnx as onnx_export
from fxprune.export.half import convert_to_half

Randomise = Callable[[nn.Module], nn.Module]


def run(path: Path, *tensors: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: t.numpy() for i, t in zip(session.get_inputs(), tensors, strict=True)})


def test_resnet18_is_one_file_without_batch_norms_for_any_batch(tmp_path: Path, randomise: Randomise) -> None:
    model = randomise(torchvision.models.resnet18()).eval()
    file = to_onnx(model, torch.randn(1, 3, 64, 64), tmp_path / "resnet18.onnx")
    assert [entry.name for entry in tmp_path.iterdir()] == ["resnet18.onnx"]
    assert file.size == file.path.stat().st_size
    assert file.verification is not None
    assert file.verification.worst.error < 2e-5
    assert not file.verification.is_vacuous
    proto = onnx.load(file.path)
    onnx.checker.check_model(proto, full_check=True)
    assert {node.op_type for node in proto.graph.node} >= {"Conv", "Relu", "Gemm"}
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    assert "layer1.0.conv1.weight" in {tensor.name for tensor in proto.graph.initializer}
    images = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        np.testing.assert_allclose(run(file.path, images)[0], model(images), rtol=1e-4, atol=1e-4)


def test_generated_code_of_torch_fx_exports(tmp_path: Path, block: nn.Module) -> None:
    traced = torch.fx.symbolic_trace(block)
    file = to_onnx(traced, torch.randn(2, 3, 6, 6), tmp_path / "traced.onnx")
    assert len(file.folding.folded) == 1


def test_the_model_stays_as_it_is(tmp_path: Path, block: nn.Module) -> None:
    model = block.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    to_onnx(model, torch.randn(1, 3, 6, 6, generator=torch.Generator()), tmp_path / "block.onnx")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    assert [module.training for module in model.modules()] == modes
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True, True, True, True]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_the_file_holds_no_paths_of_the_sources(tmp_path: Path, block: nn.Module) -> None:
    file = to_onnx(block, torch.randn(1, 3, 6, 6), tmp_path / "block.onnx")
    assert b".py" not in file.path.read_bytes()


def test_the_exporter_is_silent(tmp_path: Path, block: nn.Module, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        to_onnx(block, torch.randn(1, 3, 6, 6), tmp_path / "block.onnx")
    assert caught == []
    assert capfd.readouterr() == ("", "")


class Features(nn.Module):
    """A model with keyword inputs, a constant input, and outputs of several kinds."""

    @dataclasses.dataclass
    class Output:
        logits: Tensor
        levels: dict[str, Tensor]
        loss: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.image_layer = nn.Linear(4, 3)
        self.text_layer = nn.Linear(5, 3)

    def forward(self, image: Tensor, text: Tensor, scale: float = 1.0) -> Output:
        both = self.image_layer(image) * scale + self.text_layer(text)
        return self.Output(both.relu(), {"image": image, "sum": both})


def test_keyword_inputs_and_dataclass_outputs_keep_their_names(tmp_path: Path) -> None:
    model = Features()
    inputs = {"text": torch.randn(2, 5), "image": torch.randn(2, 4), "scale": 3.0}
    file = to_onnx(model, inputs, tmp_path / "features.onnx")
    assert file.inputs == ("image", "text")
    assert file.outputs == ("logits", "levels_image", "levels_sum")
    graph = onnx.load(file.path).graph
    assert tuple(value.name for value in graph.input) == file.inputs
    assert tuple(value.name for value in graph.output) == file.outputs
    expected = model(**inputs)
    logits, image, both = run(file.path, inputs["image"], inputs["text"])
    np.testing.assert_allclose(logits, expected.logits.detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(image, inputs["image"])
    np.testing.assert_allclose(both, expected.levels["sum"].detach(), rtol=1e-5, atol=1e-5)


def test_an_output_called_like_an_input_is_renamed(tmp_path: Path) -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"x": x + 1, "relu": x * 2}

    file = to_onnx(Named(), (torch.randn(2, 3),), tmp_path / "named.onnx")
    assert file.outputs == ("output_x", "relu")


def test_shared_weights_are_stored_once(tmp_path: Path) -> None:
    first, second = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
    second.weight = first.weight
    file = to_onnx(nn.Sequential(first, nn.ReLU(), second), torch.randn(2, 64), tmp_path / "tied.onnx")
    assert file.size < 1.5 * first.weight.nbytes


class Unrolled(nn.Module):
    """A model whose code depends on the batch size."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([row * 2 for row in x])


def test_a_batch_that_the_code_fixes_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"Unrolled's code depends on the batch size.*dynamic_batch=False"):
        to_onnx(Unrolled(), torch.randn(2, 3), tmp_path / "unrolled.onnx")
    assert list(tmp_path.iterdir()) == []
    file = to_onnx(Unrolled(), torch.randn(2, 3), tmp_path / "unrolled.onnx", dynamic_batch=False)
    assert file.verification is not None
    assert file.verification.batch_sizes == (2,)


def test_named_axes_take_any_size(tmp_path: Path, block: nn.Module) -> None:
    axes = {"input": {2: "height", 3: "width"}}
    file = to_onnx(block, torch.randn(1, 3, 6, 8), tmp_path / "block.onnx", dynamic_axes=axes)
    shape = onnx.load(file.path).graph.input[0].type.tensor_type.shape
    assert [dim.dim_param or dim.dim_value for dim in shape.dim] == ["batch", 3, "height", "width"]
    images = torch.randn(5, 3, 9, 7)
    np.testing.assert_allclose(run(file.path, images)[0], block.eval()(images).detach(), rtol=1e-4, atol=1e-5)
    fixed = to_onnx(block, torch.randn(2, 3, 6, 8), tmp_path / "fixed.onnx", dynamic_batch=False, dynamic_axes=axes)
    assert run(fixed.path, images[:2])[0].shape == (2, 4, 7, 5)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        run(fixed.path, images)


@pytest.mark.parametrize(
    ("axes", "reason"),
    [
        ({"image": {2: "height"}}, r"names 'image'; the model's inputs are \['input'\]"),
        ({"input": {4: "depth"}}, r"\{4: 'depth'\}\}: give a dimension of input, whose shape is \(2, 3, 6, 1\)"),
        ("height", "dynamic_axes='height': give the open dimensions of inputs by name"),
        ({"input": "height"}, "give the open dimensions of inputs by name"),
        ({"input": {2: "the height"}}, "a name for its size, such as 'height'"),
        ({"input": {3: "width"}}, r"dimension 3 of input is 1 in example_inputs.*give an example with 2 or more"),
        ({"input": {2: "height"}}, r"Flat's code depends on the size of an open dimension.*leave it out of"),
    ],
)
def test_axes_that_cannot_be_open_are_refused(tmp_path: Path, axes: Any, reason: str) -> None:
    class Flat(nn.Module):
        def forward(self, input: Tensor) -> Tensor:
            return torch.stack([row * 2 for row in input.unbind(2)])

    with pytest.raises(ExportError, match=reason):
        to_onnx(Flat(), torch.randn(2, 3, 6, 1), tmp_path / "flat.onnx", dynamic_axes=axes)


def test_an_op_that_onnx_lacks_is_refused_in_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Eigen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvals(x)

    with pytest.raises(ExportError, match=r"torch's exporter cannot translate Eigen.*linalg_eig") as caught:
        to_onnx(Eigen(), torch.randn(2, 3, 3), tmp_path / "eigen.onnx")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("where", "reason"), [("missing/m.onnx", "there is no folder"), (".", "is a folder"), ("file/m.onnx", "no folder")]
)
def test_a_place_that_cannot_be_written_is_refused_before_the_export(
    tmp_path: Path, block: nn.Module, where: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: pytest.fail("the export was run"))
    with pytest.raises(ExportError, match=reason):
        to_onnx(block, torch.randn(1, 3, 6, 6), tmp_path / where)


def test_a_folder_without_permission_is_refused(
    tmp_path: Path, block: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(onnx_export.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(ExportError, match=r"cannot be written \(Permission denied\)"):
        to_onnx(block, torch.randn(1, 3, 6, 6), tmp_path / "block.onnx")


def test_a_wrong_file_never_appears_and_the_old_one_stays(
    tmp_path: Path, block: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = fold_batchnorm.read_affine

    def shift_twice(node: object) -> object:
        affine = right(node)
        return affine._replace(shift=affine.shift * 2)

    monkeypatch.setattr(fold_batchnorm, "read_affine", shift_twice)
    path = tmp_path / "block.onnx"
    path.write_bytes(b"earlier")
    with pytest.raises(ExactnessError, match=r"output differs by .* where it varies by .* nothing was written"):
        to_onnx(block, torch.randn(1, 3, 6, 6), path)
    assert path.read_bytes() == b"earlier"
    assert [entry.name for entry in tmp_path.iterdir()] == ["block.onnx"]
    assert to_onnx(block, torch.randn(1, 3, 6, 6), path, verify=False).verification is None
    assert path.read_bytes() != b"earlier"


def test_a_type_that_the_runtime_lacks_is_refused_with_the_way_out(tmp_path: Path, block: nn.Module) -> None:
    inputs = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    with pytest.raises(ExportError, match=r"double.onnx is no file that ONNX Runtime.*verify=False"):
        to_onnx(block.double(), inputs, tmp_path / "double.onnx")
    assert to_onnx(block.double(), inputs, tmp_path / "double.onnx", verify=False).size > 0


def test_half_precision_agrees_up_to_rounding(tmp_path: Path, block: nn.Module) -> None:
    inputs = torch.randn(1, 3, 6, 6, dtype=torch.float16)
    file = to_onnx(block.half(), inputs, tmp_path / "half.onnx")
    assert file.verification is not None
    assert file.verification.tolerance < file.verification.worst.error < 4 * file.verification.worst.rounding
    assert "up to rounding" in str(file.verification)
    weights = {tensor.data_type for tensor in onnx.load(file.path).graph.initializer}
    assert weights == {onnx.TensorProto.FLOAT16}


def test_weights_above_the_limit_of_one_file_go_beside_it(
    tmp_path: Path, block: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "ONE_FILE_LIMIT", 0)
    to_onnx(block, torch.randn(1, 3, 6, 6), tmp_path / "block.onnx")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["block.onnx", "block.onnx.data"]


def test_inputs_that_the_model_does_not_take_are_refused(tmp_path: Path, block: nn.Module) -> None:
    with pytest.raises(ExportError, match=r"does not run on example_inputs .*expected input.*give some it takes"):
        to_onnx(block, torch.randn(1, 5, 6, 6), tmp_path / "block.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("opset", [3, 99, "18"])
def test_an_opset_that_does_not_exist_is_refused(tmp_path: Path, block: nn.Module, opset: Any) -> None:
    with pytest.raises(ExportError, match=f"opset={opset!r}"):
        to_onnx(block, torch.randn(1, 3, 6, 6), tmp_path / "block.onnx", opset=opset)


def test_a_later_opset_is_written(tmp_path: Path, block: nn.Module) -> None:
    file = to_onnx(block, torch.randn(1, 3, 6, 6), tmp_path / "block.onnx", opset=20)
    assert onnx.load(file.path).opset_import[0].version == file.opset == 20


def test_fp16_halves_the_file_and_keeps_its_interface(tmp_path: Path, randomise: Randomise) -> None:
    model = randomise(torchvision.models.squeezenet1_1(num_classes=10))
    images = torch.randn(2, 3, 64, 64)
    full = to_onnx(model, images, tmp_path / "full.onnx")
    half = to_onnx(model, images, tmp_path / "half.onnx", precision="fp16")
    assert 0.5 < half.size / full.size < 0.51
    assert half.verification is not None
    assert half.verification.tolerance < half.verification.worst.error < 4 * half.verification.worst.rounding
    assert half.verification.worst.argmax_agreement is not None
    graph = onnx.load(half.path).graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["x", "output"]
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    assert "Conv" in {node.op_type for node in graph.node}


def test_what_half_precision_does_not_explain_is_refused(
    tmp_path: Path, block: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert_and_damage(graph: object) -> object:
        converted = convert_to_half(graph)
        bias = converted.graph.initializers["3.bias"]
        bias.const_value = onnx_export.ir.tensor(bias.const_value.numpy() * np.float16(1.05))
        return converted

    monkeypatch.setattr(onnx_export, "convert_to_half", convert_and_damage)
    with pytest.raises(
        ExactnessError, match=r"does not compute what the model computes.*Cast output, which reads .*3\.bias"
    ):
        to_onnx(block, torch.randn(2, 3, 6, 6), tmp_path / "block.onnx", precision="fp16")


def test_what_loses_too_much_to_rounding_is_told_from_what_is_wrong(tmp_path: Path) -> None:
    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(300 * self.linear(x))

    torch.manual_seed(0)
    with pytest.raises(ExactnessError, match=r"loses too much to rounding.*0\.01 is the most.*higher precision"):
        to_onnx(Steep(), torch.randn(4, 8), tmp_path / "steep.onnx", precision="fp16")


def test_arguments_in_another_order_are_refused(tmp_path: Path, block: nn.Module) -> None:
    with pytest.raises(
        ExportError, match=r"as in to_onnx\(model, images, 'model\.onnx'\); it got Sequential, .*Tensor"
    ):
        to_onnx(block, tmp_path / "block.onnx", torch.randn(1, 3, 6, 6))


def test_other_precisions_are_refused(tmp_path: Path, block: nn.Module) -> None:
    with pytest.raises(ExportError, match=r"precision='int4': give 'fp32', the model's own, or 'fp16'"):
        to_onnx(block, torch.randn(1, 3, 6, 6), tmp_path / "block.onnx", precision="int4")

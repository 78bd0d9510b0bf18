"""Does the comparison find what is wrong, and say how much it shows?"""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxprune.errors import ExportError
from fxprune.export import to_onnx, verify


@pytest.fixture
def file(block: nn.Module, tmp_path: Path) -> Path:
    return to_onnx(block, torch.randn(3, 3, 6, 6), tmp_path / "block.onnx", verify=False).path


def test_the_same_model_agrees_at_several_batch_sizes(block: nn.Module, file: Path) -> None:
    verification = verify(block, file, torch.randn(3, 3, 6, 6))
    assert verification.passed
    assert verification.batch_sizes == (1, 2, 3)
    assert verification.worst.error < 1e-5
    assert verification.worst.argmax_agreement is None
    assert str(verification).startswith("agrees with the model within 0.0001 at batch sizes 1, 2, 3")


def test_another_model_differs_by_a_share_of_the_variation(block: nn.Module, file: Path) -> None:
    with torch.no_grad():
        block[3].bias.add_(0.5)
    verification = verify(block, file, torch.randn(3, 3, 6, 6))
    assert not verification.passed
    assert verification.worst.difference == pytest.approx(0.5, rel=1e-4)
    assert verification.worst.error == pytest.approx(0.5 / verification.worst.variation, rel=1e-4)
    assert str(verification).startswith("differs from the model by more than 0.0001")


def test_rounding_excuses_neither_a_wrong_file_nor_a_large_error(block: nn.Module, file: Path) -> None:
    with torch.no_grad():
        block[3].bias.add_(0.01)
    worst = verify(block, file, torch.randn(3, 3, 6, 6)).worst
    assert 0 < worst.rounding < 1e-5 < 1e-3 < worst.error
    assert not worst.is_within(1e-4)
    assert dataclasses.replace(worst, error=0.009, rounding=0.1).is_within(1e-4)
    assert not dataclasses.replace(worst, error=0.011, rounding=0.1).is_within(1e-4)


def test_the_model_and_the_random_state_stay(block: nn.Module, file: Path) -> None:
    block.train()
    statistics, state = block[1].running_mean.clone(), torch.get_rng_state()
    verify(block, file, torch.ones(3, 3, 6, 6))
    assert block[4].training
    assert torch.equal(block[1].running_mean, statistics)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_output_that_does_not_vary_is_called_vacuous(tmp_path: Path) -> None:
    model = nn.Linear(4, 3)
    nn.init.zeros_(model.weight)
    file = to_onnx(model, torch.randn(2, 4), tmp_path / "zero.onnx")
    assert file.verification is not None
    assert file.verification.is_vacuous
    assert file.verification.passed
    assert "does not vary with the input" in str(file.verification)
    with torch.no_grad():
        model.bias.add_(1.0)
    assert not verify(model, file.path, torch.randn(2, 4)).passed


def test_argmax_agreement_is_counted_for_logits(tmp_path: Path) -> None:
    model = nn.Linear(4, 3)
    path = to_onnx(model, torch.randn(2, 4), tmp_path / "logits.onnx").path
    assert verify(model, path, torch.randn(2, 4)).worst.argmax_agreement == 1.0
    with torch.no_grad():
        model.weight.neg_()
        model.bias.neg_()
    worst = verify(model, path, torch.randn(2, 4)).worst
    assert worst.argmax_agreement is not None
    assert worst.argmax_agreement < 0.5


def test_integers_and_not_a_number_are_compared_exactly(tmp_path: Path) -> None:
    class Tokens(nn.Module):
        def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
            return tokens * 2, (tokens - 3).to(torch.float32).sqrt()

    file = to_onnx(Tokens(), torch.tensor([[0, 5, 7]]), tmp_path / "tokens.onnx")
    assert file.verification is not None
    assert file.verification.outputs[0].error == 0
    assert file.verification.outputs[1].error < 1e-6


def test_another_number_of_inputs_or_outputs_is_refused(file: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return x, x

    x = torch.randn(3, 3, 6, 6)
    with pytest.raises(ExportError, match="the file takes the inputs"):
        verify(Two(), file, (x, x))
    with pytest.raises(ExportError, match="the file has the outputs"):
        verify(Two(), file, x)


def test_an_output_of_another_shape_differs(file: Path) -> None:
    verification = verify(nn.Flatten(), file, torch.randn(3, 3, 6, 6))
    assert not verification.passed


def test_other_image_sizes_are_tried_where_the_file_leaves_them_open(block: nn.Module, tmp_path: Path) -> None:
    axes = {"input": {2: "height", 3: "width"}}
    file = to_onnx(block, torch.randn(2, 3, 12, 8), tmp_path / "open.onnx", dynamic_axes=axes)
    assert file.verification is not None
    assert file.verification.shapes == (((2, 3, 6, 8),), ((2, 3, 12, 4),), ((2, 3, 6, 4),))
    assert "and inputs of 2x3x6x8, 2x3x12x4, 2x3x6x4" in str(file.verification)


def test_a_size_that_the_model_refuses_is_doubled_instead(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU())
    file = to_onnx(model, torch.randn(2, 3, 6, 12), tmp_path / "open.onnx", dynamic_axes={"input": {2: "height"}})
    assert file.verification is not None
    assert file.verification.shapes == (((2, 3, 12, 12),),)


def test_inputs_of_the_user_are_compared_too(block: nn.Module, file: Path) -> None:
    class Changed(nn.Module):
        """The same but for images of ones."""

        def __init__(self) -> None:
            super().__init__()
            self.block = block

        def forward(self, input: Tensor) -> Tensor:
            return self.block(input) + (input == 1).all()

    assert verify(Changed(), file, torch.randn(3, 3, 6, 6)).passed
    ones = torch.ones(1, 3, 6, 6)
    assert not verify(Changed(), file, torch.randn(3, 3, 6, 6), more_inputs=[ones]).passed


def test_arguments_in_another_order_are_refused(block: nn.Module, file: Path) -> None:
    images = torch.randn(3, 3, 6, 6)
    for arguments in ((file, block, images), (block, images, file)):
        with pytest.raises(ExportError, match=r"takes the model, the file and example inputs, as in .* it got"):
            verify(*arguments)

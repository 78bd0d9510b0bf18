"""What a graph does not see: hooks on blocks and changed attributes are warned of, once, and layers' hooks are not."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.model import PreparedModel


class Block(nn.Module):
    """A layer times a temperature."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer, self.temperature = nn.Linear(width, width), 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.temperature * self.layer(x).relu()


class Net(nn.Module):
    """Two blocks, and a temperature of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.temperature = Block(8), Block(8), 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.temperature * self.second(self.first(x))


def prepare(model: nn.Module) -> PreparedModel:
    return fxprune.prepare(model, torch.randn(2, 8))


@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_a_hook_on_a_block_is_warned_of_once(register: str) -> None:
    prepared, x = prepare(Net()), torch.randn(2, 8)
    getattr(prepared.first, register)(lambda *_: None)
    with pytest.warns(UserWarning, match=r"^the hook on first does not run: .* put the hook on a layer") as caught:
        prepared(x)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared(x)


def test_hooks_of_the_original_and_on_what_runs_are_not_warned_of() -> None:
    model, x = Net(), torch.randn(2, 8)
    model.first.register_forward_hook(lambda *_: None)
    prepared = prepare(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared(x)
        prepared.register_forward_hook(lambda *_: None)
        prepared.second.layer.register_forward_hook(lambda *_: None)
        prepared(x)
        fxprune.convert(prepared)(x)


def test_changed_attributes_are_warned_of_once() -> None:
    prepared = prepare(Net())
    prepared.second.temperature = 0.5
    prepared.temperature = 2.0
    with pytest.warns(UserWarning, match="temperature was 1.0") as caught:
        prepared.train()
    sentences = sorted(str(each.message) for each in caught)
    assert sentences[0].startswith("second.temperature was 1.0 when the model was traced and is 0.5 by now")
    assert sentences[1].startswith("temperature was 1.0 when the model was traced and is 2.0 by now")
    assert {each.filename for each in caught} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared.train()
        prepared.eval()


def test_settings_of_layers_and_own_notes_are_not_warned_of() -> None:
    prepared = prepare(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared.get_submodule("1").p = 0.2
        prepared.epoch = 3
        prepared.train()
        prepared.epoch = 4
        prepared.train()


def test_a_converted_model_warns_too() -> None:
    compact = fxprune.convert(Net().eval(), torch.randn(2, 8))
    compact.first.temperature = 0.5
    with pytest.warns(UserWarning, match=r"^first\.temperature was 1\.0"):
        compact.eval()
    compact.first.register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="^the hook on first does not run"):
        compact(torch.randn(2, 8))


class Shifting(nn.Module):
    """Goes by its own mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop, self.last = nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)
        self.block = nn.Sequential(ByMode())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.drop(self.block(self.layer(x))))
        return out


class ByMode(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if self.training else x


def test_a_module_in_another_mode_than_the_model_is_warned_of_where_its_code_asks() -> None:
    x = torch.randn(3, 6)
    prepared = fxprune.prepare(Shifting(), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in (True, False, True):
            prepared.train(mode)(x)
        prepared.get_submodule("drop").eval()
        prepared(x)
    prepared.get_submodule("block").eval()
    with pytest.warns(UserWarning, match=r"block\.0 is in eval mode, but its code.* was traced in tr"):
        prepared(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared(x)  # once

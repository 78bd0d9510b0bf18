"""Do weights get into a model from a file, and does nothing run that is not trusted?"""

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from fxprune.commands.load_weights import WeightsError, load_weights


class Trap:
    """An object whose unpickling leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def trained() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def assert_same(model: nn.Module) -> None:
    for name, value in trained().state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_safetensors_are_read(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(trained().state_dict(), path)
    assert_same(load_weights(model, path, trust=False))


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"epoch": 3, "state_dict": s}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_trusted_pickle_is_read_with_the_weights_inside(
    model: nn.Module, tmp_path: Path, wrap: object, prefix: str
) -> None:
    states = {f"{prefix}{name}": value for name, value in trained().state_dict().items()}
    torch.save(wrap(states), tmp_path / "weights.pth")  # type: ignore[operator]
    assert_same(load_weights(model, tmp_path / "weights.pth", trust=True))


def test_a_trusted_whole_model_is_read(model: nn.Module, tmp_path: Path) -> None:
    torch.save(trained(), tmp_path / "model.pt")
    assert_same(load_weights(model, tmp_path / "model.pt", trust=True))


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.bin", "weights.safetensors"])
def test_nothing_is_unpickled_without_trust(model: nn.Module, tmp_path: Path, name: str) -> None:
    trace = tmp_path / "trace"
    (tmp_path / name).write_bytes(pickle.dumps(Trap(trace)))
    with pytest.raises(WeightsError, match=r"--trust|cannot be read as safetensors"):
        load_weights(model, tmp_path / name, trust=False)
    assert not trace.exists()


def test_other_weights_are_refused_by_the_first_name(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    states = trained().state_dict()
    safetensors.torch.save_file({**states, "2.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"holds 2\.weight"):
        load_weights(model, path, trust=False)
    safetensors.torch.save_file({**states, "0.weight": torch.zeros(5, 3)}, path)
    with pytest.raises(WeightsError, match=r"0\.weight is \(5, 3\), and \(4, 3\)"):
        load_weights(model, path, trust=False)
    safetensors.torch.save_file({"0.weight": states["0.weight"]}, path)
    with pytest.raises(WeightsError, match=r"lacks 0\.bias and 5 more"):
        load_weights(model, path, trust=False)


def test_damaged_and_foreign_files_are_refused(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors.torch.save(trained().state_dict())[:-5])
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        load_weights(model, path, trust=False)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="holds a list"):
        load_weights(model, tmp_path / "list.pt", trust=True)
    (tmp_path / "text.pt").write_text("no pickle")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_weights(model, tmp_path / "text.pt", trust=True)

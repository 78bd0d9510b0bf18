"""A folder with a user's own model in a file, and how commands are run in it."""

from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from fxprune.cli import app

SOURCE = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 4)
    return nn.Sequential(*layers)
"""

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def run() -> Run:
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="session", autouse=True)
def model_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a model whose file is importable from now on."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "net_of_a_user.py").write_text(SOURCE)
    pytest.MonkeyPatch().syspath_prepend(folder)
    return "net_of_a_user:net"


def assert_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2
    assert [word for word in words if word not in result.stderr] == []
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout

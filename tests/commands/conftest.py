"""A user's own model in a file."""

import pytest

SOURCE = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 4)
    return nn.Sequential(*layers)

def rows():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(16, 4))
    with torch.no_grad():
        model[2].weight[:, :, [0, 2]] *= 1e-3  # what stays of each filter is its middle row
    return model

class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(7, 16), nn.Linear(3, 16), nn.Linear(16, 4)

    def forward(self, left, right):
        return self.head((self.left(left) + self.right(right)).relu())
"""


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a model whose file is importable from now on."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "net_of_a_user.py").write_text(SOURCE)
    pytest.MonkeyPatch().syspath_prepend(folder)
    return "net_of_a_user:net"

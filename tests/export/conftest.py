"""What do the tests of the export share?"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    """Give every test the same random numbers, and one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def block() -> nn.Module:
    """Return a convolution with a batch norm, and one without."""
    layers = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Dropout()
    return randomise_statistics(nn.Sequential(*layers))


@pytest.fixture
def randomise() -> Callable[[nn.Module], nn.Module]:
    """Return the function that makes a fresh model's batch norms do something."""
    return randomise_statistics


def randomise_statistics(model: nn.Module) -> nn.Module:
    """Give every batch norm statistics, scales and shifts that are not those of a fresh one."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_()
    return model

"""What all tests share: one thread, as small models gain nothing from more, and a watch over the rules of ops."""

import pytest
import torch

from tests import lost_channels

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def watch_for_lost_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    lost_channels.watch(monkeypatch)

"""Whether a converted model comes back from its file to the last bit, and whether every other file is refused."""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision
from torch import nn

import fxprune
from fxprune.model import TracedModel, tensors_in
from tests.exactness import close_units, randomise


def assert_same(compact: TracedModel, loaded: TracedModel, *inputs: object) -> None:
    """The same outputs to the last bit in both modes, tensors under the same names, the same graphs."""
    ours, theirs = compact.state_dict(), loaded.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for a, b in zip(compact.graphs, loaded.graphs, strict=True):
        assert a.python_code("self").src == b.python_code("self").src
    for training in (False, True):
        results = []
        for model in (compact, loaded):
            torch.manual_seed(0)
            results.append(tensors_in(model.train(training)(*inputs)))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_residual_network_comes_back(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return torchvision.models.resnet18(num_classes=10)

    model, x = make(), torch.randn(2, 3, 64, 64)
    randomise(model)
    prepared = fxprune.prepare(model, x)
    close_units(prepared, 0.5)
    compact = fxprune.convert(prepared)
    fxprune.save(compact, tmp_path / "compact.safetensors")
    loaded = fxprune.load(make(), tmp_path / "compact.safetensors")
    assert loaded.layer1[0].conv1.out_channels < 64
    assert str(loaded.report) == str(compact.report)
    assert_same(compact, loaded, torch.randn(3, 3, 96, 96))

"""Whether real models convert: all that may go is found, what the gates close goes, and the outputs stay."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fxprune
from fxprune.model import PreparedModel
from fxprune.passes.analyse import analyse
from fxprune.passes.decompose import decompose
from fxprune.passes.trace import trace
from tests.exactness import close_units, randomise, relative_error, settle_statistics, varied_images
from tests.zoo.networks import PRUNABLE, build, image_sizes


@pytest.mark.parametrize("name", PRUNABLE)
def test_all_rows_but_the_outputs_may_go(name: str) -> None:
    inputs = ((varied_images(1, 3, image_sizes(name)[0], dtype=torch.float32),), {})
    traced = trace(build(name), inputs)
    decompose(traced)
    channels = analyse(traced, inputs)
    layers = [n for n, m in traced.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    units = torch.cat([channels.units_along(f"{n}.weight", 0) for n in layers])
    assert (int((units > 0).sum()), len(units)) == PRUNABLE[name]


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x1_0", "mobilenet_v3_large", "resnet20", "regnet_y_400mf"])
def test_closed_channels_leave_as_the_gates_say(name: str) -> None:
    model = build(name).double()
    randomise(model)
    size, other = image_sizes(name)
    prepared = fxprune.prepare(model, varied_images(2, 3, size))
    gates = close_units(prepared, 0.5, seed=1)
    settle_statistics(prepared, varied_images(4, 3, size, seed=2))
    compact = fxprune.convert(prepared)
    parameters, macs = expected_cost(prepared, model, gates, size)
    cost = fxprune.export.count(compact, varied_images(1, 3, size))
    assert cost.parameters == pytest.approx(parameters, rel=0.01)
    assert cost.macs == pytest.approx(macs, rel=0.01)
    assert relative_error(prepared, compact, varied_images(5, 3, other, seed=3)) < 1e-10


def expected_cost(prepared: PreparedModel, model: nn.Module, gates: torch.Tensor, size: int) -> tuple[float, float]:
    """Count parameters and multiply-accumulates from the gates alone, without converting."""
    share = {
        (place.parameter, place.dim): float(torch.cat([gates, torch.ones(1)])[place.index].gt(0).double().mean())
        for place in prepared.fxprune.slices
    }
    positions: dict[str, int] = {}
    hooks = [
        m.register_forward_hook(lambda m, i, o, n=n: positions.__setitem__(n, o[0, 0].numel() if o.dim() > 2 else 1))
        for n, m in model.named_modules()
        if isinstance(m, (nn.Conv2d, nn.Linear))
    ]
    model.eval()(varied_images(1, 3, size))
    for hook in hooks:
        hook.remove()
    parameters = macs = 0.0
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        dims = range(parameter.dim())
        kept = parameter.numel() * math.prod(share.get((f"{owner}.weight", d), 1.0) for d in dims)
        parameters += kept
        macs += kept * positions[owner] if leaf == "weight" and owner in positions else 0
    return parameters, macs

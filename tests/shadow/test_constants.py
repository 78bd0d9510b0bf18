"""What is known of a channel whose filter is zero, through each op, and where that knowledge must end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.passes.analyse import analyse
from fxprune.passes.decompose import decompose
from fxprune.passes.trace import trace
from tests.exactness import randomise

BIAS = 0.7


class Model(nn.Module):
    """A convolution whose first filter is zero but for a bias, and the body under test."""

    def __init__(self, body: Callable[..., Any], bias: float, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.layers, self.body = nn.Conv2d(3, 4, 3), nn.ModuleDict(layers), body
        self.double().eval()
        randomise(self)
        for norm in (m for m in self.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2)
        with torch.no_grad():
            self.conv.weight[0], self.conv.bias[0] = 0, bias

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.layers, self.conv(x))


def find_constant(body: Callable[..., Any], bias: float = BIAS, **layers: nn.Module) -> tuple[Any, Tensor]:
    """Return what is known of the model's output, and the output itself."""
    model, inputs = Model(body, bias, layers), ((torch.randn(2, 3, 9, 9).double(),), {})
    traced = trace(model, inputs)
    decompose(traced)
    values = analyse(traced, inputs).values[0]
    (result,) = next(node for node in values if node.op == "output").all_input_nodes
    return values[result].constant, model(*inputs[0]).detach()


def known_channels(constant: Any, output: Tensor) -> list[int]:
    """List the output's channels that are known throughout, and compare them with what the model computes."""
    if constant is None:
        return []
    value, known = (t.expand(output.shape) for t in constant)
    torch.testing.assert_close(value[known], output[known], rtol=1e-12, atol=1e-12)
    return [channel for channel in range(output.size(1)) if bool(known[:, channel].all())]


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: x,
        lambda m, x: F.hardswish(m["norm"](x)),
        lambda m, x: torch.sigmoid(x) * 2 + 1,
        lambda m, x: F.max_pool2d(torch.relu(x), 3, 2, 1),
        lambda m, x: x.mean((2, 3)),
        lambda m, x: x.amax((2, 3), keepdim=True),
        lambda m, x: F.avg_pool2d(x, 3, 2),
        lambda m, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        lambda m, x: F.adaptive_avg_pool2d(x, 3).flatten(2),
        lambda m, x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
        lambda m, x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda m, x: x.clone().add_(1).clamp_(min=0.1),
        lambda m, x: m["prelu"](-x),
        lambda m, x: F.dropout(x, training=False),
        lambda m, x: m["deep"](x),
    ],
)
def test_a_zero_filter_leaves_a_constant(body: Callable[..., Any]) -> None:
    layers = {"norm": nn.BatchNorm2d(4), "prelu": nn.PReLU(4), "deep": nn.Conv2d(4, 4, 3, groups=4)}
    assert known_channels(*find_constant(body, **layers)) == [0]


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: F.avg_pool2d(x, 3, 2, 1),
        lambda m, x: F.avg_pool2d(x, 3, 2, ceil_mode=True),
        lambda m, x: m["deep"](x),
        lambda m, x: F.pad(x, (1, 1, 1, 1)),
    ],
)
@pytest.mark.parametrize("bias", [0.0, BIAS])
def test_zeros_at_a_border_end_a_constant_unless_it_is_zero(body: Callable[..., Any], bias: float) -> None:
    deep = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
    constant, output = find_constant(body, bias, deep=deep)
    known = known_channels(constant, output)
    uniform = not known or float(output[:, 0].std()) == 0
    assert (known == [0]) if bias == 0 else (known == [] or not uniform)


def test_nothing_is_claimed_behind_a_transposed_convolution() -> None:
    assert known_channels(*find_constant(lambda m, x: m["up"](x), up=nn.ConvTranspose2d(4, 4, 2, 3))) == []


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: torch.cumsum(x, 1),
        lambda m, x: x.softmax(1),
        lambda m, x: torch.special.zeta(x.abs() + 2, x.abs() + 1) * torch.rand_like(x),
        lambda m, x: F.normalize(x, dim=1),
        lambda m, x: m["instance"](x),
        lambda m, x: torch.fft.rfft2(x).abs(),
        lambda m, x: F.dropout(x),
        lambda m, x: x + torch.randn(x.shape[2:], dtype=x.dtype),
    ],
)
def test_ops_that_mix_or_draw_or_are_unknown_end_a_constant(body: Callable[..., Any]) -> None:
    constant, _ = find_constant(body, instance=nn.InstanceNorm2d(4))
    assert constant is None or not bool(constant.known.any())


def test_zero_times_an_unknown_is_not_zero() -> None:
    constant, _ = find_constant(lambda m, x: x[:, :1] * x[:, 1:], bias=0.0)
    assert constant is None or not bool(constant.known.any())


def test_a_sum_of_a_constant_and_an_unknown_is_unknown() -> None:
    assert known_channels(*find_constant(lambda m, x: x + x.flip(1))) == []
    assert known_channels(*find_constant(lambda m, x: torch.cat([x, x * 2], 1))) == [0, 4]


def test_a_convolution_is_constant_where_it_reads_constants_only() -> None:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        return F.conv2d(x, torch.eye(4, dtype=x.dtype)[:, :, None, None] * 2, torch.ones(4, dtype=x.dtype))

    constant, output = find_constant(body)
    assert known_channels(constant, output) == [0]
    assert float(output[0, 0, 0, 0]) == pytest.approx(2 * BIAS + 1)

"""Whether layers of every kind leave exactly, and what the compact model then is: dense, trainable, its owner's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import fxprune
from fxprune.model import find_tensor
from tests.exactness import close_units, randomise, relative_error, settle_statistics, varied_images, zero_filters

Body = Callable[[nn.Module, Tensor], Tensor]


class Model(nn.Module):
    """A stem of eight channels, the layers under test, and a head of five channels."""

    def __init__(self, body: Body, last: int = 8, **layers: nn.Module) -> None:
        super().__init__()
        self.body, self.stem = body, nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.head = nn.Conv2d(last, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(self, self.stem(x)))).mean((2, 3))


def conv(inputs: int = 8, outputs: int = 8, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def build(body: Body, last: int = 8, **layers: nn.Module) -> nn.Module:
    model = Model(body, last, **layers).double()
    randomise(model)
    settle_statistics(model, varied_images(4, 3, 12))
    return model


def one(layer: nn.Module, last: int = 8) -> nn.Module:
    return build(lambda m, x: m.layer(x), last, layer=layer)


def shuffle(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


@torch.library.custom_op("fxprune_tests::opaque", mutates_args=())
def opaque(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


opaque.register_fake(torch.empty_like)

MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: one(conv()),
    "grouped": lambda: one(conv(groups=4)),
    "grouped, other widths": lambda: one(conv(8, 12, groups=2), 12),
    "depthwise": lambda: one(conv(groups=8)),
    "depthwise, two each": lambda: one(conv(8, 16, groups=8), 16),
    "one output a group": lambda: one(conv(8, 4, groups=4), 4),
    "transposed": lambda: one(nn.ConvTranspose2d(8, 6, 3, 2, 1, 1), 6),
    "transposed, grouped": lambda: one(nn.ConvTranspose2d(8, 12, 3, 2, groups=2), 12),
    "transposed, depthwise": lambda: one(nn.ConvTranspose2d(8, 8, 2, 2, groups=8)),
    "circular": lambda: one(conv(padding_mode="circular")),
    "reflect": lambda: one(conv(padding_mode="reflect", groups=2)),
    "replicate, same": lambda: one(nn.Conv2d(8, 8, 3, padding="same", padding_mode="replicate")),
    "same": lambda: one(nn.Conv2d(8, 8, 3, padding="same", dilation=2)),
    "no bias": lambda: one(nn.Sequential(conv(bias=False), nn.BatchNorm2d(8), nn.Hardswish(inplace=True), conv())),
    "functional": lambda: build(lambda m, x: F.conv2d(x, m.c.weight, m.c.bias, padding=1) * 2, c=conv()),
    "prelu": lambda: one(nn.Sequential(conv(), nn.PReLU(8), conv(), nn.PReLU())),
    "weight norm": lambda: one(nn.Sequential(weight_norm(conv()), nn.ReLU(), conv(), nn.ReLU(), conv())),
    "spectral norm": lambda: one(nn.Sequential(spectral_norm(conv()), nn.ReLU(), conv())),
    "residual": lambda: build(lambda m, x: x + m.b(torch.relu(m.a(x))), a=conv(8, 6), b=conv(6, 8)),
    "dense concat": lambda: build(lambda m, x: torch.cat([x, m.a(x), m.b(x)], 1), 15, a=conv(8, 4), b=conv(8, 3)),
    "chunk": lambda: build(lambda m, x: torch.mul(*m.a(x).chunk(2, 1)), a=conv(8, 16)),
    "split": lambda: build(lambda m, x: torch.cat(m.a(x).split([3, 5], 1)[::-1], 1), a=conv()),
    "shuffle": lambda: build(lambda m, x: shuffle(m.a(x)) + m.b(x), a=conv(groups=2), b=conv()),
    "interleave": lambda: build(lambda m, x: torch.stack([m.a(x), x], 2).flatten(1, 2), 16, a=conv()),
    "attention": lambda: build(lambda m, x: x * torch.sigmoid(m.b(m.a(x.mean((2, 3), True)).relu())),
                               a=nn.Conv2d(8, 4, 1), b=nn.Conv2d(4, 8, 1)),
    "softmax": lambda: build(lambda m, x: m.b(m.a(x).softmax(1)), a=conv(), b=conv()),
    "custom op": lambda: build(lambda m, x: m.b(opaque(m.a(x))), a=conv(), b=conv()),
    "layer norm": lambda: build(lambda m, x: m.n(m.a(x).movedim(1, 3)).movedim(3, 1), a=conv(), n=nn.LayerNorm(8)),
    "group norm": lambda: one(nn.Sequential(conv(), nn.GroupNorm(4, 8), conv())),
    "instance norm": lambda: one(nn.Sequential(conv(), nn.InstanceNorm2d(8, affine=True), conv())),
    "pixel shuffle": lambda: one(nn.Sequential(conv(8, 16), nn.PixelShuffle(2)), 4),
    "unit mean": lambda: build(lambda m, x: x - m.a(x).mean(1, keepdim=True), a=conv()),
    "maximum": lambda: build(lambda m, x: torch.maximum(x, m.a(x)).clamp(max=2), a=conv()),
    "table": lambda: build(lambda m, x: m.a(x + m.t[0][:, :, : x.shape[2], : x.shape[3]]), a=conv(),
                           t=nn.ParameterList([torch.randn(1, 8, 20, 20)])),
    "image size": lambda: build(lambda m, x: m.b(m.a(x) / x.shape[2]), a=conv(), b=nn.Conv2d(8, 8, 1)),
    "batch size": lambda: build(lambda m, x: m.b(m.a(x) * x.size(0) ** 0.5), a=conv(), b=nn.Conv2d(8, 8, 1)),
    "constant size": lambda: build(lambda m, x: m.b(m.a(x) * x.shape[1] ** 0.5), a=conv(), b=nn.Conv2d(8, 8, 1)),
    "shared layer": lambda: build(lambda m, x: m.a(torch.relu(m.a(x))), a=conv()),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("granularity", ["channel", "weight", "filters"])
def test_what_is_closed_leaves_exactly(name: str, granularity: str) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name](), varied_images(2, 3, 12)
    if granularity == "filters":  # pruned to zeros by another tool
        zero_filters(nn.Sequential(*(m for m in model.modules() if type(m) is nn.Conv2d)), 0.4, seed=1)
        prepared, compact = model, fxprune.convert(model, x)
    else:
        prepared = fxprune.prepare(model, x, granularity=granularity)
        if granularity == "channel":
            close_units(prepared, 0.4, seed=1)
        else:
            prepared.fxprune.refresh({n: find_tensor(prepared, n) for n in prepared.fxprune.parameter_names}, 0.6)
        compact = fxprune.convert(prepared)
    for size in (12, 18):
        assert relative_error(prepared, compact, varied_images(4, 3, size, seed=3), 1e-3) < 1e-11
    if granularity == "channel":
        assert compact.report.units_removed > 0


def test_groups_of_a_transposed_convolution_that_are_left_with_one_filter_each_lose_the_others() -> None:
    model = nn.Sequential(
        conv(3, 12), nn.ReLU(), nn.ConvTranspose2d(12, 8, 4, 2, 1, groups=4), nn.ReLU(), nn.Conv2d(8, 6, 1)
    ).double()  # fmt: skip
    randomise(model)
    prepared = fxprune.prepare(model, varied_images(2, 3, 12))
    prepared.fxprune.set_gates(torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]))
    compact = fxprune.convert(prepared)
    assert compact.get_submodule("2").out_channels == 4
    assert not compact.report.kept
    assert relative_error(prepared, compact, varied_images(4, 3, 18, seed=3), 1e-3) < 1e-11


def test_a_model_that_has_become_a_constant_still_has_the_batch_of_its_input() -> None:
    """Both sides of a shortcut always give the same: one of them keeps the shape."""

    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return (self.a(x).relu() + self.b(x)).mean((2, 3))

    model = Dead().eval()
    for layer in (model.a, model.b):
        layer.weight.data.zero_()
    x = torch.randn(5, 3, 6, 6)
    compact = fxprune.convert(model, x[:2])
    torch.testing.assert_close(compact(x), model(x))


def test_parts_that_are_counted_by_the_number_of_elements_follow_it() -> None:
    """As Swin v2 sets the keys' biases to zero: a third of all, whatever is left of them."""

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.qkv, self.out = nn.Linear(5, 8), nn.Linear(8, 24), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            bias = self.qkv.bias.clone()
            length = bias.numel() // 3
            bias[length : 2 * length].zero_()
            q, k, v = F.linear(self.stem(x), self.qkv.weight, bias).reshape(len(x), 7, 3, 4, -1).permute(2, 0, 3, 1, 4)
            return self.out((q @ k.mT).softmax(-1).matmul(v).transpose(1, 2).flatten(2))

    model = Fused().double()
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    for seed in range(4):
        prepared = fxprune.prepare(model, x)
        close_units(prepared, 0.5, seed)
        compact = fxprune.convert(prepared)
        torch.testing.assert_close(compact(x), prepared.eval()(x), rtol=1e-10, atol=1e-10)

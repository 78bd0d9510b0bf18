"""Whether ops that count channels alike leave the closed ones out, in training already, and convert exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import fxprune
from tests.conversion import (
    assert_open_units_learn_alike,
    assert_same,
    convert_closed,
    count_units,
    prepare_randomised,
    set_gates,
    units_of,
)
from tests.exactness import close_units, randomise, varied_images

Body = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    """Sixteen channels, the op under test, twelve channels, and five outputs."""

    def __init__(self, body: Body, out: int, layers: dict[str, Any]) -> None:
        super().__init__()
        self.body, self.stem = body, nn.Conv2d(3, 16, 3, padding=1)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.last, self.head = nn.Conv2d(out, 12, 3, padding=1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.softplus(self.last(self.body(self, self.stem(x)))).mean((2, 3)))


def attend_to_channels(x: Tensor) -> Tensor:
    """Channels that are alike attend to each other, as in dual attention networks: both sides are channels."""
    rows = x.flatten(2)
    alike = rows @ rows.transpose(1, 2)
    weights = (alike.max(-1, keepdim=True)[0].expand_as(alike) - alike).softmax(-1)
    return x + (weights @ rows).view(x.shape)


def net(body: Body, out: int = 16, **layers: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return Net(body, out, {name: layer() for name, layer in layers.items()})

    return build


def one(inputs: int = 16, outputs: int = 16, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(inputs, outputs, 1, **options)


def table(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.rand(*shape) + 0.5)


def images(count: int = 3, size: int = 8, seed: int = 0) -> Tensor:
    return varied_images(count, 3, size, seed)


def last(function: Callable[..., Tensor]) -> Body:
    """Run a function of (module, x) on images whose channels are the last dimension."""
    return lambda m, x: function(m, x.movedim(1, 3)).movedim(3, 1)


def spelled_layer_norm(m: nn.Module, x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return m.w * centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6)


def block_attention(m: nn.Module, x: Tensor) -> Tensor:
    return x * m.c(torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)).sigmoid()


def standardise(m: nn.Module, x: Tensor) -> Tensor:
    w = m.c.weight
    return F.conv2d(x, (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5), m.c.bias)


def standardise_by_batch_norm(m: nn.Module, x: Tensor) -> Tensor:
    w = m.c.weight
    flat = F.batch_norm(w.reshape(1, 16, -1), None, None, m.g, training=True, momentum=0.0)
    return F.conv2d(x, flat.reshape_as(w), m.c.bias, padding=m.c.padding)


def select_kernels(m: nn.Module, x: Tensor) -> Tensor:
    weights = m.d(x.mean((2, 3))).unflatten(1, (2, 16)).softmax(1)
    return (torch.stack([x, m.c(x)], 1) * weights[..., None, None]).sum(1)


def gate_by_norm(m: nn.Module, x: Tensor) -> Tensor:
    """ConvNeXt v2's global response norm."""
    size = x.norm(p=2, dim=(2, 3), keepdim=True)
    return m.g * (x * size / (size.mean(1, keepdim=True) + 1e-6)) + x


def non_local(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (f(x).flatten(2) for f in (m.q, m.k, m.v))
    return x + m.o((v @ (q.mT @ k).softmax(-1).mT).unflatten(2, x.shape[2:]))


def involve(m: nn.Module, x: Tensor) -> Tensor:
    patches = F.unfold(x, 3, padding=1).view(x.size(0), 4, 4, 9, *x.shape[2:])
    return (m.c(x).unflatten(1, (4, 9)).unsqueeze(2) * patches).sum(3).flatten(1, 2)


def efficient_attention(m: nn.Module, x: Tensor) -> Tensor:
    """A gate for each channel, from its mean and those of its neighbours (ECA)."""
    y = x.mean((2, 3)).unsqueeze(1)
    return x * m.c(y).transpose(1, 2).sigmoid().unsqueeze(-1)


def efficient_attention_twice(m: nn.Module, x: Tensor) -> Tensor:
    y = F.conv1d(input=x.mean((2, 3)).view(len(x), 1, -1), weight=m.w, bias=m.b, padding="same", dilation=2)
    return x * m.c(y.relu()).view(len(x), -1, 1, 1)


def efficient_attention_of_pixels(m: nn.Module, x: Tensor) -> Tensor:
    return x + m.c(x.flatten(2).unsqueeze(1)).view(x.shape).tanh()


def shuffle(x: Tensor) -> Tensor:
    return x.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)


def group(groups: int, channels: int = 16) -> Callable[[], nn.GroupNorm]:
    return lambda: nn.GroupNorm(groups, channels)


def in_order(*names: str) -> Body:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        for name in names:
            x = getattr(m, name)(x)
        return x

    return body


LIVING: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "flattened": (net(lambda m, x: x / (1 + x.flatten(1).norm(dim=1))[:, None, None, None]), 28),
    "flattened, channels last": (net(last(lambda m, x: x / (1 + x.flatten(1).norm(dim=1))[:, None, None, None])), 28),
    "mean of flattened": (net(lambda m, x: x - x.flatten(1).square().mean(1)[:, None, None, None]), 28),
    "layer norm": (net(last(lambda m, x: m.n(x)), n=lambda: nn.LayerNorm(16)), 28),
    "layer norm, function": (net(last(lambda m, x: F.layer_norm(x, (x.shape[-1],)))), 28),
    "layer norm, some arguments by name": (net(last(lambda m, x: F.layer_norm(x, (16,), weight=m.w)), w=table(16)), 28),
    "layer norm, spelled out": (net(spelled_layer_norm, w=table(1, 16, 1, 1)), 28),
    "layer norm of pooled": (net(lambda m, x: x * F.layer_norm(x.mean((2, 3)), [16])[..., None, None]), 28),
    "rms norm": (net(last(lambda m, x: m.n(x)), n=lambda: nn.RMSNorm(16)), 28),
    "rms norm, function": (net(last(lambda m, x: F.rms_norm(x, (16,), eps=1e-3))), 28),
    "rms norm, spelled out": (net(lambda m, x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)), 28),
    "instance norm": (net(in_order("n"), n=lambda: nn.InstanceNorm2d(16, affine=True)), 28),
    "instance norm, no scale": (net(in_order("n"), n=lambda: nn.InstanceNorm2d(16)), 28),
    "instance norm, statistics": (net(in_order("n"), n=lambda: nn.InstanceNorm2d(16, track_running_stats=True)), 28),
    "group norm, one": (net(in_order("n"), n=group(1)), 28),
    "group norm, two": (net(in_order("n"), n=group(2)), 12 + 8),
    "group norm, as many groups as channels each": (net(in_order("n"), n=group(4)), 12 + 4),
    "group norm, eight": (net(in_order("n"), n=group(8)), 12 + 8),
    "group norm, a channel each": (net(in_order("n"), n=group(16)), 28),
    "group norm, function": (net(lambda m, x: F.group_norm(x, num_groups=2, weight=m.w, eps=1e-3), w=table(16)), 20),
    "group norm, joined": (net(lambda m, x: m.n(torch.cat([x, m.c(x)], 1)), 24, c=one(16, 8), n=group(1, 24)), 36),
    "group norm, shuffled": (net(lambda m, x: m.n(shuffle(x)), n=group(2)), 20),
    "group norms, finer and coarser": (net(in_order("n", "o"), n=group(8), o=group(2)), 12 + 4),
    "group norm, grouped convolution": (net(in_order("c", "n"), c=one(groups=4), n=group(8)), 18),
    "mean": (net(lambda m, x: x - x.mean(1, keepdim=True)), 28),
    "mean of all": (net(lambda m, x: x - x.mean()), 28),
    "mean by name": (net(lambda m, x: x - x.mean(dim=[-3], keepdim=True)), 28),
    "mean of groups": (net(lambda m, x: x.unflatten(1, (4, 4)).mean(2), 4), 16),
    "sum": (net(lambda m, x: x * torch.sum(x, dim=(1, 2), keepdim=True)), 28),
    "sum over the width": (net(lambda m, x: x - x.sum(1, keepdim=True) / 16), 28),
    "weighted mean": (net(lambda m, x: x - (x * m.w).sum(1, keepdim=True) / m.w.sum(), w=table(1, 16, 1, 1)), 28),
    "max": (net(lambda m, x: x - x.max(1, keepdim=True)[0]), 28),
    "max, by name": (net(lambda m, x: x - x.max(1, keepdim=True).values), 28),
    "amax": (net(lambda m, x: x - torch.amax(x, 1, True)), 28),
    "maxout": (net(lambda m, x: x.unflatten(1, (4, 4)).amax(2), 4), 16),
    "var": (net(lambda m, x: x / x.var(1, keepdim=True).sqrt()), 28),
    "var, biased": (net(lambda m, x: x / (x.var(1, False, True) + 1).sqrt()), 28),
    "var, correction": (net(lambda m, x: x / (torch.var(x, dim=1, correction=0, keepdim=True) + 1).sqrt()), 28),
    "var of all": (net(lambda m, x: x / x.var()), 28),
    "std": (net(lambda m, x: x / (1 + x.std(1, keepdim=True))), 28),
    "std over several": (net(lambda m, x: x / (1 + x.std((1, 2, 3), keepdim=True))), 28),
    "var_mean": (net(lambda m, x: (lambda v, u: (x - u) / v.sqrt())(*torch.var_mean(x, 1, keepdim=True))), 28),
    "softmax, spelled out": (net(lambda m, x: (lambda e: e / e.sum(1, keepdim=True))(x.exp())), 28),
    "norm": (net(lambda m, x: x / (1 + x.norm(p=1, dim=1, keepdim=True))), 28),
    "vector norm": (net(lambda m, x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True)), 28),
    "normalize": (net(lambda m, x: F.normalize(x, dim=1)), 28),
    "normalize, by name": (net(lambda m, x: F.normalize(input=x, p=1.0)), 28),
    "glu": (net(lambda m, x: F.glu(m.c(x), 1), c=one(16, 32)), 44),
    "glu, from the end": (net(lambda m, x: F.glu(x, -3), 8), 20),
    "block attention": (net(block_attention, c=lambda: nn.Conv2d(2, 1, 7, padding=3)), 28),
    "context": (net(lambda m, x: x + (x.flatten(2) @ m.c(x).flatten(2).softmax(2).mT)[..., None], c=one(16, 1)), 28),
    "non-local": (net(non_local, q=one(16, 8), k=one(16, 8), v=one(16, 8), o=one(8, 16)), 44),
    "selective kernels": (net(select_kernels, c=one(), d=lambda: nn.Linear(16, 32)), 28),
    "efficient channel attention": (
        net(efficient_attention, c=lambda: nn.Conv1d(1, 1, 5, padding=2, bias=False)), 28),
    "efficient channel attention, twice": (
        net(efficient_attention_twice, c=lambda: nn.Conv1d(4, 1, 3, padding=1), w=table(4, 1, 3), b=table(4)), 32),
    "efficient channel attention, of pixels": (
        net(efficient_attention_of_pixels, c=lambda: nn.Conv2d(1, 1, 3, padding=1)), 28),
    "global response norm": (net(gate_by_norm, g=table(1, 16, 1, 1)), 28),
    "involution": (net(involve, c=one(16, 36)), 16),
    "standardised weights": (net(standardise, c=one()), 44),
    "weights standardised by batch norm": (net(standardise_by_batch_norm, c=one(), g=table(16)), 44),
    "weights standardised by batch norm, kernels": (
        net(standardise_by_batch_norm, c=lambda: nn.Conv2d(16, 16, 3, padding=1), g=table(16)), 44),
    "weights normalised": (net(lambda m, x: F.conv2d(x, F.normalize(m.c.weight, dim=1)), c=one()), 44),
    "weight norm": (net(in_order("c"), c=lambda: weight_norm(nn.Conv2d(16, 16, 1))), 44),
    "spectral norm": (net(in_order("c"), c=lambda: spectral_norm(nn.Conv2d(16, 16, 1))), 44),
    "low rank": (net(lambda m, x: F.conv2d(x, m.c.weight + (m.a @ m.b)[..., None, None]), c=one(),
                     a=table(16, 2), b=table(2, 16)), 46),
    "patches": (net(lambda m, x: F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1)), 28),
    "pixel shuffle": (net(lambda m, x: F.pixel_shuffle(x, 2), 4), 16),
    "pixel unshuffle": (net(lambda m, x: F.pixel_unshuffle(x, 2), 64), 28),
    "sampled": (net(lambda m, x: F.grid_sample(x, m.c(x).movedim(1, 3).tanh(), align_corners=False), c=one(16, 2)), 28),
    "einsum, weight right": (net(lambda m, x: torch.einsum("bchw,oc->bohw", x, m.w), w=table(16, 16)), 44),
    "einsum, weight left": (net(lambda m, x: torch.einsum("oc,bchw->bohw", m.w, x), w=table(16, 16)), 44),
    "three factors": (net(lambda m, x: torch.einsum("bchw,ck,cok->bohw", x, m.a, m.b), a=table(16, 4),
                          b=table(16, 16, 4)), 28),
    "experts": (net(lambda m, x: torch.einsum("bchw,bk,koc->bohw", x, m.r(x.mean((2, 3))).softmax(1), m.w),
                    r=lambda: nn.Linear(16, 4), w=table(4, 16, 16)), 28),
    "weight transposed": (net(lambda m, x: F.conv2d(x, m.c.weight.transpose(0, 1), m.c.bias), c=one()), 44),
    "sum of a weight": (net(lambda m, x: m.c(x) * m.c.weight.pow(2).sum(), c=one()), 44),
    "mean of a weight": (net(lambda m, x: m.c(x) * m.c.weight.pow(2).mean(), c=one()), 28),
    "matmul, weight left": (net(lambda m, x: (m.w @ x.flatten(2)).unflatten(2, x.shape[2:]), w=table(16, 16)), 44),
    "expanded": (net(lambda m, x: x * m.w.view(1, 16, 1, 1).expand_as(x), w=table(16)), 28),
    "mean expanded": (net(lambda m, x: x - x.mean(1, keepdim=True).expand_as(x)), 28),
    "softmax": (net(lambda m, x: x * x.softmax(1)), 28),
    "softmax of a square of channels": (net(lambda m, x: attend_to_channels(x)), 28),
    "attention of a square of channels": (
        net(lambda m, x: (lambda y: ((y @ y.mT).softmax(-1) @ y).view_as(x))(x.flatten(2))), 28),
    "mean of a square of channels": (net(lambda m, x: (lambda y: x * (y[:, :, None] * y[:, None]).mean(2)[
        ..., None, None])(x.mean((2, 3)))), 28),
    "softmax, module": (net(lambda m, x: x * m.s(x), s=lambda: nn.Softmax(1)), 28),
    "log softmax, module": (net(in_order("s"), s=lambda: nn.LogSoftmax(-3)), 28),
    "log softmax": (net(lambda m, x: F.log_softmax(x, 1)), 28),
    "mean, input by name": (net(lambda m, x: x - torch.mean(input=x, dim=1, keepdim=True)), 28),
    "how many are positive": (net(lambda m, x: x * (x > 0).sum(1, keepdim=True)), 28),
    "whole numbers": (net(lambda m, x: x * x.mul(2).long().sum(1, keepdim=True)), 28),
}  # fmt: skip
"""Ops that count channels, and the number of units: 12 of the last layer, and those of the op's."""

FEW = {
    "group norm, as many groups as channels each": 5, "maxout": 5, "mean of groups": 5, "pixel shuffle": 5,
    "involution": 5, "group norm, grouped convolution": 5, "group norms, finer and coarser": 5,
}  # fmt: skip
"""Where so few units are left that the usual seed closes all of them."""


@pytest.mark.parametrize("name", LIVING)
def test_what_counts_channels_converts_exactly(name: str) -> None:
    build, units = LIVING[name]
    prepared = prepare_randomised(build(), images())
    assert count_units(prepared) == units
    share = 0.3 if name in FEW else 0.5
    compact = convert_closed(prepared, images(5, 12, 1), images(2, 6, 2), share=share, seed=FEW.get(name, 3))
    assert compact.report.units_removed >= 0.1 * units
    assert not any("cannot be made smaller" in reason for reason in compact.report.kept)


PINNING: dict[str, tuple[Body, str]] = {
    "cumsum": (lambda m, x: x.cumsum(1), "cumsum runs over channels"),
    "sort": (lambda m, x: x.sort(1)[0], "sort runs over channels"),
    "topk": (lambda m, x: x * x.topk(3, 1)[0].mean(1, keepdim=True), "topk runs over channels"),
    "median": (lambda m, x: x - x.median(1, keepdim=True)[0], "median reduces over channels"),
    "product": (lambda m, x: x * (1 + x.tanh().prod(1, keepdim=True)), "prod reduces over channels"),
    "minimum": (lambda m, x: x - x.amin(1, keepdim=True), "amin reduces over channels"),
    "place of the maximum": (lambda m, x: x * x.argmax(1, keepdim=True), "argmax reduces over channels"),
    "maximum and its place": (lambda m, x: (lambda v, i: x - v + i)(*x.max(1, keepdim=True)), "max reduces"),
    "logsumexp": (lambda m, x: x - x.logsumexp(1, keepdim=True), "logsumexp reduces over channels"),
    "response norm": (lambda m, x: F.local_response_norm(x, 3), "avg_pool3d mixes a dimension of channels"),
    "least norm": (lambda m, x: x * torch.linalg.vector_norm(x, -1, dim=1, keepdim=True), "linalg_vector_norm"),
    "norm over images": (lambda m, x: F.layer_norm(x, x.shape[1:]), "native_layer_norm"),
    "pooled channels": (lambda m, x: F.avg_pool1d(x.flatten(2).mT, 3, 1, 1).mT.view_as(x), "mixes a dimension"),
    "circular neighbours": (
        lambda m, x: (
            x
            * F.conv1d(F.pad(x.mean((2, 3))[:, None], (1, 1), mode="circular"), torch.ones(1, 1, 3).to(x)).view(
                len(x), -1, 1, 1
            )
        ),
        "convolution mixes a dimension",
    ),
    "Fourier": (lambda m, x: torch.fft.fft(x, dim=1).real, "a Fourier transform mixes"),
    "distances": (lambda m, x: x * torch.cdist(x.flatten(2), x.flatten(2)).mean(2)[..., None, None], "_cdist"),
}


@pytest.mark.parametrize("name", PINNING)
def test_what_has_no_form_for_fewer_channels_pins_them_and_says_so(name: str) -> None:
    body, reason = PINNING[name]
    prepared = prepare_randomised(net(body)(), images())
    assert count_units(prepared) == 12
    assert any(reason in pin and "test_living.py:" in pin for pin in prepared.pinned)
    convert_closed(prepared, images(5, 8, 1))


def test_a_triangle_of_channels_stays_for_a_reason() -> None:
    """A channel meets some of the others, and both dimensions are one set of units."""
    model = net(lambda m, x: F.conv2d(x, m.w.tril()[..., None, None]), w=table(16, 16))()
    prepared = prepare_randomised(model, images())
    assert count_units(prepared) == 12
    assert any("test_living.py:" in pin for pin in prepared.pinned)
    convert_closed(prepared, images(5, 8, 1))


WITHOUT_BATCH_NORM = [n for n in LIVING if "batch" not in n and "statistics" not in n and "spectral" not in n]


@pytest.mark.parametrize("name", WITHOUT_BATCH_NORM[::2])
def test_statistics_leave_closed_channels_out_while_training(name: str) -> None:
    """What a prepared model gives in training mode is what the compact one will give in training mode."""
    prepared = prepare_randomised(LIVING[name][0](), images()).train()
    close_units(prepared, 0.4, FEW.get(name, 3))
    compact = fxprune.convert(prepared)
    assert compact.training
    x = images(5, 12, 1)
    torch.manual_seed(0)
    expected = prepared.train()(x)
    torch.manual_seed(0)
    actual = compact.train()(x)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


BAKED = ("weight norm", "spectral norm")  # their weights are other parameters in the compact model


@pytest.mark.parametrize("name", [name for name in LIVING if name not in BAKED])
def test_what_is_open_learns_as_in_the_compact_model(name: str) -> None:
    """A closed unit's gradient is its own: it must not reach the weights of open ones."""
    prepared = prepare_randomised(LIVING[name][0](), images())
    close_units(prepared, 0.3, 5, soft=False)
    compact = fxprune.convert(prepared)
    assert_open_units_learn_alike(prepared, compact, images(4, 8, 1))


@pytest.mark.parametrize("name", LIVING)
def test_with_all_channels_open_nothing_changes(name: str) -> None:
    model = LIVING[name][0]()
    prepared = prepare_randomised(model, images())
    x = images(4, 10, 4)
    torch.testing.assert_close(prepared(x), model.eval()(x), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        x = images()
        torch.manual_seed(0)
        expected = model.train()(x)
        torch.manual_seed(0)
        torch.testing.assert_close(prepared.train()(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["layer norm", "group norm, one", "group norm, eight", "rms norm", "mean", "softmax, spelled out", "std"]
)
def test_filters_of_zeros_that_a_norm_counts_stay(name: str) -> None:
    """Not gates but zeros: the dense model counts them, so its statistics need them."""
    model = LIVING[name][0]().double().eval()
    randomise(model)
    with torch.no_grad():
        model.stem.weight[::3] = 0
        model.stem.bias[::3] = 0
        model.last.weight[1::2] = 0
    compact = fxprune.convert(model, images())
    assert_same(model, compact, images(5, 12, 1))
    assert compact.stem.out_channels == 16
    assert compact.report.units_removed == 6


def test_groups_whose_channels_all_close_go_and_the_number_of_groups_follows() -> None:
    prepared = prepare_randomised(LIVING["group norm, eight"][0](), images())
    units = units_of(prepared, "stem.weight", 0).view(8, 2)
    assert bool((units[:, 0] == units[:, 1]).all())
    set_gates(prepared, units[[1, 4, 5], 0].tolist())
    compact = fxprune.convert(prepared)
    assert_same(prepared, compact, images(5, 12, 1))
    assert (compact.stem.out_channels, len(compact.n.weight)) == (10, 10)


def test_a_channel_of_each_group_closes_where_groups_are_coarse() -> None:
    prepared = prepare_randomised(LIVING["group norm, two"][0](), images())
    units = units_of(prepared, "stem.weight", 0).view(2, 8)
    assert bool((units[0] == units[1]).all())
    set_gates(prepared, units[0, 1:].tolist())
    compact = fxprune.convert(prepared)
    assert_same(prepared, compact, images(5, 12, 1))
    assert compact.stem.out_channels == 2


def test_a_stream_that_is_embedded_and_read_by_one_table_is_pruned() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.norm = nn.Embedding(20, 16), nn.LayerNorm(16)
            self.a, self.b, self.out = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 20, bias=False)
            self.out.weight = self.words.weight

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.words(tokens)
            return self.out(self.norm(x + self.b(F.gelu(self.a(x))))).mean(1)

    torch.manual_seed(0)
    tokens = torch.randint(20, (6, 7))
    prepared = prepare_randomised(Language(), tokens)
    assert count_units(prepared) == 16 + 24
    compact = convert_closed(prepared, torch.randint(20, (4, 9)))
    assert compact.out.weight is compact.words.weight
    assert compact.words.weight.shape[0] == 20
    assert compact.words.weight.shape[1] == compact.a.in_features < 16


@pytest.mark.parametrize(
    "build",
    [LIVING["std"][0], net(lambda m, x: F.avg_pool2d(x - x.amax(1, keepdim=True), 2))],
    ids=["std", "max"],
)
def test_a_layer_that_is_closed_as_a_whole_gives_numbers(build: Callable[[], nn.Module]) -> None:
    prepared = prepare_randomised(build(), images())
    set_gates(prepared, units_of(prepared, "stem.weight", 0).tolist())
    assert prepared(images()).isfinite().all()


@pytest.mark.parametrize(
    "name", ["layer norm", "rms norm", "group norm, one", "mean", "var, biased", "normalize", "softmax"]
)
def test_a_norm_of_a_layer_that_is_closed_as_a_whole_gives_numbers(name: str) -> None:
    prepared = prepare_randomised(LIVING[name][0](), images())
    set_gates(prepared, units_of(prepared, "stem.weight", 0).tolist())
    out = prepared(images())
    assert out.isfinite().all()
    out.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in prepared.parameters())
    compact = fxprune.convert(prepared)
    assert list(compact.report.kept) == ["the strongest unit of a layer that would be empty stays"]
    torch.testing.assert_close(compact(images(5, 12, 1)), prepared(images(5, 12, 1)), rtol=1e-12, atol=1e-12)

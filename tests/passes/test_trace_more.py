"""Whether code as people write it is traced and pruned: odd arguments, wrappers, caches, casts, other states."""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import operator
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxprune
from fxprune.errors import FxpruneError, GuardViolated, TraceError
from fxprune.model import as_inputs
from tests.conversion import assert_same, convert_closed, count_units, prepare_randomised
from tests.exactness import close_units, randomise

Body = Callable[[nn.Module, Tensor], Any]


class Net(nn.Module):
    """Ten features, sixteen channels, twelve channels, five outputs; `body` is all the code there is."""

    def __init__(self, body: Body, **layers: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.a, self.b, self.h = body, nn.Linear(10, 16), nn.Linear(16, 12), nn.Linear(12, 5)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def end(m: nn.Module, y: Tensor) -> Tensor:
    return m.h(F.softplus(m.b(y)))


def features(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, 10, generator=torch.Generator().manual_seed(seed)).double()


def rows_of(x: Tensor) -> Tensor:
    """Four rows of each sample, [batch, rows, features]."""
    return torch.stack([x, x.roll(1, 1), x * 2, x.flip(1)], 1)


def filter_rows(m: Any, x: Tensor) -> Tensor:
    """Weigh the frequencies of each channel, as global filter networks do."""
    return torch.fft.irfft(torch.fft.rfft(x, dim=1) * torch.view_as_complex(m.k), n=x.shape[1], dim=1)


def mix_parts(m: Any, x: Tensor) -> Tensor:
    """Mix real and imaginary parts of all channels, as fast Fourier convolutions do."""
    z = torch.view_as_real(torch.fft.rfft(x, dim=1)).flatten(2)
    real, imaginary = F.softplus(m.c(z)).unflatten(2, (16, 2)).unbind(3)
    return torch.fft.irfft(torch.complex(real, imaginary), n=x.shape[1], dim=1)


def convolve_each(m: Any, x: Tensor, style: Tensor) -> Tensor:
    """A kernel for each sample, the samples folded into the groups, as in StyleGAN 2."""
    kernels = m.k * m.s(style)[:, None]
    kernels = kernels * torch.rsqrt(kernels.square().sum(2, keepdim=True) + 1e-8)
    return F.conv1d(x.reshape(1, -1, 1), kernels.reshape(-1, 16, 1), groups=len(x)).reshape(len(x), 16)


@torch.fx.wrap
def stepped_over(x: Tensor, factor: float) -> Tensor:
    return F.softplus(x) * factor


@torch.library.custom_op("fxprune_more::tilt", mutates_args=())
def tilt(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


tilt.register_fake(torch.empty_like)
tilt.register_autograd(lambda ctx, g: g - g.mean(1, keepdim=True))


@dataclasses.dataclass
class Out:
    scores: Tensor
    others: list[Tensor]


def write_halves(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x)
    out = y.new_zeros(y.shape[0], 16)
    out[:, :8], out[:, 8:] = y[:, 8:], y[:, :8]
    return end(m, out)


def write_in_place(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x)
    y += 1
    y[:, 3] = 0
    y.mul_(2).clamp_(min=-3)
    y[:, [1, 2]] *= 2
    return end(m, y)


def write_through_a_view(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, :4].add_(1)
    return end(m, y)


def keep(m: nn.Module, x: Tensor) -> Tensor:
    """Cache a tensor of the batch's size in an attribute."""
    if getattr(m, "kept", None) is None or m.kept.shape[0] != x.shape[0]:
        m.kept = torch.full((x.shape[0], 16), 0.5, dtype=x.dtype)
    return end(m, m.a(x) + m.kept)


def experts(m: nn.Module, x: Tensor) -> Tensor:
    weights = m.gate(x).softmax(-1)
    return end(m, torch.stack([expert(m.a(x)) for expert in m.experts], 1).mul(weights[..., None]).sum(1))


def chosen(m: nn.Module, x: Tensor) -> Tensor:
    scores = m.gate(x)
    scores = torch.where(scores >= scores.topk(2, -1)[0][:, -1:], scores, -1e9)
    return end(m, torch.stack([expert(m.a(x)) for expert in m.experts], 1).mul(scores.softmax(-1)[..., None]).sum(1))


def modulate(m: nn.Module, x: Tensor) -> Tensor:
    """Diffusion transformers' norm: shift, scale and gate out of one layer."""
    shift, scale, gate = m.c(x).view(-1, 3, 16).unbind(1)
    return end(m, (F.layer_norm(m.a(x), (16,)) * (1 + scale) + shift) * gate)


def mixed(m: nn.Module, x: Tensor) -> Tensor:
    return end(m, m.a(x) + m.c(x.float()).double())


def cast_regions(m: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False), torch.autocast(device_type=x.device.type, enabled=False):
        y = m.b(F.softplus(m.a(x)))
    return m.h(F.softplus(y))


with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # deprecated, but still in use
    scripted = torch.jit.script(F.silu)
    scripted_layer = torch.jit.script(nn.Softplus())
    scripted_layers = torch.jit.script(nn.Sequential(nn.Linear(10, 8), nn.Linear(8, 2)))
    recorded = torch.jit.trace(F.silu, torch.ones(2, 16).double())


def try_view(m: nn.Module, x: Tensor) -> Tensor:
    try:
        y = m.a(x).view(-1, 7)
    except RuntimeError:
        y = m.a(x)
    return end(m, y)


def check_sizes(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x)
    torch._check(y.shape[0] == x.shape[0])
    return end(m, y)


def choose_by_width(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x)
    return end(m, y * list(range(20))[y.shape[1]])


class Factors(nn.Module):
    """A factorisation machine: a table, and no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = par(10, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.table * x[..., None]
        return (y.sum(1).square() - y.square().sum(1)).sum(1, keepdim=True) * x


def moe() -> dict[str, Any]:
    return {"experts": nn.ModuleList([nn.Linear(16, 16) for _ in range(3)]), "gate": nn.Linear(10, 3)}


def par(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(*shape) - 0.3)


CODE: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "a layer made on the fly": (lambda: Net(lambda m, x: end(m, nn.ReLU()(m.a(x)))), 28),
    "layers chained on the fly": (lambda: Net(lambda m, x: nn.Sequential(m.a, nn.Softplus(), m.b, m.h)(x)), 28),
    "isinstance": (lambda: Net(lambda m, x: end(m, m.a(x)) if isinstance(x, Tensor) else x), 28),
    "not a list": (lambda: Net(lambda m, x: x if isinstance(m.a(x), (list, tuple)) else end(m, m.a(x))), 28),
    "is_tensor": (lambda: Net(lambda m, x: end(m, m.a(x)) if torch.is_tensor(x) and x.is_floating_point() else x), 28),
    "hasattr": (lambda: Net(lambda m, x: end(m, m.a(x)) if hasattr(x, "shape") else x), 28),
    "device and dtype": (lambda: Net(lambda m, x: end(m, m.a(x).to(x.dtype)) if x.device.type == "cpu" else x), 28),
    "power": (lambda: Net(lambda m, x: end(m, torch.pow(m.a(x), 2))), 28),
    "power of a number": (lambda: Net(lambda m, x: end(m, torch.pow(2, m.a(x)) + 1.5 ** m.a(x))), 28),
    "where, a number": (lambda: Net(lambda m, x: end(m, torch.where(m.a(x) > 0, m.a(x), 0.5))), 28),
    "where, a number first": (lambda: Net(lambda m, x: end(m, torch.where(m.a(x) > 0, 0.5, m.a(x)))), 28),
    "where, two numbers": (lambda: Net(lambda m, x: end(m, m.a(x) * torch.where(m.a(x) > 0, 1.0, 0.5))), 28),
    "masked fill": (lambda: Net(lambda m, x: end(m, m.a(x).masked_fill(m.a(x) < 0, -1.0))), 28),
    "masked fill, broadcast": (lambda: Net(lambda m, x: end(m, m.a(x).masked_fill(x[:, :1] > 0, 0.3))), 28),
    "reflected": (lambda: Net(lambda m, x: end(m, 1 - m.a(x) + 1 / (2 + m.a(x) ** 2))), 28),
    "clamp by a parameter": (lambda: Net(lambda m, x: end(m, m.a(x).clamp(min=m.k)), k=par(16)), 28),
    "a function that is stepped over": (lambda: Net(lambda m, x: end(m, stepped_over(m.a(x), 2))), 28),
    "finfo": (lambda: Net(lambda m, x: end(m, m.a(x).clamp(min=torch.finfo(x.dtype).eps))), 28),
    "finfo of a result": (lambda: Net(lambda m, x: end(m, m.a(x) + torch.finfo(m.a(x).dtype).tiny)), 28),
    "frozen batch norm": (lambda: Net(lambda m, x: end(m, m.n(m.a(x)[..., None, None]).flatten(1)),
                                      n=torchvision.ops.FrozenBatchNorm2d(16)), 28),
    "stochastic depth": (lambda: Net(lambda m, x: end(m, m.a(x) + torchvision.ops.stochastic_depth(
        m.c(m.a(x)), 0.2, "row", m.training)), c=nn.Linear(16, 16)), 28),
    "reduce": (lambda: Net(lambda m, x: end(m, functools.reduce(operator.add, [m.a(x), m.a(-x), m.a(x * 2)]))), 28),
    "sum of a list": (lambda: Net(lambda m, x: end(m, sum([m.a(x), m.a(x) * 2]))), 28),
    "reversed parts": (lambda: Net(lambda m, x: end(m, torch.cat(m.a(x).split([3, 5, 8], 1)[::-1], 1))), 28),
    "unbound and stacked": (lambda: Net(lambda m, x: end(m, torch.stack(m.a(x).unbind(1)[::-1], 1))), 28),
    "sizes as numbers": (lambda: Net(lambda m, x: end(m, m.a(x).view(-1, 4, 4).transpose(1, 2).reshape(-1, 16))), 28),
    "transposed product": (lambda: Net(lambda m, x: end(m, (m.k @ m.a(x).T).T), k=par(16, 16)), 44),
    "addmm": (lambda: Net(lambda m, x: end(m, torch.addmm(m.k, m.a(x), m.j, beta=0.5, alpha=2)),
                          k=par(16), j=par(16, 16)), 44),
    "halves written": (lambda: Net(write_halves), 12),
    "written in place": (lambda: Net(write_in_place), 12),
    "written through a view": (lambda: Net(write_through_a_view), 28),
    "a cache": (lambda: Net(keep), 28),
    "a table by index": (lambda: Net(lambda m, x: end(m, m.a(x) + m.k[(x[:, 0] * 9).long().clamp(0, 9)]),
                                     k=par(10, 16)), 28),
    "a bag of embeddings": (lambda: Net(lambda m, x: end(m, m.a(x) + m.e((x[:, :3] * 9).long().clamp(0, 9))),
                                        e=nn.EmbeddingBag(10, 16)), 12),
    "experts": (lambda: Net(experts, **moe()), 44),
    "chosen experts": (lambda: Net(chosen, **moe()), 44),
    "experts in one product": (lambda: Net(lambda m, x: end(m, torch.einsum(
        "bi,eio,be->bo", m.a(x), m.w, m.gate(x).softmax(-1))), w=par(3, 16, 16), gate=nn.Linear(10, 3)), 29),
    "modulated norm": (lambda: Net(modulate, c=nn.Linear(10, 48)), 28),
    "film": (lambda: Net(lambda m, x: end(m, (lambda g, b: m.a(x) * (1 + g) + b)(*m.c(x).chunk(2, -1))),
                         c=nn.Linear(10, 32)), 28),
    "tied weights": (lambda: Net(lambda m, x: end(m, m.a(x) + F.linear(F.softplus(m.b(m.a(x))), m.b.weight.t()))), 28),
    "joined with the input": (lambda: Net(lambda m, x: end(m, m.c(torch.cat([m.a(x), x], -1))),
                                          c=nn.Linear(26, 16)), 44),
    "a class token": (lambda: Net(lambda m, x: end(m, torch.cat([m.k.expand(x.shape[0], -1, -1), m.a(x)[:, None]], 1)
                                                   .mean(1)), k=par(1, 1, 16)), 28),
    "factors of a table": (lambda: Factors(), 16),
    "checkpoint": (lambda: Net(lambda m, x: end(m, checkpoint(m.a, x, use_reentrant=False))), 28),
    "checkpoint, reentrant": (lambda: Net(lambda m, x: end(m, checkpoint(m.a, x, use_reentrant=True))), 28),
    "a scripted function": (lambda: Net(lambda m, x: end(m, scripted(m.a(x)))), 28),
    "a scripted module": (lambda: Net(lambda m, x: end(m, m.s(m.a(x))), s=scripted_layer), 28),
    "a function that was traced": (lambda: Net(lambda m, x: end(m, recorded(m.a(x)))), 28),
    "vmap": (lambda: Net(lambda m, x: end(m, torch.vmap(lambda row: row * 2)(m.a(x)))), 28),
    "vmap over pairs": (lambda: Net(lambda m, x: m.h(torch.vmap(torch.mv, (None, 0))(m.k, F.softplus(m.a(x)))),
                               k=par(12, 16)), 28),
    "an outer product with a table": (lambda: Net(lambda m, x: end(m, m.a(x) * (
        m.k[None, :, None].expand(len(x), -1, 1) @ x[:, None, :1]).squeeze(2).cos()), k=nn.Buffer(torch.rand(16))), 28),
    "an outer product with a vector": (lambda: Net(lambda m, x: end(m, m.a(x) + x[:, :1] @ m.k[None]), k=par(16)), 28),
    "scored by a vector": (lambda: Net(lambda m, x: end(m, m.a(x) * (m.a(x) @ m.k).sigmoid()[:, None]), k=par(16)), 28),
    "scored by a vector and a number": (lambda: Net(lambda m, x: end(m, m.a(x) * torch.addmv(
        m.j, m.a(x), m.k, beta=0.5).sigmoid()[:, None]), k=par(16), j=par(1)), 28),
    "scored by a computed vector": (lambda: Net(lambda m, x: end(m, m.a(x) * m.a(x).mv(
        F.softplus(m.k)).sigmoid()[:, None]), k=par(16)), 28),
    "shaped in place": (lambda: Net(lambda m, x: end(m, m.a(x).unsqueeze_(1).transpose_(1, 2).squeeze_(2))), 28),
    "turned in place": (lambda: Net(lambda m, x: end(m, (m.k @ m.a(x).t_()).t_()), k=par(16, 16)), 44),
    "a vector times a matrix": (lambda: Net(lambda m, x: end(m, m.a(x) + x.mean(0) @ m.k), k=par(10, 16)), 28),
    "a number of a buffer": (lambda: Net(lambda m, x: end(m, m.a(x) * float(m.k)), k=nn.Buffer(torch.tensor(2.0))), 28),
    "other weights for one call": (lambda: Net(lambda m, x: end(m, torch.func.functional_call(
        m.a, {"weight": m.a.weight * 2}, (x,)))), 28),
    "a failure that is caught": (lambda: Net(try_view), 12),
    "a truth value that torch checks": (lambda: Net(check_sizes), 28),
    "strides by hand": (lambda: Net(lambda m, x: end(m, m.a(x).as_strided((x.shape[0], 16), (16, 1)))), 28),
    "other strides by hand": (lambda: Net(lambda m, x: end(m, m.a(x).as_strided((x.shape[0], 16), (1, 1)))), 12),
    "autocast, off": (lambda: Net(cast_regions), 28),
    "a Fourier filter": (lambda: Net(lambda m, x: end(m, filter_rows(m, m.a(rows_of(x))).mean(1)),
                                     k=par(3, 16, 2)), 28),
    "Fourier parts": (lambda: Net(lambda m, x: end(m, mix_parts(m, m.a(rows_of(x))).mean(1)), c=nn.Linear(32, 32)), 44),
    "a Fourier spectrum": (lambda: Net(lambda m, x: end(
        m, torch.fft.fft(m.a(rows_of(x)), dim=1).conj().abs().mean(1))), 28),
    "a Fourier transform of channels": (lambda: Net(lambda m, x: end(m, torch.fft.fft(m.a(x)).real)), 12),
    "kernels for each sample": (lambda: Net(lambda m, x: end(m, convolve_each(m, m.a(x), x)), k=par(16, 16),
                                            s=nn.Linear(10, 16)), 44),
}  # fmt: skip


@pytest.mark.parametrize("name", CODE)
def test_odd_code_is_pruned_exactly(name: str) -> None:
    build, units = CODE[name]
    prepared = prepare_randomised(build(), features())
    assert not prepared.untraced
    assert count_units(prepared) == units
    convert_closed(prepared, features(6, 1), features(2, 2), share=0.4, seed=1)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of a reentrant checkpoint
@pytest.mark.parametrize("name", CODE)
def test_odd_code_computes_the_same_when_prepared(name: str) -> None:
    model = CODE[name][0]()
    prepared = prepare_randomised(model, features())
    for training in (False, True):
        for x in (features(6, 1), features(1, 2)):
            outputs = []
            for each in (model, prepared):
                torch.manual_seed(0)
                outputs.append(each.train(training)(x))
            torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    assert getattr(prepared, "kept", None) is None


def test_a_choice_by_width_is_made_as_it_was() -> None:
    convert_closed(prepare_randomised(Net(choose_by_width), features()), features(6, 1), share=0.4, seed=1)


def test_code_that_does_something_else_than_its_graph_is_refused() -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        return end(m, m.a(x)) if type(x) is Tensor else m.h(m.b(x.new_zeros(1, 16)))

    with pytest.raises(TraceError, match="gives other outputs than its code"):
        fxprune.prepare(Net(body).double(), features())


@pytest.mark.parametrize(
    "say",
    [
        lambda text: warnings.warn(text),  # noqa: B028
        lambda text: warnings.warn(text, UserWarning, 1),
        lambda text: logging.getLogger().warning(text),
        lambda text: logging.getLogger().exception("%s", text),
        lambda text: logging.getLogger().log(logging.WARNING, text, stacklevel=1),
    ],
    ids=["warn", "level as third argument", "warning", "exception", "log"],
)
def test_what_the_code_says_names_its_own_line(
    say: Callable[[str], None], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        say(f"{x.shape[0]} rows")
        return end(m, m.a(x))

    fxprune.prepare(Net(body), features().float())
    said = [record.pathname for record in caplog.records] + [warning.filename for warning in recwarn]
    assert said
    assert set(said) == {__file__}


def test_an_op_that_failed_and_fails_no_more_is_said() -> None:
    prepared = prepare_randomised(Net(try_view), features())
    with pytest.raises(GuardViolated, match=r"test_trace_more.py:\d+ in try_view: this failed when"):
        prepared(features(7))


def test_code_that_goes_on_after_a_failure_without_a_check_is_refused() -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        try:
            return end(m, torch.cat([m.a(x), x[:2]], 1))
        except RuntimeError:
            return end(m, m.a(x))

    with pytest.raises(TraceError, match=r"test_trace_more.py:\d+ in body: the code goes on after this has failed"):
        prepare_randomised(Net(body), features())


@pytest.mark.parametrize(
    ("body", "hidden"),
    [
        (lambda m, x: end(m, torch.vmap(lambda row: F.linear(row, m.a.weight))(x)), "a.weight"),
        (lambda m, x: end(m, torch.vmap(m.a)(x)), "a.weight"),
        (lambda m, x: (lambda y: end(m, torch.vmap(lambda row: row * y.mean())(y)))(m.a(x)), "a value .* outside"),
    ],
)
def test_what_a_mapped_function_uses_besides_its_arguments_is_named(body: Body, hidden: str) -> None:
    with pytest.raises(TraceError, match=rf"test_trace_more.py:\d+ .*vmap uses {hidden}.* pass it as an argument"):
        prepare_randomised(Net(body), features())


def test_autocast_inside_the_code_casts_in_the_graph_too() -> None:
    def body(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            y = m.a(x)
            with torch.autocast("cpu", enabled=False):
                z = m.b(y.float())
        return m.h(z), y

    model = Net(body)
    prepared = fxprune.prepare(model, features().float())
    x = features(6, 1).float()
    for wanted, got in zip(model(x), prepared(x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert prepared(x)[1].dtype == model(x)[1].dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("float_mask", [False, True])
def test_attention_takes_a_mask_of_padding(float_mask: bool) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.h = nn.Linear(5, 8), nn.Linear(8, 3)
            self.attention = nn.MultiheadAttention(8, 4, batch_first=True)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            x = self.a(x)
            return self.h(self.attention(x, x, x, key_padding_mask=padding)[0])

    def inputs(count: int, length: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(count)
        padding = torch.arange(length).expand(count, length) >= torch.arange(2, 2 + count)[:, None]
        mask = torch.zeros(count, length).double().masked_fill(padding, -1e9) if float_mask else padding
        return torch.randn(count, length, 5, generator=generator).double(), mask

    prepared = prepare_randomised(Padded(), inputs(3, 6))
    assert count_units(prepared) == 8 + 4 + 8
    compact = convert_closed(prepared, inputs(4, 7), share=0.4, seed=2)
    assert len(compact.attention.in_proj_weight) == 12


@pytest.mark.parametrize(("model", "name"), [(scripted_layers, "the model"), (nn.Sequential(scripted_layers), "0")])
def test_scripted_modules_with_weights_are_refused(model: nn.Module, name: str) -> None:
    with pytest.raises(TraceError, match=rf"^{name} is a scripted module with weights.* pass the Python module"):
        fxprune.prepare(model, features().float())


def test_keyword_inputs_may_stand_behind_a_gap_and_defaults_stay() -> None:
    class Gap(Net):
        def forward(self, x: Tensor, scale: float = 2.0, shift: Tensor | None = None, *, mode: str = "soft") -> Tensor:
            y = self.a(x) * scale
            y = y if shift is None else y + shift
            return end(self, F.softplus(y) if mode == "soft" else y)

    model, shift = Gap(end), torch.full((1, 16), 0.2).double()
    for inputs in (
        {"x": features(), "shift": shift},
        {"x": features(), "mode": "hard"},
        {"x": features(), "scale": 3.0},
    ):
        prepared = prepare_randomised(copy.deepcopy(model), inputs)
        assert count_units(prepared) == (12 if "shift" in inputs else 28)
        args, kwargs = as_inputs(inputs)
        randomise(model.double())
        torch.testing.assert_close(prepared(*args, **kwargs), model(*args, **kwargs), rtol=1e-12, atol=1e-12)
        convert_closed(prepared, {**inputs, "x": features(6, 1)}, share=0.4, seed=1)


def test_inputs_may_be_dicts_and_lists_of_tensors() -> None:
    class Batches(Net):
        def forward(self, batch: dict[str, Any], **more: Tensor) -> dict[str, Any]:
            y = self.a(batch["x"]) + self.a(batch["others"][0]) + self.a(more["extra"])
            return {"scores": end(self, y), "pair": (end(self, -y),)}

    def inputs(count: int, seed: int) -> dict[str, Any]:
        x = features(count, seed)
        return {"batch": {"x": x, "others": [x * 2, x]}, "extra": -x}

    prepared = prepare_randomised(Batches(end), inputs(4, 0))
    assert count_units(prepared) == 28
    convert_closed(prepared, inputs(6, 1), share=0.4, seed=1)


def test_outputs_may_be_dataclasses() -> None:
    model = Net(lambda m, x: Out(end(m, m.a(x)), [m.b(m.a(x)).relu(), x]))
    prepared = prepare_randomised(model, features())
    assert count_units(prepared) == 16
    compact = convert_closed(prepared, features(6, 1), share=0.4, seed=1)
    assert isinstance(compact(features()), Out)


def test_an_op_of_ones_own_pins_its_channels_and_is_named() -> None:
    model = Net(lambda m, x: end(m, tilt(m.a(x))))
    model.a.bias = None
    prepared = prepare_randomised(model, features())
    assert count_units(prepared) == 12
    assert any("no rule for fxprune_more.tilt" in pin and "test_trace_more.py:" in pin for pin in prepared.pinned)
    convert_closed(prepared, features(6, 1), share=0.4, seed=1)


def test_what_pins_the_outputs_of_a_layer_with_a_bias_is_named_too() -> None:
    prepared = prepare_randomised(Net(lambda m, x: end(m, tilt(m.a(x)))), features())
    assert any("no rule for fxprune_more.tilt" in pin for pin in prepared.pinned)


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: end(m, m.a(x)) * float(x.numpy().sum()),
        lambda m, x: end(m, m.a(x) * float(m.a(x).detach().cpu().numpy().mean())),
        lambda m, x: end(m, m.a(x)) if x.max().item() > 0 else x,
    ],
)
def test_values_that_leave_for_python_are_refused_with_the_line(body: Body) -> None:
    with pytest.raises(FxpruneError, match=r"test_trace_more.py:\d+ in <lambda>.*by the values of a tensor"):
        fxprune.prepare(Net(body).double(), features())


def test_parts_in_low_precision_convert_as_far_as_that_goes() -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = m.a(x)
        return end(m, y.float())

    model = Net(body)
    randomise(model)
    x = features(64).float()
    prepared = fxprune.prepare(model.eval(), x)
    assert count_units(prepared) == 28
    close_units(prepared, 0.4, 1)
    compact = fxprune.convert(prepared)
    assert compact.report.units_removed > 5
    torch.testing.assert_close(compact(x), prepared(x), rtol=0.02, atol=0.02)


def test_two_precisions_side_by_side_stay() -> None:
    model = Net(mixed, c=nn.Linear(10, 16)).double().eval()
    randomise(model)
    model.c.float()
    prepared = fxprune.prepare(model, features())
    assert count_units(prepared) == 28
    compact = convert_closed(prepared, features(6, 1), share=0.4, seed=1)
    assert (compact.c.weight.dtype, compact.a.weight.dtype) == (torch.float32, torch.float64)


def test_frozen_parameters_stay_frozen_and_are_pruned() -> None:
    model = Net(lambda m, x: end(m, m.a(x)))
    model.a.requires_grad_(False)
    prepared = prepare_randomised(model, features())
    compact = convert_closed(prepared, features(6, 1), share=0.4, seed=1)
    assert compact.a.out_features < 16
    assert [p.requires_grad for p in compact.parameters()] == [False, False, True, True, True, True]


def test_both_modes_may_go_other_ways() -> None:
    model = Net(lambda m, x: (end(m, m.a(x)), m.c(m.a(x))) if m.training else end(m, m.a(x)), c=nn.Linear(16, 3))
    prepared = prepare_randomised(model, features())
    assert count_units(prepared) == 28
    close_units(prepared, 0.4, 1)
    compact = fxprune.convert(prepared)
    assert_same(prepared, compact, features(6, 1))
    for got, wanted in zip(compact.train()(features(6, 1)), prepared.train()(features(6, 1)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    assert compact.c.in_features == compact.a.out_features < 16


def test_a_function_that_is_stepped_over_is_looked_into() -> None:
    prepared = prepare_randomised(CODE["a function that is stepped over"][0](), features())
    assert all(node.target is not stepped_over for graph in prepared.graphs for node in graph.nodes)


def test_what_code_asks_of_its_parameters_follows_the_model() -> None:
    """`next(self.parameters()).dtype`, as diffusers and transformers ask for their own precision."""

    def body(m: nn.Module, x: Tensor) -> Tensor:
        like = next(m.parameters())
        angles = torch.arange(16, device=like.device) * x.float().mean(1, keepdim=True)
        return end(m, m.a(x.to(like.dtype)) + angles.sin().to(next(p.dtype for p in m.parameters() if p.dim() > 1)))

    compact = convert_closed(prepare_randomised(Net(body), features()), features(6, 1))
    for dtype in (torch.float32, torch.bfloat16):
        assert compact.to(dtype)(features(3)).dtype is dtype

"""Whether the user's own class becomes the smaller model where it can, and says which line is why where it cannot."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import fxprune
from fxprune.errors import FxpruneError, IntoError, PlanError
from tests.exactness import close_units, randomise


class Heads(nn.Module):
    """Attention whose code reads the number of heads and their width from attributes."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(x.reshape(batch, tokens, self.num_heads * self.head_dim))


class Transformer(nn.Module):
    """Two blocks of attention between linear layers, with a method besides forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(10, 24), nn.Linear(24, 5)
        self.blocks = nn.ModuleList([Heads(), Heads()])

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x)).mean(1)


class Sized(nn.Module):
    """Attention that reshapes to a tuple of sizes and an attribute, as models of transformers do (YOLOS, DPT)."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim, self.width = 4, 8, 32
        self.stem, self.head = nn.Linear(10, 32), nn.Linear(32, 5)
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        shape = (*x.shape[:-1], self.heads, self.head_dim)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous()
        return self.head(x + self.out(mixed.reshape(mixed.size()[:-2] + (self.width,))))  # noqa: RUF005


class Split(nn.Module):
    """Sizes in a tuple, from which the code splits."""

    def __init__(self, from_attribute: bool = True) -> None:
        super().__init__()
        self.sizes, self.from_attribute = (6, 6), from_attribute
        self.first, self.a, self.b = nn.Linear(4, 12), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.relu(self.first(x)).split(self.sizes if self.from_attribute else (6, 6), dim=1)
        return self.a(left) + self.b(right)


class Shuffle(nn.Module):
    """A shuffle of channels, which the smaller model does with a table of indexes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        batch, width, height, length = x.shape
        x = x.view(batch, 2, width // 2, height, length).transpose(1, 2).reshape(batch, width, height, length)
        return self.head(x).mean((2, 3))


class OneNumber(nn.Module):
    """One attribute that two layers share, which lose different numbers of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.a, self.b = nn.Linear(4, 16), nn.Linear(4, 16)
        self.left, self.right = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.relu(self.a(x)), torch.relu(self.b(x))
        left = self.left(left[:, : self.width]) + self.left(left[:, self.width :])
        return left + self.right(right[:, : self.width]) + self.right(right[:, self.width :])


class NoBias(nn.Module):
    """A constant that goes into the bias which the next layer has not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class Raw(nn.Module):
    """The same with a weight that no layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.weight, self.head = nn.Linear(4, 8), nn.Parameter(torch.randn(8, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(nn.functional.linear(torch.relu(self.first(x)), self.weight)))


class TrainsOtherwise(nn.Module):
    """A literal that only the code of training mode reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.head(x.view(-1, 8)) if self.training else self.head(x)


def prune(model: nn.Module, x: Any, share: float = 0.4, seed: int = 0) -> fxprune.model.PreparedModel:
    prepared = fxprune.prepare(model, x)
    close_units(prepared, share, seed=seed)
    return prepared.eval()


def build(kind: type[nn.Module], *args: Any) -> nn.Module:
    torch.manual_seed(0)
    model = kind(*args).double()
    randomise(model)
    return model


def test_a_residual_network_stays_what_it_is() -> None:
    model, x = torchvision.models.resnet18(num_classes=10), torch.randn(2, 3, 64, 64)
    randomise(model)
    before, prepared = copy.deepcopy(model.state_dict()), prune(model, x)
    small = fxprune.convert(prepared, into=model)
    assert type(small) is type(model)
    assert small.layer1[0].conv1.out_channels == small.layer1[0].bn1.num_features < 64
    compact = fxprune.convert(prepared)
    x = torch.randn(3, 3, 96, 96)
    torch.testing.assert_close(small.eval()(x), compact(x))
    assert small.report.parameters_after == sum(p.numel() for p in small.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert {p.data_ptr() for p in small.parameters()}.isdisjoint(p.data_ptr() for p in model.parameters())


def test_heads_follow_in_each_block_and_other_methods_survive() -> None:
    model, x = build(Transformer), torch.randn(2, 7, 10).double()
    prepared = prune(model, x, seed=1)
    small = fxprune.convert(prepared, into=model)
    heads = [block.num_heads for block in small.blocks]
    assert min(heads) < 4
    assert [block.qkv.out_features for block in small.blocks] == [3 * 6 * n for n in heads]
    assert small.forward_features(x).shape[-1] == small.stem.out_features < 24
    x = torch.randn(3, 9, 10).double()
    torch.testing.assert_close(small(x), prepared(x), rtol=1e-12, atol=1e-12)
    assert [block.num_heads for block in model.blocks] == [4, 4]


def test_numbers_in_a_tuple_follow() -> None:
    model, x = build(Split), torch.randn(3, 4).double()
    small = fxprune.convert(prune(model, x, seed=3), into=model)
    assert type(small.sizes) is tuple
    assert sum(small.sizes) == small.first.out_features < 12


def test_a_bias_that_was_not_there_is_added_to_a_layer() -> None:
    model = build(NoBias)
    with torch.no_grad():
        model.first.weight[:3], model.first.bias[:3] = 0, 1.0
    small = fxprune.convert(model, torch.randn(3, 4).double(), into=model)
    assert small.second.in_features == 5
    assert small.second.bias is not None
    x = torch.randn(5, 4).double()
    torch.testing.assert_close(small(x), model(x))


def test_the_result_trains_and_is_prepared_again() -> None:
    model, x = build(NoBias), torch.randn(5, 4).double()
    small = fxprune.convert(prune(model, x), into=model).train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.01)
    small(x).square().sum().backward()
    optimizer.step()
    smaller = fxprune.convert(prune(small, x, seed=5), into=small)
    assert smaller.first.out_features < small.first.out_features < 8


def test_literals_in_the_code_are_refused_with_their_line() -> None:
    model, x = build(Split, False), torch.randn(3, 4).double()
    with pytest.raises(
        IntoError, match=r"Split itself cannot hold .*tests/test_into\.py:\d+ in forward.*compact model"
    ):
        fxprune.convert(prune(model, x, seed=3), into=model)


def test_literals_in_the_code_of_training_are_refused() -> None:
    model = build(TrainsOtherwise)
    with pytest.raises(IntoError, match=r"in training mode its code fails .*test_into\.py:\d+ in forward"):
        fxprune.convert(prune(model, torch.randn(5, 4).double()), into=model)


def test_inserted_selections_are_refused_with_their_line() -> None:
    model, x = build(Shuffle), torch.randn(2, 3, 8, 8).double()
    with pytest.raises(IntoError, match=r"index_select \(.*test_into\.py:\d+ in forward\) needs index_0"):
        fxprune.convert(prune(model, x), into=model)


def test_one_attribute_for_two_sizes_is_refused() -> None:
    model = build(OneNumber)
    with torch.no_grad():
        for layer, dead in ((model.a, [0, 8]), (model.b, [0, 1, 8, 9])):
            layer.weight[dead] = layer.bias[dead] = 0
    with pytest.raises(IntoError, match=r"test_into\.py:\d+ in forward\) needs 6 for width, which is 7 elsewhere"):
        fxprune.convert(model, torch.randn(3, 4).double(), into=model)


def test_a_bias_that_no_layer_can_hold_is_refused() -> None:
    model = build(Raw)
    with torch.no_grad():
        model.first.weight[:3], model.first.bias[:3] = 0, 1.0
    with pytest.raises(IntoError, match=r"linear_?\d* \(.*needs bias, for which it has no place"):
        fxprune.convert(model, torch.randn(3, 4).double(), into=model)


def test_parametrizations_are_refused() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(IntoError, match=r"0\.weight is computed by a parametrization; remove it"):
        fxprune.convert(prune(model, torch.randn(3, 4)), into=model)


def test_another_original_is_refused() -> None:
    prepared = prune(build(Split), torch.randn(3, 4).double())
    with pytest.raises(PlanError, match=r"what was converted is a Split, and this model is a NoBias"):
        fxprune.convert(prepared, into=build(NoBias))
    with pytest.raises(FxpruneError, match=r"the model as it was before prepare"):
        fxprune.convert(prepared, into=prepared)
    with pytest.raises(FxpruneError, match=r"takes a torch\.nn\.Module, not str"):
        fxprune.convert(prepared, into="Split")


def test_vision_transformers_of_timm_keep_forward_features() -> None:
    timm = pytest.importorskip("timm")
    model, x = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3), torch.randn(2, 3, 32, 32)
    randomise(model)
    prepared = prune(model.eval(), x)
    small = fxprune.convert(prepared, into=model)
    assert min(block.attn.num_heads for block in small.blocks) < 3
    assert small.forward_features(x).shape == (2, 5, small.patch_embed.proj.out_channels)
    torch.testing.assert_close(small(x), prepared(x), rtol=1e-4, atol=1e-5)


def test_language_models_keep_generate() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, use_cache=False, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model, tokens = transformers.LlamaForCausalLM(config), torch.randint(1, 100, (2, 7))
    randomise(model)
    prepared = prune(model.eval(), {"input_ids": tokens}, share=0.3, seed=1)
    small, compact = fxprune.convert(prepared, into=model), fxprune.convert(prepared)
    assert small.model.layers[0].mlp.gate_proj.out_features < 48
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = small.generate(tokens, max_new_tokens=4, do_sample=False, attention_mask=torch.ones_like(tokens))
    for length in range(7, written.size(1)):
        logits = compact(input_ids=written[:, :length])["logits"]
        assert torch.equal(logits[:, -1].argmax(-1), written[:, length])


def test_a_number_that_is_added_to_a_size_is_followed() -> None:
    model, x = Sized(), torch.randn(2, 6, 10)
    randomise(model)
    prepared = fxprune.prepare(model, x, exclude=["stem", "head"])  # heads alone
    close_units(prepared, 0.5, 2)
    small = fxprune.convert(prepared, into=model)
    assert (small.heads, small.width) == (small.q.out_features // 8, small.q.out_features)
    assert 0 < small.heads < 4
    longer = torch.randn(3, 9, 10)
    torch.testing.assert_close(small.eval()(longer), prepared.eval()(longer))

"""Whether objects that the code makes or fills are followed: a cache of keys among the outputs, or among the inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributions, nn

import fxprune
from fxprune.errors import TraceError
from fxprune.model import tensors_in
from tests.conversion import convert_closed, prepare_randomised


class Layer:
    """The keys that one block has seen."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.length: Any = 0
        self.kind = Layer  # no tensor, and nothing that a graph can write down

    def update(self, keys: Tensor) -> Tensor:
        self.keys = keys if self.keys is None else torch.cat([self.keys, keys], 1)
        self.length = self.length + keys.shape[1]
        return self.keys


class Cache:
    """A layer for each block; its constructor takes something that its attributes do not say."""

    def __init__(self, blocks: int) -> None:
        self.layers = [Layer() for _ in range(blocks)]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16, bias=False) for _ in range(3))
        self.o, self.mlp = nn.Linear(16, 16), nn.Sequential(nn.Linear(16, 40), nn.GELU(), nn.Linear(40, 16))

    def forward(self, x: Tensor, layer: Layer) -> Tensor:
        weights = torch.softmax(self.q(x) @ layer.update(self.k(x)).transpose(1, 2), -1)
        x = x + self.o(weights @ self.v(x))
        return x + self.mlp(x)


class Language(nn.Module):
    """Two blocks between an embedding and a head; keys that were cached are an output."""

    def __init__(self, decides: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.decides = decides
        self.embed, self.blocks, self.head = nn.Embedding(20, 16), nn.ModuleList([Block(), Block()]), nn.Linear(16, 20)

    def forward(self, ids: Tensor, use_cache: bool = True) -> dict[str, Any]:
        cache, x = Cache(len(self.blocks)), self.embed(ids)
        if self.decides and ids.sum() < 0:  # no one graph computes this
            return {}
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            x = block(x, layer)
        return {"logits": self.head(x), "cache": cache if use_cache else None}


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(20, (batch, length), generator=torch.Generator().manual_seed(batch))


def test_an_object_that_is_an_output_is_made_again_for_every_batch_and_length() -> None:
    prepared = prepare_randomised(Language(), tokens(2, 9))
    assert not prepared.untraced
    compact = convert_closed(prepared, tokens(3, 5), tokens(4, 1))
    torch.testing.assert_close(prepared(tokens(1, 7))["logits"], compact(tokens(1, 7))["logits"])
    cache = compact(tokens(3, 5))["cache"]
    assert type(cache) is Cache
    assert [type(layer) for layer in cache.layers] == [Layer, Layer]
    assert cache.layers[0].length == 5
    assert cache.layers[0].kind is Layer
    assert cache.layers[0].keys.shape == (3, 5, 16)
    assert cache.layers[0] is not compact(tokens(3, 5))["cache"].layers[0]
    again = copy.deepcopy(compact)(tokens(3, 5))
    assert all(torch.equal(a, b) for a, b in zip(tensors_in(again), tensors_in(compact(tokens(3, 5))), strict=True))


def test_keys_that_are_outputs_stay_and_without_the_cache_they_go() -> None:
    widths = []
    for use_cache in (True, False):
        inputs = {"ids": tokens(2, 9), "use_cache": use_cache}
        compact = convert_closed(prepare_randomised(Language(), inputs), {"ids": tokens(3, 5), "use_cache": use_cache})
        widths.append(compact.get_submodule("blocks.0.k").out_features)
        assert compact.get_submodule("blocks.0.mlp.0").out_features < 40
    assert widths[0] == 16 > widths[1]


def test_a_region_is_not_traced_on_an_object_that_its_code_fills() -> None:
    prepared = prepare_randomised(Language(decides=True), tokens(2, 9))
    assert "leaves tensors in an object" in prepared.untraced["blocks.0"]
    prepared(tokens(3, 5)), prepared(tokens(1, 1))


def test_a_file_of_a_model_that_returns_an_object_is_written_and_read(tmp_path: Any) -> None:
    compact = convert_closed(prepare_randomised(Language(), tokens(2, 9)))
    fxprune.save(compact, tmp_path / "compact.safetensors")
    again = fxprune.load(Language().double(), tmp_path / "compact.safetensors").eval()
    pairs = zip(tensors_in(again(tokens(3, 5))), tensors_in(compact(tokens(3, 5))), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


class Encoder(nn.Module):
    """What a variational autoencoder or a policy has: two heads that say a distribution, and a decoder."""

    def __init__(self, use: Callable[..., Any]) -> None:
        super().__init__()
        self.first, self.mean, self.spread, self.last = (
            nn.Linear(4, 16),
            *(nn.Linear(16, 6) for _ in "ab"),
            nn.Linear(6, 3),
        )
        self.use = use

    def forward(self, x: Tensor) -> Any:
        h = torch.relu(self.first(x))
        return self.use(self, self.mean(h), self.spread(h))


def sample(m: Encoder, mean: Tensor, spread: Tensor) -> Any:
    normal = distributions.Normal(mean, F.softplus(spread))
    z = normal.rsample() if m.training else normal.mean
    return m.last(z), distributions.kl_divergence(normal, distributions.Normal(torch.zeros_like(z), torch.ones_like(z)))


DISTRIBUTIONS: dict[str, Callable[..., Any]] = {
    "sampled": sample,
    "an output": lambda m, mean, spread: distributions.Normal(mean, spread.exp()),
    "an output in a dict": lambda m, mean, spread: {
        "policy": distributions.Categorical(logits=mean), "value": m.last(spread)
    },
    "independent": lambda m, mean, spread: distributions.Independent(distributions.Normal(mean, spread.exp()), 1),
    "scored": lambda m, mean, spread: (
        distributions.Bernoulli(logits=mean).log_prob((spread > 0).double()), m.last(spread)
    ),
    "mixed": lambda m, mean, spread: distributions.MixtureSameFamily(
        distributions.Categorical(logits=mean), distributions.Normal(spread, mean.exp())
    ).log_prob(spread[:, 0]),
}  # fmt: skip


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distributions_are_followed_and_may_be_outputs(name: str) -> None:
    torch.manual_seed(0)
    model = Encoder(DISTRIBUTIONS[name])
    before = distributions.Distribution._validate_args
    prepared = prepare_randomised(model, torch.randn(3, 4).double())
    assert distributions.Distribution._validate_args is before
    compact = convert_closed(prepared, torch.randn(5, 4).double())
    assert compact.get_submodule("first").out_features < 16
    x = torch.randn(2, 4).double()
    assert type(compact(x)) is type(model(x))
    prepared.train()
    assert all(torch.isfinite(t).all() for t in tensors_in(prepared(x)))


def test_a_generator_of_the_models_own_is_refused_by_line() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
            self.generator = torch.Generator()

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(h + torch.randn(h.shape, generator=self.generator) if self.training else h)

    with pytest.raises(TraceError, match=r"test_trace_objects.py:\d+ in forward: the code draws by a generator"):
        fxprune.prepare(Noisy(), torch.randn(3, 4))


class Unit(nn.Module):
    """Rows of length one."""

    def forward(self, weight: Tensor) -> Tensor:
        return F.normalize(weight, dim=-1)


def test_a_parametrized_weight_that_is_read_beside_its_layer_is_a_parameter() -> None:
    class Places(nn.Module):
        """The weight of a layer that is never called is a table of positions."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.places, self.last = nn.Linear(4, 16), nn.Linear(16, 9, bias=False), nn.Linear(16, 3)
            nn.utils.parametrize.register_parametrization(self.places, "weight", Unit())

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(x) + self.places.weight[torch.arange(x.shape[1])]))

    torch.manual_seed(0)
    prepared = prepare_randomised(Places(), torch.randn(2, 5, 4).double())
    prepared.train()(torch.randn(2, 5, 4).double()).sum().backward()
    assert prepared.get_parameter("places.parametrizations.weight.original").grad is not None
    compact = convert_closed(prepared, torch.randn(3, 7, 4).double())
    assert compact.get_submodule("places").weight.shape[1] == compact.get_submodule("first").out_features < 16


def test_a_compiled_layer_is_the_layer_itself() -> None:
    class Compiled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.compile(nn.Linear(4, 16)), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(x)))

    torch.manual_seed(0)
    compact = convert_closed(prepare_randomised(Compiled(), torch.randn(3, 4).double()), torch.randn(5, 4).double())
    assert compact.get_submodule("first._orig_mod").out_features < 16


def test_a_parameter_of_the_original_is_refused_by_line() -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    run = model[0].forward
    model[0].forward = lambda x: run(x) * 2
    with pytest.raises(
        TraceError, match=r"test_trace_objects.py:\d+ in <lambda>: the code uses a parameter that is none"
    ):
        fxprune.prepare(model, torch.randn(3, 4))

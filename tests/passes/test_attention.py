"""Whether attention of every spelling loses whole heads, or the same channel of every head, and stays exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.model import PreparedModel, TracedModel
from tests.conversion import (
    assert_open_units_learn_alike,
    assert_same,
    convert_closed,
    count_units,
    prepare_randomised,
    set_gates,
    units_of,
)
from tests.exactness import close_units

Body = Callable[[nn.Module, Tensor], Tensor]

WIDTH, HEADS, INNER = 16, 4, 6
"""Of the stream, and of what attention computes: 4 heads of 6 channels."""


class Tokens(nn.Module):
    """Tokens of 10 features, a stream of 16 channels, the attention under test, and 5 outputs for each sample."""

    def __init__(self, body: Body, width: int = WIDTH, out: int | None = None, **layers: Any) -> None:
        super().__init__()
        self.body, self.stem = body, nn.Linear(10, width)
        for name, layer in layers.items():
            if isinstance(layer, nn.Parameter):
                self.register_parameter(name, layer)
            elif isinstance(layer, Tensor):
                self.register_buffer(name, layer)
            else:
                self.add_module(name, layer)
        self.head = nn.Linear(out or width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self, self.stem(x)).mean(1))


def tokens(batch: int = 3, length: int = 7, seed: int = 0) -> Tensor:
    """Tokens of different sizes, so that what attends to them differs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, 10, generator=generator, dtype=torch.float64)
    return x * torch.linspace(0.5, 2, batch).double()[:, None, None] + torch.randn(
        batch, 1, 10, generator=generator, dtype=torch.float64
    )


def split(x: Tensor, heads: int = HEADS) -> Tensor:
    """[batch, tokens, channels] becomes [batch, heads, tokens, inner]."""
    return x.view(x.size(0), x.size(1), heads, -1).transpose(1, 2)


def merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def linears(*names: str, total: int = HEADS * INNER) -> dict[str, nn.Linear]:
    return {name: nn.Linear(WIDTH, total) for name in names} | {"o": nn.Linear(total, WIDTH)}


def fold(x: Tensor, heads: int = HEADS) -> Tensor:
    """[batch, tokens, channels] becomes [batch * heads, tokens, inner], each size a product that begins with 1."""
    batch = count = 1
    for size in (x.shape[0], heads):
        batch *= size
    for size in (x.shape[1], 1):
        count *= size
    return x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2).reshape(batch, count, -1)


def unfold(x: Tensor, heads: int = HEADS) -> Tensor:
    """Back again: the batch is what is left when the heads are divided out, as einops knows it."""
    size, *rest = x.shape
    if size % heads:
        raise ValueError("the first dimension holds no whole samples")
    return x.reshape(size // heads, heads, *rest).transpose(1, 2).flatten(2)


def deformable(m: nn.Module, x: Tensor) -> Tensor:
    """Each head samples a row of tokens at three places of its own, as deformable DETR's do an image."""
    batch, length = x.shape[:2]
    values = m.v(x).view(batch, length, HEADS, -1).permute(0, 2, 3, 1).flatten(0, 1).unsqueeze(2)
    places = m.places(x).view(batch, length, HEADS, 3, 2).tanh().transpose(1, 2).flatten(0, 1)
    weights = (
        m.weights(x).view(batch, length, HEADS, 3).softmax(-1).transpose(1, 2).reshape(batch * HEADS, 1, length, 3)
    )
    seen = (F.grid_sample(values, places, align_corners=False) * weights).sum(-1)
    return x + m.o(seen.view(batch, -1, length).transpose(1, 2))


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float = INNER**-0.5) -> Tensor:
    return (q @ k.transpose(-2, -1) * scale).softmax(-1) @ v


def self_attention(m: nn.Module, x: Tensor) -> Tensor:
    return x + m.o(merge(attend(split(m.q(x)), split(m.k(x)), split(m.v(x)))))


def own(m: nn.Module, x: Tensor, **options: Any) -> Tensor:
    return x + m.a(x, x, x, **options)[0]


def sequence_first(m: nn.Module, x: Tensor) -> Tensor:
    y = x.transpose(0, 1)
    return x + m.a(y, y, y)[0].transpose(0, 1)


def decomposed_positions(m: nn.Module, x: Tensor) -> Tensor:
    """Heads in the batch, and a bias of the query and its distance to the key, from one table for all heads."""
    b, n, _ = x.shape
    q, k, v = m.qkv(x).view(b, n, 3, HEADS, INNER).permute(2, 0, 3, 1, 4).reshape(3, b * HEADS, n, INNER).unbind(0)
    place = torch.arange(n, device=x.device)
    near = m.table[place[:, None] - place[None, :] + 12]
    bias = torch.einsum("bqc,qkc->bqk", q, near)
    y = ((q @ k.mT) * INNER**-0.5 + bias).softmax(-1) @ v
    return x + m.o(y.view(b, HEADS, n, INNER).transpose(1, 2).reshape(b, n, -1))


def padded(m: nn.Module, x: Tensor) -> Tensor:
    mask = torch.zeros(x.size(0), x.size(1), dtype=torch.bool, device=x.device)
    mask[1:, -2:] = True
    return x + m.a(x, x, x, key_padding_mask=mask, need_weights=False)[0]


def causal(m: nn.Module, x: Tensor) -> Tensor:
    mask = torch.triu(torch.ones(x.size(1), x.size(1), dtype=torch.bool, device=x.device), 1)
    return x + m.a(x, x, x, attn_mask=mask, need_weights=False)[0]


def weighted(m: nn.Module, x: Tensor) -> Tensor:
    out, weights = m.a(x, x, x, average_attn_weights=True)
    return x + out * weights.amax(2, keepdim=True)


def each_weighted(m: nn.Module, x: Tensor) -> Tensor:
    out, weights = m.a(x, x, x, average_attn_weights=False)
    return x + out * weights.sum((1, 3))[..., None]


def fused(m: nn.Module, x: Tensor) -> Tensor:
    b, n, _ = x.shape
    q, k, v = m.qkv(x).reshape(b, n, 3, HEADS, INNER).permute(2, 0, 3, 1, 4)
    return x + m.o((((q * INNER**-0.5) @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(b, n, HEADS * INNER))


def fused_indexed(m: nn.Module, x: Tensor) -> Tensor:
    """The pieces are taken by their places, the last one from behind, and heads mix before the softmax."""
    b, n, _ = x.shape
    qkv = m.qkv(x).view(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    weights = m.l((qkv[0] @ qkv[1].mT * INNER**-0.5).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return x + m.o(merge(weights.softmax(-1) @ qkv[-1]))


def fused_split(m: nn.Module, x: Tensor) -> Tensor:
    """Queries are split from keys and values, which are told apart in four dimensions."""
    q, kv = m.qkv(x).split([HEADS * INNER, 2 * HEADS * INNER], -1)
    k, v = kv.unflatten(-1, (2, HEADS, INNER)).transpose(1, 3).unbind(2)
    return x + m.o(merge(F.scaled_dot_product_attention(split(q), k, v)))


def fused_in_groups(m: nn.Module, x: Tensor) -> Tensor:
    """Two queries stand before the key and the value that they share, which are counted from behind, as in Falcon."""
    b, n, _ = x.shape
    qkv = m.qkv(x).view(b, n, HEADS // 2, 4, INNER)
    keys, values = (qkv[:, :, :, [i]].expand(b, n, HEADS // 2, 2, INNER) for i in (-2, -1))
    q, k, v = (t.flatten(2, 3).transpose(1, 2) for t in (qkv[:, :, :, :-2], keys, values))
    return x + m.o(merge(F.scaled_dot_product_attention(q, k, v)))


def fused_chunks(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (split(t) for t in m.qkv(x).chunk(3, -1))
    return x + m.o(merge(F.scaled_dot_product_attention(q, k, v)))


def fused_by_head(m: nn.Module, x: Tensor) -> Tensor:
    """The channels of a head stand together, queries beside keys beside values, as in GPT-NeoX."""
    q, k, v = m.qkv(x).view(*x.shape[:2], HEADS, 3 * INNER).transpose(1, 2).chunk(3, -1)
    return x + m.o(merge(F.scaled_dot_product_attention(q, k, v)))


def batched(m: nn.Module, x: Tensor) -> Tensor:
    """Heads folded into the batch, and bmm."""
    b, n, _ = x.shape
    q, k, v = (split(f(x)).reshape(b * HEADS, n, INNER) for f in (m.q, m.k, m.v))
    out = torch.bmm(torch.baddbmm(q.new_zeros(1, 1, 1), q, k.transpose(1, 2), alpha=INNER**-0.5).softmax(-1), v)
    return x + m.o(out.view(b, HEADS, n, INNER).transpose(1, 2).reshape(b, n, HEADS * INNER))


def by_einsum(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (f(x).unflatten(-1, (HEADS, INNER)) for f in (m.q, m.k, m.v))
    weights = torch.einsum("bnhd,bmhd->bhnm", q, k).mul(INNER**-0.5).softmax(-1)
    return x + m.o(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))


def sdpa(m: nn.Module, x: Tensor, **options: Any) -> Tensor:
    q, k, v = (split(f(x)) for f in (m.q, m.k, m.v))
    return x + m.o(merge(F.scaled_dot_product_attention(q, k, v, **options)))


def sdpa_masked(m: nn.Module, x: Tensor) -> Tensor:
    mask = torch.ones(x.size(1), x.size(1), dtype=torch.bool, device=x.device).tril(2)
    return sdpa(m, x, attn_mask=mask)


def position_bias(m: nn.Module, x: Tensor) -> Tensor:
    """A learnt bias for each head and distance, looked up in a table."""
    n = x.size(1)
    distance = torch.arange(n, device=x.device)[:, None] - torch.arange(n, device=x.device)[None] + 20
    bias = m.table[distance.view(-1)].view(n, n, HEADS).permute(2, 0, 1)
    q, k, v = (split(f(x)) for f in (m.q, m.k, m.v))
    return x + m.o(merge(((q @ k.mT) * INNER**-0.5 + bias[None]).softmax(-1) @ v))


def embedded_bias(m: nn.Module, x: Tensor) -> Tensor:
    """The same as a mask for `scaled_dot_product_attention`, out of an embedding, as in T5."""
    n = x.size(1)
    distance = (torch.arange(n)[:, None] - torch.arange(n)[None]).abs().clamp(max=7)
    return sdpa(m, x, attn_mask=m.bias(distance).permute(2, 0, 1).unsqueeze(0))


def rotate(x: Tensor) -> Tensor:
    """Turn pairs of channels, [.., n, inner], by angles that grow with the position."""
    angles = torch.arange(x.size(-2), dtype=x.dtype)[:, None] / 100 ** torch.linspace(0, 1, x.size(-1) // 2).to(x)
    cosine, sine = (t.repeat(1, 2) for t in (angles.cos(), angles.sin()))
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine


def rotary(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (split(f(x)) for f in (m.q, m.k, m.v))
    return x + m.o(merge(F.scaled_dot_product_attention(rotate(q), rotate(k), v)))


def rotary_behind(m: nn.Module, x: Tensor, count: int) -> Tensor:
    """The first tokens, of which there may be none, stay as they are."""
    q, k, v = (split(f(x)) for f in (m.q, m.k, m.v))
    q, k = (torch.cat([y[:, :, :count], rotate(y[:, :, count:])], 2) for y in (q, k))
    return x + m.o(merge(F.scaled_dot_product_attention(q, k, v)))


def rotary_pairs(m: nn.Module, x: Tensor) -> Tensor:
    """Neighbours turn together, as in GPT-J and Llama's own code."""
    n = x.size(1)
    angle = torch.arange(n, dtype=x.dtype)[:, None] / 50 ** torch.linspace(0, 1, INNER // 2).to(x)

    def turn(y: Tensor) -> Tensor:
        even, odd = y[..., ::2], y[..., 1::2]
        turned = (even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos())
        return torch.stack(turned, -1).flatten(-2)

    q, k, v = (split(f(x)) for f in (m.q, m.k, m.v))
    return x + m.o(merge(F.scaled_dot_product_attention(turn(q), turn(k), v)))


def cosine(m: nn.Module, x: Tensor) -> Tensor:
    """Swin v2: normalised queries and keys, and a temperature for each head."""
    q, k, v = (split(f(x)) for f in (m.q, m.k, m.v))
    weights = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * m.temperature.clamp(max=4.6).exp()
    return x + m.o(merge(weights.softmax(-1) @ v))


def normed(m: nn.Module, x: Tensor) -> Tensor:
    """Queries and keys normalised over a head's channels, with scales that all heads share."""
    q, k, v = m.nq(split(m.q(x))), m.nk(split(m.k(x))), split(m.v(x))
    return x + m.o(merge(F.scaled_dot_product_attention(q, k, v)))


def cross_covariance(m: nn.Module, x: Tensor) -> Tensor:
    """XCiT: channels of a head attend to each other, tokens are summed over."""
    q, k, v = (f(x).unflatten(-1, (HEADS, INNER)).permute(0, 2, 3, 1) for f in (m.q, m.k, m.v))
    weights = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * m.temperature
    return x + m.o((weights.softmax(-1) @ v).permute(0, 3, 1, 2).flatten(2))


def pooled(m: nn.Module, x: Tensor) -> Tensor:
    """MViT: a depthwise convolution pools each head's keys and values, folded into the batch; then a norm."""
    b, n, _ = x.shape

    def pool(y: Tensor) -> Tensor:
        y = m.pool(split(y).reshape(b * HEADS, n, INNER).transpose(1, 2)).transpose(1, 2)
        return m.norm(y.reshape(b, HEADS, -1, INNER))

    out = F.scaled_dot_product_attention(split(m.q(x)), pool(m.k(x)), pool(m.v(x)))
    return x + m.o(merge(out))


def windows(m: nn.Module, x: Tensor) -> Tensor:
    """Swin: rolled tokens attend within windows of 4, and are rolled back."""
    b, n, c = x.shape
    y = F.pad(x.roll(-2, 1), (0, 0, 0, -n % 4)).view(-1, 4, c)
    q, k, v = (split(f(y)) for f in (m.q, m.k, m.v))
    y = m.o(merge(attend(q, k, v))).view(b, -1, c)[:, :n]
    return x + y.roll(2, 1)


def talking(m: nn.Module, x: Tensor) -> Tensor:
    """Talking heads: a linear layer over the heads before the softmax."""
    q, k, v = (split(f(x)) for f in (m.q, m.k, m.v))
    weights = m.l((q @ k.mT * INNER**-0.5).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return x + m.o(merge(weights.softmax(-1) @ v))


def linear_attention(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = F.elu(split(m.q(x))) + 1, F.elu(split(m.k(x))) + 1, split(m.v(x))
    return x + m.o(merge(q @ (k.mT @ v) / (q * k.sum(2, keepdim=True)).sum(-1, keepdim=True)))


def gated(m: nn.Module, x: Tensor) -> Tensor:
    """A sigmoid for each head, as wide as there are heads."""
    out = attend(split(m.q(x)), split(m.k(x)), split(m.v(x)))
    return x + m.o(merge(out * m.g(x).sigmoid().transpose(1, 2).unsqueeze(-1)))


def two_widths(m: nn.Module, x: Tensor) -> Tensor:
    """Keys of 6 channels, values of 3."""
    return x + m.o(merge(attend(split(m.q(x)), split(m.k(x)), split(m.v(x)))))


def grouped(m: nn.Module, x: Tensor) -> Tensor:
    """Two queries share a key, which is repeated."""
    k, v = (split(f(x), 2).repeat_interleave(2, 1) for f in (m.k, m.v))
    return x + m.o(merge(attend(split(m.q(x)), k, v)))


def grouped_expanded(m: nn.Module, x: Tensor) -> Tensor:
    """The same by expand and reshape, as transformers does it."""
    b, n, _ = x.shape
    k, v = (split(f(x), 2)[:, :, None].expand(b, 2, 2, n, INNER).reshape(b, 4, n, INNER) for f in (m.k, m.v))
    return x + m.o(merge(attend(split(m.q(x)), k, v)))


def grouped_sdpa(m: nn.Module, x: Tensor) -> Tensor:
    out = F.scaled_dot_product_attention(split(m.q(x)), split(m.k(x), 2), split(m.v(x), 2), enable_gqa=True)
    return x + m.o(merge(out))


def multi_query(m: nn.Module, x: Tensor) -> Tensor:
    """All queries share one key and one value, by broadcasting."""
    return x + m.o(merge(attend(split(m.q(x)), m.k(x)[:, None], m.v(x)[:, None])))


def across(m: nn.Module, x: Tensor) -> Tensor:
    """Learnt queries look at the tokens, which are other ones' keys."""
    queries = m.learnt.expand(x.size(0), -1, -1)
    return m.o(merge(attend(split(m.q(queries)), split(m.k(x)), split(m.v(x)))))


def keys_apart(m: nn.Module, x: Tensor) -> Tensor:
    return x + m.a(x, m.b(x), m.c(x))[0]


def decode(m: nn.Module, x: Tensor) -> Tensor:
    return m.d(x, m.b(x))


def transform(m: nn.Module, x: Tensor) -> Tensor:
    return m.t(x, x[:, :4])


def gqa(**options: int) -> dict[str, nn.Linear]:
    keys = options.get("keys", 2) * INNER
    return {"q": nn.Linear(WIDTH, 24), "k": nn.Linear(WIDTH, keys), "v": nn.Linear(WIDTH, keys), "o": nn.Linear(24, 16)}


def attention(**options: Any) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(WIDTH, HEADS, **({"batch_first": True} | options))


def layer(kind: type[nn.Module] = nn.TransformerEncoderLayer, **options: Any) -> nn.Module:
    return kind(WIDTH, HEADS, 20, **({"batch_first": True, "activation": "gelu"} | options))


def encoder(first: bool) -> nn.Module:
    return nn.TransformerEncoder(layer(norm_first=first), 2, enable_nested_tensor=False)


class Case(NamedTuple):
    """A model, and its numbers of units: with whole heads, and with inner channels (None: the same)."""

    build: Callable[[], nn.Module]
    whole: int
    inner: int | None = None


def table(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


CASES: dict[str, Case] = {
    "module": Case(lambda: Tokens(own, a=attention()), 20, 24),
    "module, sequence first": Case(lambda: Tokens(sequence_first, a=attention(batch_first=False)), 20),
    "module, no bias": Case(lambda: Tokens(own, a=attention(bias=False)), 20),
    "module, bias for keys and values": Case(lambda: Tokens(own, a=attention(add_bias_kv=True)), 20),
    "module, a zero key": Case(lambda: Tokens(own, a=attention(add_zero_attn=True)), 16),
    "module, padding mask": Case(lambda: Tokens(padded, a=attention()), 20),
    "module, causal mask": Case(lambda: Tokens(causal, a=attention()), 20),
    "module, no weights": Case(lambda: Tokens(lambda m, x: own(m, x, need_weights=False), a=attention()), 20),
    "module, weights": Case(lambda: Tokens(weighted, a=attention()), 20),
    "module, weights of each head": Case(lambda: Tokens(each_weighted, a=attention()), 20),
    "module, other keys": Case(
        lambda: Tokens(keys_apart, a=attention(kdim=8, vdim=6), b=nn.Linear(16, 8), c=nn.Linear(16, 6)), 34, 38),
    "encoder layer": Case(lambda: Tokens(lambda m, x: m.e(x), e=layer()), 40, 44),
    "encoder layer, norm first, relu": Case(
        lambda: Tokens(lambda m, x: m.e(x), e=layer(norm_first=True, activation="relu")), 40),
    "encoder": Case(lambda: Tokens(lambda m, x: m.e(x), e=encoder(False)), 64),
    "encoder, norm first": Case(lambda: Tokens(lambda m, x: m.e(x), e=encoder(True)), 64),
    "decoder": Case(lambda: Tokens(decode, b=nn.Linear(16, 16),
                                   d=nn.TransformerDecoder(layer(nn.TransformerDecoderLayer), 2)), 72),
    "decoder, norm first": Case(lambda: Tokens(decode, b=nn.Linear(16, 16),
                                d=nn.TransformerDecoder(layer(nn.TransformerDecoderLayer, norm_first=True), 1)), 44),
    "transformer": Case(
        lambda: Tokens(transform, t=nn.Transformer(16, 4, 1, 1, 20, activation="gelu", batch_first=True)), 68),
    "spelled out": Case(lambda: Tokens(self_attention, **linears("q", "k", "v")), 20, 28),
    "fused": Case(lambda: Tokens(fused, qkv=nn.Linear(16, 72), o=nn.Linear(24, 16)), 20, 28),
    "fused, chunks": Case(lambda: Tokens(fused_chunks, qkv=nn.Linear(16, 72), o=nn.Linear(24, 16)), 20, 28),
    "fused, by head": Case(lambda: Tokens(fused_by_head, qkv=nn.Linear(16, 72), o=nn.Linear(24, 16)), 20, 28),
    "fused, indexed, talking heads": Case(
        lambda: Tokens(fused_indexed, l=nn.Linear(4, 4), qkv=nn.Linear(16, 72), o=nn.Linear(24, 16)), 24, 28),
    "fused, groups": Case(lambda: Tokens(fused_in_groups, qkv=nn.Linear(16, 48), o=nn.Linear(24, 16)), 18, 28),
    "fused, split": Case(lambda: Tokens(fused_split, qkv=nn.Linear(16, 72), o=nn.Linear(24, 16)), 20, 28),
    "heads in the batch": Case(lambda: Tokens(batched, **linears("q", "k", "v")), 20, 28),
    "heads in the batch, by quotients": Case(
        lambda: Tokens(lambda m, x: x + m.o(unfold(attend(*(fold(f(x)) for f in (m.q, m.k, m.v))))),
                       **linears("q", "k", "v")), 20, 28),
    "einsum": Case(lambda: Tokens(by_einsum, **linears("q", "k", "v")), 20, 28),
    "sdpa": Case(lambda: Tokens(sdpa, **linears("q", "k", "v")), 20, 28),
    "sdpa, causal": Case(lambda: Tokens(lambda m, x: sdpa(m, x, is_causal=True), **linears("q", "k", "v")), 20, 28),
    "sdpa, scale": Case(lambda: Tokens(lambda m, x: sdpa(m, x, scale=0.3), **linears("q", "k", "v")), 20, 28),
    "sdpa, mask": Case(lambda: Tokens(sdpa_masked, **linears("q", "k", "v")), 20, 28),
    "position bias": Case(lambda: Tokens(position_bias, table=table(40, 4), **linears("q", "k", "v")), 20, 28),
    "embedded bias": Case(lambda: Tokens(embedded_bias, bias=nn.Embedding(8, 4), **linears("q", "k", "v")), 20, 28),
    "decomposed positions": Case(
        lambda: Tokens(decomposed_positions, table=table(25, 6), qkv=nn.Linear(16, 72), o=nn.Linear(24, 16)), 20, 28),
    "rotary": Case(lambda: Tokens(rotary, **linears("q", "k", "v")), 20, 25),
    "rotary, no prefix": Case(lambda: Tokens(lambda m, x: rotary_behind(m, x, 0), **linears("q", "k", "v")), 20, 25),
    "rotary, prefix": Case(lambda: Tokens(lambda m, x: rotary_behind(m, x, 2), **linears("q", "k", "v")), 20, 22),
    "rotary pairs": Case(lambda: Tokens(rotary_pairs, **linears("q", "k", "v")), 20, 25),
    "cosine": Case(lambda: Tokens(cosine, temperature=table(4, 1, 1), **linears("q", "k", "v")), 20, 22),
    "normed": Case(lambda: Tokens(normed, nq=nn.LayerNorm(6), nk=nn.LayerNorm(6), **linears("q", "k", "v")), 20, 22),
    "normed, rms": Case(lambda: Tokens(normed, nq=nn.RMSNorm(6), nk=nn.RMSNorm(6), **linears("q", "k", "v")), 20, 22),
    "cross covariance": Case(
        lambda: Tokens(cross_covariance, temperature=table(4, 1, 1), **linears("q", "k", "v")), 20, 28),
    "pooled": Case(lambda: Tokens(pooled, pool=nn.Conv1d(6, 6, 3, 2, 1, groups=6, bias=False), norm=nn.LayerNorm(6),
                                  **linears("q", "k", "v")), 22, 22),
    "windows": Case(lambda: Tokens(windows, **linears("q", "k", "v")), 20, 28),
    "talking heads": Case(lambda: Tokens(talking, l=nn.Linear(4, 4), **linears("q", "k", "v")), 24, 28),
    "linear attention": Case(lambda: Tokens(linear_attention, **linears("q", "k", "v")), 20, 22),
    "gated heads": Case(lambda: Tokens(gated, g=nn.Linear(16, 4), **linears("q", "k", "v")), 20, 28),
    "two widths": Case(lambda: Tokens(two_widths, q=nn.Linear(16, 24), k=nn.Linear(16, 24), v=nn.Linear(16, 12),
                                      o=nn.Linear(12, 16)), 20, 25),
    "deformable": Case(
        lambda: Tokens(deformable, places=nn.Linear(16, 24), weights=nn.Linear(16, 12), **linears("v")), 20),
    "grouped queries": Case(lambda: Tokens(grouped, **gqa()), 18, 28),
    "grouped queries, expanded": Case(lambda: Tokens(grouped_expanded, **gqa()), 18, 28),
    "grouped queries, sdpa": Case(lambda: Tokens(grouped_sdpa, **gqa()), 18, 28),
    "multi query": Case(lambda: Tokens(multi_query, **gqa(keys=1)), 28, 28),
    "learnt queries": Case(lambda: Tokens(across, learnt=table(1, 5, 16), **linears("q", "k", "v")), 57),
}  # fmt: skip


TOKENS_GO = ("learnt queries",)
"""Where tokens are units too, and a mean over none of them is left if all close."""


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return CASES[name].build()


def prepared_case(name: str, heads: Literal["whole", "inner"]) -> PreparedModel:
    return prepare_randomised(build(name), tokens(), heads)


@pytest.mark.parametrize("name", CASES)
def test_attention_loses_whole_heads_exactly(name: str) -> None:
    prepared = prepared_case(name, "whole")
    assert count_units(prepared) == CASES[name].whole
    share = 0.3 if name in TOKENS_GO else 0.5
    compact = convert_closed(prepared, tokens(5, 9, 1), tokens(4, 4, 2), share=share)
    assert compact.report.units_removed >= share / 2 * CASES[name].whole


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.inner])
def test_attention_loses_the_same_channel_of_every_head_exactly(name: str) -> None:
    prepared = prepared_case(name, "inner")
    assert count_units(prepared) == CASES[name].inner
    compact = convert_closed(prepared, tokens(5, 9, 1), tokens(2, 4, 2), share=0.3 if name in TOKENS_GO else 0.5)
    assert compact.report.units_removed > 0


UNEVEN = ("rotary", "rotary, no prefix")
"""Where closed inner channels may stay: of angles that turn one pair."""


@pytest.mark.parametrize("heads", ["whole", "inner"])
@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.inner and n not in UNEVEN])
def test_what_is_open_learns_as_in_the_compact_model(name: str, heads: Literal["whole", "inner"]) -> None:
    """Between queries and keys stands no weight: what a closed channel learns there is to stay its own."""
    prepared = prepared_case(name, heads)
    close_units(prepared, 0.3, 5, soft=False)
    assert_open_units_learn_alike(prepared, fxprune.convert(prepared), tokens(5, 9, 1))


def open_of(prepared: PreparedModel, name: str, dim: int = 0) -> int:
    """How many indexes of a parameter's dimension the gates leave open."""
    gates = torch.cat([prepared.fxprune.gates, torch.ones(1)])
    return int((gates[units_of(prepared, name, dim)] > 0).sum())


APART = ["spelled out", "heads in the batch", "einsum", "sdpa"]
FUSED = ["fused", "fused, by head", "fused, chunks", "fused, split", "fused, indexed, talking heads"]


@pytest.mark.parametrize(
    ("name", "heads"),
    [(name, heads) for name in [*APART, *FUSED] for heads in ("whole", "inner")] + [("fused, groups", "inner")],
)
def test_what_the_gates_close_is_gone_and_no_more(name: str, heads: Literal["whole", "inner"]) -> None:
    prepared = prepared_case(name, heads)
    compact = convert_closed(prepared, tokens(2), seed=5)
    for weight in [n for n, p in compact.named_parameters() if p.dim() == 2 and not n.startswith("head")]:
        rows, columns = compact.get_parameter(weight).shape
        inputs = 10 if weight == "stem.weight" else open_of(prepared, weight, 1)
        assert (rows, columns) == (open_of(prepared, weight), inputs), weight
    width = compact.o.in_features
    assert width < 24
    assert width % (INNER if heads == "whole" else HEADS) == 0


def test_the_module_loses_whole_heads() -> None:
    prepared = prepared_case("module", "whole")
    heads = units_of(prepared, "a.in_proj_weight", 0).view(3, 4, 4)
    assert bool((heads == heads[:1, :, :1]).all())
    assert len(heads.unique()) == 4
    set_gates(prepared, heads[0, 1:3, 0].tolist())
    compact = convert_now(prepared)
    assert tuple(compact.a.in_proj_weight.shape) == (3 * 2 * 4, 16)
    assert tuple(compact.a.out_proj.weight.shape) == (16, 2 * 4)


class Bare(nn.Module):
    """Attention over the model's input as it is, of which the code asks whether it has the right width."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


@pytest.mark.parametrize("heads", ["whole", "inner"])
def test_heads_go_where_attention_reads_the_input_itself(heads: Literal["whole", "inner"]) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    prepared = prepare_randomised(Bare(), x, heads)
    compact = convert_closed(prepared, torch.randn(2, 5, 16, dtype=torch.float64), seed=1)
    assert not compact.report.kept
    assert 0 < compact.attention.in_proj_weight.size(0) < 48


@pytest.mark.parametrize("name", ["grouped queries", "grouped queries, expanded", "grouped queries, sdpa"])
def test_queries_that_share_a_key_are_one_unit(name: str) -> None:
    prepared = prepared_case(name, "whole")
    queries, keys = (units_of(prepared, f"{n}.weight", 0).view(-1, INNER)[:, 0].tolist() for n in "qk")
    assert queries == [keys[0], keys[0], keys[1], keys[1]]


def convert_now(prepared: PreparedModel) -> TracedModel:
    """Convert as the gates are, and compare."""
    compact = fxprune.convert(prepared)
    assert_same(prepared, compact, tokens(5, 9, 1), tokens(2, 4, 2))
    return compact


ONE = [
    "module", "module, weights of each head", "encoder layer", "spelled out", "fused", "fused, by head",
    "heads in the batch", "einsum", "sdpa", "position bias", "cosine", "normed", "windows",
    "linear attention", "gated heads", "grouped queries", "grouped queries, sdpa",
]  # fmt: skip
"""Some of each kind, in which the heads are the units of the layer before the last product."""


def find_heads(prepared: PreparedModel) -> list[int]:
    """The units that are heads: those with as many rows in the values as a head has."""
    names = ("a.in_proj_weight", "e.self_attn.in_proj_weight", "v.weight", "qkv.weight")
    units = next(units_of(prepared, name, 0) for name in names if name in dict(prepared.named_parameters()))
    assert bool((units >= 0).all())
    return units.unique().tolist()


@pytest.mark.parametrize("name", ONE)
def test_one_head_is_enough(name: str) -> None:
    prepared = prepared_case(name, "whole")
    heads = find_heads(prepared)
    assert len(heads) == (2 if "grouped" in name else 4)
    set_gates(prepared, heads[1:])
    assert convert_now(prepared).report.units_removed == len(heads) - 1


@pytest.mark.parametrize("name", ONE)
def test_of_heads_that_are_all_closed_one_stays_and_is_said_or_the_whole_branch_goes(name: str) -> None:
    prepared = prepared_case(name, "whole")
    heads = find_heads(prepared)
    set_gates(prepared, heads)
    report = convert_now(prepared).report
    one = {"the strongest unit of a layer that would be empty stays": 1}
    assert (report.units_removed, report.kept) in [(len(heads), {}), (len(heads) - 1, one)]


@pytest.mark.parametrize("name", ["spelled out", "sdpa", "rotary", "grouped queries, sdpa", "heads in the batch"])
def test_one_channel_of_each_head_is_enough_and_the_scale_stays(name: str) -> None:
    prepared = prepared_case(name, "inner")
    keys, values = (units_of(prepared, f"{n}.weight", 0).unique().tolist() for n in "kv")
    set_gates(prepared, keys[1:] + values[1:])
    compact = convert_now(prepared)
    assert compact.q.out_features == (8 if name == "rotary" else 4)
    assert compact.v.out_features == (2 if "grouped" in name else 4)


def test_two_channels_of_each_head_are_enough_and_the_scale_stays() -> None:
    for name in ("spelled out", "sdpa", "grouped queries, sdpa", "heads in the batch"):
        prepared = prepared_case(name, "inner")
        keys, values = (units_of(prepared, f"{n}.weight", 0).unique().tolist() for n in "kv")
        set_gates(prepared, keys[2:] + values[2:])
        compact = convert_now(prepared)
        assert (compact.q.out_features, compact.v.out_features) == (8, 4 if "grouped" in name else 8)


def test_a_head_that_is_an_output_stays() -> None:
    class Shown(Tokens):
        def forward(self, x: Tensor) -> Any:
            x = self.stem(x)
            weights = (split(self.q(x)) @ split(self.k(x)).mT).softmax(-1)
            return self.head(self.o(merge(weights @ split(self.v(x)))).mean(1)), weights

    prepared = prepare_randomised(Shown(self_attention, **linears("q", "k", "v")), tokens())
    assert count_units(prepared) == 16 + 16
    compact = convert_closed(prepared, tokens(5, 9, 1))
    assert (compact.q.out_features, compact.v.out_features) == (24, 24)


def test_both_modes_lose_the_same_heads() -> None:
    """In training mode attention has dropout and no fast path."""
    model = Tokens(lambda m, x: m.e(x), e=layer(dropout=0.0)).double()
    prepared = fxprune.prepare(model, tokens())
    set_gates(prepared, [0, 5, 20, 33])
    compact = fxprune.convert(prepared)
    assert compact.training
    torch.testing.assert_close(compact(tokens(4, 8)), prepared(tokens(4, 8)), rtol=1e-12, atol=1e-12)
    assert_same(prepared, compact, tokens(5, 9, 1))


@pytest.mark.parametrize("name", ["module", "encoder", "spelled out", "fused", "grouped queries, sdpa"])
def test_attention_of_zeros_converts_without_being_prepared(name: str) -> None:
    model = build(name).double().eval()
    prepared = prepare_randomised(model, tokens())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter[::3] = 0
                parameter[:, 1::4] = 0
    assert count_units(prepared) == CASES[name].whole
    compact = fxprune.convert(model, tokens())
    assert_same(model, compact, tokens(5, 9, 1))
    assert compact.report.units_removed > 0


def test_queries_keys_and_values_that_are_unbound_may_lose_all_values() -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).reshape(*x.shape[:2], 3, 1, 2).permute(2, 0, 3, 1, 4).unbind(0)
        return x + m.o(merge(F.scaled_dot_product_attention(q, k, v)))

    prepared = prepare_randomised(Tokens(body, qkv=nn.Linear(16, 6), o=nn.Linear(2, 16)), tokens())
    set_gates(prepared, units_of(prepared, "qkv.weight", 0)[4:].tolist())
    convert_now(prepared)

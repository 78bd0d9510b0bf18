"""What an op that counts every channel alike computes while channels are being pruned: the same, over the open ones.

A norm, a mean over channels, a product q k^T has no weight whose column could be closed. Its living form
takes a buffer `is_open`, [channels], 1 where a channel is open: what it gives for the open channels is what
the op itself gives once the closed ones are gone. With all channels open it is the op itself.

The gradient of what is open is that of the smaller model, too; what is closed receives none.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxprune.compile_graph import inherit
from fxprune.shadow.ids import spread_positions


def can_live(node: fx.Node, dims: int = 1) -> bool:
    """Whether a node has a living form for channels along so many dimensions.

    Not where it also gives the places of what it finds; a statistic over rows and columns has none, a sum has.
    """
    if node.op == "call_module" or node.target not in (MUTED if dims > 1 else {*MUTED, *LIVING}):
        return False
    if node.target in NORMS:  # of a negative order a zero decides, of order 0 it is not counted anyway
        order = [*node.args[1:2], *(node.kwargs[name] for name in ("p", "ord") if name in node.kwargs)]
        return all(p is None or isinstance(p, str) or (isinstance(p, (int, float)) and p >= 0) for p in order)
    if node.target is F.batch_norm:
        return node.kwargs.get("running_mean", node.args[1] if len(node.args) > 1 else None) is None
    if node.target in (torch.max, "max"):
        return all(user.target in (operator.getitem, getattr) and user.args[1] in (0, "values") for user in node.users)
    return True


def use_living(node: fx.Node, x: fx.Node, dim: int, is_open: str, folded: bool = False) -> None:
    """Let a node of a graph leave out the channels along `dim` of its input `x` that the buffer `is_open` closes.

    `folded`: each channel stands for several positions along `dim`, more or fewer by the size of the input.
    """
    with node.graph.inserting_before(node):
        mask = node.graph.get_attr(is_open)
        if folded:
            size = node.graph.call_method("size", (x, dim))
            mask = node.graph.call_function(spread_positions, (mask, size))
        if node.target in MUTED:
            before = find_muted_input(node, x)
            muted = node.graph.call_function(mute, (before, mask, dim))
            muted.meta = inherit(node)
            node.replace_input_with(before, muted)
            return
    node.kwargs = {name: value for name, value in node.kwargs.items() if value is not x}
    node.args = (x, mask, dim, *node.args[1:])
    node.op, node.target = "call_function", LIVING[node.target]


def find_muted_input(node: fx.Node, x: fx.Node) -> fx.Node:
    """The input of a node that is `x`, with what mutes it along other dimensions."""
    for muted in node.all_input_nodes:
        source = muted
        while source.target is mute:
            source = source.all_input_nodes[0]
        if source is x:
            return muted
    raise ValueError(f"{x.name} is no input of {node.name}")


def mute(x: Tensor, is_open: Tensor, dim: int) -> Tensor:
    """Set the closed channels along `dim` to zero."""
    return x * along(is_open, x, dim).to(x.dtype)


def along(values: Tensor, x: Tensor, dim: int) -> Tensor:
    """View one value for each channel so that it broadcasts against `x`, whose dimension `dim` they are."""
    shape = [1] * x.dim()
    shape[dim] = -1
    return values.view(shape)


def living_mean(x: Tensor, is_open: Tensor, channel_dim: int, *args: Any, **kwargs: Any) -> Tensor:
    """Give `torch.mean(x, ...)` over the open channels only; 0 where none is open."""
    share = is_open.numel() / is_open.to(x.dtype).sum().clamp(min=1)
    return torch.mean(mute(x, is_open, channel_dim), *args, **kwargs) * share


def living_max(x: Tensor, is_open: Tensor, channel_dim: int, *args: Any, **kwargs: Any) -> Any:
    """Give `torch.max(x, ...)` over the open channels only; 0 where none is open."""
    return torch.max(hide(x, is_open, channel_dim), *args, **kwargs)


def living_amax(x: Tensor, is_open: Tensor, channel_dim: int, *args: Any, **kwargs: Any) -> Tensor:
    """Give `torch.amax(x, ...)` over the open channels only; 0 where none is open."""
    return torch.amax(hide(x, is_open, channel_dim), *args, **kwargs)


def living_softmax(x: Tensor, is_open: Tensor, channel_dim: int, *args: Any, **kwargs: Any) -> Tensor:
    """Give `F.softmax(x, dim)` over the open channels."""
    return living_log_softmax(x, is_open, channel_dim, *args, **kwargs).exp()


def living_log_softmax(
    x: Tensor, is_open: Tensor, channel_dim: int, dim: int | None = None,
    _stacklevel: int = 3, dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """Give `F.log_softmax(x, dim)` over the open channels: x - log(sum of exp(x) * open).

    The closed ones get the same, at most 0, so that they stay finite.
    """
    x = x if dtype is None else x.to(dtype)
    total = torch.logsumexp(hide(x, is_open, channel_dim), channel_dim if dim is None else dim, keepdim=True)
    is_open = along(is_open, x, channel_dim)
    result = x - total
    return torch.where(is_open != 0, result, result.clamp(max=0))


def hide(x: Tensor, is_open: Tensor, dim: int) -> Tensor:
    """Set the closed channels to the least number, which no maximum finds and whose exponential is 0.

    Where none is open all become 0: the maximum is to stay a number that can be computed with.
    """
    is_open = along(is_open, x, dim) != 0
    return torch.where(is_open, x, is_open.any().to(x.dtype) * torch.finfo(x.dtype).min)


def living_var(
    x: Tensor, is_open: Tensor, channel_dim: int, dim: Any = None, unbiased: bool = True,
    keepdim: bool = False, *, correction: float | None = None,
) -> Tensor:  # fmt: skip
    """Give `torch.var(x, dim, ...)` over the open channels only: sum of (x - mean)^2 * open, over n - correction.

    Where none is open it is 1, for the sake of what divides by it.
    """
    if isinstance(dim, bool):  # var(x, unbiased)
        dim, unbiased = None, dim
    dims = list(range(x.dim())) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    mean = living_mean(x, is_open, channel_dim, dims, keepdim=True)
    centred = x - mean
    squares = mute(centred.square(), is_open, channel_dim).sum(dims, keepdim=keepdim)
    living = is_open.to(x.dtype).sum()  # how many are
    count = torch.Size([x.size(d) for d in dims]).numel() * living / is_open.numel()
    divisor = count - (float(unbiased) if correction is None else correction)
    return torch.where(living > 0, squares / torch.where(living > 0, divisor, 1.0), 1.0)


def living_std(x: Tensor, is_open: Tensor, channel_dim: int, *args: Any, **kwargs: Any) -> Tensor:
    """Give `torch.std(x, ...)` over the open channels only; 1 where none is open."""
    return living_var(x, is_open, channel_dim, *args, **kwargs).sqrt()


def living_var_mean(
    x: Tensor, is_open: Tensor, channel_dim: int, dim: Any = None, unbiased: bool = True,
    keepdim: bool = False, *, correction: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Give `torch.var_mean(x, dim, ...)` over the open channels only."""
    dims = list(range(x.dim())) if dim is None else dim
    variance = living_var(x, is_open, channel_dim, dim, unbiased, keepdim, correction=correction)
    return variance, living_mean(x, is_open, channel_dim, dims, keepdim=keepdim)


def living_layer_norm(
    x: Tensor, is_open: Tensor, channel_dim: int, normalized_shape: Any,
    weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Normalise `x`, [..., channels], over the open channels.

        mean = sum(x * open) / n,   var = sum((x - mean)^2 * open) / n,   n = sum(open)

    What the closed channels give is finite and read by nobody.
    """
    mask = is_open.to(x.dtype)
    count = mask.sum().clamp(min=1)
    mean = (x * mask).sum(-1, keepdim=True) / count
    centred = x - mean
    variance = (centred.square() * mask).sum(-1, keepdim=True) / count
    normal = centred * torch.rsqrt(variance + eps)
    return scale_and_shift(normal, weight, bias)


def living_rms_norm(
    x: Tensor, is_open: Tensor, channel_dim: int, normalized_shape: Any,
    weight: Tensor | None = None, eps: float | None = None,
) -> Tensor:  # fmt: skip
    """Divide `x`, [..., channels], by the root of the mean square of its open channels."""
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    mean = living_mean(x.square(), is_open, -1, -1, keepdim=True)
    return scale_and_shift(x * torch.rsqrt(mean + eps), weight, None)


def living_group_norm(
    x: Tensor, is_open: Tensor, channel_dim: int, num_groups: int,
    weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Normalise `x`, [batch, channels, ...], in groups of channels, each over its open ones."""
    mask = is_open.to(x.dtype).view(1, num_groups, -1, 1)
    grouped = x.reshape(x.size(0), num_groups, mask.size(2), -1)
    count = (mask.sum(2, keepdim=True) * grouped.size(3)).clamp(min=1)
    mean = (grouped * mask).sum((2, 3), keepdim=True) / count
    centred = grouped - mean
    variance = (centred.square() * mask).sum((2, 3), keepdim=True) / count
    normal = centred * torch.rsqrt(variance + eps)
    shape = [1, -1] + [1] * (x.dim() - 2)
    return scale_and_shift(normal.view(x.shape), *(None if t is None else t.view(shape) for t in (weight, bias)))


def living_batch_norm(
    x: Tensor, is_open: Tensor, channel_dim: int, running_mean: None, running_var: None,
    weight: Tensor | None = None, bias: Tensor | None = None, training: bool = True, momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Normalise `x`, [.., rows, ..], each row over the open ones of the channels along another dimension."""
    mask = along(is_open.to(x.dtype), x, channel_dim)
    dims = [d for d in range(x.dim()) if d != 1]
    share = is_open.numel() / mask.sum().clamp(min=1)
    mean = (x * mask).mean(dims, keepdim=True) * share
    centred = x - mean
    variance = (centred.square() * mask).mean(dims, keepdim=True) * share
    normal = centred * torch.rsqrt(variance + eps)
    return scale_and_shift(normal, *(None if t is None else along(t, x, 1) for t in (weight, bias)))


def scale_and_shift(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


NORMS = (torch.norm, "norm", torch.linalg.norm, torch.linalg.vector_norm)

LIVING: dict[Any, Callable[..., Any]] = {
    torch.mean: living_mean, "mean": living_mean,
    torch.max: living_max, "max": living_max,
    F.softmax: living_softmax, torch.softmax: living_softmax, "softmax": living_softmax,
    F.log_softmax: living_log_softmax, torch.log_softmax: living_log_softmax, "log_softmax": living_log_softmax,
    torch.amax: living_amax, "amax": living_amax,
    torch.var: living_var, "var": living_var,
    torch.std: living_std, "std": living_std,
    torch.var_mean: living_var_mean,
    F.layer_norm: living_layer_norm,
    F.group_norm: living_group_norm,
    F.batch_norm: living_batch_norm,
    F.rms_norm: living_rms_norm,
}  # fmt: skip
"""Ops whose result depends on how many channels there are, and what computes it of the open ones."""

MUTED: set[Any] = {
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    torch.matmul, operator.matmul, "matmul", "__matmul__", torch.mm, "mm", torch.bmm, "bmm", torch.einsum,
    torch.mv, "mv", torch.dot, "dot", torch.inner, "inner", torch.addmv, "addmv",
    F.scaled_dot_product_attention, torch.baddbmm, "baddbmm", torch.addmm, "addmm",
    torch.sum, "sum", *NORMS,
}  # fmt: skip
"""Ops to which a channel of zeros is the same as none."""

"""How many rows of weights a model has, how many of them a gate may close, and what keeps the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fxprune.model import PreparedModel

OUTPUT = "an output of the model"
"""The reason of the pins that hold the outputs as they are."""


def find_weights(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
    """The weights of convolutions, linear layers and attention, each once, and along which dimension their rows are."""
    seen: dict[int, Tensor] = {}  # holds what parametrizations compute, so that no other tensor gets its id
    for module in model.modules():
        for name, dim in find_row_dims(module).items():
            weight = getattr(module, name)
            if isinstance(weight, Tensor) and id(weight) not in seen:
                seen[id(weight)] = weight
                yield weight, dim


def find_row_dims(module: nn.Module) -> dict[str, int]:
    """The names of a layer's weights, and the dimension of their rows."""
    if isinstance(module, nn.MultiheadAttention):
        names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
        return dict.fromkeys(names, 0)
    if isinstance(module, _ConvTransposeNd) or type(module).__name__ == "Conv1D":  # the latter of transformers
        return {"weight": 1}
    return {"weight": 0} if isinstance(module, (nn.Linear, _ConvNd)) else {}


def count_rows(model: nn.Module) -> int:
    """Count the rows of all weights."""
    return sum(weight.shape[dim] for weight, dim in find_weights(model))


def count_gated(prepared: PreparedModel) -> int:
    """Count the rows whose unit has a gate."""
    dims = {id(weight): dim for weight, dim in find_weights(prepared)}
    tensors = dict(prepared.named_parameters())
    computed = {  # what a parametrization gives is another tensor each time
        f"{path}.{name}": dim for path, part in prepared.named_modules() for name, dim in find_row_dims(part).items()
    }

    def find_rows(name: str) -> int | None:
        return dims.get(id(tensors[name])) if name in tensors else computed.get(name)

    slices = [place for place in prepared.fxprune.slices if find_rows(place.parameter) == place.dim]
    return sum(int((place.index >= 0).sum()) for place in slices)


def add_up(pinned: dict[str, int], most: int = 5) -> dict[str, int]:
    """The commonest reasons, those of all lines of the model's source together."""
    counts: Counter[str] = Counter()
    for reason, count in pinned.items():
        counts[reason.partition(" (")[0]] += count
    return dict(counts.most_common(most))

"""What is the whole of a parameter of which every rank holds a piece, as after `torch.distributed.fsdp.fully_shard`?

Between two forward passes FSDP keeps parameters as DTensors. Thresholds and scores are found on whole ones, which all
ranks gather, so all find the same. `torch.distributed.tensor` takes a second to import: only who shards pays for it.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, distributed

from fxprune.errors import FxpruneError

Result = TypeVar("Result")


def is_sharded(tensor: Tensor) -> bool:
    """Say whether it is a DTensor."""
    return hasattr(tensor, "full_tensor")


def gather(tensor: Tensor) -> Tensor:
    """Give the whole of a sharded tensor, on every rank, and any other tensor as it is. All ranks must call it."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def refuse_piece(tensor: Tensor, name: str) -> None:
    """Refuse a forward in which a parameter is still in pieces. Raises FxpruneError."""
    if is_sharded(tensor):
        raise FxpruneError(
            f"{name} is sharded in the forward: a prepared model runs as one graph, which calls none of the layers "
            "that it came from, so call fully_shard on the whole prepared model alone"
        )


def spread(whole: Tensor, like: Tensor) -> Tensor:
    """Give a tensor that is the same on all ranks in the pieces of another one, which may be no sharded one."""
    if not is_sharded(like):
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def on_first_rank(compute: Callable[[], Result]) -> Result:
    """Give what the first rank computes, on every rank: times, which no two ranks measure alike. All must call it.

    Raises on all ranks what fxprune refuses there.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return compute()
    found: list[Any] = [None, None]
    if distributed.get_rank() == 0:
        try:
            found = [compute(), None]
        except FxpruneError as error:
            found = [None, error]
    distributed.broadcast_object_list(found, src=0)
    result, refusal = found
    if refusal is not None:
        raise refusal
    return result  # type: ignore[no-any-return]

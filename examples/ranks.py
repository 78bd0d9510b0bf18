"""Which process of how many is this, and on which device? One by itself, several by torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Ranks:
    """This process's number among `count`, and its device."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Let the processes average their gradients; alone, give the model itself."""
        if self.count == 1:
            return model
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)

    def add_up(self, values: Tensor) -> Tensor:
        """Give the sum of all processes' values."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the first one's buffers: each gathers batch-norm statistics of its own images."""
        for buffer in model.buffers() if self.count > 1 else ():
            dist.broadcast(buffer, 0)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def join_ranks(device: str) -> Iterator[Ranks]:
    """Join the processes that torchrun started, or be the only one."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and count > 1:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    if count == 1:
        yield Ranks(0, 1, torch.device(device))
        return
    dist.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        yield Ranks(dist.get_rank(), count, torch.device(device))
    finally:
        dist.destroy_process_group()

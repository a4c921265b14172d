"""Data-parallel training over several processes that torchrun starts: ranks, collectives and sharded tensors.

DDP keeps the complete model in each process; FSDP2 (`parallel=fsdp`) a shard of each weight. Either way each process
takes its rows of a batch that is the same for any number of processes, so the loss curve is that of one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from model.network.gpt import GPT
from pipeline.errors import BadConfig


@dataclass(frozen=True)
class World:
    """This process as `rank` of `size` processes. By default it is alone and no collective communicates.

    All processes must call a collective, in the same order.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """True for the one process that decides, writes and reports."""
        return self.rank == 0

    def rows(self, batch_size: int) -> tuple[int, int]:
        """Return the first of this process's rows of a batch, and their number."""
        if batch_size % self.size:
            raise BadConfig(
                f"batch_size must be a multiple of the {self.size} processes, got {batch_size}",
                hint="--set batch_size=…",
            )
        count = batch_size // self.size
        return self.rank * count, count

    def broadcast(self, value: float) -> float:
        """Return the main process's value."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(tensor, 0, group=_cpu_group())
        return float(tensor)

    def any(self, flag: bool) -> bool:
        """Return True if the flag is True in any process."""
        return bool(self.all_reduce_sum(float(flag)))

    def all_reduce_sum(self, value: float) -> float:
        """Return the sum over all processes."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, group=_cpu_group())
        return float(tensor)

    def first_nonempty(self, name: str) -> str:
        """Return the first name that is not empty, in rank order."""
        if self.size == 1:
            return name
        names = [""] * self.size
        dist.all_gather_object(names, name, group=_cpu_group())
        return next(filter(None, names), "")

    def broadcast_object(self, value: Any) -> Any:
        """Return the main process's object, which must be picklable."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, 0, group=_cpu_group())
        return values[0]


@contextmanager
def process_group(device: torch.device) -> Iterator[World]:
    """Join the process group that torchrun describes in the environment, for the duration of the context."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _cpu_group() -> dist.ProcessGroup | None:
    return dist.group.WORLD  # its gloo backend: collectives of `World` are of small CPU tensors


def wrap(model: GPT, world: World, parallel: str) -> nn.Module:
    """Wrap the model in DDP or FSDP2 for training. The weights stay those of `model`."""
    if world.size == 1:
        return model
    if model.bigrams is not None:
        raise BadConfig("bigram embeddings can be trained by one process only", hint="--set bigrams=0")
    if parallel == "ddp":
        return DistributedDataParallel(model)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)  # in place: it changes the class of the model
    return model


def no_sync_unless_last(model: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Skip gradient sync for every micro-batch of a step except the last."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()


def reshard(model: nn.Module) -> None:
    """Free the full weights that FSDP gathered for a forward pass without a backward pass."""
    if isinstance(model, FSDPModule):
        model.reshard()


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor; all of it if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor that may be sharded. A collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_state_dict(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather tensors on the CPU; unsharded CPU tensors are not copied. A collective."""
    return {name: full_tensor(tensor).detach().cpu().contiguous() for name, tensor in tensors.items()}


@torch.no_grad()
def copy_into(target: Tensor, source: Tensor) -> None:
    """Copy a full tensor into `target`, of which this process may hold a shard."""
    if isinstance(target, DTensor):
        source = distribute_tensor(source.to(target.device), target.device_mesh, target.placements)
    target.copy_(source)

"""Several processes that train one model, started by torchrun: who is who, what they tell each other, how they share.

DDP keeps the whole model in each process; FSDP2 (`parallel=fsdp`) a part of each weight. Either way each process takes
its rows of a batch that is the same for any number of them, so the loss curve is that of one process.
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
    """This process among all: `rank` of `size`; alone by default, where nothing has to travel."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the one process that decides, writes and reports."""
        return self.rank == 0

    def rows(self, batch_size: int) -> tuple[int, int]:
        """The first of this process's rows of a batch, and how many they are."""
        if batch_size % self.size:
            raise BadConfig(
                f"batch_size {batch_size} is no multiple of {self.size} processes", hint="--set batch_size=…"
            )
        count = batch_size // self.size
        return self.rank * count, count

    def agree(self, value: float) -> float:
        """The leader's value."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(shared, 0, group=_control())
        return float(shared)

    def any(self, flag: bool) -> bool:
        """Whether any of the processes says so."""
        return bool(self.total(float(flag)))

    def total(self, value: float) -> float:
        """The sum over all processes."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(shared, group=_control())
        return float(shared)

    def first(self, name: str) -> str:
        """The first name that is not empty, of the processes in their order."""
        if self.size == 1:
            return name
        names = [""] * self.size
        dist.all_gather_object(names, name, group=_control())
        return next(filter(None, names), "")

    def tell(self, what: Any) -> Any:
        """The leader's object."""
        if self.size == 1:
            return what
        box = [what]
        dist.broadcast_object_list(box, 0, group=_control())
        return box[0]


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The world that torchrun set up, as long as the context lasts."""
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


def _control() -> dist.ProcessGroup | None:
    return dist.group.WORLD  # its gloo half: what is told are small numbers in the memory of the host


def shared(model: GPT, world: World, parallel: str) -> nn.Module:
    """The model as all processes of the world train it; its weights are those of `model`."""
    if world.size == 1:
        return model
    if model.bigrams is not None:
        raise BadConfig("embeddings of pairs are trained by one process only", hint="--set bigrams=0")
    if parallel == "ddp":
        return DistributedDataParallel(model)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)  # in place: it gets another class
    return model


def not_yet(model: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Around all but the `last` of the backward passes of one step: gradients travel once a step."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()


def part(model: nn.Module) -> None:
    """Let each process hold its part of each weight again: after a pass without a backward one it has some whole."""
    if isinstance(model, FSDPModule):
        model.reshard()


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def plain(tensor: Tensor) -> Tensor:
    """All of a tensor of which each process may hold a part. All processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on the CPU; those of one process there are not copied. All processes must ask."""
    return {name: plain(each).detach().cpu().contiguous() for name, each in tensors.items()}


@torch.no_grad()
def fill(target: Tensor, source: Tensor) -> None:
    """Copy a whole tensor into one of which this process may hold a part."""
    if isinstance(target, DTensor):
        source = distribute_tensor(source.to(target.device), target.device_mesh, target.placements)
    target.copy_(source)

"""Data-parallel training over several processes that torchrun starts: ranks, collectives and sharded tensors.

DDP keeps the complete model in each process; FSDP2 (`parallel=fsdp`) a shard of each weight. Either way each process
takes its rows of a batch that is the same for any number of processes, so the loss curve is that of one process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from model.network.gpt import GPT
from pipeline.errors import BadConfig, InkstoneError, NodeLost, to_inkstone_error

TIMEOUT = "INKSTONE_NODE_TIMEOUT"  # environment variable, in minutes
_TIMEOUT = 10.0  # minutes: longer than the main process writes a checkpoint, while the others wait
_SETUP_TIMEOUT = timedelta(days=1)
_LOST = re.compile(  # in errors of torch
    r"pair closure|Timed out waiting|NCCL|[Cc]onnection (closed|reset)|Broken pipe|No route|unreachable"
)
_SOURCE = re.compile(r"^\[[^]]*\] ")  # the file of torch at their beginning
T = TypeVar("T")


class MainProcessFailed(InkstoneError):
    """The main process failed and reports the error; this process only exits with the same code."""

    def __init__(self, error: InkstoneError) -> None:
        super().__init__(error.message, hint=error.hint)
        self.exit_code, self.already_reported = error.exit_code, True


@dataclass(frozen=True)
class World:
    """This process as `rank` of `size` processes. By default it is alone and no collective communicates.

    All processes must call a collective, in the same order. `group` is the process group, None for the default one.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None  # its gloo backend: collectives are of CPU tensors

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
        dist.broadcast(tensor, 0, group=self.group)
        return float(tensor)

    def any(self, flag: bool) -> bool:
        """Return True if the flag is True in any process."""
        return bool(self.all_reduce_sum(float(flag)))

    def all_reduce_sum(self, value: float) -> float:
        """Return the sum over all processes."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.group)
        return float(tensor)

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """Sum a CPU tensor over all processes in place, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def min(self, value: float) -> float:
        """Return the smallest value of all processes."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MIN, group=self.group)
        return float(tensor)

    def map_shared(self, function: Callable[[Tensor], Tensor], stacked: Tensor) -> Tensor:
        """Apply `function` to N tensors (N, …), which all processes have. Each computes its share. A collective."""
        if self.size == 1:
            return function(stacked)
        share = -(-len(stacked) // self.size)
        padding = stacked.new_zeros(share * self.size - len(stacked), *stacked.shape[1:])
        part = function(torch.cat((stacked, padding))[self.rank * share :][:share]).contiguous()
        results = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather([result.view(torch.uint8) for result in results], part.view(torch.uint8), group=self.group)
        return torch.cat(results)[: len(stacked)]

    def first_nonempty(self, name: str) -> str:
        """Return the first name that is not empty, in rank order."""
        if self.size == 1:
            return name
        names = [""] * self.size
        dist.all_gather_object(names, name, group=self.group)
        return next(filter(None, names), "")

    def broadcast_object(self, value: Any) -> Any:
        """Return the main process's object, which must be picklable."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, 0, group=self.group)
        return values[0]

    def broadcast_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the main process's CPU tensors, sent one at a time. Other processes ignore their argument."""
        if self.size == 1:
            return dict(tensors)
        layouts = self.broadcast_object({name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
        received = {}
        for name, (shape, dtype) in layouts.items():
            tensor = tensors[name].contiguous() if self.is_main else torch.empty(shape, dtype=dtype)
            dist.broadcast(tensor.view(-1).view(torch.uint8), 0, group=self.group)
            received[name] = tensor
        return received

    def from_main(self, call: Callable[[], T]) -> T:
        """Return what `call` returns in the main process; if it fails there, raise in all. A collective."""
        if not self.is_main:
            value, error = self.broadcast_object(None)
            if error:
                raise MainProcessFailed(error)
            return value  # type: ignore[no-any-return]
        try:
            value = call()
        except BaseException as failure:
            self.broadcast_object((None, to_inkstone_error(failure)))
            raise
        self.broadcast_object((value, None))
        return value

    def raise_first(self, error: InkstoneError | None) -> None:
        """Raise the first error in rank order, if there is one, in all processes. A collective."""
        if self.size == 1:
            errors = [error]
        else:
            errors = [None] * self.size
            dist.all_gather_object(errors, error, group=self.group)
        if first := next(filter(None, errors), None):
            raise first if self.is_main else MainProcessFailed(first)

    def for_setup(self) -> World:
        """Return these processes with a group that waits for a day, for fetching and publishing. A collective."""
        return replace(self, group=dist.new_group(backend="gloo", timeout=_SETUP_TIMEOUT)) if self.size > 1 else self

    @property
    def is_first_on_node(self) -> bool:
        """True for one process of each node, as torchrun counts them."""
        return os.environ.get("LOCAL_RANK", "0") == "0"


@contextmanager
def process_group(device: torch.device) -> Iterator[World]:
    """Join the process group that torchrun describes in the environment, for the duration of the context."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    if device.type == "cuda":
        torch.cuda.set_device(_own_gpu(device))
    timeout = _timeout()
    with detect_lost_process():
        dist.init_process_group("cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo", timeout=timeout)
        try:
            yield World(dist.get_rank(), dist.get_world_size())
        finally:
            dist.destroy_process_group()


def _timeout() -> timedelta:
    """Return how long a collective waits for the other processes."""
    text = os.environ.get(TIMEOUT, "")
    try:
        minutes = float(text or _TIMEOUT)
        if not 0 < minutes <= 60 * 24:
            raise ValueError
    except ValueError:
        raise BadConfig(
            f"{TIMEOUT}={text[:40]}: expected minutes from above 0 to 1,440", hint=f"for example {TIMEOUT}=5"
        ) from None
    return timedelta(minutes=minutes)


@contextmanager
def detect_lost_process(saved_step: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Raise NodeLost instead of torch's error for a process that ended, or cannot be reached.

    `saved_step` returns the step of the last checkpoint, 0 if that is not known here.
    """
    try:
        yield
    except RuntimeError as error:
        text = _SOURCE.sub("", " ".join(str(error).split()))
        if not (isinstance(error, dist.DistError) or _LOST.search(text)):
            raise
        subject = "process" if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE") else "node"
        step = saved_step()
        raise NodeLost(
            f"a {subject} was lost: {text.partition('. ')[0][:160]}",
            hint="the same command continues from " + (f"step {step:,}" if step else "the last checkpoint, if any"),
        ) from error


def _own_gpu(device: torch.device) -> int:
    """Return the index of this process's GPU. Raises BadConfig if the processes of this machine would share one."""
    rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    size = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), rank + 1)
    if device.index is not None and size > 1:
        raise BadConfig(f"--device {device} names one GPU for {size} processes", hint="--device cuda gives one to each")
    if size > count:
        raise BadConfig(
            f"{size} processes on this machine need {size} GPUs, and it has {count}",
            hint=f"torchrun --nproc-per-node {count}",
        )
    return rank if device.index is None else device.index


def wrap(model: GPT, world: World, parallel: str) -> nn.Module:
    """Wrap the model in DDP or FSDP2 for training. The weights stay those of `model`."""
    if world.size == 1:
        return model
    if model.bigrams is not None:
        raise BadConfig("bigram embeddings can be trained by one process only", hint="--set bigrams=0")
    if parallel == "ddp":
        return DistributedDataParallel(model)
    # Named, since by default it is of GPUs where there are any, also for processes that compute on the CPU.
    mesh = init_device_mesh(model.embedding.weight.device.type, (world.size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)  # in place: it changes the class of the model
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


def local_part(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's shard of a full tensor, sharded as `like` is. Every process has the full tensor."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def full_state_dict(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather tensors on the CPU; unsharded CPU tensors are not copied. A collective.

    Copies from CUDA into pinned memory are asynchronous: synchronize with the device before reading them.
    """
    return {name: _on_cpu(full_tensor(tensor).detach()).contiguous() for name, tensor in tensors.items()}


def _on_cpu(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cuda":
        with suppress(RuntimeError):  # not enough memory can be pinned
            pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            return pinned.copy_(tensor, non_blocking=True)
    return tensor.cpu()


@torch.no_grad()
def copy_into(target: Tensor, source: Tensor) -> None:
    """Copy a full tensor that all processes have into `target`, which may be sharded."""
    if isinstance(target, DTensor):
        source = local_part(source.to(target.device), target)
    target.copy_(source)

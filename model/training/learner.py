"""The network, its optimizers and the moving average of its weights, and one step of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model import device as devices
from model.config import GPTConfig, TrainConfig
from model.device import ExecutionConfig
from model.network import masks
from model.network.gpt import GPT
from model.runs import checkpoint
from model.runs.checkpoint import CheckpointTensors
from model.training import distributed, optim
from model.training.distributed import World
from model.training.tuning import lora
from model.training.tuning.objective import Tuning


@dataclass(frozen=True)
class StepResult:
    """Outcome of a step: mean loss in nats per token and gradient norm, both scalars on the device.

    `culprit` names the first non-finite weight, else gradient, else the loss; the weights are then unchanged. It is ""
    if the step updated the weights.
    """

    loss: Tensor
    norm: Tensor
    culprit: str = ""


class Learner:
    """Model and optimizers of a training.

    `rows` is the number of sequences of each batch that this process computes. `counts` (V,) of the tokens initialise
    the bias of the head, if it has one. With `tuning`, batches are packed rows (rows, PLANES, T).
    """

    def __init__(
        self,
        model: GPTConfig,
        config: TrainConfig,
        device: torch.device,
        execution: ExecutionConfig,
        rows: int,
        world: World,
        counts: Tensor | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        self.config, self.device, self.rows, self.world = config, device, rows, world
        self.counts, self._tuning = counts, tuning
        self.model = GPT(model)
        self.model.recompute = config.recompute
        if config.lora_rank and tuning:
            lora.add(self.model, config.lora_rank, tuning.special)
        self.model.to(device)
        self._wrapped = distributed.wrap(self.model, world, config.parallel)
        self.use(execution)
        self.optimizers = optim.make_optimizers(self.model, config, execution.precision, world)
        self.average: dict[str, Tensor] = {}

    def use(self, execution: ExecutionConfig) -> None:
        """Use these settings from the next step on. Their precision must be that of the optimizers."""
        self.execution = execution
        # A CPU repeats every operation bit for bit, but compiled ones only if they are told to.
        devices.set_deterministic(execution.compiled if self.device.type == "cpu" else execution.deterministic)
        self._loss: Callable[..., Tensor] = self._wrapped
        if execution.compiled:
            self._loss = torch.compile(self._wrapped, dynamic=False)

    @property
    def weights(self) -> dict[str, Tensor]:
        return dict(self.model.named_parameters())

    # State

    def initialise(self) -> None:
        """Initialise the weights from the seed, with no optimizer state."""
        model = GPT(self.model.config)
        model.init_weights(self.config.seed, self.counts)
        self.load(CheckpointTensors(dict(model.named_parameters()), {}))

    def load(self, tensors: CheckpointTensors) -> None:
        """Load the tensors of a checkpoint. Without an average of the weights, the average restarts from the weights.

        Raises BadConfig, and changes nothing, if its tensors are not those of this model.
        """
        weights = self.weights
        if self.config.lora_rank:
            tensors = replace(tensors, weights=lora.with_factors(tensors.weights, self.model, self.config.seed))
        checkpoint.require_fit(tensors, self.model)
        for name, tensor in tensors.weights.items():
            distributed.copy_into(weights[name], tensor)
        if self.config.ema:
            self.average = {name: weight.detach().clone() for name, weight in weights.items()}
            for name, tensor in tensors.average.items():
                distributed.copy_into(self.average[name], tensor)
        self._load_moments(tensors.moments)

    def _load_moments(self, moments: Mapping[str, Tensor]) -> None:
        owners = {
            id(weight): optimizer
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for weight in group["params"]
        }
        for optimizer in self.optimizers:
            optimizer.state.clear()
        weights = self.weights
        for full_name, tensor in moments.items():
            name, _, key = full_name.rpartition("/")
            weight, optimizer = weights[name], owners[id(weights[name])]
            layout = weight if tensor.shape == weight.shape else tensor.to(self.device)
            moment = torch.empty_like(layout, requires_grad=False)
            distributed.copy_into(moment, tensor)
            # SparseAdam counts its steps in a Python int.
            is_int = key == "step" and isinstance(optimizer, torch.optim.SparseAdam)
            optimizer.state[weight][key] = int(moment) if is_int else moment

    def state_tensors(self) -> CheckpointTensors:
        """Gather weights, moments and average on the CPU; they are valid until the next step. A collective."""
        moments = checkpoint.moments(self.model, self.optimizers)
        tensors = CheckpointTensors(*map(distributed.full_state_dict, (self.weights, moments, self.average)))
        devices.synchronize(self.device)
        return tensors

    def not_finite(self) -> str:
        """Return the name of the first weight with a non-finite value, or "". A collective."""
        return self.world.first_nonempty(_not_finite(self.weights))

    # Training

    def step(
        self, ids: Tensor, seed: int, steps_taken: int, eos: int, prepare: Callable[[], None] | None = None
    ) -> StepResult:
        """Train one step on `ids` (rows, T + 1). Dropout depends on `seed` and the rank alone.

        `prepare` the next batch is called before the check of the loss, which waits for the device.
        """
        torch.manual_seed((seed * self.world.size + self.world.rank) % (1 << 64))
        loss = torch.zeros((), device=self.device)
        micro_batches = torch.split(ids, self.execution.micro_batch)
        for index, micro_batch in enumerate(micro_batches, 1):
            with distributed.no_sync_unless_last(self._wrapped, last=index == len(micro_batches)):
                loss += self.backward(micro_batch, len(micro_batch) / self.rows, eos)
        gradients = {name: _gradient_values(weight) for name, weight in self.weights.items() if weight.grad is not None}
        norm = distributed.full_tensor(torch.nn.utils.get_total_norm(list(gradients.values())))
        if prepare:
            prepare()
        culprit = ""
        if self.world.any(not bool(torch.isfinite(norm + loss))):
            weight_name, gradient_name = self.not_finite(), self.world.first_nonempty(_not_finite(gradients))
            if weight_name:
                culprit = f"weight {weight_name}"
            else:
                culprit = f"gradient of {gradient_name}" if gradient_name else "loss"
        else:
            torch._foreach_mul_(list(gradients.values()), (self.config.clip / (norm + 1e-6)).clamp(max=1.0))
            with devices.out_of_memory_refused(self.device):
                for optimizer in self.optimizers:
                    optimizer.step()
            self._update_average(steps_taken)
        self.model.zero_grad(set_to_none=True)
        return StepResult(loss, norm, culprit)

    def backward(self, ids: Tensor, fraction: float, eos: int) -> Tensor:
        """Add `fraction` of the gradient of the sequences `ids` (B, T + 1); return that fraction of their mean loss.

        The loss of packed rows contains their fraction already.
        """
        if self._tuning:
            with self.execution.autocast(self.device):
                share = self._tuning.loss(self._loss, ids) * self.world.size  # processes are averaged
            torch.autograd.backward(share)
            return share.detach()
        inputs, targets = ids[:, :-1], ids[:, 1:]
        mask = masks.document_mask(inputs, eos) if self.config.document_mask else None
        with self.execution.autocast(self.device):
            loss = self._loss(inputs, targets, mask) * fraction
        torch.autograd.backward(loss)
        return loss.detach()

    def probe(self, ids: Tensor, eos: int) -> None:
        """Run a forward and a backward pass that change nothing, to measure their time."""
        self.backward(ids, 1.0, eos)
        self.model.zero_grad(set_to_none=True)

    def _update_average(self, steps_taken: int) -> None:
        """Update the moving average of the weights; its decay is lower in the first steps."""
        if self.average:
            decay = min(self.config.ema, (1 + steps_taken) / (10 + steps_taken))
            weights = [weight.detach() for weight in self.weights.values()]
            torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[GPT]:
        """Swap the moving average into the model for the duration of the context, if there is one."""
        backup = {name: weight.detach().clone() for name, weight in self.weights.items()} if self.average else {}
        try:
            self._set_weights(self.average)
            yield self.model
        finally:
            distributed.reshard(self.model)
            self._set_weights(backup)

    @torch.no_grad()
    def _set_weights(self, tensors: dict[str, Tensor]) -> None:
        weights = self.weights
        for name, tensor in tensors.items():
            weights[name].copy_(tensor)


def _gradient_values(weight: Tensor) -> Tensor:
    """Return the values of a weight's gradient; of a sparse gradient, the values of its rows, each row once."""
    assert weight.grad is not None
    if not weight.grad.is_sparse:
        return weight.grad
    weight.grad = weight.grad.coalesce()
    return weight.grad._values()


def _not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Return the name of the first tensor with a non-finite value in this rank's shard, or ""."""
    return next((name for name, tensor in tensors.items() if not bool(distributed.local(tensor).isfinite().all())), "")

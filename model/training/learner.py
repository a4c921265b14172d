"""What is trained, and how one step changes it: the network, its optimisers, and the average of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import GPTConfig, TrainConfig
from model.device import Execution
from model.network import masks
from model.network.gpt import GPT
from model.runs import checkpoint
from model.runs.checkpoint import Saved
from model.training import distributed, optim
from model.training.distributed import World


@dataclass(frozen=True)
class Step:
    """What a step came to: mean loss in nats per token and the gradient's norm, both scalars on the device.

    `culprit` is the first of the weights, of the gradients and the loss that held no finite number; the weights are
    then as they were.
    """

    loss: Tensor
    norm: Tensor
    culprit: str = ""


class Learner:
    """`rows` sequences of each batch are this process's; `counts` (V,) of tokens are where a head's bias begins."""

    def __init__(
        self,
        model: GPTConfig,
        config: TrainConfig,
        device: torch.device,
        how: Execution,
        rows: int,
        world: World,
        counts: Tensor | None = None,
    ) -> None:
        self.config, self.device, self.how, self.rows, self.world = config, device, how, rows, world
        self.counts = counts
        self.model = GPT(model)
        self.model.recompute = config.recompute
        self.model.to(device)
        self._shared = distributed.shared(self.model, world, config.parallel)
        self._loss: Callable[..., Tensor] = self._shared
        if how.compiled:
            self._loss = torch.compile(self._shared, dynamic=False)
        self.optimizers = optim.make(self.model, config, how.precision)
        self.average: dict[str, Tensor] = {}

    @property
    def weights(self) -> dict[str, Tensor]:
        return dict(self.model.named_parameters())

    # Where it stands

    def begin(self) -> None:
        """The weights that the seed gives, and nothing learned."""
        fresh = GPT(self.model.config)
        fresh.initialise(self.config.seed, self.counts)
        self.load(Saved(dict(fresh.named_parameters()), {}))

    def load(self, saved: Saved) -> None:
        """Stand where a checkpoint stood; where it has no average of the weights, that begins with them.

        Raises BadConfig, and changes nothing, when its tensors are not those of this model.
        """
        weights = self.weights
        checkpoint.require_fit(saved, self.model)
        for name, tensor in saved.weights.items():
            distributed.fill(weights[name], tensor)
        if self.config.ema:
            self.average = {name: weight.detach().clone() for name, weight in weights.items()}
            for name, tensor in saved.average.items():
                distributed.fill(self.average[name], tensor)
        owners = {id(w): each for each in self.optimizers for group in each.param_groups for w in group["params"]}
        for optimizer in self.optimizers:
            optimizer.state.clear()
        for full_name, tensor in saved.moments.items():
            name, _, key = full_name.rpartition("/")
            weight = weights[name]
            alike = weight if tensor.shape == weight.shape else tensor.to(self.device)
            moment = torch.empty_like(alike, requires_grad=False)
            distributed.fill(moment, tensor)
            counts = key == "step" and isinstance(owners[id(weight)], torch.optim.SparseAdam)  # in Python's numbers
            owners[id(weight)].state[weight][key] = int(moment) if counts else moment

    def saved(self) -> Saved:
        """All tensors, on the CPU, as they are until the next step. All processes must ask."""
        moments = checkpoint.moments(self.model, self.optimizers)
        return Saved(*map(distributed.whole, (self.weights, moments, self.average)))

    def not_finite(self) -> str:
        """The name of a weight that holds no finite number, "" where all are fine."""
        return self.world.first(_not_finite(self.weights))

    # What changes it

    def step(self, ids: Tensor, seed: int, taken: int, end_of_text: int) -> Step:
        """One step on `ids` (rows, T + 1), after `taken` others. Dropout is by the seed alone."""
        torch.manual_seed((seed * self.world.size + self.world.rank) % (1 << 64))
        loss = torch.zeros((), device=self.device)
        parts = ids.split(self.how.micro_batch)
        for number, part in enumerate(parts, 1):
            with distributed.not_yet(self._shared, last=number == len(parts)):
                loss += self.backward(part, len(part) / self.rows, end_of_text)
        gradients = {name: _values(weight) for name, weight in self.weights.items() if weight.grad is not None}
        norm = distributed.plain(torch.nn.utils.get_total_norm(list(gradients.values())))
        culprit = ""
        if self.world.any(not bool(torch.isfinite(norm + loss))):
            weight, gradient = self.not_finite(), self.world.first(_not_finite(gradients))
            culprit = f"weight {weight}" if weight else f"gradient of {gradient}" if gradient else "loss"
        else:
            torch._foreach_mul_(list(gradients.values()), (self.config.clip / (norm + 1e-6)).clamp(max=1.0))
            for optimizer in self.optimizers:
                optimizer.step()
            self._follow(taken)
        self.model.zero_grad(set_to_none=True)
        return Step(loss, norm, culprit)

    def backward(self, ids: Tensor, share: float, end_of_text: int) -> Tensor:
        """Add `share` of the gradient of some sequences (B, T + 1); that share of their loss."""
        inputs, targets = ids[:, :-1], ids[:, 1:]
        mask = masks.document_mask(inputs, end_of_text) if self.config.document_mask else None
        with self.how.autocast(self.device):
            loss = self._loss(inputs, targets, mask) * share
        loss.backward()
        return loss.detach()

    def probe(self, ids: Tensor, end_of_text: int) -> None:
        """A pass forth and back that changes nothing, for its time."""
        self.backward(ids, 1.0, end_of_text)
        self.model.zero_grad(set_to_none=True)

    def _follow(self, taken: int) -> None:
        """The average follows the weights, faster in the first steps."""
        if self.average:
            decay = min(self.config.ema, (1 + taken) / (10 + taken))
            weights = [weight.detach() for weight in self.weights.values()]
            torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[GPT]:
        """The model with the average of the weights in their place, where there is one."""
        kept = {name: weight.detach().clone() for name, weight in self.weights.items()} if self.average else {}
        try:
            self._put(self.average)
            yield self.model
        finally:
            distributed.part(self.model)
            self._put(kept)

    @torch.no_grad()
    def _put(self, tensors: dict[str, Tensor]) -> None:
        weights = self.weights
        for name, tensor in tensors.items():
            weights[name].copy_(tensor)


def _values(weight: Tensor) -> Tensor:
    """What the gradient of a weight holds: all of it, or of a sparse one the rows that are there, each once."""
    assert weight.grad is not None
    if not weight.grad.is_sparse:
        return weight.grad
    weight.grad = weight.grad.coalesce()
    return weight.grad._values()


def _not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The name of the first of these that holds a number that is none, as far as this process has it; else ""."""
    return next((name for name, each in tensors.items() if not bool(distributed.local(each).isfinite().all())), "")

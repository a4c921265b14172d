"""`bench tuning`: tuning on the bundled conversations, packed, compared with a loop that pads them as minimind's does.

Both train the same network from the same weights in fp32. minimind's `SFTDataset` pads each conversation to the length
of a block and hides the padding from the loss, and its loop shuffles them (trainer/train_full_sft.py). Rates count the
tokens of conversations, not padding. A third loop pretrains the same network on blocks without padding.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.rows import Row
from model import device as devices
from model.config import GPTConfig, TrainConfig
from model.network.gpt import GPT
from model.presets import get_preset
from model.training import estimate
from model.training.dataloader import Batches, Loader, Sampler
from model.training.distributed import World
from model.training.learner import Learner
from model.training.lr_schedule import LRSchedule
from model.training.tuning.objective import Tuning, answer_loss
from model.training.tuning.packing import Documents, conversation_pieces
from model.training.tuning.rows import PackedRows
from pipeline.tokenizers import Characters, ChatTokenizer
from pipeline.tokens.store import TokenArray

_CONVERSATIONS = Path(__file__).resolve().parent.parent / "pipeline/sample/conversations.jsonl"
_STEPS = {"cpu": 4, "cuda": 20}
_VOCABULARY = 4_000  # as of a trained tokenizer; the characters of the conversations are fewer


def bench(rounds: int, report: Callable[[str], None]) -> list[Row]:
    """Return rows of tokens per second: packed compared with padded, and packed compared with pretraining."""
    device = devices.pick_device()
    documents = _conversations()
    model = dataclasses.replace(get_preset("small").model, vocab_size=_VOCABULARY, dropout=0.0)
    config = TrainConfig(batch_size=8 if device.type == "cpu" else 32, precision="fp32")
    packed = PackedRows(documents, conversation_pieces(documents, model.block_size), model.block_size, 1, "bench")
    blocks = Sampler(documents.ids, model.block_size, 1, "random", "bench")
    loops: dict[str, _Ours | _Padded] = {
        "packed": _Ours(model, config, packed, device, Tuning(answer_loss, ())),
        "padded": _Padded(model, config, documents, device),
        "pretraining": _Ours(model, config, blocks, device),
    }
    report(f"{model.parameters / 1e6:.1f}M parameters on {device}; {packed}")
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(rounds + 1):
        for name, loop in loops.items():
            start = time.perf_counter()
            tokens = sum(loop.step() for _ in range(_STEPS.get(device.type, _STEPS["cuda"])))
            devices.synchronize(device)
            if number:  # the first round allocates
                rates[name].append(tokens / (time.perf_counter() - start))
    median = {name: statistics.median(values) for name, values in rates.items()}
    work = f"tune {model.layers} x {model.width} on conversations, fp32"
    return [
        Row(work, median["packed"], median["padded"], "each conversation padded to a block (minimind)", "tokens/s"),
        Row(work, median["packed"], median["pretraining"], "pretraining on blocks of the same size", "tokens/s"),
    ]


def _conversations() -> Documents:
    lines = _CONVERSATIONS.read_text(encoding="utf-8").splitlines()
    conversations = [json.loads(line)["messages"] for line in lines]
    turns = [turn["content"] for messages in conversations for turn in messages]
    characters = sorted(set("".join(turns)))
    tokenizer = ChatTokenizer(Characters("".join({*characters, *"\nadeimnorstuy"}), "bench"))
    encoded = tokenizer.encode_conversations(conversations)
    ends = np.cumsum(encoded.lengths)
    ids = np.insert(encoded.ids, ends, tokenizer.end_of_text)
    mask = np.insert(encoded.mask, ends, 0)
    arrays = (TokenArray((ids,)), TokenArray((mask,)))
    return Documents(*arrays, encoded.lengths + 1, tokenizer, tokenizer.end_of_turn)


class _Ours:
    """Inkstone's learner and loader; `step` returns the number of tokens that are not padding."""

    def __init__(
        self,
        model: GPTConfig,
        config: TrainConfig,
        batches: Batches,
        device: torch.device,
        tuning: Tuning | None = None,
    ) -> None:
        memory_config = dataclasses.replace(config, document_mask=bool(tuning))
        execution = estimate.choose_execution(model, memory_config, config.batch_size, device).execution
        self._learner = Learner(model, config, device, execution, config.batch_size, World(), tuning=tuning)
        self._learner.initialise()
        self._schedule, self._is_packed = LRSchedule(config), tuning is not None
        self._loader = Loader(batches, config.batch_size, device)

    def step(self) -> int:
        batch = next(self._loader)
        self._schedule.apply(self._learner.optimizers)
        self._learner.step(batch, 1, self._schedule.step, 0)
        self._schedule.advance()
        return int((batch[:, -1] > 0).sum()) if self._is_packed else batch[:, 1:].numel()


class _Padded:
    """minimind's loop of supervised tuning on our network."""

    def __init__(self, model: GPTConfig, config: TrainConfig, documents: Documents, device: torch.device) -> None:
        self._network = GPT(model).to(device)
        self._network.init_weights(config.seed)
        self._optimizer = torch.optim.AdamW(self._network.parameters(), lr=config.learning_rate)
        self._config, self._documents, self._device = config, documents, device
        self._generator = np.random.default_rng(1)
        self._length = model.block_size + 1

    def step(self) -> int:
        picked = self._generator.choice(len(self._documents.lengths), self._config.batch_size, replace=False)
        rows = [self._padded(int(index)) for index in picked]
        ids, mask = (torch.from_numpy(np.stack(part)).to(self._device) for part in zip(*rows, strict=True))
        logits = self._network(ids[:, :-1])
        losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        has_loss = mask[:, 1:].flatten()
        loss = (losses * has_loss).sum() / has_loss.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), self._config.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return sum(min(int(self._documents.lengths[index]), self._length) - 1 for index in picked)

    def _padded(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        documents = self._documents
        start, length = int(documents.starts[index]), min(int(documents.lengths[index]), self._length)
        ids, mask = np.full(self._length, documents.tokenizer.end_of_text), np.zeros(self._length)
        ids[:length] = documents.ids.read(start, start + length)
        mask[:length] = documents.mask.read(start, start + length)
        return ids, mask

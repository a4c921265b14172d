"""The task of a training: its batches, its loss, and the text or the answers that are held out.

Pretraining predicts every token of blocks. The tasks of tuning train packed rows of conversations: `sft` on the
answers, `dpo` on pairs of a better and a worse answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from model.config import TrainConfig
from model.network.gpt import GPT
from model.runs.plan import TrainPlan
from model.runs.run import Report
from model.runs.tuning import DPO, SFT, base_tokens
from model.training import baselines, estimate
from model.training.baselines import Baselines
from model.training.dataloader import Sampler
from model.training.distributed import World
from model.training.evaluate import ValidationSet, validation_set
from model.training.evaluator import sample_prompt
from model.training.resume import load_reference
from model.training.tuning.evaluation import HeldOutAnswers, HeldOutPairs, answer_pairs
from model.training.tuning.objective import PreferenceLoss, Tuning, answer_loss
from model.training.tuning.packing import Documents, conversation_pieces, preference_pieces
from model.training.tuning.replay import Replay
from model.training.tuning.rows import PackedRows
from pipeline.errors import BadConfig, BadData
from pipeline.tokenizers import ChatTokenizer
from pipeline.tokenizers.chat import TURN_START
from pipeline.tokens.store import TokenStore, open_store


@dataclass(frozen=True)
class Task:
    """A task of training. `name` is "" for pretraining, which has no `tuning`.

    `prompt` is what evaluations continue: a text and its ids, or a question and the ids of the conversation up to its
    answer.
    """

    name: str
    sampler: Sampler | PackedRows | Replay
    validation: ValidationSet | HeldOutAnswers | HeldOutPairs | None
    prompt: tuple[str, list[int]]
    tuning: Tuning | None = None

    def score(self, model: GPT, device: torch.device, precision: str) -> float:
        """Return the bits per character of held-out answers, or the loss of held-out pairs."""
        assert isinstance(self.validation, HeldOutAnswers | HeldOutPairs), "only tuning holds out answers"
        evaluation = self.validation.evaluate(model, device, precision, World(), bool)
        assert evaluation is not None  # only a stopped evaluation returns None
        return evaluation.columns.get("bits_per_char", evaluation.loss)

    def with_mask(self, config: TrainConfig) -> TrainConfig:
        """Return `config` with the document masks that tuning always has, to estimate memory."""
        return replace(config, document_mask=True) if self.tuning else config

    def epoch(self, rows: int) -> tuple[float, str]:
        """Return the number of steps of `rows` rows in an epoch, and the noun: "conversations" or "pairs".

        For text, return 0 and "".
        """
        packed = self.sampler.conversations if isinstance(self.sampler, Replay) else self.sampler
        return (1 / self.sampler.epoch(1, rows), packed.noun) if isinstance(packed, PackedRows) else (0.0, "")

    @property
    def bytes(self) -> int:
        """Size of the reference network on the device, 0 without one."""
        loss = self.tuning and self.tuning.loss
        return 4 * loss.reference.config.parameters if isinstance(loss, PreferenceLoss) else 0

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the metrics that only this task has."""
        return ("margin", "accuracy", "kl") if self.name == DPO else ()

    def baselines(self, store: TokenStore) -> Baselines | None:
        """Score simple models on the held-out text or answers; None for pairs, and if nothing is held out."""
        if isinstance(self.validation, ValidationSet):
            return baselines.compute_baselines(store, self.validation)
        if isinstance(self.validation, HeldOutAnswers):
            previous, targets = answer_pairs(self.validation.rows)
            return baselines.score(store, previous, targets, self.validation.text, self.validation.unknown_bits)
        return None

    def lines(self, scores: Baselines | None) -> list[str]:
        """Describe the packing of conversations and the baselines for a person."""
        lines = [f"packing   {self.sampler}"] if isinstance(self.sampler, PackedRows | Replay) else []
        if not isinstance(self.validation, HeldOutPairs):
            lines.append(estimate.describe_baselines(scores))
        return lines


def open_task(store: TokenStore, plan: TrainPlan, device: torch.device, world: World, report: Report) -> Task:
    """Open the task of a plan, whose tokens are `store`. A collective."""
    model, config, prompt = plan.preset.model, plan.preset.train, plan.prompt
    if not store.chat:
        return Task(
            "",
            text_sampler(store, model.block_size, config, config.seed),
            validation_set(store, config.eval_bytes) if len(store.val) else None,
            sample_prompt(store, prompt, report),
        )
    if config.lora_rank and config.parallel == "fsdp" and world.size > 1:
        raise BadConfig("lora_rank and parallel=fsdp exclude each other", hint="--set parallel=ddp")
    rows = packed(store, "train", model.block_size, config.seed)
    held_out = packed(store, "val", model.block_size) if len(store.val) else None
    special = tuple(_chat_tokenizer(store).special.values())
    first_prompt = _question(store, prompt, report) if prompt else _first_question(store, held_out or rows)
    if store.chat == "chat":
        answers = HeldOutAnswers.read(held_out, config.eval_bytes) if held_out else None
        return Task(SFT, with_replay(rows, plan), answers, first_prompt, Tuning(answer_loss, special))
    segments = max(part.max_segments for part in (rows, held_out) if part)
    loss = PreferenceLoss(load_reference(plan, device, world), config.beta, segments)
    pairs = HeldOutPairs(held_out, loss) if held_out else None
    return Task(DPO, rows, pairs, first_prompt, Tuning(loss, special))


def with_replay(rows: PackedRows, plan: TrainPlan) -> PackedRows | Replay:
    """Add text of the base model to the rows of a tuning, if the plan has the setting `replay`.

    Raises InkstoneError if the tokens of that text are gone.
    """
    config = plan.preset.train
    if not config.replay or not plan.parent_path:
        return rows
    tokens, base = base_tokens(plan.parent_path)
    store = open_store(tokens)
    return Replay(rows, text_sampler(store, rows.block_size, base, config.seed), config.replay)


def text_sampler(store: TokenStore, block_size: int, config: TrainConfig, seed: int) -> Sampler:
    """Return a sampler of the training text whose blocks have the order and the beginnings that `config` asks for."""
    starts = None
    if config.document_starts:
        ends = np.cumsum(store.document_lengths("train"))
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    return Sampler(store.train, block_size, seed, config.order, store.key, starts)


def packed(store: TokenStore, split: str, block_size: int, seed: int = 0) -> PackedRows:
    """Pack the conversations of a split. Raises BadData if none has an answer within a block."""
    ids, mask = (store.train, store.train_mask) if split == "train" else (store.val, store.val_mask)
    assert mask is not None, "conversations have a mask"
    tokenizer = _chat_tokenizer(store)
    documents = Documents(ids, mask, store.document_lengths(split), tokenizer, tokenizer.end_of_turn)
    pieces = (conversation_pieces if store.chat == "chat" else preference_pieces)(documents, block_size)
    if not len(pieces.starts):
        raise BadData(
            f"{store.artifact.ref}: no answer of its {split} split is within a block of {block_size:,} tokens",
            hint="start from a run with a larger block_size, or shorten the conversations",
        )
    return PackedRows(documents, pieces, block_size, seed, store.key)


def _chat_tokenizer(store: TokenStore) -> ChatTokenizer:
    if not isinstance(store.tokenizer, ChatTokenizer):
        raise BadData(f"{store.artifact.path}: no chat tokenizer", hint="`tokenize` the conversations again")
    return store.tokenizer


def _question(store: TokenStore, text: str, report: Report) -> tuple[str, list[int]]:
    """Return a question, and the ids of a conversation that begins with it. Raises as `sample_prompt`."""
    sample_prompt(store, text, report)  # reports unknown characters
    question = [{"role": "user", "content": text}]
    return text, _chat_tokenizer(store).encode_messages(question, add_generation_prompt=True)


def _first_question(store: TokenStore, rows: PackedRows) -> tuple[str, list[int]]:
    """Return the question before the first answer, and the ids of the conversation up to this answer."""
    tokenizer = _chat_tokenizer(store)
    start, length = int(rows.pieces.starts[0]), int(rows.pieces.lengths[0])
    mask = rows.documents.mask.read(start, start + length + 1)
    ids = rows.documents.ids.read(start, start + int(np.argmax(mask))).tolist()
    end = max(index for index, token in enumerate(ids) if token == tokenizer.end_of_turn)
    begin = max(index for index, token in enumerate(ids[:end]) if token == tokenizer.special[TURN_START])
    return tokenizer.decode(ids[begin + 1 : end]).partition("\n")[2], ids  # without the line of the role

"""Python API of the model: train a run, load it, generate text, measure it.

    from model import api

    run = api.train("book", "shuihu-8m-rope", minutes=10)
    print(run.generate("话说", max_tokens=60))
    print(run.bits_per_char(open("other.txt").read()))

Messages go to the standard logger "model". The artifacts folder is chosen as in `pipeline.api`. More examples are in
docs/python-api.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.device import pick_device
from model.generation.sampling import SampleOptions
from model.generation.session import Session
from model.network.gpt import GPT
from model.runs.plan import kind_of, make_plan
from model.runs.tuning import plan_tuning
from model.training import evaluate, stage
from model.training.dataloader import Sampler
from model.training.metrics import OnRow
from pipeline.api import artifacts_folder, load_tokens
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Tokenizer
from pipeline.tokens.store import TokenStore

__all__ = ["Run", "get_batch", "load_run", "train"]

_report = logging.getLogger("model").info


class Run:
    """A trained model and its tokenizer. `artifact` is the published folder, `model` the network (a torch module)."""

    def __init__(self, run: Artifact, checkpoint: str, device: str, precision: str) -> None:
        self.artifact = run
        self._session = Session(run, checkpoint, device, precision, _report)
        self._device = pick_device(device)

    @property
    def tokenizer(self) -> Tokenizer:
        return self._session.tokenizer

    @property
    def model(self) -> GPT:
        return self._session.model

    def generate(self, prompt: str = "", *, seed: int = 1, **options: Any) -> str:
        """Continue a prompt. `options` are the fields of SampleOptions: `max_tokens=100`, `temperature=0.8`, `top_k=0`,
        `top_p=1.0`, `min_p=0.05`, `repetition_penalty=1.0`, `stop=("。",)`. The same seed gives the same text.
        """
        encoded = self._session.encode_prompt(prompt)
        return self._session.sample([encoded], SampleOptions(seed=seed, **options))[0].text

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> Tensor:
        """Return the logits after each of T token ids, fp32 of shape (T, vocab_size). T is at most the block size."""
        logits: Tensor = self.model(torch.tensor([list(ids)], device=self._device))[0]
        return logits.float()

    def bits_per_char(self, text: str) -> float:
        """Return the cross entropy of a text in bits per character, which compares across tokenizers."""
        ids = np.array(self.tokenizer.encode(text), np.int64)
        scored = evaluate.scored_set(self.tokenizer, ids)
        evaluation = evaluate.evaluate(self.model, scored, self._device)
        assert evaluation is not None  # only a stopped evaluation returns None
        return evaluation.bits_per_char


def load_run(
    name: str,
    *,
    checkpoint: str = "best",
    device: str = "auto",
    precision: str = "fp32",
    root: str | Path | None = None,
) -> Run:
    """Load a run by name, or by `name/key` for one generation. `checkpoint` is "best" or "last".

    `precision` is "fp32", "bf16", "int8" or "auto". Raises InputMissing if there is no such run, BadData if its files
    were changed.
    """
    return Run(artifact.find(artifacts_folder(root), "runs", name), checkpoint, device, precision)


def get_batch(
    tokens: TokenStore, block_size: int, batch_size: int, step: int, *, seed: int = 0, split: str = "train"
) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of one step, int64 of shape (batch_size, block_size) each.

    A pure function of its arguments: the same step gives the same blocks. Raises BadData if the split is too short.
    """
    array = tokens.val if split == "val" else tokens.train
    ids = Sampler(array, block_size, seed, "random", tokens.key).batch(step, batch_size).astype(np.int64)
    return torch.from_numpy(ids[:, :-1].copy()), torch.from_numpy(ids[:, 1:].copy())


def train(
    tokens: str,
    preset: str = "sample",
    name: str = "",
    *,
    parent: str = "",
    steps: int | None = None,
    minutes: float | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    on_row: OnRow | None = None,
    root: str | Path | None = None,
) -> Run:
    """Train a preset on token arrays, publish the run and load it. Without `name` the run is named after the preset.

    `steps` or `minutes` set the length, `settings` override single numbers, such as {"dropout": 0.2}. An unfinished run
    of the same plan is resumed; a published one is returned unchanged.

    With `parent`, training starts from the weights of that run. Tokens of conversations or pairs of answers tune it:
    the network is the parent's, `preset` is not used, and without `name` the run is named after the tokens.

    `on_row` is called with the numbers of each row of metrics.csv, by column, about every ten seconds and at each
    evaluation. After a kill, rows since the last checkpoint are repeated. An error in `on_row` has the effect of a
    kill: the unfinished run can be resumed.
    """
    folder, arrays = artifacts_folder(root), load_tokens(tokens, root).artifact
    start = artifact.find(folder, "runs", parent) if parent else None
    if start and kind_of(arrays):
        plan = plan_tuning(arrays, start, name=name, steps=steps, minutes=minutes, settings=settings)
    else:
        plan = make_plan(arrays, preset, parent=start, name=name, steps=steps, minutes=minutes, settings=settings)
    built = stage.train(folder, plan, device=device, resume=True, report=_report, on_row=on_row)
    return Run(built.artifact, "best", device, "fp32")

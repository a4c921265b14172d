"""Sampling: texts are gone on with side by side, one token of each a step.

An `Engine` holds a row of a cache for each text. Texts may join it and leave it at any step, and what each of them
becomes is by its own prompt, options and seed, whoever its neighbours are.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.device import free_memory
from model.generation.sampling import _SEEDS, Candidate, SampleOptions, Token, choose
from model.network.gpt import GPT
from model.network.kv_cache import Cache
from pipeline.errors import BadConfig, BadData, TryAgain
from pipeline.tokenizers import Tokenizer, Unfolding

_ROWS = 16  # texts at a time
_MEMORY = 0.9  # share of what is free that a cache may take


@dataclass(frozen=True)
class Sample:
    """A continuation: `text` and `token_ids` are what follows the prompt. `ended` says why it ended: at the "end of
    text" that the network chose, at a "stop" text, or at the greatest "length".
    """

    prompt: str
    text: str
    token_ids: list[int]
    seconds: float
    ended: str = "length"
    tokens: list[Token] = field(default_factory=list)


class Continuation:
    """A text that is being gone on with."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], options: SampleOptions, seed: int) -> None:
        self.options, self.made, self.text, self.ended = options, list[int](), "", ""
        self.context = list(prompt) or [tokenizer.end_of_text]  # after an end of text a new one begins
        self._tokenizer = tokenizer
        counts = tokenizer.kind == "integers"  # which are shown apart from the numbers before them
        self._unfolding = Unfolding(tokenizer, prompt[-1] if prompt and not counts else None)
        self._held = ""  # text that may be the beginning of a stop
        self._generator = torch.Generator().manual_seed(seed % _SEEDS)

    def go_on(self, logits: Tensor) -> Token:
        """Choose the next token from logits (V,). Raises BadData where they are no numbers."""
        logits = logits[: self._tokenizer.vocab_size]  # ids beyond it are padding
        if not math.isfinite(float(logits.sum())):
            raise BadData(
                "the network gives no finite numbers: its weights are damaged", hint="`verify --deep` the run"
            )
        token = choose(logits, self.options, self._generator, self.context)
        likely: list[Candidate] = []
        chosen = Candidate(token, "", 0.0)
        if self.options.candidates:
            probabilities = logits.softmax(-1)
            best = probabilities.topk(min(self.options.candidates, len(probabilities)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            likely = [self._candidate(other, probability) for other, probability in pairs]
            chosen = self._candidate(token, float(probabilities[token]))
        return Token(chosen, self._take(token), tuple(likely))

    def _candidate(self, token: int, probability: float) -> Candidate:
        last = self.context[-1]
        text = (
            "" if token == self._tokenizer.end_of_text else self._tokenizer.spell(token, last).decode(errors="ignore")
        )
        return Candidate(token, text, float(f"{probability:.6g}"))

    def _take(self, token: int) -> str:
        """Add a token; the text that may be shown now, since it is no part of a stop."""
        if token == self._tokenizer.end_of_text:
            self.ended = "end of text"
            return self._show(self._held)
        self.made.append(token)
        self.context.append(token)
        text = self._held + self._unfolding.add(token)
        found = [place for place in (text.find(stop) for stop in self.options.stop) if place >= 0]
        if found:
            self.ended = "stop"
            return self._show(text[: min(found)])
        if len(self.made) >= self.options.max_tokens:
            self.ended = "length"
            return self._show(text)
        begun = max((_begun(text, stop) for stop in self.options.stop), default=0)
        return self._show(text[: len(text) - begun], text[len(text) - begun :])

    def _show(self, text: str, held: str = "") -> str:
        self.text, self._held = self.text + text, held
        return text


def _begun(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


class Engine:
    """Continues up to `rows` texts at a time; `active` are those that have not ended, each in the row of its place.

    Raises BadConfig where there is no memory for so many.
    """

    def __init__(self, model: GPT, rows: int) -> None:
        weight = model.embedding.weight
        if rows > (most := _fitting(model)):
            raise BadConfig(
                f"{rows:,} texts at a time need more memory than is free on {weight.device}",
                hint=f"--rows {most} would fit" if most else "a smaller network, or a machine with more memory",
            )
        self.model, self.active = model.eval(), list[Continuation]()
        self._cache = Cache(model.config, rows, weight.dtype, weight.device)
        self._device = weight.device

    @property
    def full(self) -> bool:
        return len(self.active) >= len(self._cache.lengths)

    def add(self, text: Continuation) -> None:
        """Let a text join. There must be a row for it."""
        assert not self.full
        self._cache.forget(len(self.active))
        self.active.append(text)

    def remove(self, text: Continuation) -> None:
        """Let a text go: the last one takes its row."""
        row, last = self.active.index(text), len(self.active) - 1
        if row != last:
            self._cache.copy(last, row)
        self.active[row] = self.active[last]
        self.active.pop()

    @torch.inference_mode()
    def step(self) -> list[tuple[Continuation, Token]]:
        """A token more of each text; those that end with it leave."""
        for row in range(len(self.active)):
            if self._cache.lengths[row] == 0 or self._cache.full(row):
                self._read(row)
        last = torch.tensor([[text.context[-1]] for text in self.active], device=self._device)
        logits = self.model.following(last, self._cache.read(0, len(self.active), 1)).cpu()
        made = [(text, text.go_on(each)) for text, each in zip(self.active, logits, strict=True)]
        for text, _ in made:
            if text.ended:
                self.remove(text)
        return made

    def _read(self, row: int) -> None:
        """Remember what a text has been, but for its last token. Of one that fills its row half is remembered: so there
        is room again for as many tokens, and not every one of them needs all that came before to be read anew."""
        context, size = self.active[row].context, self._cache.size
        kept = max(size // 2, 1) if self._cache.full(row) else size
        alike = next((n for n in range(row) if self.active[n].context == context and not self.active[n].made), None)
        if alike is not None and not self.active[row].made:  # another sample of the same prompt
            self._cache.copy(alike, row)
            return
        self._cache.forget(row)
        if read := context[-kept:-1]:
            ids = torch.tensor([read], device=self._device)
            self.model.states(ids, past=self._cache.read(row, 1, len(read)))


def _fitting(model: GPT) -> int:
    """How many rows of a cache there is memory for."""
    weight = model.embedding.weight
    each = Cache.bytes(model.config, weight.dtype)
    return int(_MEMORY * free_memory(weight.device) / each) if each else _ROWS


def stream(engine: Engine, text: Continuation) -> Iterator[Token]:
    """The tokens of one text, as they come."""
    engine.add(text)
    while not text.ended:
        yield from (token for _, token in engine.step())


def sample(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[tuple[str, list[int]]],
    options: SampleOptions,
    stopped: threading.Event | None = None,
) -> list[Sample]:
    """Continue each prompt, given as its text and its ids. Sample i draws from a generator seeded by `seed` + i.

    Raises TryAgain when `stopped` is set before all have ended.
    """
    begun = time.monotonic()
    texts = [Continuation(tokenizer, ids, options, options.seed + n) for n, (_, ids) in enumerate(prompts)]
    told: dict[Continuation, list[Token]] = {text: [] for text in texts}
    seconds: dict[Continuation, float] = {}
    waiting, engine = iter(texts), Engine(model, max(1, min(len(texts), _ROWS, _fitting(model))))
    while len(seconds) < len(texts):
        if stopped and stopped.is_set():
            raise TryAgain("stopped by a signal", hint="the same command gives the same texts")
        while not engine.full and (text := next(waiting, None)):
            engine.add(text)
        for text, token in engine.step():
            if options.candidates:
                told[text].append(token)
            if text.ended:
                seconds[text] = round(time.monotonic() - begun, 3)
    return [
        Sample(prompt, text.text, text.made, seconds[text], text.ended, told[text])
        for (prompt, _), text in zip(prompts, texts, strict=True)
    ]

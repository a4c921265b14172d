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
from model.network.gpt import GPT
from model.network.kv_cache import Cache
from pipeline.errors import BadConfig, BadData, TryAgain
from pipeline.tokenizers import Tokenizer, Unfolding

_ROWS = 16  # texts at a time
_SEEDS = 1 << 63
_COLDEST = 1e-6  # what fp32 can divide by
_MEMORY = 0.9  # share of what is free that a cache may take


@dataclass(frozen=True)
class SampleOptions:
    """How a token is chosen, and when a text ends.

    temperature         0 (as anything below 1e-6), or `greedy`, takes the likeliest token
    top_k, top_p, min_p choose among the k likeliest (0: all), the fewest that make up p together (1: all), those at
                        least min_p times as likely as the likeliest (0: all)
    repetition_penalty  divides the logits of tokens that are there already, or multiplies them below zero (Keskar et
                        al. 2019); 1: not
    stop                texts that end a continuation; they are no part of it
    candidates          so many of the likeliest tokens are told at each step
    """

    max_tokens: int = 100
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    greedy: bool = False
    seed: int = 1
    stop: tuple[str, ...] = ()
    candidates: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or not 0 <= self.temperature < float("inf") or min(self.top_k, self.candidates) < 0:
            raise BadConfig("max-tokens must be 1 or more, temperature and top-k 0 or more", hint="see sample --help")
        if not (0 < self.top_p <= 1 and 0 <= self.min_p <= 1 and 0 < self.repetition_penalty < float("inf")):
            raise BadConfig(
                "top-p must be above 0 and at most 1, min-p from 0 to 1, the repetition penalty above 0",
                hint="see sample --help",
            )
        if not 0 <= self.seed < _SEEDS:
            raise BadConfig(f"the seed {self.seed} is no number from 0 to 2**63 - 1", hint="choose another --seed")
        if not all(self.stop):
            raise BadConfig("an empty text stops everything", hint="leave out --stop")


@dataclass(frozen=True)
class Candidate:
    """A token that might come next. `probability` is the network's own, before temperature and the like."""

    token_id: int
    text: str
    probability: float


@dataclass(frozen=True)
class Token:
    """A token that was chosen, the `text` that may be shown now, and what else was likely where that was asked for."""

    chosen: Candidate
    text: str
    candidates: tuple[Candidate, ...] = ()


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


def choose(logits: Tensor, options: SampleOptions, generator: torch.Generator, context: Sequence[int] = ()) -> int:
    """One id from logits of shape (V,); `context` are the ids that came before."""
    if options.repetition_penalty != 1 and context:
        there = torch.tensor(sorted({token for token in context if token < len(logits)}))
        values, penalty = logits[there], options.repetition_penalty
        logits = logits.index_copy(0, there, torch.where(values > 0, values / penalty, values * penalty))
    if options.greedy or options.temperature < _COLDEST:
        return int(logits.argmax())
    ids = None  # of those that are chosen among: all of them, or the likeliest first
    if 0 < options.top_k < len(logits):
        logits, ids = logits.topk(options.top_k)
    elif options.top_p < 1:
        logits, ids = logits.sort(descending=True)
    probabilities = ((logits - logits.max()) / options.temperature).softmax(-1)
    if options.top_p < 1:
        before = probabilities.cumsum(0) - probabilities  # mass of the likelier ones; the first always stays
        probabilities[1:][before[1:] >= options.top_p] = 0
    if options.min_p:
        probabilities[probabilities < options.min_p * probabilities.max()] = 0
    # One draw a token, whatever the vocabulary: the first id by which as much probability has passed.
    passed = probabilities.double().cumsum(0)
    drawn = torch.rand((), generator=generator, dtype=torch.float64) * passed[-1]
    place = int(torch.searchsorted(passed, drawn, right=True).clamp(max=len(passed) - 1))
    return place if ids is None else int(ids[place])

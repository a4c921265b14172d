"""Batched decoding: sequences are generated in parallel, one token of each per step.

An `Engine` holds one row of a KV cache per sequence. Sequences may join and leave it at any step. The text of each
depends on its own prompt, options and seed only, not on the other rows.
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
from model.generation.sampling import SEED_LIMIT, Candidate, SampledToken, SampleOptions, sample_token
from model.generation.scoring import TokenScore, not_finite, score_prompts
from model.network.gpt import GPT
from model.network.kv_cache import KVCache
from pipeline.errors import BadConfig, TryAgain
from pipeline.tokenizers import ChatTokenizer, IncrementalDetokenizer, Tokenizer

_MAX_ROWS = 16  # of the engine of `sample`
_MEMORY_FRACTION = 0.9  # of the free memory, for the KV cache


@dataclass(frozen=True)
class Sample:
    """A generated text. `text` and `token_ids` do not include the prompt.

    `ended` is the reason for its end: "end of text" or "end of turn" if the network sampled that token, "stop" for a
    stop text, or "length" for the maximum number of tokens.
    """

    prompt: str
    text: str
    token_ids: list[int]
    seconds: float
    ended: str = "length"
    tokens: list[SampledToken] = field(default_factory=list)


class TokenSequence:
    """A sequence that is being generated: the ids of its prompt and of its text so far.

    `finish_reason` is "" until the sequence ends, then the reason as in `Sample.ended`. With `scores_prompt` the engine
    sets `prompt_scores`, of the ids after the first one, before the first token; such a prompt must fit in the block.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        options: SampleOptions,
        seed: int,
        *,
        scores_prompt: bool = False,
    ) -> None:
        self.options, self.token_ids, self.text, self.finish_reason = options, list[int](), "", ""
        self.context = list(prompt) or [tokenizer.end_of_text]  # an empty prompt starts a new document
        self.scores_prompt, self.prompt_scores = scores_prompt, tuple[TokenScore, ...]()
        self.vocab_size = tokenizer.vocab_size
        self._tokenizer = tokenizer
        self._ends = {tokenizer.end_of_text: "end of text"}
        if isinstance(tokenizer, ChatTokenizer):
            self._ends[tokenizer.end_of_turn] = "end of turn"
        # Generated integers are decoded without the prompt's last one, and so without a space before the first.
        last_id = prompt[-1] if prompt and tokenizer.kind != "integers" else None
        self._detokenizer = IncrementalDetokenizer(tokenizer, last_id)
        self._pending = ""  # text withheld because it may be the beginning of a stop text
        self._generator = torch.Generator().manual_seed(seed % SEED_LIMIT)

    def append(self, logits: Tensor, block_size: int) -> SampledToken:
        """Sample the next token from logits (V,) and append it. Raises BadData if they are not finite.

        The repetition penalty applies to the last `block_size` ids only, so that its cost does not grow with the text.
        """
        logits = logits[: self.vocab_size]  # the other rows are padding
        if not math.isfinite(float(logits.sum())):
            raise not_finite()
        token = sample_token(logits, self.options, self._generator, self.context[-block_size:], self.token_ids)
        candidates: list[Candidate] = []
        sampled = Candidate(token, "", 0.0)
        if self.options.candidates:
            probabilities = logits.softmax(-1)
            top = probabilities.topk(min(self.options.candidates, len(probabilities)))
            pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            candidates = [self._candidate(token_id, probability) for token_id, probability in pairs]
            sampled = self._candidate(token, float(probabilities[token]))
        return SampledToken(sampled, self._append(token), tuple(candidates))

    def _candidate(self, token: int, probability: float) -> Candidate:
        is_end = token in self._ends
        text = "" if is_end else self._tokenizer.token_bytes(token, self.context[-1]).decode(errors="ignore")
        return Candidate(token, text, float(f"{probability:.6g}"))

    def _append(self, token: int) -> str:
        """Append a token. Return the new text that cannot be part of a stop text any more."""
        if token in self._ends:
            self.finish_reason = self._ends[token]
            return self._emit(self._pending)
        self.token_ids.append(token)
        self.context.append(token)
        text = self._pending + self._detokenizer.add(token)
        stops = [index for index in (text.find(stop) for stop in self.options.stop) if index >= 0]
        if stops:
            self.finish_reason = "stop"
            return self._emit(text[: min(stops)])
        if len(self.token_ids) >= self.options.max_tokens:
            self.finish_reason = "length"
            return self._emit(text)
        overlap = max((_overlap(text, stop) for stop in self.options.stop), default=0)
        return self._emit(text[: len(text) - overlap], text[len(text) - overlap :])

    def _emit(self, text: str, pending: str = "") -> str:
        self.text, self._pending = self.text + text, pending
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


class Engine:
    """Generates up to `rows` sequences at a time. `active` are those that have not ended, in the order of their rows.

    Prompts to score are computed together, without the cache. They get a row with their first token.
    Raises BadConfig if there is not enough memory for the rows.
    """

    def __init__(self, model: GPT, rows: int) -> None:
        weight = model.embedding.weight
        if rows > (max_rows := _max_rows(model)):
            raise BadConfig(
                f"{rows:,} rows of KV cache need more memory than is free on {weight.device}",
                hint=f"--rows {max_rows} would fit" if max_rows else "use a smaller network, or a larger machine",
            )
        self.model, self.active, self._unscored = model.eval(), list[TokenSequence](), list[TokenSequence]()
        self._cache = KVCache(model.config, rows, weight.dtype, weight.device)
        self._device = weight.device

    @property
    def is_full(self) -> bool:
        """True if every row is in use."""
        return len(self.active) + len(self._unscored) >= len(self._cache.lengths)

    def add(self, sequence: TokenSequence) -> None:
        """Add a sequence. The engine must not be full."""
        assert not self.is_full
        if sequence.scores_prompt:
            self._unscored.append(sequence)
        else:
            self._add_row(sequence)

    def clear(self) -> None:
        """Remove all sequences."""
        self.active.clear()
        self._unscored.clear()

    def _add_row(self, sequence: TokenSequence) -> None:
        self._cache.reset(len(self.active))
        self.active.append(sequence)

    def remove(self, sequence: TokenSequence) -> None:
        """Remove a sequence. The last row moves to its row."""
        if sequence in self._unscored:
            self._unscored.remove(sequence)
            return
        row, last_row = self.active.index(sequence), len(self.active) - 1
        if row != last_row:
            self._cache.copy(last_row, row)
        self.active[row] = self.active[last_row]
        self.active.pop()

    @torch.inference_mode()
    def step(self) -> list[tuple[TokenSequence, SampledToken]]:
        """Generate one token of each sequence, and remove those that end with it."""
        tokens = self._step_rows() if self.active else []
        unscored, self._unscored = self._unscored, []
        for sequence, token in self._score(unscored):
            tokens.append((sequence, token))
            if not sequence.finish_reason:
                self._add_row(sequence)
        return tokens

    def _score(self, sequences: Sequence[TokenSequence]) -> list[tuple[TokenSequence, SampledToken]]:
        """Score the prompts of sequences, and generate their first tokens."""
        if not sequences:
            return []
        likeliest = max(sequence.options.candidates for sequence in sequences)
        prompts = [sequence.context for sequence in sequences]
        scores = score_prompts(self.model, prompts, sequences[0].vocab_size, likeliest)
        for sequence, score in zip(sequences, scores, strict=True):
            sequence.prompt_scores = score.tokens
        return [
            (sequence, sequence.append(score.next_logits, self._cache.size))
            for sequence, score in zip(sequences, scores, strict=True)
        ]

    def _step_rows(self) -> list[tuple[TokenSequence, SampledToken]]:
        for row in range(len(self.active)):
            if self._cache.lengths[row] == 0 or self._cache.is_full(row):
                self._prefill(row)
        last_ids = torch.tensor([[sequence.context[-1]] for sequence in self.active], device=self._device)
        logits = self.model.next_logits(last_ids, self._cache.extend(0, len(self.active), 1)).cpu()
        if ngrams := self.model.ngrams:
            logits = ngrams.mix(logits, [sequence.context for sequence in self.active])
        tokens = [
            (sequence, sequence.append(row, self._cache.size))
            for sequence, row in zip(self.active, logits, strict=True)
        ]
        for sequence, _ in tokens:
            if sequence.finish_reason:
                self.remove(sequence)
        return tokens

    def _prefill(self, row: int) -> None:
        """Cache the context of a sequence except for its last token.

        A full row (with learned positions) is reset and refilled only up to its half. Refilled completely, it would be
        full again after one token.
        """
        context, size = self.active[row].context, self._cache.size
        length = max(size // 2, 1) if self._cache.is_full(row) else size
        if not self.active[row].token_ids:  # copy the row of another sample of the same prompt, if there is one
            for source in range(row):
                if self.active[source].context == context and not self.active[source].token_ids:
                    self._cache.copy(source, row)
                    return
        self._cache.reset(row)
        if prefix := context[-length:-1]:
            ids = torch.tensor([prefix], device=self._device)
            self.model.hidden_states(ids, cache=self._cache.extend(row, 1, len(prefix)))


def _max_rows(model: GPT) -> int:
    """Number of KV cache rows that fit into the free memory."""
    weight = model.embedding.weight
    row_bytes = KVCache.row_bytes(model.config, weight.dtype)
    return int(_MEMORY_FRACTION * free_memory(weight.device) / row_bytes) if row_bytes else _MAX_ROWS


def stream(engine: Engine, sequence: TokenSequence) -> Iterator[SampledToken]:
    """Yield the tokens of one sequence as they are generated."""
    engine.add(sequence)
    while not sequence.finish_reason:
        yield from (token for _, token in engine.step())


def sample(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[tuple[str, list[int]]],
    options: SampleOptions,
    stopped: threading.Event | None = None,
) -> list[Sample]:
    """Generate one text per prompt, given as its text and its ids. Prompt i has the seed `options.seed` + i.

    Raises TryAgain if `stopped` is set before all have ended.
    """
    start = time.monotonic()
    sequences = [TokenSequence(tokenizer, ids, options, options.seed + i) for i, (_, ids) in enumerate(prompts)]
    tokens: dict[TokenSequence, list[SampledToken]] = {sequence: [] for sequence in sequences}
    seconds: dict[TokenSequence, float] = {}
    waiting, engine = iter(sequences), Engine(model, max(1, min(len(sequences), _MAX_ROWS, _max_rows(model))))
    while len(seconds) < len(sequences):
        if stopped and stopped.is_set():
            raise TryAgain("stopped by a signal", hint="run the same command again for the same texts")
        while not engine.is_full and (sequence := next(waiting, None)):
            engine.add(sequence)
        for sequence, token in engine.step():
            if options.candidates:
                tokens[sequence].append(token)
            if sequence.finish_reason:
                seconds[sequence] = round(time.monotonic() - start, 3)
    return [
        Sample(prompt, sequence.text, sequence.token_ids, seconds[sequence], sequence.finish_reason, tokens[sequence])
        for (prompt, _), sequence in zip(prompts, sequences, strict=True)
    ]

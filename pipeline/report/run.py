"""Numbers of a run: the rows of its metrics, its result, its samples, and the losses of its validation tokens.

They are read from the files of the run, which `model/runs/run.py` describes; no network is evaluated.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open

from pipeline import tokenizers
from pipeline.errors import BadData
from pipeline.report.tokens import complete_characters
from pipeline.runtime.regular_file import read_regular
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Tokenizer

METRICS, RESULT, CONFIG, SAMPLES, LOG = "metrics.csv", "result.json", "config.json", "samples.jsonl", "log.jsonl"
LOSSES = "losses.safetensors"
PASSAGE = 120  # tokens of a passage, at most
_MIN_PASSAGE = 40  # tokens, unless all documents are shorter


@dataclass(frozen=True)
class Sample:
    """A continuation of `prompt` that the model wrote at a step."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class ScoredToken:
    """A token with its loss in bits. Tokens that are parts of one character are joined: `ids` is their number."""

    text: str
    bits: float
    ids: int


@dataclass(frozen=True)
class ScoredPassage:
    """Consecutive validation tokens of one document; `start` is the index of the first one."""

    start: int
    tokens: tuple[ScoredToken, ...]

    @property
    def characters(self) -> int:
        return sum(len(token.text) for token in self.tokens)

    @property
    def bits(self) -> float:
        return sum(token.bits for token in self.tokens)

    @property
    def bits_per_char(self) -> float:
        return self.bits / max(self.characters, 1)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of UTF-8, which compares across scripts better than bits per character."""
        return self.bits / max(sum(len(token.text.encode()) for token in self.tokens), 1)


@dataclass(frozen=True)
class CharacterCost:
    """Bits of all occurrences of a character in the validation text. A token's loss is divided evenly by its bytes."""

    character: str
    count: int
    bits: float


@dataclass(frozen=True)
class Losses:
    """Losses of the last evaluation, after `step` steps, in bits.

    tokens       number of scored tokens
    mean         bits per token
    positions    mean bits at each position of a block, NaN where no validation text reaches
    best, worst  passages with the lowest and with the highest bits per byte; no passage is in both
    characters   the costs of all characters, the highest sum first
    ends         bits of all end-of-text tokens, and their number
    """

    step: int
    tokens: int
    mean: float
    positions: tuple[float, ...]
    best: tuple[ScoredPassage, ...]
    worst: tuple[ScoredPassage, ...]
    characters: tuple[CharacterCost, ...]
    ends: tuple[float, int]


@dataclass(frozen=True)
class RunNumbers:
    """Numbers of a run.

    rows       of metrics.csv by column, None where a row has no value; () for an imported run
    result     result.json
    config     config.json
    samples    in the order of steps
    events     of log.jsonl
    losses     None for a run without validation text, or of a version that did not write them
    tokenizer  of the run
    """

    artifact: Artifact
    rows: tuple[dict[str, float | None], ...]
    result: dict[str, Any]
    config: dict[str, Any]
    samples: tuple[Sample, ...]
    events: tuple[dict[str, Any], ...]
    losses: Losses | None
    tokenizer: Tokenizer

    def column(self, name: str) -> tuple[list[float], list[float]]:
        """Return the steps and the values of a column, of the rows that have one."""
        pairs = [(row["step"], row.get(name)) for row in self.rows]
        present = [(step, value) for step, value in pairs if step is not None and value is not None]
        return [step for step, _ in present], [value for _, value in present]

    def speeds(self) -> tuple[list[float], list[float]]:
        """Return the steps of rows, and the tokens per second of training since the row before."""
        steps, speeds = list[float](), list[float]()
        before = (0.0, 0.0)
        for row in self.rows:
            step, tokens, seconds = (row[name] or 0.0 for name in ("step", "tokens", "seconds"))
            if tokens > before[0] and seconds > before[1]:
                steps.append(step)
                speeds.append((tokens - before[0]) / (seconds - before[1]))
            before = (tokens, seconds)
        return steps, speeds

    @property
    def task(self) -> str:
        """The task of a tuned run, "sft" or "dpo"; "" for a run that was trained on text."""
        return str(self.result.get("task") or "")

    @property
    def best_step(self) -> int:
        """Step of the best checkpoint."""
        return int(str(self.result.get("best", "")).rpartition("-")[2] or 0)

    @property
    def score(self) -> float | None:
        """Bits per character of the best checkpoint; None without validation text."""
        value = self.result.get("best_bits_per_char", self.result.get("bits_per_char"))
        return None if value is None else float(value)


def duration(seconds: float) -> str:
    """Return a duration such as 0:42, 12:05 or 3:20:00."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def whole(value: float | None) -> int | float | None:
    """Return an integer instead of a float without fraction."""
    return int(value) if value is not None and value.is_integer() else value


def collect(run: Artifact) -> RunNumbers:
    """Collect the numbers of a run. Raises BadData if one of its files is damaged."""
    tokenizer = tokenizers.open_folder(run.path)
    result, config = (_read_json(run.file(name)) for name in (RESULT, CONFIG))
    samples = [
        Sample(int(record["step"]), str(record["prompt"]), str(record["text"]))
        for record in _json_lines(run.file(SAMPLES), ("step", "prompt", "text"))
    ]
    return RunNumbers(
        run,
        tuple(_read_rows(run.file(METRICS))),
        result,
        config,
        tuple(samples),
        tuple(_json_lines(run.file(LOG), ("event",))),
        _read_losses(run.file(LOSSES), tokenizer),
        tokenizer,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(read_regular(path), type=dict[str, Any])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from None


def _json_lines(path: Path, required: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines, nothing if there is no file. A torn last line is left out."""
    if not path.is_file():
        return
    for line in read_regular(path).splitlines(keepends=True):
        try:
            record = msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if line.endswith(b"\n"):
                raise _damaged(path, error) from None
            return
        if all(name in record for name in required):
            yield record


def _read_rows(path: Path) -> Iterator[dict[str, float | None]]:
    if not path.is_file():
        return
    try:
        for row in csv.DictReader(read_regular(path).decode("utf-8").splitlines()):
            yield {name: float(text) if text else None for name, text in row.items() if name}
    except (ValueError, csv.Error, TypeError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> BadData:
    return BadData(f"{path}: {error}", hint="`train` it again, or report another run")


def _read_losses(path: Path, tokenizer: Tokenizer) -> Losses | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, "numpy") as file:
            step = int((file.metadata() or {}).get("step", 0))
            ids, nats, positions = (file.get_tensor(name) for name in ("ids", "losses", "position_losses"))
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from None
    return analyse(step, ids.astype(np.int64), nats.astype(np.float64), positions.astype(np.float64), tokenizer)


def analyse(step: int, ids: np.ndarray, nats: np.ndarray, positions: np.ndarray, tokenizer: Tokenizer) -> Losses:
    """Summarize the losses of the tokens `ids` (T,): `nats` (T,) by token, `positions` by position in a block."""
    bits = nats / math.log(2)
    ends = np.flatnonzero(ids == tokenizer.end_of_text)
    ranked = sorted(_passages(ids, bits, ends, tokenizer), key=lambda passage: passage.bits_per_byte)
    count = min(3, len(ranked) // 2)
    return Losses(
        step,
        len(ids),
        float(bits.mean()) if len(bits) else math.nan,
        tuple((positions / math.log(2)).tolist()),
        tuple(ranked[:count]),
        tuple(reversed(ranked[len(ranked) - count :])),
        tuple(_character_costs(ids, bits, tokenizer)),
        (float(bits[ends].sum()), len(ends)),
    )


def _passages(ids: np.ndarray, bits: np.ndarray, ends: np.ndarray, tokenizer: Tokenizer) -> list[ScoredPassage]:
    """Divide the documents into passages of `PASSAGE` tokens. Short ones are left out unless all are short."""
    passages: list[ScoredPassage] = []
    for start, stop in pairwise([0, *(int(end) + 1 for end in ends), len(ids)]):
        tokens = scored(ids[start:stop], bits[start:stop], tokenizer)
        for first in range(0, len(tokens), PASSAGE):
            passage = ScoredPassage(start, tokens[first : first + PASSAGE])
            passages.append(passage)
            start += sum(token.ids for token in passage.tokens)
    passages = [passage for passage in passages if passage.characters]
    return [passage for passage in passages if len(passage.tokens) >= _MIN_PASSAGE] or passages


def scored(ids: np.ndarray, bits: np.ndarray, tokenizer: Tokenizer) -> tuple[ScoredToken, ...]:
    """Return the text of tokens with their losses. Tokens that are parts of one character are joined."""
    costs = iter(bits.tolist())
    return tuple(
        ScoredToken(token.text, sum(islice(costs, len(token.ids))), len(token.ids))
        for token in complete_characters(ids.tolist(), tokenizer)
    )


def _character_costs(ids: np.ndarray, bits: np.ndarray, tokenizer: Tokenizer) -> list[CharacterCost]:
    """Sum the bits of each character, the highest sum first: a token's loss is divided evenly by its bytes."""
    before = [None, *ids[:-1].tolist()]
    parts = [tokenizer.token_bytes(token, last) for token, last in zip(ids.tolist(), before, strict=True)]
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    byte_bits = np.repeat(bits / np.maximum(lengths, 1), lengths)
    data = b"".join(parts)
    starts = np.flatnonzero((np.frombuffer(data, np.uint8) & 0xC0) != 0x80)  # UTF-8: other bytes continue a character
    if not len(starts):
        return []
    costs = np.add.reduceat(byte_bits, starts)
    counts, sums = Counter[str](), Counter[str]()
    text = data[starts[0] :].decode(errors="replace")
    if len(text) != len(starts):  # some bytes are not UTF-8: decode each part by itself
        stops = [*starts[1:].tolist(), len(data)]
        text_parts = [data[start:stop].decode(errors="replace") for start, stop in zip(starts, stops, strict=True)]
    else:
        text_parts = list(text)
    for character, cost in zip(text_parts, costs.tolist(), strict=True):
        counts[character] += 1
        sums[character] += cost
    ranked = sorted(sums, key=lambda character: (-sums[character], character))
    return [CharacterCost(character, counts[character], sums[character]) for character in ranked]


def by_position(positions: Sequence[float], points: int) -> list[tuple[int, int, float]]:
    """Return means over ranges of positions, counted from 1, whose lengths grow: first, last, mean.

    Ranges have about equal lengths on a logarithmic scale, and there are at most `points`. NaN is left out.
    """
    edges = np.unique(np.round(np.geomspace(1, len(positions) + 1, points + 1)).astype(np.int64)).tolist()
    ranges: list[tuple[int, int, float]] = []
    for first, stop in pairwise(edges):
        values = [value for value in positions[first - 1 : stop - 1] if math.isfinite(value)]
        if values:
            ranges.append((first, stop - 1, sum(values) / len(values)))
    return ranges

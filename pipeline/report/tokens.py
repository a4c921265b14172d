"""Numbers of token arrays: use of the vocabulary, lengths, fertility, and how validation differs from training."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import InkstoneError
from pipeline.report.bins import Bins, bins_of
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Tokenizer, ranks
from pipeline.tokens.segments import SPLITS, document_lengths
from pipeline.tokens.store import TokenArray, TokenStore, open_store

SEED = 1  # of the samples of a report
SAMPLE_CHARACTERS = 200_000  # of the text whose tokens are compared with those of other tokenizers
PASSAGE = 13  # tokens of a passage that is looked for in the training text
_PASSAGES = 2_000
SCANNED = 1 << 26  # training tokens among which passages are looked for
_BLOCK = 1 << 22  # tokens that are read at once
_SAMPLE_DOCUMENT = 2_000  # tokens of a document of the sample
_PAGE_TOKENS = 420
_MAX_PIECES = 8  # tokens that may be parts of one character
_COMPARED = ("r50k_base", "cl100k_base", "o200k_base")
_FACTOR = 0x9E3779B97F4A7C15  # of the hashes of passages; odd, so that multiplying loses no bits


@dataclass(frozen=True)
class Fertility:
    """Tokens that a tokenizer needs for the sample. `is_own` is True for the tokenizer of the artifact."""

    name: str
    vocab_size: int
    tokens: int
    is_own: bool = False


@dataclass(frozen=True)
class PageToken:
    """The fewest consecutive ids that decode to complete characters: usually one id."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Shift:
    """Differences of validation from training.

    divergence   Jensen–Shannon divergence of the distributions of their tokens, in bits: 0 equal, 1 disjoint
    expected     the same for a random sample of the training tokens of that size: the divergence by chance
    unseen       validation tokens whose id does not occur in training
    passages     sampled passages of `PASSAGE` tokens of validation, `repeated` of which occur in the `scanned` tokens
    distinctive  ids that are more frequent in validation than in training: id, counts in training and validation
    """

    divergence: float
    expected: float
    unseen: int
    passages: int
    repeated: int
    scanned: int
    distinctive: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class TokenNumbers:
    """Numbers of token arrays.

    frequencies  occurrences of every id, by split, of shape (vocab_size,)
    lengths      of documents in tokens with end-of-text, by split
    partial      ids that stand for a part of a character
    sample       characters and bytes of the sample on which `fertility` was measured
    page         the beginning of a document; `page_split` is its split
    shift        None without validation tokens
    """

    counts: dict[str, Any]
    tokenizer: Tokenizer
    frequencies: dict[str, np.ndarray]
    lengths: dict[str, Bins | None]
    partial: np.ndarray
    sample: tuple[int, int]
    fertility: tuple[Fertility, ...]
    page: tuple[PageToken, ...]
    page_split: str
    shift: Shift | None

    @property
    def total(self) -> np.ndarray:
        """Occurrences of every id in both splits, int64 of shape (vocab_size,)."""
        total: np.ndarray = self.frequencies["train"] + self.frequencies["val"]
        return total


def collect(artifact: Artifact) -> TokenNumbers:
    """Collect the numbers of token arrays. Raises BadData if they are damaged."""
    store = open_store(artifact, is_intact=True)
    arrays = {"train": store.train, "val": store.val}
    frequencies = {split: _frequencies(array, store.tokenizer.vocab_size) for split, array in arrays.items()}
    lengths = {split: document_lengths(artifact, split) for split in SPLITS}
    page_split = "val" if len(lengths["val"]) else "train"
    page = _page(store.tokenizer, arrays[page_split], lengths[page_split])
    text, own = _sample(store, lengths["train"])
    shift = _shift(store, frequencies) if len(store.val) else None
    return TokenNumbers(
        artifact.manifest.counts,
        store.tokenizer,
        frequencies,
        {split: bins_of(Counter(values.tolist())) for split, values in lengths.items()},
        _partial_ids(store.tokenizer),
        (len(text), len(text.encode())),
        (
            Fertility(store.tokenizer.name or store.tokenizer.kind, store.tokenizer.vocab_size, own, True),
            *_others(text, store.tokenizer.name),
        ),
        page,
        page_split,
        shift,
    )


def _blocks(array: TokenArray, limit: int | None = None) -> Iterator[np.ndarray]:
    size = len(array) if limit is None else min(limit, len(array))
    for start in range(0, size, _BLOCK):
        yield array.read(start, min(start + _BLOCK, size))


def _frequencies(array: TokenArray, vocab_size: int) -> np.ndarray:
    total = np.zeros(vocab_size, np.int64)
    for block in _blocks(array):
        counts = np.bincount(block, minlength=vocab_size)
        total += counts[:vocab_size]
    return total


def _partial_ids(tokenizer: Tokenizer) -> np.ndarray:
    """Return True for each id whose bytes are not complete characters, of shape (vocab_size,)."""
    partial = np.zeros(tokenizer.vocab_size, bool)
    for token in range(tokenizer.vocab_size):
        try:
            tokenizer.token_bytes(token, token).decode()
        except UnicodeDecodeError:
            partial[token] = True
    return partial


def text_of(tokenizer: Tokenizer, token: int) -> str:
    r"""Return the text of an id inside a text; parts of a character as escapes such as \xe7."""
    return tokenizer.token_bytes(token, token).decode(errors="backslashreplace")


def _sample(store: TokenStore, lengths: np.ndarray) -> tuple[str, int]:
    """Return the joined beginnings of training documents that are drawn with a fixed seed, and their token count."""
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    order = random.Random(SEED).sample(range(len(lengths)), min(len(lengths), SAMPLE_CHARACTERS))
    texts, tokens, characters = [], 0, 0
    for document in order:
        size = min(int(lengths[document]) - 1, _SAMPLE_DOCUMENT)
        start = int(starts[document])
        text = store.tokenizer.decode(store.train.read(start, start + size).tolist())
        texts.append(text)
        tokens, characters = tokens + size, characters + len(text)
        if characters >= SAMPLE_CHARACTERS:
            break
    return "".join(texts), tokens


def _others(text: str, own: str) -> Iterator[Fertility]:
    """Yield the fertility of OpenAI's encodings whose ranks are on this machine, except `own`, and of characters."""
    import tiktoken

    for name in _COMPARED:
        if name != own and _is_local(name):
            encoding = tiktoken.Encoding(**ranks.definition(name))  # in half the time of `Tiktoken.named`
            yield Fertility(name, encoding.n_vocab, len(encoding.encode_ordinary(text)))
    yield Fertility("characters", len(set(text)), len(text))


def _is_local(encoding: str) -> bool:
    """Return True if a cache has the ranks of an encoding, so that nothing is fetched."""
    try:
        file = ranks.ranks_file(encoding)
        folders = [folder for folder in (ranks.tiktoken_cache(), ranks.own_cache()) if folder]
        paths = [folder / file.cache_name for folder in folders]
        return any(path.is_file() and file.is_intact(path.read_bytes()) for path in paths)
    except (InkstoneError, OSError):
        return False


def _page(tokenizer: Tokenizer, array: TokenArray, lengths: np.ndarray) -> tuple[PageToken, ...]:
    """Return the beginning of the first document that fills a page, or of the longest one."""
    if not len(lengths):
        return ()
    long_enough = np.flatnonzero(lengths > _PAGE_TOKENS)
    document = int(long_enough[0]) if len(long_enough) else int(np.argmax(lengths))
    start = int(lengths[:document].sum(dtype=np.int64))
    ids = array.read(start, start + min(int(lengths[document]) - 1, _PAGE_TOKENS)).tolist()
    tokens = tuple(complete_characters(ids, tokenizer))
    return tokens[:-1] if tokens and tokens[-1].text.endswith("\ufffd") else tokens  # a character that is cut


def complete_characters(ids: Sequence[int], tokenizer: Tokenizer) -> Iterator[PageToken]:
    """Yield ids with their texts. Parts of a character are joined; invalid bytes become U+FFFD."""
    pending, group, before = b"", list[int](), None
    for token in ids:
        pending, before = pending + tokenizer.token_bytes(token, before), token
        group.append(token)
        try:
            text = pending.decode()
        except UnicodeDecodeError:
            if len(group) < _MAX_PIECES:
                continue
            text = pending.decode(errors="replace")
        yield PageToken(text, tuple(group))
        pending, group = b"", []
    if group:
        yield PageToken(pending.decode(errors="replace"), tuple(group))


def _shift(store: TokenStore, frequencies: dict[str, np.ndarray]) -> Shift:
    train, val = frequencies["train"], frequencies["val"]
    repeated, passages = _repeated_passages(store)
    drawn = np.random.default_rng(SEED).multinomial(int(val.sum()), train / max(train.sum(), 1))
    return Shift(
        divergence=jensen_shannon(train, val),
        expected=jensen_shannon(train, drawn),
        unseen=int(val[train == 0].sum()),
        passages=passages,
        repeated=repeated,
        scanned=min(len(store.train), SCANNED),
        distinctive=_distinctive(train, val),
    )


def jensen_shannon(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Jensen–Shannon divergence of two distributions, given as counts, in bits: 0 to 1."""
    p, q = first / max(first.sum(), 1), second / max(second.sum(), 1)
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(share > 0, share * np.log2(share / middle), 0.0).sum() for share in (p, q)]
    return float(max(sum(terms) / 2, 0.0))


def _distinctive(train: np.ndarray, val: np.ndarray, limit: int = 12) -> tuple[tuple[int, int, int], ...]:
    """Return the ids that are most over-represented in validation, by their part of the log likelihood ratio."""
    expected = (train + 0.5) / (train.sum() + 0.5 * len(train)) * max(val.sum(), 1)
    gain = np.where(val > expected, val * np.log(np.maximum(val, 1) / expected), 0.0)
    order = np.argsort(-gain, kind="stable")[:limit]
    return tuple((int(token), int(train[token]), int(val[token])) for token in order if gain[token] > 0)


def _repeated_passages(store: TokenStore) -> tuple[int, int]:
    """Return how many of the sampled validation passages occur in the training tokens, and their number."""
    starts = max(len(store.val) - PASSAGE + 1, 0)
    if not starts or len(store.train) < PASSAGE:
        return 0, 0
    offsets = np.array(sorted(random.Random(SEED).sample(range(starts), min(starts, _PASSAGES))))
    sampled = _hashes(np.concatenate([store.val.read(start, start + PASSAGE) for start in offsets.tolist()]))[::PASSAGE]
    is_possible = np.zeros(1 << 20, bool)  # by the highest bits of a hash, so that few hashes are compared
    is_possible[sampled >> np.uint64(44)] = True
    present: set[int] = set()
    size = min(len(store.train), SCANNED)
    for start in range(0, size, _BLOCK):
        hashes = _hashes(store.train.read(start, min(start + _BLOCK + PASSAGE - 1, size)))
        candidates = hashes[is_possible[hashes >> np.uint64(44)]]
        present |= {*np.intersect1d(candidates, sampled).tolist()}
    return sum(value in present for value in sampled.tolist()), len(offsets)


def _hashes(ids: np.ndarray) -> np.ndarray:
    """Return the uint64 hashes of all `PASSAGE` consecutive ids, by their first position."""
    values = ids.astype(np.uint64) + np.uint64(1)
    size = max(len(values) - PASSAGE + 1, 0)
    total = np.zeros(size, np.uint64)
    for offset in range(PASSAGE):
        total *= np.uint64(_FACTOR)
        total += values[offset : offset + size]
    return total * np.uint64(_FACTOR)

"""Tokenizers: one interface over tiktoken's encodings, SentencePiece models and plain characters.

Text that spells a special token is ordinary text, always: no method here turns text into the end-of-text id.
A tokenizer is saved as a small folder (`tokenizer.json` and, where there is one, a model file), so that token arrays
and runs carry the very tokenizer they were made with.
"""

from __future__ import annotations

import functools
import hashlib
import re
import resource
import tempfile
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Protocol

import msgspec
import numpy as np

from pipeline import artifact, engines, files
from pipeline.artifact import Artifact
from pipeline.errors import BadConfig, BadData, InputMissing, TryAgain, WorkerLost

END_OF_TEXT = "<|endoftext|>"
_CARD, _MODEL, _RANKS, _CHARACTERS = "tokenizer.json", "tokenizer.model", "ranks.tiktoken", "characters.txt"

# tiktoken's name of an encoding → gigatoken's name of its split pattern
_PATTERNS = {
    "gpt2": "gpt2",
    "r50k_base": "gpt2",
    "p50k_base": "",  # its ranks have a gap, which gigatoken does not take: tiktoken itself encodes
    "cl100k_base": "gpt4",
    "o200k_base": "o200k",
}
ENCODINGS = tuple(_PATTERNS)

ENCODERS = ("auto", "gigatoken", "tiktoken")

Encoded = tuple[np.ndarray, np.ndarray]

# Where each of tiktoken's split patterns ends a piece of text, whatever comes before and after: so a text may be cut
# there and its parts encoded one by one. Latin words, lines, and Chinese phrases; other places are left alone.
_WORD_OR_LINE = re.compile(
    "(?<=[a-z])(?= [a-z])|(?<=[^\\s]\n)(?=[a-z\u5000-\u9fa5])|(?<=[\u5000-\u9fa5])(?=[。，！？；：、])"
)
_ANYWHERE = re.compile("(?s:(?<=.)(?=.))")


class Unencodable(Exception):
    """The tokenizer's library gave up on a text."""


class Tokenizer(Protocol):
    """Text to ids and back. `end_of_text` is the id that follows every document; `vocab_size` counts all ids.

    `encoder` names the library that encodes batches. `boundary` matches (with no width) where a text may be cut so
    that the ids of its parts, put together, are the ids of the whole; None where no such place is known.
    """

    kind: str
    name: str
    vocab_size: int
    end_of_text: int
    fingerprint: str
    encoder: str

    @property
    def boundary(self) -> re.Pattern[str] | None: ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without the end-of-text id, by the library that defines them. Raises Unencodable."""

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """(flat uint32 ids of all texts in order, int64 number of ids of each text). Raises Unencodable."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; the end-of-text id gives nothing."""

    def unknown(self, text: str) -> str:
        """The characters of `text` that this tokenizer cannot represent."""

    def save(self, folder: Path) -> None:
        """Write what `open_folder` needs, the card last."""


class Card(msgspec.Struct, frozen=True):
    """`tokenizer.json`: enough to open a tokenizer again and to know it is the same one.

    `pattern` is the regular expression by which a tiktoken encoding splits text before it merges bytes.
    """

    kind: str
    name: str
    vocab_size: int
    end_of_text: int
    fingerprint: str
    pattern: str = ""


def _save_card(tokenizer: Tokenizer, folder: Path, pattern: str = "") -> None:
    card = Card(
        tokenizer.kind, tokenizer.name, tokenizer.vocab_size, tokenizer.end_of_text, tokenizer.fingerprint, pattern
    )
    files.write_file(folder / _CARD, msgspec.json.format(msgspec.json.encode(card), indent=2))


def _flat(rows: Sequence[Sequence[int]]) -> Encoded:
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(chain.from_iterable(rows), np.uint32, int(lengths.sum())), lengths


class Tiktoken:
    """One of OpenAI's encodings. tiktoken defines the ids; gigatoken gives the same ids many times faster.

    `ranks` is a file in tiktoken's own format. It is saved with the tokenizer, so that what was made with it can be
    opened without tiktoken's cache and without a network.
    """

    kind = "tiktoken"
    boundary = _WORD_OR_LINE

    def __init__(
        self, name: str, ranks: bytes, pattern: str, vocab_size: int, end_of_text: int, encoder: str = "auto"
    ) -> None:
        self.name, self.vocab_size, self.end_of_text = name, vocab_size, end_of_text
        self.encoder = _encoder(name, encoder)
        self._ranks, self._pattern = ranks, pattern
        definition = b"%d %d %s\n%s" % (vocab_size, end_of_text, pattern.encode(), ranks)
        self.fingerprint = f"tiktoken:{name}:{hashlib.sha256(definition).hexdigest()[:16]}"

    @functools.cached_property
    def _mergeable(self) -> dict[bytes, int]:
        pairs = (line.split() for line in self._ranks.splitlines())
        return {a2b_base64(token): int(rank) for token, rank in pairs}

    @functools.cached_property
    def _texts(self) -> frozenset[int]:
        return frozenset(self._mergeable.values())

    @functools.cached_property
    def _reference(self) -> Any:
        import tiktoken

        special = {END_OF_TEXT: self.end_of_text}
        return tiktoken.Encoding(
            self.name, pat_str=self._pattern, mergeable_ranks=self._mergeable, special_tokens=special
        )

    @classmethod
    def named(cls, name: str, encoder: str = "auto") -> Tiktoken:
        """The encoding as tiktoken defines it, from its cache or the network. Raises TryAgain when it has neither."""
        import requests
        from tiktoken_ext import openai_public

        try:
            definition = openai_public.ENCODING_CONSTRUCTORS[name]()
        except (requests.RequestException, OSError) as error:
            reason = " ".join(str(error).split())[:150]
            raise TryAgain(
                f"the ranks of {name} are neither in tiktoken's cache nor to be fetched: {reason}",
                hint="set TIKTOKEN_CACHE_DIR to a folder that holds them, or go online once",
            ) from None
        except ValueError as error:
            raise BadData(f"the ranks of {name} are damaged: {error}", hint="empty tiktoken's cache") from None
        special: dict[str, int] = definition["special_tokens"]
        pairs = sorted(definition["mergeable_ranks"].items(), key=lambda pair: pair[1])
        ranks = b"".join(b"%b %d\n" % (b2a_base64(token, newline=False), rank) for token, rank in pairs)
        size = max(pairs[-1][1], *special.values()) + 1
        return cls(name, ranks, definition["pat_str"], size, special[END_OF_TEXT], encoder)

    @functools.cached_property
    def _fast(self) -> Any:
        import gigatoken

        with tempfile.NamedTemporaryFile(suffix=".tiktoken") as file:
            file.write(self._ranks)
            file.flush()
            return gigatoken.Tokenizer.from_tiktoken(file.name, pretokenizer=_PATTERNS[self.name], special_tokens={})

    def encode(self, text: str) -> list[int]:
        with _panics():
            return self._reference.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        if not texts or self.encoder == "tiktoken":
            with _panics():
                return _flat(self._reference.encode_ordinary_batch(list(texts), num_threads=1))
        with _panics():
            rows = self._fast.encode_batch(list(texts), parallel=False).layout
        return np.asarray(rows.content.data), np.diff(np.asarray(rows.offsets.data))

    def decode(self, ids: Iterable[int]) -> str:
        # Some ids below `vocab_size` have no text at all, and a model that has learned little may choose one.
        return self._reference.decode([token for token in ids if token in self._texts])

    def unknown(self, text: str) -> str:
        return ""

    def save(self, folder: Path) -> None:
        files.write_file(folder / _RANKS, self._ranks)
        _save_card(self, folder, pattern=self._pattern)


def _encoder(name: str, asked: str) -> str:
    """The library that encodes `name`: gigatoken where it is there and knows the encoding, unless told otherwise."""
    if asked not in ENCODERS:
        raise BadConfig(f"no encoder {asked!r}", hint=f"encoders: {', '.join(ENCODERS)}")
    if asked == "tiktoken" or (asked == "auto" and not (_PATTERNS.get(name) and has_gigatoken())):
        return "tiktoken"
    if not _PATTERNS.get(name):
        raise BadConfig(f"gigatoken does not know {name}", hint="use --encoder tiktoken")
    if not has_gigatoken():
        raise BadConfig("gigatoken is not installed", hint="pip install gigatoken, or use --encoder tiktoken")
    return "gigatoken"


@functools.cache
def has_gigatoken() -> bool:
    """Whether the fast encoder is installed: there are machines that it is not built for."""
    try:
        import gigatoken  # noqa: F401
    except ImportError:
        return False
    return True


@contextmanager
def _panics() -> Iterator[None]:
    """Rust's panics are no Exceptions (tiktoken's on a million spaces, with o200k_base): make them one."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise Unencodable(str(error)) from None
        raise


class SentencePiece:
    """A SentencePiece model (BPE or unigram), from its file's bytes."""

    kind = "sentencepiece"
    encoder = "sentencepiece"

    def __init__(self, model: bytes, name: str) -> None:
        import sentencepiece

        self.name = name
        self._model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise BadData(f"{name}: not a SentencePiece model: {error}", hint="train it again") from None
        self.vocab_size = self._processor.get_piece_size()
        self.end_of_text = self._processor.eos_id()
        if self.end_of_text < 0:
            raise BadData(f"{name}: the model has no end-of-text (eos) piece", hint="train it with eos_id set")
        self.fingerprint = _fingerprint_of(model)

    @functools.cached_property
    def boundary(self) -> re.Pattern[str] | None:
        # A merge never crosses a place that no piece of the vocabulary has inside it; the probes see whether the
        # model's normaliser leaves it alone. Unknown characters merge with their neighbours, so there are none there.
        # A unigram model has no such place: in a long text its 32-bit scores let what came before decide ties.
        if not self._is_bpe():
            return None
        try:
            pieces = [self._processor.id_to_piece(token) for token in range(self.vocab_size)]
        except UnicodeDecodeError:  # a model may hold pieces that are no text
            return None
        places = []
        if not any(re.search("[^▁]▁", piece) for piece in pieces) and self._splits(ascii_lowercase, " cd"):
            places.append(r"(?<=[a-z])(?= [a-z])")
        if not any("\n" in piece for piece in pieces) and self._splits("ab\n", "cd") and self._splits("山\n", "石"):
            places.append(r"(?<=\S\n)(?=\S)")
        return re.compile("|".join(places)) if places else None

    def _is_bpe(self) -> bool:
        # BPE's scores are the ranks of its merges, 0, -1, -2, …; unigram's are logarithms of probabilities.
        scores = (self._processor.get_score(token) for token in range(self.vocab_size))
        return all(score == round(score) for score in scores)

    def _splits(self, left: str, right: str) -> bool:
        whole = self.encode(left + right)
        return self.encode(left) + self.encode(right) == whole and self._processor.unk_id() not in whole

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        rows = self._processor.encode(list(texts), num_threads=1, return_type="numpy")
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return np.concatenate([np.empty(0, np.int32), *rows]).view(np.uint32), lengths

    def decode(self, ids: Iterable[int]) -> str:
        return self._processor.decode([int(token) for token in ids if token != self.end_of_text])

    def unknown(self, text: str) -> str:
        # Also ▁, which SentencePiece takes for its own sign of a space.
        return "".join(each for each in dict.fromkeys(text) if self.decode(self.encode(each)) != each)

    def save(self, folder: Path) -> None:
        files.write_file(folder / _MODEL, self._model)
        _save_card(self, folder)


class Characters:
    """One id a character: 0 ends a text, 1 stands for any character that was not in the training text."""

    kind = "char"
    encoder = "characters"
    boundary = _ANYWHERE
    UNKNOWN = 1
    FIRST = 2

    def __init__(self, characters: str, name: str) -> None:
        self.name = name
        self._characters = characters
        self.end_of_text = 0
        self.vocab_size = self.FIRST + len(characters)
        self.fingerprint = f"char:{hashlib.sha256(characters.encode()).hexdigest()[:16]}"
        self._ids = np.full(0x110000, self.UNKNOWN, np.uint32)
        self._ids[_code_points(characters)] = np.arange(self.FIRST, self.vocab_size)

    def encode(self, text: str) -> list[int]:
        return self._ids[_code_points(text)].tolist()

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        return self._ids[_code_points("".join(texts))], lengths

    def decode(self, ids: Iterable[int]) -> str:
        # □ is what editions print for a character that cannot be read.
        return "".join(
            "□" if token == self.UNKNOWN else self._characters[token - self.FIRST]
            for token in ids
            if token != self.end_of_text
        )

    def unknown(self, text: str) -> str:
        known = set(self._characters)
        return "".join(dict.fromkeys(character for character in text if character not in known))

    def save(self, folder: Path) -> None:
        files.write_file(folder / _CHARACTERS, self._characters.encode())
        _save_card(self, folder)


class Integers:
    """Numbers below `vocab_size` as themselves: the tokenizer of the counting toy. 0 ends a text, also when typed."""

    kind = "integers"
    encoder = "integers"
    boundary = None
    name = "integers"
    end_of_text = 0

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.fingerprint = f"integers:{vocab_size}"

    def encode(self, text: str) -> list[int]:
        try:
            ids = [int(word) for word in text.replace(",", " ").split()]
        except ValueError:
            raise BadData(f"{text!r}: not a list of numbers", hint="for example 1,2,3") from None
        if bad := [number for number in ids if not 0 <= number < self.vocab_size]:
            raise BadData(f"{bad[0]} is out of range", hint=f"numbers from 0 to {self.vocab_size - 1}")
        return ids

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        return _flat([self.encode(text) for text in texts])

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(str(token) for token in ids if token != self.end_of_text)

    def unknown(self, text: str) -> str:
        return ""

    def save(self, folder: Path) -> None:
        _save_card(self, folder)


def _fingerprint_of(model: bytes) -> str:
    return f"sentencepiece:{hashlib.sha256(model).hexdigest()[:16]}"


_CHILD_MEMORY, _CHILD_SECONDS = 4 << 30, 60


def _try_elsewhere(path: Path) -> None:
    """Load a model that came from outside in a process of its own first: a crafted one can take the process down."""
    try:
        engines.run(_load_limited, [path], jobs=1, isolated=True)
    except WorkerLost:
        raise BadData(f"{path}: loading this model kills the process that does it", hint="do not use it") from None


def _load_limited(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_CHILD_MEMORY, _CHILD_MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_CHILD_SECONDS, _CHILD_SECONDS))
    try:
        loaded = SentencePiece(path.read_bytes(), path.stem)
        loaded.encode("一 a")
        for token in range(loaded.vocab_size):
            loaded._processor.id_to_piece(token)
    except UnicodeDecodeError:
        raise BadData(f"{path}: this model holds pieces that are no text", hint="do not use it") from None
    except MemoryError:
        raise BadData(f"{path}: this model needs more than {_CHILD_MEMORY >> 30} GiB", hint="do not use it") from None


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def open_folder(folder: Path, encoder: str = "auto") -> Tokenizer:
    """The tokenizer saved in `folder`. Raises BadData when its fingerprint is not the one on its card."""
    try:
        card = msgspec.json.decode((folder / _CARD).read_bytes(), type=Card)
        tokenizer = _open(card, folder, encoder)
    except FileNotFoundError as error:
        raise InputMissing(f"{error.filename}: missing", hint="build the artifact again") from None
    except (msgspec.DecodeError, ValueError) as error:  # a damaged card, or ranks or characters that do not decode
        raise BadData(f"{folder / _CARD}: a damaged tokenizer: {error}", hint="build the artifact again") from None
    if tokenizer.fingerprint != card.fingerprint:
        raise BadData(
            f"{folder}: the tokenizer is {tokenizer.fingerprint}, its card says {card.fingerprint}",
            hint="the files were changed or mixed; build the artifact again",
        )
    return tokenizer


def _open(card: Card, folder: Path, encoder: str) -> Tokenizer:
    if card.kind == "tiktoken":
        ranks = (folder / _RANKS).read_bytes()
        return Tiktoken(card.name, ranks, card.pattern, card.vocab_size, card.end_of_text, encoder)
    if card.kind == "sentencepiece":
        model = (folder / _MODEL).read_bytes()
        if _fingerprint_of(model) != card.fingerprint:  # before the library sees bytes that nobody vouches for
            raise BadData(f"{folder / _MODEL}: not the model of its card", hint="build the artifact again")
        return SentencePiece(model, card.name)
    if card.kind == "char":
        return Characters((folder / _CHARACTERS).read_bytes().decode(), card.name)
    if card.kind == "integers":
        return Integers(card.vocab_size)
    raise BadData(f"{folder / _CARD}: no tokenizer kind {card.kind!r}", hint="written by a newer version?")


def find(root: Path, reference: str, encoder: str = "auto") -> tuple[Tokenizer, Artifact | None]:
    """The tokenizer that `reference` means: an encoding of tiktoken, a trained one by name, or a `.model` file.

    `encoder` chooses who encodes one of tiktoken's encodings; the others have no choice, and refuse one.
    """
    if reference in ENCODINGS:
        return Tiktoken.named(reference, encoder), None
    if encoder != "auto":
        raise BadConfig(f"--encoder {encoder}: {reference} is none of tiktoken's encodings", hint="leave it out")
    path = Path(reference)
    if path.suffix == ".model" and path.is_file():
        _try_elsewhere(path)
        return SentencePiece(path.read_bytes(), path.stem), None
    try:
        found = artifact.find(root, "tokenizers", reference)
    except InputMissing as error:
        raise InputMissing(error.what, hint=f"{error.hint}; ready ones: {', '.join(ENCODINGS)}") from None
    if damage := artifact.problems(found, deep=True):  # it is small, and everything is made with it
        raise BadData(damage[0], hint="`train-tokenizer` it again")
    return open_folder(found.path), found

"""Hugging Face's fast tokenizers: a tokenizer.json, encoded and decoded by the library `tokenizers`."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from pipeline.errors import BadData
from pipeline.store import files
from pipeline.tokenizers.boundaries import safe_boundary
from pipeline.tokenizers.tokenizer import FlatIds, TokenizerCard, Unencodable, panics_as_unencodable, save_card
from pipeline.tokenizers.tokenizer_file import TokenizerFile, unicode_to_bytes

_FILE = "huggingface.json"
_PARALLELISM = "TOKENIZERS_PARALLELISM"
_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")
_CACHED = ("_file", "_library", "_special_ids", "_anchor")  # opened again when needed
_PLAIN_PIECE = re.compile("[▁Ġ]?[A-Za-z]+")


class FastTokenizer:
    """A tokenizer.json, from the bytes of the file, and the id of its token for end-of-text.

    Its ids are those of the library without the tokens of a template. Text that spells a special token is ordinary
    text; text that spells another added token, such as Qwen's <tool_call>, becomes that token, as in the library.
    Every batch is encoded by one thread, because `tokenize` has a process for each core.
    """

    kind = "huggingface"
    encoder = "tokenizers"

    def __init__(self, data: bytes, name: str, end_of_text: int, tokenizer_file: TokenizerFile | None = None) -> None:
        """Raises BadData for bytes that are not a tokenizer.json, and if text could become the end-of-text id.

        `tokenizer_file` is the data, if it was parsed already.
        """
        self.name, self.data, self.end_of_text = name, data, end_of_text
        self._file = tokenizer_file or TokenizerFile(data, name)
        self.vocab_size = max(self.tokens, default=0) + 1
        self.fingerprint = _fingerprint_of(data, end_of_text)
        if end_of_text not in self.tokens:
            raise BadData(f"{name}: no token has id {end_of_text}", hint="name a token with --end-of-text")
        self._ordinary = self._file.ordinary(end_of_text)
        self._library = _open(self._ordinary, name)
        eos = self.tokens[end_of_text]
        if any(end_of_text in self._encode_if_possible(f"{before}{eos}") for before in ("", " ", "a ")):
            raise BadData(
                f"{name}: a text that spells {eos!r} would become the end of a text",
                hint="name another token with --end-of-text",
            )

    @functools.cached_property
    def _file(self) -> TokenizerFile:
        return TokenizerFile(self.data, self.name)

    @functools.cached_property
    def _library(self) -> Any:
        return _open(self._ordinary, self.name)

    @functools.cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset([*self._file.special, self.end_of_text])

    @property
    def tokens(self) -> dict[int, str]:
        """The token string of each id."""
        return self._file.tokens

    @classmethod
    def load(cls, folder: Path, card: TokenizerCard) -> FastTokenizer:
        """Read the file that `save` wrote. Raises FileNotFoundError, and BadData if it does not match its card."""
        data = (folder / _FILE).read_bytes()
        if _fingerprint_of(data, card.end_of_text) != card.fingerprint:  # checked before the library parses it
            raise BadData(f"{folder / _FILE}: does not match its card", hint="build the artifact again")
        return cls(data, card.name, card.end_of_text)

    def save(self, folder: Path) -> None:
        files.write_file(folder / _FILE, self.data)
        save_card(self, folder)

    def __getstate__(self) -> dict[str, Any]:
        # A worker gets the prepared data, which saves it two thirds of the time of opening the file. The data is
        # compressed because a message to a worker must be smaller than 12 MiB.
        state = {key: value for key, value in vars(self).items() if key not in _CACHED}
        same = self.data == self._ordinary
        ordinary = b"" if same else zstandard.compress(self._ordinary)
        return state | {"data": zstandard.compress(self.data), "_ordinary": ordinary}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.data = zstandard.decompress(self.data)
        self._ordinary = zstandard.decompress(self._ordinary) if self._ordinary else self.data

    @functools.cached_property
    def unknown_id(self) -> int | None:
        return self._file.unknown_id()

    @functools.cached_property
    def normalizes(self) -> bool:
        return not self._file.is_exact() or any(self.decode(self._encode_if_possible(text)) != text for text in "a山")

    @functools.cached_property
    def boundary(self) -> re.Pattern[str] | None:
        return safe_boundary(self.encode) if self._file.is_divisible() else None

    def encode(self, text: str) -> list[int]:
        with _as_unencodable():
            ids: list[int] = self._library.encode(_valid(text), add_special_tokens=False).ids
            return ids

    def encode_batch(self, texts: Sequence[str]) -> FlatIds:
        lengths = np.empty(len(texts), np.int64)
        flat = array("I")
        with _as_unencodable(), _one_thread():
            for index, encoding in enumerate(self._encode_all(texts)):
                ids = encoding.ids
                lengths[index] = len(ids)
                flat.extend(ids)
        return np.frombuffer(flat, np.uint32) if flat else np.empty(0, np.uint32), lengths

    def _encode_all(self, texts: Sequence[str]) -> list[Any]:
        encodings: list[Any]
        try:
            encodings = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):  # an unpaired surrogate
            encodings = self._library.encode_batch_fast(list(map(_valid, texts)), add_special_tokens=False)
        return encodings

    def decode(self, ids: Iterable[int]) -> str:
        texts = [int(token) for token in ids if token in self.tokens and token not in self._special_ids]
        text: str = self._library.decode(texts)
        return text

    def token_bytes(self, token: int, after: int | None = None) -> bytes:
        string = self.tokens.get(token)
        if string is None or token in self._special_ids:
            return b""
        if "ByteLevel" in self._file.decoders:
            data = unicode_to_bytes(string)
            return string.encode() if data is None else data  # an added token is not written in byte letters
        if "ByteFallback" in self._file.decoders and (byte := _BYTE_PIECE.fullmatch(string)):
            return bytes([int(byte[1], 16)])
        if after is None:
            return self.decode([token]).encode()
        return self._bytes_inside(token)

    def _bytes_inside(self, token: int) -> bytes:
        """Return the bytes of a token inside a text, where decoders add or keep a space before it."""
        anchor = self._anchor
        return self.decode([anchor, token]).removeprefix(self.decode([anchor])).encode()

    @functools.cached_property
    def _anchor(self) -> int:
        """A token of letters, which no decoder changes."""
        candidates = [token for token in self.tokens if token not in self._special_ids]
        plain = (token for token in candidates if _PLAIN_PIECE.fullmatch(self.tokens[token]))
        return next(plain, candidates[0])

    def unknown_characters(self, text: str) -> str:
        if self.unknown_id is None:
            return ""
        return "".join(
            character for character in dict.fromkeys(text) if self.unknown_id in self._encode_if_possible(character)
        )

    def count_unknown(self, text: str) -> int:
        if self.unknown_id is None:
            return 0
        with _as_unencodable():
            encoding = self._library.encode(_valid(text), add_special_tokens=False)
        spans = zip(encoding.ids, encoding.offsets, strict=True)  # an unknown word or run of characters is one token
        return sum(max(end - start, 1) for token, (start, end) in spans if token == self.unknown_id)

    def normalize(self, text: str) -> str:
        normalizer = self._library.normalizer
        normalized: str = normalizer.normalize_str(_valid(text)) if normalizer else text
        return normalized

    def _encode_if_possible(self, text: str) -> list[int]:
        try:
            return self.encode(text)
        except Unencodable:
            return []


def _open(data: bytes, name: str) -> Any:
    """Open a tokenizer.json with the library, for ids of complete texts without padding."""
    from tokenizers import Tokenizer

    try:
        with panics_as_unencodable():
            library = Tokenizer.from_buffer(data)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exceptions
        raise BadData(
            f"{name}: `tokenizers` cannot open it: {str(error)[:200]}", hint="pip install -U tokenizers"
        ) from None
    library.encode_special_tokens = True
    library.no_truncation()
    library.no_padding()
    return library


@contextmanager
def _as_unencodable() -> Iterator[None]:
    """Turn the errors of the library into Unencodable: an unknown word without a token for it, a panic."""
    with panics_as_unencodable():
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the library raises bare Exceptions
            raise Unencodable(str(error)) from None


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep the library from starting threads; it reads the environment before every batch."""
    previous = os.environ.get(_PARALLELISM)
    os.environ[_PARALLELISM] = "false"
    try:
        yield
    finally:
        if previous is None:
            del os.environ[_PARALLELISM]
        else:
            os.environ[_PARALLELISM] = previous


def _valid(text: str) -> str:
    """Return the text with U+FFFD for each unpaired surrogate, which the library refuses."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _fingerprint_of(data: bytes, end_of_text: int) -> str:
    return f"huggingface:{hashlib.sha256(data).hexdigest()[:16]}:{end_of_text}"

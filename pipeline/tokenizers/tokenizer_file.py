"""The contents of a tokenizer.json: its tokens, and the changes that make its special tokens ordinary text."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import msgspec

from pipeline.errors import BadData
from pipeline.tokenizers import boundaries

_LETTERS = {  # GPT-2's letter for each byte, in which byte-level tokens are written
    byte: 0x100 + n for n, byte in enumerate([*range(0x21), *range(0x7F, 0xA1), 0xAD])
}


def bytes_to_unicode(token: bytes) -> str:
    """Map each byte to one printable letter, as bytes_to_unicode in GPT-2's encoder.py does."""
    return token.decode("latin-1").translate(_LETTERS)


BYTE_OF_LETTER = {bytes_to_unicode(bytes([byte])): byte for byte in range(256)}


def unicode_to_bytes(token: str) -> bytes | None:
    """Return the bytes that a byte-level token stands for, None if it is not written in these letters."""
    try:
        return bytes(BYTE_OF_LETTER[letter] for letter in token)
    except KeyError:
        return None


_BYTE_LEVEL = "ByteLevel"


class TokenizerFile:
    """A parsed tokenizer.json.

    tokens    id → token string, of the model and of the added tokens
    special   id → token string of the special tokens, which stand for no text
    decoders  types of the decoders, in order
    """

    def __init__(self, data: bytes, name: str) -> None:
        """Raises BadData for bytes that are not a tokenizer.json."""
        self._data = data
        try:
            self._content = msgspec.json.decode(data)
            self._model: dict[str, Any] = self._content["model"]
            self._added: list[dict[str, Any]] = self._content.get("added_tokens") or []
            self._vocabulary: list[tuple[str, int]] = _vocabulary_of(self._model)
            self.tokens = {token_id: token for token, token_id in self._vocabulary}
            self.tokens |= {token["id"]: token["content"] for token in self._added}
        except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError, ValueError) as error:
            raise BadData(
                f"{name}: not a tokenizer.json of Hugging Face: {type(error).__name__}: {error}",
                hint="AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) of transformers writes one",
            ) from None
        self.special = {token["id"]: token["content"] for token in self._added if token.get("special")}
        self.decoders = tuple(_types(self._content.get("decoder")))

    def ordinary(self, end_of_text: int) -> bytes:
        """Return a tokenizer.json with the same ids, in which text that spells a special token is ordinary text.

        `end_of_text` is an id that becomes special too.

        The library skips special tokens of `added_tokens` on request (encode_special_tokens), but a model may have
        them in its vocabulary too, and then encodes their text to their ids. So there they get a name that no text
        contains. Dropout, which makes ids random, is switched off.
        """
        special = self.special | {end_of_text: self.tokens[end_of_text]}
        renamed = self._renamed({token: token_id for token_id, token in special.items()})
        unmarked = any(token["id"] == end_of_text and not token.get("special") for token in self._added)
        if not renamed and not unmarked and not self._model.get("dropout"):
            return self._data
        added = [{**token, "special": token["id"] in special} for token in self._added]
        added = [token for token in added if token["content"] not in renamed]
        model = {**self._model, "dropout": None} if "dropout" in self._model else {**self._model}
        if isinstance(model["vocab"], dict):
            model["vocab"] = {renamed.get(token, token): token_id for token, token_id in model["vocab"].items()}
        else:
            model["vocab"] = [[renamed.get(token, token), *scores] for token, *scores in model["vocab"]]
        content = {**self._content, "model": model, "added_tokens": added, "post_processor": None}
        return msgspec.json.encode(content)

    def _renamed(self, special: dict[str, int]) -> dict[str, str]:
        """Return a new name for each special token in the model's vocabulary, except the one for unknown text."""
        unknown = self._model_unknown_id()
        names = {
            token: f"<{hashlib.sha256(token.encode()).hexdigest()}>"
            for token, token_id in self._vocabulary
            if special.get(token) == token_id != unknown
        }
        if names:
            for first, second in map(_pair, self._model.get("merges") or ()):
                for token in (first, second, first + second):
                    names.pop(token, None)
        return names

    def _model_unknown_id(self) -> int | None:
        if self._model_type == "Unigram":
            unknown_id: int | None = self._model.get("unk_id")
            return unknown_id
        return self._ids.get(self._model.get("unk_token") or "")

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return dict(self._vocabulary)

    @property
    def _model_type(self) -> str:
        default = "Unigram" if isinstance(self._model["vocab"], list) else "BPE"
        return str(self._model.get("type") or default)

    def unknown_id(self) -> int | None:
        """Return the id for unknown text, None if the vocabulary can encode every text as bytes, or has no such id."""
        if self._model_type in ("BPE", "Unigram"):
            if self._model.get("byte_fallback") and all(f"<0x{byte:02X}>" in self._ids for byte in range(256)):
                return None
            if _BYTE_LEVEL in self.decoders and BYTE_OF_LETTER.keys() <= self._ids.keys():
                return None
        return self._model_unknown_id()

    def is_exact(self) -> bool:
        """Return True if every text decodes to itself: byte-level, without a normalizer or tokens that take spaces."""
        strips = any(token.get("lstrip") or token.get("rstrip") for token in self._added if not token.get("special"))
        return _BYTE_LEVEL in self.decoders and not self._content.get("normalizer") and not strips

    def is_divisible(self) -> bool:
        """Return True if a text may be cut without changing its ids, because its words are encoded one by one.

        Return False if an added token contains a boundary, or takes the spaces around it.
        """
        others = [token for token in self._added if not token.get("special")]
        return bool(self._content.get("pre_tokenizer")) and not any(
            token.get("lstrip") or token.get("rstrip") or boundaries.WORD_OR_LINE.search(token["content"])
            for token in others
        )


def _vocabulary_of(model: dict[str, Any]) -> list[tuple[str, int]]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        return [(entry[0], token_id) for token_id, entry in enumerate(vocabulary)]
    return list(vocabulary.items())


def _pair(merge: str | list[str]) -> tuple[str, str]:
    first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
    return first, second


def _types(part: Any) -> Iterator[str]:
    """Yield the types of a decoder, and of the decoders that it consists of."""
    if isinstance(part, dict):
        yield str(part.get("type"))
        for inner in part.get("decoders") or ():
            yield from _types(inner)

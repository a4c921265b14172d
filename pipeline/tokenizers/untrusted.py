"""SentencePiece models from elsewhere. A crafted one can take the process down that loads it, or make a text grow
without bound, so each is tried in a process of its own, with little memory and time, before it is loaded here."""

from __future__ import annotations

import resource
from itertools import chain
from pathlib import Path

from pipeline.errors import BadData, WorkerLost
from pipeline.runtime import workers as engines
from pipeline.tokenizers.sentencepiece import SentencePiece

_MEMORY, _SECONDS = 4 << 30, 60

# Characters or ids. Unicode's compatibility forms (NFKC), which most models apply, make up to 18 of one.
_LONGEST = 64


def open_foreign(path: Path) -> SentencePiece:
    """The model in a file. Raises BadData for one that is none, or that nothing should be tokenized with."""
    try:
        engines.isolated(_try, path)
    except WorkerLost:
        raise BadData(f"{path}: loading this model kills the process that does it", hint="do not use it") from None
    return SentencePiece(path.read_bytes(), path.stem)


def _try(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    try:
        model = path.read_bytes()
        loaded = SentencePiece(model, path.stem)
        grown = _growing_character(loaded) or _long_rule(model, path)
        loaded.encode("一 a")
    except UnicodeDecodeError:
        raise BadData(f"{path}: this model holds pieces that are no text", hint="do not use it") from None
    except MemoryError:
        raise BadData(f"{path}: this model needs more than {_MEMORY >> 30} GiB", hint="do not use it") from None
    if grown:
        what = f"{path}: this model makes more than {_LONGEST} characters or ids of {grown[:20]!r}"
        raise BadData(what, hint="do not use it: a short text could fill the memory")


def _growing_character(loaded: SentencePiece) -> str:
    """A character that becomes too long: one of the model's own pieces, or of a sample of Unicode.

    The sample has one of every 64 characters: those 64 share all bytes of their UTF-8 but the last, so that a rule
    for a part of a character, which is none of those that `_long_rule` can see, has one to show itself on.
    """
    sample = (chr(code) for code in range(0, 0x110000, 64) if not 0xD800 <= code <= 0xDFFF)
    for character in dict.fromkeys(chain(sample, *loaded.pieces())):
        normal = loaded.processor.normalize(character)
        if len(normal) > _LONGEST or len(loaded.encode(character)) > _LONGEST:
            return character
    return ""


def _long_rule(model: bytes, path: Path) -> str:
    """What a rule of the model's normaliser, for one character or for several, replaces by too long a text."""
    import sentencepiece

    try:
        rules = sentencepiece.SentencePieceNormalizer(model_proto=model).decompile()
    except RuntimeError as error:
        if "No precompiled charsmap" in str(error):  # the identity, which has no rules
            return ""
        raise BadData(f"{path}: the rules of its normaliser: {error}", hint="do not use it") from None
    return next((source for source, target in rules if len(target) > _LONGEST), "")

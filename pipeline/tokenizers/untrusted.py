"""SentencePiece models of unknown origin.

A crafted model can crash the process that loads it, or expand a text without bound. So each model is first tried in a
separate process with limited memory and time.
"""

from __future__ import annotations

import resource
from itertools import chain
from pathlib import Path

from pipeline.errors import BadData, WorkerLost
from pipeline.runtime import workers
from pipeline.tokenizers.sentencepiece import SentencePiece

_MEMORY, _SECONDS = 4 << 30, 60

# Characters or ids that one character may become. Unicode's NFKC, which most models apply, makes up to 18 of one.
_MAX_EXPANSION = 64


def open_foreign(path: Path) -> SentencePiece:
    """Open the model in a file. Raises BadData if it is not a model, or not a safe one."""
    try:
        workers.run_isolated(_try, path)
    except WorkerLost:
        raise BadData(f"{path}: loading this model crashes the process", hint="do not use it") from None
    return SentencePiece(path.read_bytes(), path.stem)


def _try(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    try:
        model = path.read_bytes()
        tokenizer = SentencePiece(model, path.stem)
        source = _expanding_character(tokenizer) or _expanding_rule(model, path)
        tokenizer.encode("一 a")
    except UnicodeDecodeError:
        raise BadData(f"{path}: this model has pieces that are not UTF-8 text", hint="do not use it") from None
    except MemoryError:
        raise BadData(f"{path}: this model needs more than {_MEMORY >> 30} GiB", hint="do not use it") from None
    if source:
        raise BadData(
            f"{path}: this model turns {source[:20]!r} into more than {_MAX_EXPANSION} characters or ids",
            hint="do not use it: a short text could exhaust the memory",
        )


def _expanding_character(tokenizer: SentencePiece) -> str:
    """Return a character or piece that expands too much, "" if none is found.

    Tries the model's own pieces and one of every 64 Unicode characters. Those 64 share all their UTF-8 bytes but the
    last, so the sample also triggers rules for part of a character, which `_expanding_rule` cannot detect.
    """
    sample = (chr(code) for code in range(0, 0x110000, 64) if not 0xD800 <= code <= 0xDFFF)
    for character in dict.fromkeys(chain(sample, *tokenizer.pieces())):
        normalized = tokenizer.processor.normalize(character)
        if len(normalized) > _MAX_EXPANSION or len(tokenizer.encode(character)) > _MAX_EXPANSION:
            return character
    return ""


def _expanding_rule(model: bytes, path: Path) -> str:
    """Return the source text of a normaliser rule whose replacement is too long, "" if there is none."""
    import sentencepiece

    try:
        rules = sentencepiece.SentencePieceNormalizer(model_proto=model).decompile()
    except RuntimeError as error:
        if "No precompiled charsmap" in str(error):  # the identity normaliser
            return ""
        raise BadData(f"{path}: invalid normaliser rules: {error}", hint="do not use it") from None
    return next((source for source, target in rules if len(target) > _MAX_EXPANSION), "")

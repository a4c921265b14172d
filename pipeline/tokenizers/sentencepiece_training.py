"""Train SentencePiece models."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Sequence

from pipeline.clean.report.sentencepiece_flags import Flags
from pipeline.errors import BadData
from pipeline.runtime.workers import run_isolated
from pipeline.tokenizers.sentencepiece import SentencePiece
from pipeline.tokenizers.tokenizer import END_OF_TEXT
from pipeline.tokenizers.training_text import Sentences, lines_of

SENTENCE_BYTES = 32 << 20  # of sentences at most; 20 MiB take 10 s and 0.9 GB for 32,000 pieces of Chinese
_MAX_ATTEMPTS = 6


class _SizeError(Exception):
    """The trainer refuses a vocabulary size. `possible` is the nearest size that it names, 0 if it names none."""

    def __init__(self, reason: str, possible: int) -> None:
        super().__init__(reason)
        self.possible = possible


def train_sentencepiece(
    texts: Sequence[Sentences],
    kind: str,
    vocab_size: int,
    name: str,
    flags: Flags,
    *,
    adapt: bool,
    stop: threading.Event | None = None,
) -> SentencePiece:
    """Train a model of `kind` "bpe" or "unigram" with exactly `vocab_size` pieces, or with `adapt` as near as possible.

    The settings are those of pipeline/clean/report/sentencepiece_flags.py for Chinese text. The `identity` normaliser
    keeps ，！？ (the default NFKC turns them into ASCII), no dummy prefix keeps ▁ off the beginning of every line, and
    byte fallback leaves no character unknown. The trainer ignores signals, so it runs in a separate process, which
    `stop` kills. Raises BadData if the text does not allow the size, TryAgain after a stop.
    """
    return SentencePiece(run_isolated(_train_nearest, texts, kind, vocab_size, flags, adapt, stop=stop), name)


def _train_nearest(texts: Sequence[Sentences], kind: str, vocab_size: int, flags: Flags, adapt: bool) -> bytes:
    """Return the bytes of a model; see `train_sentencepiece`."""
    size = vocab_size
    for attempt in range(_MAX_ATTEMPTS):
        try:
            return _train(texts, kind, size, flags)
        except _SizeError as error:
            if adapt and error.possible and attempt < _MAX_ATTEMPTS - 1:
                size = error.possible
                continue
            raise BadData(
                f"cannot train a {kind} vocabulary of {size:,} on this corpus: {error}",
                hint=_remedy(error.possible, size, flags.vocab_size),
            ) from None
    raise AssertionError("the last attempt returns or raises")


def _train(texts: Sequence[Sentences], kind: str, vocab_size: int, flags: Flags) -> bytes:
    """Return the bytes of a model.

    The model is written to memory and the text is passed line by line because a path would be stored in the model. One
    thread makes its bytes reproducible.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines_of(texts, SENTENCE_BYTES),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            **flags.settings(),
            required_chars="▁",  # Chinese text has no space; encoded as bytes it would decode to ▁
            num_threads=1,
            unk_id=0,
            eos_id=1,
            eos_piece=END_OF_TEXT,
            bos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _size_error(error) from None
    return model.getvalue()


_MAX_SIZE = re.compile(r"set it to a value <= (\d+)")
_MIN_SIZE = re.compile(r"smaller than required_chars. \d+ vs (\d+)")


def _size_error(error: RuntimeError) -> _SizeError:
    """Return the limit named in an error of SentencePiece in plain words, else the last part of its message."""
    text = " ".join(str(error).split())
    if maximum := _MAX_SIZE.search(text):
        return _SizeError(f"it has text for {int(maximum[1]):,} at most", int(maximum[1]))
    if minimum := _MIN_SIZE.search(text):
        return _SizeError(f"its characters and bytes alone need {int(minimum[1]):,}", int(minimum[1]))
    return _SizeError(text.rsplit("] ", 1)[-1] or "the trainer gave no reason", 0)


def _remedy(possible: int, size: int, suggested: int) -> str:
    """Return the hint: the size that the corpus's report suggests, if that size can be trained, else a possible one."""
    if not possible:
        return "choose another --vocab-size, or give more text"
    if suggested and (suggested <= possible if possible < size else suggested >= possible):
        return f"the report of this corpus suggests --vocab-size {suggested}"
    return f"choose --vocab-size {possible}, or --vocab-size auto"

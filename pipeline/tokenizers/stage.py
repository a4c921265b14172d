"""The train-tokenizer stage: sentences to a vocabulary, SentencePiece (BPE or unigram) or plain characters."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from pipeline.clean.report.sentencepiece_flags import Flags
from pipeline.errors import BadConfig, BadData
from pipeline.store import artifact, files
from pipeline.store.artifact import BuildResult, StageOutput
from pipeline.store.manifest import Identity, Input
from pipeline.tokenizers import END_OF_TEXT, Characters, SentencePiece, Tokenizer

SCHEMA = 2  # raise when the same options give different bytes
KINDS = ("bpe", "unigram", "char")


def find_sentences(root: Path, reference: str) -> tuple[Path, Input]:
    """Return the text to train on, one sentence per line: that of a corpus, or a plain text file."""
    path = Path(reference)
    if path.is_file():
        return path, Input("sentences", path.name, files.sha256_of(path))
    corpus = artifact.require_intact(artifact.find(root, "corpora", reference))
    return corpus.file("sentences.txt"), corpus.as_input("corpus")


class _Report(msgspec.Struct):
    """The part of a corpus's report.json that this stage reads."""

    tokenizer: Flags = Flags()


def flags_of(sentences: Path, made_from: Input) -> Flags:
    """Return the settings that `clean` recommends for a corpus, or the defaults if the text has no report.

    They decide bytes, and the key covers them: the digest of a corpus includes its report.json. Raises BadData if the
    report is damaged.
    """
    path = sentences.parent / "report.json"
    if made_from.role != "corpus" or not path.is_file():
        return Flags()
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Report).tokenizer
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadData(f"{path}: not a report: {error}", hint="`clean` it again") from None


def size_warning(sentences: Path, made_from: Input, kind: str, vocab_size: int) -> str:
    """Return a warning if the vocabulary size is far from the one the corpus's report suggests, else ""."""
    suggested = flags_of(sentences, made_from).vocab_size
    if kind == "char" or not suggested or suggested / 2 <= vocab_size <= 2 * suggested:
        return ""
    return f"the report of this corpus suggests --vocab-size {suggested}; training {vocab_size:,} as requested"


def check_options(kind: str, vocab_size: int) -> None:
    """Raise BadConfig for options that are invalid for every text."""
    if kind not in KINDS:
        raise BadConfig(f"unknown tokenizer kind {kind!r}", hint=f"kinds: {', '.join(KINDS)}")
    if kind == "char" and 0 < vocab_size <= Characters.FIRST:
        raise BadConfig(
            f"--vocab-size must be above {Characters.FIRST}, got {vocab_size}: {Characters.FIRST} ids are reserved",
            hint="0 keeps all characters",
        )


def identify(name: str, made_from: Input, kind: str, vocab_size: int, flags: Flags | None = None) -> Identity:
    """Return the identity of the tokenizer. For characters, `vocab_size` is the most ids to keep, 0 for all."""
    check_options(kind, vocab_size)
    options: dict[str, Any] = {"stage": SCHEMA, "kind": kind, "vocab_size": vocab_size}
    options |= {"flags": flags.settings()} if flags else {}
    libraries = () if kind == "char" else ("sentencepiece",)
    return Identity("tokenizers", name, options, (made_from,), libraries=libraries)


def train(
    root: Path,
    name: str,
    sentences: Path,
    made_from: Input,
    kind: str,
    vocab_size: int,
    flags: Flags | None = None,
) -> BuildResult:
    """Train a tokenizer on a file of sentences (see `find_sentences`) and publish it.

    `flags` None takes the settings that the corpus's report recommends. Raises BadData if the text is too small for
    the vocabulary, or is not UTF-8.
    """
    identity = identify(name, made_from, kind, vocab_size, flags)
    flags = flags or flags_of(sentences, made_from)

    def write(draft: Path) -> StageOutput:
        try:
            if kind == "char":
                tokenizer: Tokenizer = _train_characters(sentences, vocab_size, name)
            else:
                tokenizer = _train_sentencepiece(sentences, kind, vocab_size, name, flags)
        except UnicodeDecodeError as error:
            raise BadData(f"{sentences}: not UTF-8 text ({error.reason})", hint="`clean` it first") from None
        tokenizer.save(draft)
        counts = {"vocab_size": tokenizer.vocab_size, "end_of_text": tokenizer.end_of_text}
        return StageOutput(counts, run={} if kind == "char" else {"flags": flags.settings()})

    return artifact.build(root, identity, write)


def _train_characters(sentences: Path, vocab_size: int, name: str) -> Characters:
    counts: Counter[str] = Counter()
    with open(sentences, encoding="utf-8", newline="\n") as lines:
        for line in lines:
            counts.update(line)
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    characters = ranked[: vocab_size - Characters.FIRST] if vocab_size else ranked
    return Characters("".join(characters), name)


def _train_sentencepiece(sentences: Path, kind: str, vocab_size: int, name: str, flags: Flags) -> SentencePiece:
    """Train SentencePiece with the settings of pipeline/clean/report/sentencepiece_flags.py for Chinese text.

    The `identity` normaliser keeps ，！？ (the default NFKC turns them into ASCII), no dummy prefix keeps ▁ off the
    beginning of every line, and byte fallback leaves no character unknown. The model is written to memory and the text
    is passed line by line because a path would be stored in the model. One thread makes its bytes reproducible.
    """
    import sentencepiece

    model = io.BytesIO()
    with open(sentences, encoding="utf-8", newline="\n") as lines:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(line.rstrip("\n") for line in lines),
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
            raise BadData(
                f"cannot train a {kind} vocabulary of {vocab_size:,} on this corpus: {_reason(error)}",
                hint=_remedy(error, flags.vocab_size),
            ) from None
    return SentencePiece(model.getvalue(), name)


_MAX_SIZE = re.compile(r"set it to a value <= (\d+)")
_MIN_SIZE = re.compile(r"smaller than required_chars. \d+ vs (\d+)")


def _reason(error: RuntimeError) -> str:
    """Return the limit named in an error of SentencePiece in plain words, else the last part of its message."""
    text = " ".join(str(error).split())
    if maximum := _MAX_SIZE.search(text):
        return f"it has text for {int(maximum[1]):,} at most"
    if minimum := _MIN_SIZE.search(text):
        return f"its characters and bytes alone need {int(minimum[1]):,}"
    return text.rsplit("] ", 1)[-1] or "the trainer gave no reason"


def _remedy(error: RuntimeError, suggested: int) -> str:
    """Return the hint: the size that the corpus's report suggests, if that size can be trained."""
    text = " ".join(str(error).split())
    maximum, minimum = _MAX_SIZE.search(text), _MIN_SIZE.search(text)
    fits = (not maximum or suggested <= int(maximum[1])) and (not minimum or suggested >= int(minimum[1]))
    if suggested and fits and (maximum or minimum):
        return f"the report of this corpus suggests --vocab-size {suggested}"
    return "choose another --vocab-size, or give more text"

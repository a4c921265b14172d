"""The train-tokenizer stage: sentences become a vocabulary, SentencePiece (BPE or unigram) or plain characters."""

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
from pipeline.store.artifact import Built, Content
from pipeline.store.manifest import Identity, Input
from pipeline.tokenizers import END_OF_TEXT, Characters, SentencePiece, Tokenizer

SCHEMA = 2  # raise when the same options give other bytes
KINDS = ("bpe", "unigram", "char")


def sentences_of(root: Path, reference: str) -> tuple[Path, Input]:
    """The text to train on, one sentence a line: a corpus's, or a plain text file that is laid out so."""
    path = Path(reference)
    if path.is_file():
        return path, Input("sentences", path.name, files.sha256_of(path))
    corpus = artifact.require_whole(artifact.find(root, "corpora", reference))
    return corpus.file("sentences.txt"), corpus.as_input("corpus")


class _Report(msgspec.Struct):
    """What this stage reads of a corpus's report.json."""

    tokenizer: Flags = Flags()


def flags_of(sentences: Path, made_from: Input) -> Flags:
    """The settings that `clean` found to suit a corpus; those for any text where there is no report of it.

    They decide bytes, and are in the key all the same: report.json is one of the files whose digest is the corpus's.
    """
    path = sentences.parent / "report.json"
    if made_from.role != "corpus" or not path.is_file():
        return Flags()
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Report).tokenizer
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadData(f"{path}: not a report: {error}", hint="`clean` it again") from None


def advice(sentences: Path, made_from: Input, kind: str, vocab_size: int) -> str:
    """What to say of a vocabulary whose size is far from the one that suits the corpus; "" where there is nothing."""
    suggested = flags_of(sentences, made_from).vocab_size
    if kind == "char" or not suggested or suggested / 2 <= vocab_size <= 2 * suggested:
        return ""
    return f"the report of this corpus suggests --vocab-size {suggested}; {vocab_size:,} are trained, as you asked"


def check(kind: str, vocab_size: int) -> None:
    """Raise BadConfig for a vocabulary that cannot be, whatever the text."""
    if kind not in KINDS:
        raise BadConfig(f"no tokenizer kind {kind!r}", hint=f"kinds: {', '.join(KINDS)}")
    if kind == "char" and 0 < vocab_size <= Characters.FIRST:
        raise BadConfig(f"{vocab_size} ids leave no room for a character", hint="0 keeps all characters")


def identify(name: str, made_from: Input, kind: str, vocab_size: int, flags: Flags | None = None) -> Identity:
    """What training would make. For characters `vocab_size` is the most that are kept, 0 for all."""
    check(kind, vocab_size)
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
) -> Built:
    """Train a tokenizer on a file of sentences (see `sentences_of`) and publish it, with these settings or those that
    `flags_of` finds.

    Raises BadData when the text is too small for the vocabulary, or is not UTF-8.
    """
    identity = identify(name, made_from, kind, vocab_size, flags)
    flags = flags or flags_of(sentences, made_from)

    def write(draft: Path) -> Content:
        try:
            if kind == "char":
                made: Tokenizer = _train_characters(sentences, vocab_size, name)
            else:
                made = _train_sentencepiece(sentences, kind, vocab_size, name, flags)
        except UnicodeDecodeError as error:
            raise BadData(f"{sentences}: not UTF-8 text ({error.reason})", hint="`clean` it first") from None
        made.save(draft)
        counts = {"vocab_size": made.vocab_size, "end_of_text": made.end_of_text}
        return Content(counts, run={} if kind == "char" else {"flags": flags.settings()})

    return artifact.build(root, identity, write)


def _train_characters(sentences: Path, most: int, name: str) -> Characters:
    counts: Counter[str] = Counter()
    with open(sentences, encoding="utf-8", newline="\n") as lines:
        for line in lines:
            counts.update(line)
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    kept = ranked[: most - Characters.FIRST] if most else ranked
    return Characters("".join(kept), name)


def _train_sentencepiece(sentences: Path, kind: str, vocab_size: int, name: str, flags: Flags) -> SentencePiece:
    """SentencePiece with the settings of pipeline/clean/advice.py, which say what Chinese text needs.

    `identity` keeps ，！？ as they are (the default NFKC turns them into ASCII), no dummy prefix keeps ▁ away from the
    head of every line, byte fallback leaves no character unknown. The model is written to memory and the text is
    handed over line by line: a path would be stored in the model, and one thread makes its bytes repeatable.
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
                required_chars="▁",  # Chinese text has no space; spelled as bytes it would come back as ▁
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
                f"no {kind} vocabulary of {vocab_size:,} can be trained on this corpus: {_reason(error)}",
                hint=_remedy(error, flags.vocab_size),
            ) from None
    return SentencePiece(model.getvalue(), name)


_MOST = re.compile(r"set it to a value <= (\d+)")
_LEAST = re.compile(r"smaller than required_chars. \d+ vs (\d+)")


def _reason(error: RuntimeError) -> str:
    """What a SentencePiece message says to a person: the number that would do, else its last part."""
    text = " ".join(str(error).split())
    if most := _MOST.search(text):
        return f"it has text for {int(most[1]):,} at most"
    if least := _LEAST.search(text):
        return f"its characters and bytes alone need {int(least[1]):,}"
    return text.rsplit("] ", 1)[-1] or "the trainer gave no reason"


def _remedy(error: RuntimeError, suggested: int) -> str:
    """What to do about it: take the size that the corpus's report suggests, if that one can be trained."""
    text = " ".join(str(error).split())
    most, least = _MOST.search(text), _LEAST.search(text)
    fits = (not most or suggested <= int(most[1])) and (not least or suggested >= int(least[1]))
    if suggested and fits and (most or least):
        return f"the report of this corpus suggests --vocab-size {suggested}"
    return "choose another --vocab-size, or give more text"

"""The train-tokenizer stage: sentences become a vocabulary, SentencePiece (BPE or unigram) or plain characters."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path

from pipeline import artifact, files
from pipeline.artifact import Built, Content
from pipeline.errors import BadConfig, BadData
from pipeline.manifest import Identity, Input
from pipeline.tokenizers import END_OF_TEXT, Characters, SentencePiece, Tokenizer

SCHEMA = 1  # raise when the same options give other bytes
KINDS = ("bpe", "unigram", "char")


def sentences_of(root: Path, reference: str) -> tuple[Path, Input]:
    """The text to train on, one sentence a line: a corpus's, or a plain text file that is laid out so."""
    path = Path(reference)
    if path.is_file():
        return path, Input("sentences", path.name, files.sha256_of(path))
    corpus = artifact.require_whole(artifact.find(root, "corpora", reference))
    return corpus.file("sentences.txt"), corpus.as_input("corpus")


def check(kind: str, vocab_size: int) -> None:
    """Raise BadConfig for a vocabulary that cannot be, whatever the text."""
    if kind not in KINDS:
        raise BadConfig(f"no tokenizer kind {kind!r}", hint=f"kinds: {', '.join(KINDS)}")
    if kind == "char" and 0 < vocab_size <= Characters.FIRST:
        raise BadConfig(f"{vocab_size} ids leave no room for a character", hint="0 keeps all characters")


def identify(name: str, made_from: Input, kind: str, vocab_size: int) -> Identity:
    """What training would make. For characters `vocab_size` is the most that are kept, 0 for all."""
    check(kind, vocab_size)
    options = {"stage": SCHEMA, "kind": kind, "vocab_size": vocab_size}
    libraries = () if kind == "char" else ("sentencepiece",)
    return Identity("tokenizers", name, options, (made_from,), libraries=libraries)


def train(root: Path, name: str, sentences: Path, made_from: Input, kind: str, vocab_size: int) -> Built:
    """Train a tokenizer on a file of sentences (see `sentences_of`) and publish it.

    Raises BadData when the text is too small for the vocabulary, or is not UTF-8.
    """

    def write(draft: Path) -> Content:
        try:
            if kind == "char":
                made: Tokenizer = _train_characters(sentences, vocab_size, name)
            else:
                made = _train_sentencepiece(sentences, kind, vocab_size, name)
        except UnicodeDecodeError as error:
            raise BadData(f"{sentences}: not UTF-8 text ({error.reason})", hint="`clean` it first") from None
        made.save(draft)
        return Content({"vocab_size": made.vocab_size, "end_of_text": made.end_of_text})

    return artifact.build(root, identify(name, made_from, kind, vocab_size), write)


def _train_characters(sentences: Path, most: int, name: str) -> Characters:
    counts: Counter[str] = Counter()
    with open(sentences, encoding="utf-8", newline="\n") as lines:
        for line in lines:
            counts.update(line)
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    kept = ranked[: most - Characters.FIRST] if most else ranked
    return Characters("".join(kept), name)


def _train_sentencepiece(sentences: Path, kind: str, vocab_size: int, name: str) -> SentencePiece:
    """SentencePiece with the settings that Chinese text needs.

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
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                byte_fallback=True,
                character_coverage=0.9999,
                max_sentence_length=1 << 20,
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
                hint="choose another --vocab-size, or give more text",
            ) from None
    return SentencePiece(model.getvalue(), name)


def _reason(error: RuntimeError) -> str:
    """What a SentencePiece message says to a person: the number that would do, else its last part."""
    text = " ".join(str(error).split())
    if most := re.search(r"set it to a value <= (\d+)", text):
        return f"it has text for {int(most[1]):,} at most"
    if least := re.search(r"smaller than required_chars. \d+ vs (\d+)", text):
        return f"its characters and bytes alone need {int(least[1]):,}"
    return text.rsplit("] ", 1)[-1] or "the trainer gave no reason"

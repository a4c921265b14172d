"""The train-tokenizer stage: sentences to a vocabulary: SentencePiece, byte-level BPE or plain characters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.clean.report.sentencepiece_flags import Flags
from pipeline.errors import BadConfig, BadData
from pipeline.runtime.progress import Progress, SilentProgress
from pipeline.store import artifact, code
from pipeline.store.artifact import Artifact, BuildResult, StageOutput
from pipeline.store.manifest import Identity
from pipeline.tokenizers.byte_level import PARAGRAPH_BYTES, train_byte_level
from pipeline.tokenizers.characters import Characters
from pipeline.tokenizers.sentencepiece_training import SENTENCE_BYTES, train_sentencepiece
from pipeline.tokenizers.tokenizer import Tokenizer
from pipeline.tokenizers.training_text import (
    Sentences,
    advice_for,
    find_sentences,
    flags_of,
    format_characters,
    is_foreign,
    raw_lines,
    sentences_of,
    size_of,
)

__all__ = [
    "AUTO",
    "KINDS",
    "Sentences",
    "check_options",
    "find_sentences",
    "flags_of",
    "identify",
    "mismatch",
    "sentences_of",
    "train",
]

SCHEMA = 2  # raise when the same options give different bytes
CODE = code.Code(
    (
        *("pipeline/tokenizers", "pipeline/clean/report/sentencepiece_flags.py", "pipeline/clean/utf16.py"),
        *(
            "pipeline/readers/compression.py",
            "pipeline/readers/corpora.py",
            "pipeline/readers/documents.py",
            "pipeline/readers/jsonl.py",
        ),
        "pipeline/runtime/ledger.py",
    ),
    code.HARMLESS
    | dict.fromkeys(
        (
            *("pipeline/tokenizers/__init__.py", "pipeline/tokenizers/loading.py", "pipeline/tokenizers/untrusted.py"),
            *("pipeline/tokenizers/end_of_text.py", "pipeline/tokenizers/ranks.py", "pipeline/tokenizers/tiktoken.py"),
            *("pipeline/tokenizers/gigatoken.py", "pipeline/tokenizers/integers.py"),
            *("pipeline/tokenizers/detokenizer.py", "pipeline/tokenizers/huggingface.py", "pipeline/tokenizers/chat"),
        ),
        "for tokenizers that exist already",
    )
    | {"pipeline/runtime/workers.py": "runs a function in another process"},
)
KINDS = ("bpe", "unigram", "char", "bbpe")
AUTO = "auto"
_SAMPLE_BYTES = {"bpe": SENTENCE_BYTES, "unigram": SENTENCE_BYTES, "bbpe": PARAGRAPH_BYTES}
_LIBRARIES = {"bpe": ("sentencepiece",), "unigram": ("sentencepiece",), "bbpe": ("tokenizers",)}


def requested_size(kind: str, vocab_size: int | str | None) -> int | None:
    """Return the requested vocabulary size, None if the stage chooses it ("auto" or None).

    For a tokenizer of characters, it is the maximum number of ids; 0, or "auto", keeps all characters. Raises
    BadConfig.
    """
    if vocab_size is None or vocab_size == AUTO:
        return 0 if kind == "char" else None
    if not str(vocab_size).isdecimal():
        raise BadConfig(f"--vocab-size must be a number or {AUTO}, got {vocab_size!r}", hint="for example 8000")
    return int(vocab_size)


def size_warning(texts: Sequence[Sentences], kind: str, vocab_size: int | str | None) -> str:
    """Return a warning if the vocabulary size is far from the one that the corpus's report suggests, else ""."""
    size, suggested = requested_size(kind, vocab_size), flags_of(texts).vocab_size
    if kind == "char" or size is None or not suggested or suggested / 2 <= size <= 2 * suggested:
        return ""
    return f"the report of this corpus suggests --vocab-size {suggested}; training {size:,} as requested"


def check_options(kind: str, vocab_size: int | str | None = None) -> None:
    """Raise BadConfig for options that are invalid for every text."""
    if kind not in KINDS:
        raise BadConfig(f"unknown tokenizer kind {kind!r}", hint=f"kinds: {', '.join(KINDS)}")
    size = requested_size(kind, vocab_size)
    if kind == "char" and size and 0 < size <= Characters.FIRST:
        raise BadConfig(
            f"--vocab-size must be above {Characters.FIRST}, got {size}: {Characters.FIRST} ids are reserved",
            hint="0 keeps all characters",
        )


def mismatch(trained: Artifact, kind: str, vocab_size: int | str | None) -> str:
    """Return how a trained tokenizer differs from the requested kind and size, "" if it does not.

    Without a requested size, any size fits.
    """
    options, size = trained.manifest.options, requested_size(kind, vocab_size)
    if options.get("kind", kind) != kind:
        return f"kind {options['kind']} → {kind}"
    sizes = (options.get("vocab_size", size), trained.manifest.counts.get("vocab_size"))
    is_free = vocab_size is None or vocab_size == AUTO
    return "" if is_free or size in sizes else f"vocab_size {sizes[1]:,} → {size:,}"


def identify(
    name: str,
    texts: Sequence[Sentences],
    kind: str,
    vocab_size: int | str | None = None,
    flags: Flags | None = None,
) -> Identity:
    """Return the identity of the tokenizer; see `train` for the arguments."""
    check_options(kind, vocab_size)
    size = requested_size(kind, vocab_size)
    options: dict[str, Any] = {"stage": SCHEMA, "kind": kind, "vocab_size": AUTO if size is None else size}
    options |= {"flags": flags.settings()} if flags else {}
    if kind in _SAMPLE_BYTES and size_of(texts) > _SAMPLE_BYTES[kind]:
        options["sample_bytes"] = _SAMPLE_BYTES[kind]
    if any(map(is_foreign, texts)):
        options["line_ends"] = "\n"
    return Identity(
        "tokenizers",
        name,
        options,
        tuple(text.made_from for text in texts),
        libraries=_LIBRARIES.get(kind, ()),
        code=code.state_of(CODE),
    )


def train(
    root: Path,
    name: str,
    texts: Sequence[Sentences],
    kind: str,
    vocab_size: int | str | None = None,
    flags: Flags | None = None,
    progress: Progress | None = None,
    *,
    rebuild: bool = False,
) -> BuildResult:
    """Train a tokenizer on one or more texts (see `find_sentences`) and publish it.

    `vocab_size` None or "auto" takes the size that the corpus's report suggests, or the nearest that the text allows.
    `flags` None takes the settings that the report recommends. Of more than 32 MiB (for bbpe 16 MiB) an even sample is
    used. With `rebuild` a published one is trained again. Raises BadData if the text is too small for the vocabulary
    asked for, or is not UTF-8.
    """
    identity = identify(name, texts, kind, vocab_size, flags)
    progress = progress or SilentProgress()

    def write(draft: Path) -> StageOutput:
        try:
            with progress.wait(f"training the tokenizer {name}"):
                tokenizer, run = _train(texts, kind, requested_size(kind, vocab_size), name, flags, progress)
        except UnicodeDecodeError as error:
            raise BadData(f"{texts[0].paths[0]}: not UTF-8 text ({error.reason})", hint="`clean` it first") from None
        tokenizer.save(draft)
        return StageOutput({"vocab_size": tokenizer.vocab_size, "end_of_text": tokenizer.end_of_text}, run=run)

    return artifact.build(root, identity, write, rebuild=rebuild)


def _train(
    texts: Sequence[Sentences], kind: str, size: int | None, name: str, flags: Flags | None, progress: Progress
) -> tuple[Tokenizer, dict[str, Any]]:
    """Return the tokenizer, and what run.json says about it."""
    if kind == "char":
        return _train_characters(texts, size or 0, name), {}
    advice = advice_for(texts) if size is None else None
    wanted = advice.vocab_size if advice else size or 0
    if kind == "bbpe":
        tokenizer: Tokenizer = train_byte_level(texts, wanted, name, adapt=size is None, stop=progress.stop)
        run: dict[str, Any] = {}
    else:
        flags = flags or flags_of(texts)
        tokenizer = train_sentencepiece(texts, kind, wanted, name, flags, adapt=size is None, stop=progress.stop)
        run = {"flags": flags.settings()}
    if advice:
        reason = advice.reason
        if tokenizer.vocab_size < advice.vocab_size:
            reason = f"all that {format_characters(advice.characters)} allow; {advice.vocab_size:,} advised"
        progress.note(f"vocabulary {tokenizer.vocab_size:,} ({reason})")
    return tokenizer, run


def _train_characters(texts: Sequence[Sentences], vocab_size: int, name: str) -> Characters:
    counts: Counter[str] = Counter()
    for line in raw_lines(texts):
        counts.update(line.decode())
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    characters = ranked[: vocab_size - Characters.FIRST] if vocab_size else ranked
    return Characters("".join(characters), name)

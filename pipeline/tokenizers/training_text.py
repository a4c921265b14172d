"""The text that a tokenizer is trained on: sentences or documents of corpora, evenly sampled if there is much of it."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipeline.clean.report.sentencepiece_flags import DEFAULT_MAX_LINE_BYTES, Flags, LineStats, flags
from pipeline.errors import BadData
from pipeline.readers import compression, corpora, jsonl
from pipeline.runtime.regular_file import regular_file
from pipeline.runtime.terminal import counted
from pipeline.store import artifact, files
from pipeline.store.manifest import Input

_LINE = re.compile(r"(?<=\S\n)(?=\S)")  # where a text is cut; no split pattern joins what is left and right of it


class Sentences(NamedTuple):
    """Files with one sentence per line, and what the key of the tokenizer records of their origin.

    `documents` are the files of documents of the corpus that the sentences are from, none for a plain text file.
    """

    paths: tuple[Path, ...]
    made_from: Input
    documents: tuple[Path, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of the sentences."""
        return sum(path.stat().st_size for path in self.paths)


def sentences_of(corpus: artifact.Artifact) -> Sentences:
    """Return the sentences of a corpus."""
    paths, documents = corpora.sentence_files(corpus), corpora.document_files(corpus)
    return Sentences(tuple(paths), corpus.as_input("corpus"), tuple(documents))


class Advice(NamedTuple):
    """A vocabulary size for a text, and the number of characters that the text has."""

    vocab_size: int
    characters: int

    @property
    def reason(self) -> str:
        return f"advised for {format_characters(self.characters)}"


class _CharacterCounts(msgspec.Struct, frozen=True):
    out: int = 0


class _Report(msgspec.Struct):
    """The part of a corpus's report.json that training reads."""

    tokenizer: Flags = Flags()
    characters: _CharacterCounts = _CharacterCounts()


def find_sentences(root: Path, references: Sequence[str]) -> list[Sentences]:
    """Return the text of each corpus or plain text file, one sentence per line. Equal texts are returned once."""
    texts: dict[str, Sentences] = {}
    for reference in references:
        path = Path(reference)
        if regular_file(path).is_file():
            sentences = Sentences((path,), Input("sentences", path.name, files.sha256_of(path)))
        else:
            sentences = sentences_of(artifact.require_intact(artifact.find(root, "corpora", reference)))
        texts.setdefault(sentences.made_from.digest, sentences)
    return list(texts.values())


def flags_of(texts: Sequence[Sentences]) -> Flags:
    """Return the settings that `clean` recommends for these texts, or the defaults for a text without a report.

    Of several texts, the settings of the largest are used, with the largest line length and the largest vocabulary size
    of all. The settings decide bytes, and are part of the key: the digest of a corpus covers its report.json. Raises
    BadData if a report is damaged.
    """
    settings = [_report_of(text).tokenizer for text in texts]
    sizes = [text.size for text in texts] if len(texts) > 1 else [0]
    return msgspec.structs.replace(
        settings[sizes.index(max(sizes))],
        max_sentence_length=max(flags.max_sentence_length for flags in settings),
        vocab_size=max(flags.vocab_size for flags in settings),
    )


def advice_for(texts: Sequence[Sentences]) -> Advice:
    """Return the vocabulary size that the reports suggest; texts without a report are counted. Raises as `flags_of`."""
    advice = [_advice_of(text) for text in texts]
    return Advice(max(size for size, _ in advice), sum(characters for _, characters in advice))


def _advice_of(text: Sentences) -> Advice:
    report = _report_of(text)
    if report.tokenizer.vocab_size and report.characters.out:
        return Advice(report.tokenizer.vocab_size, report.characters.out)
    counts: Counter[str] = Counter()
    for line in lines_of([text]):
        counts.update(line)
    return Advice(flags(LineStats(counts, 0, DEFAULT_MAX_LINE_BYTES, 0)).vocab_size, counts.total())


def _report_of(text: Sentences) -> _Report:
    path = text.paths[0].parent / "report.json"
    if text.made_from.role != "corpus" or not path.is_file():
        return _Report()
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Report)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadData(f"{path}: not a report: {error}", hint="`clean` it again") from None


def lines_of(texts: Sequence[Sentences], limit: int = 0) -> Iterator[str]:
    """Yield the lines of all texts without their line ends, or about `limit` bytes of them, spread evenly."""
    return (line.decode().removesuffix("\n") for line in sample(raw_lines(texts), size_of(texts), limit))


def raw_lines(texts: Sequence[Sentences]) -> Iterator[bytes]:
    """Yield the lines of all texts in UTF-8 with their line ends.

    In a file that `clean` did not write, every line end becomes \\n, and a byte order mark is removed.
    """
    for text in texts:
        is_plain = text.made_from.role != "corpus"
        for path in text.paths:
            with open(path, "rb") as lines:
                for line in lines:
                    yield from _plain_lines(line) if is_plain and _is_foreign(line) else (line,)


def _is_foreign(line: bytes) -> bool:
    return b"\r" in line or line.startswith(codecs.BOM_UTF8)


def _plain_lines(line: bytes) -> Iterator[bytes]:
    for part in line.removeprefix(codecs.BOM_UTF8).splitlines(keepends=True):
        yield part if part[-1:] not in (b"\r", b"\n") else part.rstrip(b"\r\n") + b"\n"


def is_foreign(text: Sentences) -> bool:
    """Return True if a file that `clean` did not write has carriage returns or byte order marks."""
    if text.made_from.role == "corpus":
        return False
    with open(text.paths[0], "rb") as lines:
        return any(map(_is_foreign, lines))


def size_of(texts: Sequence[Sentences]) -> int:
    """Return the size of the sentences in bytes."""
    return sum(text.size for text in texts)


def paragraphs_of(texts: Sequence[Sentences], limit: int) -> Iterator[str]:
    """Yield the documents of all texts, cut after line ends, or about `limit` bytes of them, spread evenly.

    In contrast to sentences, they have the line ends that the tokenizer will encode.
    """
    return (paragraph.decode() for paragraph in sample(_raw_paragraphs(texts), size_of(texts), limit))


class _Document(msgspec.Struct):
    text: str


def _raw_paragraphs(texts: Sequence[Sentences]) -> Iterator[bytes]:
    decode = msgspec.json.Decoder(_Document).decode
    for text in texts:
        for path in text.documents:
            for _, line, _ in jsonl.split_lines(compression.read_blocks(path)):
                yield from (paragraph.encode() for paragraph in _LINE.split(decode(line).text))
        if not text.documents:
            yield from raw_lines([text])


def sample(items: Iterable[bytes], total: int, limit: int) -> Iterator[bytes]:
    """Yield all items if their `total` size in bytes is at most `limit` or there is no limit (0).

    Otherwise yield whole items in order, up to the fraction limit/total of what was read. The choice depends on
    nothing but the sizes, so it is the same in every run.
    """
    if not limit or total <= limit:
        yield from items
        return
    read = taken = 0
    for item in items:
        read += len(item)
        if (taken + len(item)) * total <= limit * read:
            taken += len(item)
            yield item


def format_characters(count: int) -> str:
    """Return a number of characters for people: 1.2 M characters, 40,000 characters."""
    return f"{count / 1e6:.1f} M characters" if count >= 1_000_000 else counted(count, "characters")

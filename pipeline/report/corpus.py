"""Numbers of a corpus: what its report.json counted, the lengths of its documents, and examples of what was dropped."""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import BadData
from pipeline.readers import corpora
from pipeline.readers.compression import read_blocks
from pipeline.readers.jsonl import split_lines
from pipeline.report.bins import Bins, bins_of
from pipeline.runtime.regular_file import read_regular
from pipeline.store.artifact import Artifact

REPORT, REJECTS = "report.json", "rejects.jsonl.zst"
SEED = 1  # of the samples of a report
MAX_CHARACTERS = 1 << 31  # of the documents that are measured; a larger corpus is sampled by its files
EXAMPLES = 3  # of the rejects of a reason
_REJECTS_READ = 1 << 26  # bytes of rejects that are searched for examples
_LETTERS = {"CJK": "Han", "KANGXI": "Han", "FULLWIDTH": "Latin", "HALFWIDTH": "Katakana"}
_CLASSES = {"N": "digits", "P": "punctuation", "S": "symbols", "Z": "spaces", "M": "marks", "C": "other"}


@dataclass(frozen=True)
class Script:
    """Characters of one script, or of one class such as digits: how many, and how many distinct ones."""

    name: str
    characters: int
    kinds: int


@dataclass(frozen=True)
class CorpusNumbers:
    """Numbers of a corpus.

    report     its report.json
    documents  lengths of documents in characters
    measured   number of documents whose length was read: not all, if the corpus is sampled
    sentences  lengths of all sentences in characters
    scripts    the largest first
    marks      punctuation marks with their frequencies, the most common first
    rejects    up to three excerpts by reason, each with its file and line
    """

    report: dict[str, Any]
    documents: Bins | None
    measured: int
    sentences: Bins | None
    scripts: tuple[Script, ...]
    marks: tuple[tuple[str, int], ...]
    rejects: dict[str, list[tuple[str, str]]]

    @property
    def histogram(self) -> dict[str, int]:
        """Frequencies of the published characters."""
        frequencies: dict[str, int] = self.report["characters"]["histogram"]
        return frequencies

    @property
    def characters(self) -> int:
        return sum(self.histogram.values())


class _Document(msgspec.Struct):
    text: str


class _Reject(msgspec.Struct):
    file: str = ""
    line: int = 0
    reason: str = ""
    excerpt: str = ""


def collect(corpus: Artifact, max_characters: int = MAX_CHARACTERS) -> CorpusNumbers:
    """Collect the numbers of a corpus. Above `max_characters`, document lengths are those of a sample of its files.

    Raises BadData if its report.json is missing or damaged.
    """
    path = corpus.file(REPORT)
    try:
        report: dict[str, Any] = msgspec.json.decode(read_regular(path))
        sentences = {int(length): int(count) for length, count in report["sentences"]["lengths"].items()}
        histogram = {str(character): int(count) for character, count in report["characters"]["histogram"].items()}
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise BadData(f"{path}: not the report of a corpus: {error}", hint="`clean` it again") from None
    lengths = Counter(_document_lengths(corpus, sum(histogram.values()), max_characters))
    return CorpusNumbers(
        report,
        bins_of(lengths),
        lengths.total(),
        bins_of(sentences),
        _scripts(histogram),
        _marks(histogram),
        _rejects(corpus.file(REJECTS)),
    )


def _document_lengths(corpus: Artifact, characters: int, max_characters: int) -> Iterator[int]:
    """Yield the lengths of documents in characters, of all files or of a sample of about `max_characters`."""
    paths = corpora.document_files(corpus)
    if characters > max_characters:
        random.Random(SEED).shuffle(paths)
    decode, measured = msgspec.json.Decoder(_Document).decode, 0
    for path in paths:
        for _, line, is_complete in split_lines(read_blocks(path)):
            if not is_complete:
                continue
            length = len(decode(line).text)
            measured += length
            yield length
            if measured > max_characters:
                return


def script_of(character: str) -> str:
    """Return the script of a letter by its Unicode name, or the class of another character, such as "digits"."""
    category = unicodedata.category(character)
    if character in "\n\t\r":
        return "spaces"
    if not category.startswith("L"):
        return _CLASSES[category[0]]
    word = unicodedata.name(character, "OTHER").split()[0]
    return _LETTERS.get(word, word.capitalize())


def _scripts(histogram: Mapping[str, int]) -> tuple[Script, ...]:
    characters, kinds = Counter[str](), Counter[str]()
    for character, count in histogram.items():
        script = script_of(character)
        characters[script] += count
        kinds[script] += 1
    return tuple(Script(name, count, kinds[name]) for name, count in _ranked(characters))


def _marks(histogram: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    marks = {mark: count for mark, count in histogram.items() if unicodedata.category(mark).startswith("P")}
    return tuple(_ranked(marks))


def _ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def commonest(histogram: Mapping[str, int], limit: int) -> list[tuple[str, int]]:
    """Return the most frequent characters with their frequencies, without blanks and line ends."""
    return [item for item in _ranked(histogram) if not item[0].isspace()][:limit]


def rarest(histogram: Mapping[str, int], limit: int) -> list[tuple[str, int]]:
    """Return the least frequent characters with their frequencies, by code point and without blanks."""
    ranked = sorted(histogram.items(), key=lambda item: (item[1], item[0]))
    return sorted([item for item in ranked if not item[0].isspace()][:limit])


def kinds_that_cover(histogram: Mapping[str, int], fraction: float) -> int:
    """Return how many of the most common characters make up a fraction of the text."""
    remaining = fraction * sum(histogram.values())
    for number, count in enumerate(sorted(histogram.values(), reverse=True), start=1):
        remaining -= count
        if remaining <= 0:
            return number
    return len(histogram)


def _rejects(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Return up to `EXAMPLES` rejects of each reason, each as its location and an excerpt."""
    examples: dict[str, list[tuple[str, str]]] = {}
    if not path.is_file():
        return examples
    decode = msgspec.json.Decoder(_Reject).decode
    for offset, line, is_complete in split_lines(read_blocks(path)):
        if offset > _REJECTS_READ:
            break
        if is_complete and len(rows := examples.setdefault((reject := decode(line)).reason, [])) < EXAMPLES:
            rows.append((f"{reject.file}:{reject.line}", reject.excerpt))
    return examples

"""The worker: a pure function of a task. It cleans the task, rejects non-text and serializes the rest.

Tasks are independent of each other. From a document that spans several tasks, each task makes a `Fragment`, and the
writer joins the fragments.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import msgspec
import numpy as np
import zstandard

from pipeline.clean import dedup, filters, lines, profiles
from pipeline.clean.cleaner import Cleaner, Page
from pipeline.clean.options import CleanOptions
from pipeline.clean.report.report import CleaningReport, add_counts
from pipeline.clean.rules import quotes
from pipeline.clean.tasks import CleanTask
from pipeline.clean.utf16 import (
    Utf16Text,
    contains_any,
    count_characters,
    decode_utf16,
    document_bounds,
    split_documents,
)
from pipeline.errors import InkstoneError
from pipeline.readers import documents, jsonl
from pipeline.readers.documents import Reject

ZSTD_LEVEL = 1  # three times as fast as the library's default, for a tenth more bytes


@dataclass
class Fragment:
    """A part of a document that is longer than a task.

    frame      its text as the inside of a JSON string, compressed
    sentences  its lines of sentences.txt
    counts     its class counts, from which the document is filtered
    excerpt    its beginning
    raw        its UTF-16, for the digest of the document
    separator  the text between it and the fragment before it
    """

    frame: bytes
    sentences: bytes
    counts: list[int]
    excerpt: str
    raw: bytes
    characters: int
    separator: str
    report: CleaningReport


@dataclass(frozen=True)
class CorpusRow:
    """A complete document that may be a duplicate. `sketch` is for --dedup near."""

    json_line: bytes
    text: str
    fingerprint: bytes
    location: tuple[int, int]  # line and byte offset in its file
    sketch: dedup.Sketch = None


@dataclass
class CleanResult:
    """The result of a task: the end of the open document, complete documents, and the start of a document left open.

    head               continues the document that was open before the task
    closes             True if that document ends in this task
    frame, sentences   complete documents as compressed JSON lines, and their lines of sentences.txt
    digests            of the same documents
    rows               complete documents, instead of the three above, if duplicates are removed
    tail, title, meta  the document that is open after the task
    """

    head: Fragment | None = None
    closes: bool = False
    frame: bytes = b""
    sentences: bytes = b""
    digests: list[bytes] = field(default_factory=list)
    rows: list[CorpusRow] = field(default_factory=list)
    tail: Fragment | None = None
    title: str = ""
    meta: Any = None
    rejects: list[Reject] = field(default_factory=list)
    report: CleaningReport = field(default_factory=CleaningReport)


@dataclass(frozen=True)
class CleanWorker:
    """Callable that cleans a task."""

    options: CleanOptions

    def __call__(self, task: CleanTask) -> CleanResult:
        result = CleanResult()
        task, page = _clean_safely(task, self.options, result)
        if page is None:
            result.closes = task.continues and not task.open
            return result
        _count_effects(task, page, result.report)
        parts = document_bounds(page.array)
        first, last = 0, len(parts)
        continued = task.continues and not page.titles[0]
        result.closes = task.continues and not (continued and task.open and len(parts) == 1)
        if continued:
            result.head = _fragment(page.array[slice(*parts[0])], task, self.options)
            first = 1
        if task.open and (last - first or not continued):
            last -= 1
            result.tail = _fragment(page.array[slice(*parts[last])], task, self.options)
            result.title, result.meta = _title(task, page, last), _meta(task, page, last)
        if accepted := _filter(task, page, parts, range(first, last), self.options, result):
            _serialize(task, page, parts, accepted, self.options, result)
        return result


# Cleaning


def clean_task(task: CleanTask, cleaner: Cleaner) -> Page:
    """Return the page of a task after all rules. An exception in a rule is raised."""
    return cleaner.clean_page(_input_page(task), len(task.lines), task.characters)


def _input_page(task: CleanTask) -> Utf16Text:
    return Utf16Text(np.frombuffer(task.page, "<u2"))


@cache
def _cleaner(profile: str, options: CleanOptions) -> Cleaner:
    return Cleaner(profiles.PROFILES[profile], options)


_COLUMNS = ("titles", "metas", "lines", "offsets")


def _clean_safely(task: CleanTask, options: CleanOptions, result: CleanResult) -> tuple[CleanTask, Page | None]:
    """Return a task and its cleaned page. Texts on which a rule fails are rejected, and removed from the task.

    The page is None if no text remains. Other texts are cleaned as if the rejected ones did not exist.
    """
    cleaner = _cleaner(task.profile, options)
    try:
        return task, clean_task(task, cleaner)
    except (InkstoneError, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - a bug in a rule must not lose hours of work: the text is rejected and counted
        texts = split_documents(_input_page(task))
        good = [index for index, text in enumerate(texts) if _is_cleanable(text, index, cleaner, task, result)]
        if not good:
            return task, None
        columns = {name: [getattr(task, name)[index] for index in good] for name in _COLUMNS}
        return msgspec.structs.replace(task, **columns), cleaner.clean([texts[index] for index in good])


def _is_cleanable(text: str, index: int, cleaner: Cleaner, task: CleanTask, result: CleanResult) -> bool:
    """Return False if a rule fails on the text, after rejecting it with the error and its SHA-256."""
    try:
        cleaner.clean([text])
    except Exception as error:  # noqa: BLE001
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
        excerpt = f"{type(error).__name__}: {error}; sha256 {digest}: {text}"
        result.rejects.append(_reject(task, index, "bad-rule-failed", excerpt))
        result.report.characters_in += len(text)
        result.report.drop("bad-rule-failed", 1, len(text))
        return False
    return True


def _reject(task: CleanTask, index: int, reason: str, excerpt: str) -> Reject:
    return Reject(task.file, task.lines[index], task.offsets[index], reason, excerpt[: documents.EXCERPT_CHARACTERS])


def _count_effects(task: CleanTask, page: Page, report: CleaningReport) -> None:
    """Add the effects of the rules on a page to the report."""
    report.add_effects(page.input_size, page.effects, page.size)
    file = report.file(task.file)
    for kind, number in page.chapter_numbers:
        pattern = f"第N{kind}" if number else kind
        if number:
            numbers = file.numbers.setdefault(pattern, {})
            numbers[number] = numbers.get(number, 0) + 1
        report.headings[pattern] = report.headings.get(pattern, 0) + 1
    report.lines_without_heading += page.unheaded
    if profiles.PROFILES[task.profile].chinese:
        faults = quotes.count_unbalanced(page.array)
        report.reopened_quotes += faults["reopened"]
        report.orphan_quotes += faults["orphans"]


# Filtering


def filter_for(profile: str, options: CleanOptions) -> filters.Filter:
    """Return the requirements on a document of a profile."""
    max_lacunae = 0.0 if options.lacunae == "drop-unit" else filters.DEFAULT.max_lacunae
    return filters.Filter(profiles.PROFILES[profile].chinese, options.min_chars, options.min_han, max_lacunae)


def _filter(
    task: CleanTask,
    page: Page,
    parts: list[tuple[int, int]],
    indices: range,
    options: CleanOptions,
    result: CleanResult,
) -> list[int]:
    """Return the indices of the documents to accept, and reject the others."""
    if not indices:
        return []
    reasons = filters.reject_reasons(page.array, filter_for(task.profile, options))
    accepted = []
    for index in indices:
        reason, origin = reasons[index], int(page.origin[index])
        start, end = parts[index]
        if not reason:
            accepted.append(index)
        elif start == end and np.count_nonzero(page.origin == origin) > 1:
            continue  # not a document, only the absence of text, such as before the first heading
        else:
            text = decode_utf16(page.array[start:end])
            result.report.drop(reason, 1, len(text))
            result.rejects.append(_reject(task, origin, reason, text))
    return accepted


# Serializing


def _serialize(
    task: CleanTask,
    page: Page,
    parts: list[tuple[int, int]],
    accepted: list[int],
    options: CleanOptions,
    result: CleanResult,
) -> None:
    """Write the documents `accepted` to the result: as a frame, or as rows if duplicates are removed."""
    array = _subpage(page.array, parts, accepted)
    encoded = decode_utf16(array).encode()
    ends = [jsonl.line_suffix(_title(task, page, index), task.file, _meta(task, page, index)) for index in accepted]
    json_lines = [(jsonl.LINE_PREFIX, text, end) for text, end in zip(_as_json(array, encoded), ends, strict=True)]
    if options.dedup == "no":
        result.frame = compress(b"".join(itertools.chain.from_iterable(json_lines)))
        result.digests = dedup.digests(array)
        result.sentences = publish_sentences(array, encoded, task, len(accepted), options, result.report)
        return
    texts, fingerprints = split_documents(array), dedup.fingerprints(array)
    for index, json_line, text, fingerprint in zip(accepted, json_lines, texts, fingerprints, strict=True):
        sketch = dedup.sketch(text) if options.dedup == "near" else None
        origin = int(page.origin[index])
        location = task.lines[origin], task.offsets[origin]
        result.rows.append(CorpusRow(b"".join(json_line), text, fingerprint, location, sketch))


def _subpage(page: Utf16Text, parts: list[tuple[int, int]], indices: Sequence[int]) -> Utf16Text:
    """Return a page of the documents with these indices."""
    first, last = indices[0], indices[-1]
    if last - first + 1 == len(indices):
        return page[parts[first][0] : parts[last][1]]
    separator = np.zeros(1, "<u2")
    pieces = [piece for index in indices for piece in (separator, page.units[slice(*parts[index])])]
    return Utf16Text(np.concatenate(pieces[1:]))


_JSON_ESCAPES = ((b"\\", b"\\\\"), (b'"', b'\\"'), (b"\n", b"\\n"), (b"\t", b"\\t"))  # the backslash first
_OTHER_CONTROLS = "".join(map(chr, (*range(1, 9), *range(11, 32))))


def _as_json(page: Utf16Text, encoded: bytes) -> list[memoryview | bytes]:
    """Return each document of a page as the inside of a JSON string. `encoded` is the page as UTF-8."""
    if contains_any(page, _OTHER_CONTROLS):  # only a mapping table of the user can insert these
        return [msgspec.json.encode(text)[1:-1] for text in split_documents(page)]
    for character, escape in _JSON_ESCAPES:
        encoded = encoded.replace(character, escape)
    strings, view, start = list[memoryview | bytes](), memoryview(encoded), 0
    while (end := encoded.find(0, start)) >= 0:
        strings.append(view[start:end])
        start = end + 1
    return [*strings, view[start:]]


def _fragment(part: Utf16Text, task: CleanTask, options: CleanOptions) -> Fragment:
    report, frame, sentences = CleaningReport(), b"", b""
    if len(part):
        encoded = decode_utf16(part).encode()
        frame = compress(*_as_json(part, encoded))
        sentences = publish_sentences(part, encoded, task, 0, options, report)
    counts = filters.class_counts(part)[0].tolist()
    excerpt = decode_utf16(part[: 2 * documents.EXCERPT_CHARACTERS])[: documents.EXCERPT_CHARACTERS]
    return Fragment(
        frame, sentences, counts, excerpt, part.units.tobytes(), count_characters(part), task.separator, report
    )


def _title(task: CleanTask, page: Page, index: int) -> str:
    origin = int(page.origin[index])
    return page.titles[index] or task.titles[origin] or (page.parsed[origin].title if page.parsed else "")


def _meta(task: CleanTask, page: Page, index: int) -> Any:
    origin = int(page.origin[index])
    meta = task.metas[origin] or (page.parsed[origin].meta if page.parsed else None)
    if origin in page.notes and (not index or page.origin[index - 1] != origin):  # the first document of its text
        meta = {**(meta if isinstance(meta, dict) else {"meta": meta} if meta else {}), "notes": page.notes[origin]}
    return meta


def publish_sentences(
    page: Utf16Text, encoded: bytes, task: CleanTask, count: int, options: CleanOptions, report: CleaningReport
) -> bytes:
    """Count `count` documents as published, and return their lines of sentences.txt. `encoded` is the page as UTF-8."""
    file = report.file(task.file)
    file.add_text(report.add_text(page))
    file.documents += count
    report.documents += count
    file.is_chinese = profiles.PROFILES[task.profile].chinese
    if file.is_chinese:
        sentences = lines.sentence_lines(page, encoded, options.max_bytes, inside_quotes=options.split == "flat")
    else:
        sentences = lines.text_lines(page, options.max_bytes)
    report.sentences.add_lines(sentences.characters, sentences.sizes)
    report.sentences.unterminated += sentences.unterminated
    add_counts(report.sentences.cuts, sentences.resplit)
    return sentences.data


def compress(data: bytes | memoryview) -> bytes:
    """Compress to a zstd frame. Concatenated frames are a valid file."""
    return _compressor().compress(data)


@cache
def _compressor() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)

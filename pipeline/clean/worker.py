"""The worker: a pure function of a task. It cleans the task, rejects non-text and serializes the rest.

Tasks are independent of each other. If a document spans several tasks, each of them returns a `Fragment` of it, and the
writer joins the fragments.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipeline.clean import filters, profiles
from pipeline.clean.chat.turns import join_turns
from pipeline.clean.cleaner import Cleaner, Page
from pipeline.clean.duplicates import fingerprints, held_out, signatures
from pipeline.clean.han_rich import MIN_HAN, han_rich_documents
from pipeline.clean.options import CleanOptions
from pipeline.clean.report.report import CleaningReport
from pipeline.clean.rules import quotes
from pipeline.clean.serialize import CorpusRow, as_json, compress, publish_sentences, subpage
from pipeline.clean.tasks import CleanTask
from pipeline.clean.utf16 import Utf16Text, count_characters, decode_utf16, document_bounds, split_documents
from pipeline.errors import InkstoneError
from pipeline.readers import documents, jsonl
from pipeline.readers.documents import Reject


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


@dataclass
class CleanResult:
    """The result of a task: the end of the open document, complete documents, and the start of a document left open.

    head               continues the document that was open before the task
    closes             True if that document ends in this task
    frame, sentences   complete documents as compressed JSON lines, and their lines of sentences.txt
    digests            of the same documents
    rows               complete documents, instead of frame and sentences, if duplicates are removed
    signatures         of the same documents, for --dedup near
    tail, title, meta  the document that is open after the task
    """

    head: Fragment | None = None
    closes: bool = False
    frame: bytes = b""
    sentences: bytes = b""
    digests: list[bytes] = field(default_factory=list)
    rows: list[CorpusRow] = field(default_factory=list)
    signatures: list[bytes] = field(default_factory=list)
    tail: Fragment | None = None
    title: str = ""
    meta: Any = None
    rejects: list[Reject] = field(default_factory=list)
    report: CleaningReport = field(default_factory=CleaningReport)


@dataclass
class DocumentColumns:
    """Complete documents of a task that are accepted, column by column.

    texts       for each document, the index of its text in the task
    json_lines  pieces of its JSON line
    sentences   its lines of sentences.txt; of a task with one profile, one piece for all documents
    digests     hash of its text
    rows        the document, instead of its JSON line and sentences, if duplicates are removed
    signatures  for --dedup near
    """

    texts: list[int] = field(default_factory=list)
    json_lines: list[tuple[bytes | memoryview, ...]] = field(default_factory=list)
    sentences: list[bytes] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    rows: list[CorpusRow] = field(default_factory=list)
    signatures: list[bytes] = field(default_factory=list)

    def sort(self) -> None:
        """Sort the documents of two profiles by their text. Those of one text have one profile and are in order."""
        order = np.argsort(np.array(self.texts, int), kind="stable").tolist()
        for name in ("json_lines", "sentences", "digests", "rows", "signatures"):
            if column := getattr(self, name):
                setattr(self, name, [column[index] for index in order])

    def write(self, result: CleanResult) -> None:
        result.rows, result.digests, result.signatures = self.rows, self.digests, self.signatures
        if self.json_lines:
            result.frame = compress(b"".join(itertools.chain.from_iterable(self.json_lines)))
            result.sentences = b"".join(self.sentences)


@dataclass(frozen=True)
class TaskPart:
    """The texts of a task that have the same profile, and their page. `texts` are their indices in the task."""

    task: CleanTask
    page: Utf16Text
    texts: np.ndarray


@dataclass(frozen=True)
class CleanWorker:
    """Callable that cleans a task. `held_out` is a folder with the index of held-out text, if there is such text."""

    options: CleanOptions
    held_out: Path | None = None

    def __call__(self, task: CleanTask) -> CleanResult:
        result, columns = CleanResult(), DocumentColumns()
        parts = divide_by_profile(task)
        for part in parts:
            _clean_part(part, self, result, columns, is_mixed=len(parts) > 1)
        if len(parts) > 1:
            columns.sort()
            text = {location: index for index, location in enumerate(zip(task.lines, task.offsets, strict=True))}
            result.rejects.sort(key=lambda reject: text[reject.line, reject.offset])
        columns.write(result)
        return result


# Cleaning


def divide_by_profile(task: CleanTask) -> list[TaskPart]:
    """Return the texts of a task as one part, or as two if some are Chinese and others are not."""
    page = Utf16Text(np.frombuffer(task.page, "<u2"))
    indices = np.arange(len(task.lines))
    if not task.by_document:
        return [TaskPart(task, page, indices)]
    is_chinese = han_rich_documents(page)
    if is_chinese.all():
        return [TaskPart(task, page, indices)]
    if not is_chinese.any():
        return [TaskPart(msgspec.structs.replace(task, profile=profiles.TEXT), page, indices)]
    bounds = document_bounds(page)
    chinese, other = (np.flatnonzero(mask) for mask in (is_chinese, ~is_chinese))
    pages = [subpage(page, bounds, part.tolist()) for part in (chinese, other)]
    size = count_characters(pages[1])  # the NULs that were removed are counted in the other part
    return [
        TaskPart(_subtask(task, chinese, task.profile, task.characters - size), pages[0], chinese),
        TaskPart(_subtask(task, other, profiles.TEXT, size), pages[1], other),
    ]


_COLUMNS = ("titles", "metas", "lines", "offsets")


def _subtask(task: CleanTask, indices: Sequence[int] | np.ndarray, profile: str, characters: int) -> CleanTask:
    """Return a task of the texts with these indices, without their page."""
    columns = {name: [getattr(task, name)[index] for index in indices] for name in _COLUMNS}
    return msgspec.structs.replace(task, **columns, profile=profile, page=b"", characters=characters)


def clean_task(part: TaskPart, cleaner: Cleaner) -> Page:
    """Return the page of a part of a task after all rules. An exception in a rule is raised."""
    return cleaner.clean_page(part.page, len(part.task.lines), part.task.characters, part.task.titles)


@cache
def _cleaner(profile: str, options: CleanOptions) -> Cleaner:
    return Cleaner(profiles.PROFILES[profile], options)


def _clean_part(
    part: TaskPart, worker: CleanWorker, result: CleanResult, columns: DocumentColumns, *, is_mixed: bool
) -> None:
    """Clean texts of one profile. Add accepted documents to `columns`, and all else to `result`."""
    options = worker.options
    part, page = _clean_safely(part, options, result)
    task = part.task
    if page is None:
        result.closes = task.continues and not task.open
        return
    for refusal in join_turns(page, task.roles, task.starts) if task.roles else ():
        result.report.drop(refusal.reason, 1, len(refusal.text))
        result.rejects.append(_reject(task, refusal.origin, refusal.reason, refusal.text))
    _count_effects(task, page, result.report)
    bounds = document_bounds(page.array) if len(page.origin) else []
    first, last = 0, len(bounds)
    continued = task.continues and not page.titles[0]
    result.closes = task.continues and not (continued and task.open and len(bounds) == 1)
    if continued:
        result.head = _fragment(page.array[slice(*bounds[0])], task, options)
        first = 1
    if task.open and (last - first or not continued):
        last -= 1
        result.tail = _fragment(page.array[slice(*bounds[last])], task, options)
        result.title, result.meta = _title(task, page, last), _meta(task, page, last)
    accepted = _filter(task, page, bounds, range(first, last), options, result)
    if accepted and worker.held_out:
        accepted = _decontaminate(task, page, bounds, accepted, held_out.open_index(worker.held_out), result)
    if accepted:
        array = subpage(page.array, bounds, accepted)
        _serialize(part, page, array, accepted, options, result.report, columns, by_document=is_mixed)


def _clean_safely(part: TaskPart, options: CleanOptions, result: CleanResult) -> tuple[TaskPart, Page | None]:
    """Return a part and its cleaned page. Texts on which a rule fails are rejected, and removed from the part.

    The page is None if no text remains. Other texts are cleaned as if the rejected ones did not exist.
    """
    cleaner = _cleaner(part.task.profile, options)
    try:
        return part, clean_task(part, cleaner)
    except (InkstoneError, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - a bug in a rule must not lose hours of work: the text is rejected and counted
        texts = split_documents(part.page)
        good = [index for index, text in enumerate(texts) if _is_cleanable(text, index, cleaner, part.task, result)]
        if not good:
            return part, None
        task = _subtask(part.task, good, part.task.profile, part.task.characters)
        return TaskPart(task, part.page, part.texts[good]), cleaner.clean([texts[index] for index in good], task.titles)


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
    for pattern, number in page.chapter_numbers:
        if number:
            numbers = file.numbers.setdefault(pattern, {})
            numbers[number] = numbers.get(number, 0) + 1
        report.headings[pattern] = report.headings.get(pattern, 0) + 1
    for pattern, number, example in page.missed:
        file.missed.setdefault(pattern, {}).setdefault(number, example)
    report.lines_without_heading += page.unheaded
    report.add_matches(page.matches)
    if profiles.PROFILES[task.profile].chinese:
        faults = quotes.count_unbalanced(page.array)
        report.reopened_quotes += faults["reopened"]
        report.orphan_quotes += faults["orphans"]


# Filtering


def filter_for(profile: str, options: CleanOptions) -> filters.Filter:
    """Return the requirements on a document of a profile."""
    max_lacunae = 0.0 if options.lacunae == "drop-unit" else filters.DEFAULT.max_lacunae
    is_chinese, min_han = profiles.PROFILES[profile].chinese, options.min_han
    if min_han is None and is_chinese and options.profile != "auto":
        min_han = MIN_HAN
    return filters.Filter(is_chinese, options.min_chars, min_han, max_lacunae)


def _filter(
    task: CleanTask,
    page: Page,
    bounds: list[tuple[int, int]],
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
        start, end = bounds[index]
        if not reason:
            accepted.append(index)
        elif start == end and np.count_nonzero(page.origin == origin) > 1:
            continue  # not a document, only the absence of text, such as before the first heading
        else:
            text = decode_utf16(page.array[start:end])
            result.report.drop(reason, 1, len(text))
            result.rejects.append(_reject(task, origin, reason, text))
    return accepted


def _decontaminate(
    task: CleanTask,
    page: Page,
    bounds: list[tuple[int, int]],
    indices: list[int],
    index: held_out.HeldOutIndex,
    result: CleanResult,
) -> list[int]:
    """Return the documents that share no passage with held-out text, and reject the others."""
    contaminated = index.find(subpage(page.array, bounds, indices))
    for number, (shared, passage) in contaminated.items():
        text, origin = decode_utf16(page.array[slice(*bounds[indices[number]])]), int(page.origin[indices[number]])
        result.report.drop(held_out.REASON, 1, len(text))
        result.rejects.append(_reject(task, origin, held_out.REASON, text))
        place = {"source": task.file, "line": task.lines[origin]}
        result.report.add_examples(held_out.REASON, [place | {"shared": shared, "passage": passage}])
    return [index for number, index in enumerate(indices) if number not in contaminated]


# Serializing


def _serialize(
    part: TaskPart,
    page: Page,
    array: Utf16Text,
    accepted: list[int],
    options: CleanOptions,
    report: CleaningReport,
    columns: DocumentColumns,
    *,
    by_document: bool,
) -> None:
    """Add the documents `accepted` of a page, which are joined in `array`, to the columns."""
    task, encoded = part.task, decode_utf16(array).encode()
    ends = [_json_end(task, page, index) for index in accepted]
    columns.texts += part.texts[page.origin[accepted]].tolist()
    if options.dedup == "no":
        columns.json_lines += zip(itertools.repeat(jsonl.LINE_PREFIX), as_json(array, encoded), ends)
        columns.digests += fingerprints.digests(array)
        columns.sentences += publish_sentences(
            array, encoded, task.file, task.profile, options, report, count=len(accepted), by_document=by_document
        )
        return
    columns.digests += fingerprints.fingerprints(array)
    if options.dedup == "near":
        columns.signatures += [row.tobytes() for row in signatures.signatures(array)]
    origins = page.origin[accepted].tolist()
    columns.rows += [
        CorpusRow(text, end, task.profile, (task.lines[origin], task.offsets[origin]))
        for origin, text, end in zip(origins, split_documents(array), ends, strict=True)
    ]


def _fragment(part: Utf16Text, task: CleanTask, options: CleanOptions) -> Fragment:
    report, frame, sentences = CleaningReport(), b"", b""
    if len(part):
        encoded = decode_utf16(part).encode()
        frame = compress(*as_json(part, encoded))
        [sentences] = publish_sentences(part, encoded, task.file, task.profile, options, report, count=0)
    counts = filters.class_counts(part)[0].tolist()
    excerpt = decode_utf16(part[: 2 * documents.EXCERPT_CHARACTERS])[: documents.EXCERPT_CHARACTERS]
    return Fragment(
        frame, sentences, counts, excerpt, part.units.tobytes(), count_characters(part), task.separator, report
    )


def _title(task: CleanTask, page: Page, index: int) -> str:
    origin = int(page.origin[index])
    return page.titles[index] or task.titles[origin] or (page.parsed[origin].title if page.parsed else "")


def _json_end(task: CleanTask, page: Page, index: int) -> bytes:
    turns = page.turns.get(int(page.origin[index]), b"")
    return jsonl.line_suffix(_title(task, page, index), task.file, _meta(task, page, index), turns)


def _meta(task: CleanTask, page: Page, index: int) -> Any:
    origin = int(page.origin[index])
    meta = task.metas[origin] or (page.parsed[origin].meta if page.parsed else None)
    if origin in page.notes and (not index or page.origin[index - 1] != origin):  # the first document of its text
        meta = {**(meta if isinstance(meta, dict) else {"meta": meta} if meta else {}), "notes": page.notes[origin]}
    return meta

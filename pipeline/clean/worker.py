"""What a worker does with one piece of text: clean it, weed out what is none, write what stays as lines of a corpus.

Nothing here depends on other pieces, but for a document that is longer than a piece: of that each piece makes a
fragment, and the stage puts them together.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import msgspec
import numpy as np
import zstandard

from pipeline.clean import dedup as duplicates
from pipeline.clean import filters, lines, profiles
from pipeline.clean.cleaner import Cleaner, Page
from pipeline.clean.options import CleanOptions
from pipeline.clean.report.report import Report, add
from pipeline.clean.rules import quotes
from pipeline.clean.tasks import Task
from pipeline.clean.utf16 import Codes, bounds, characters, has, split, text_of
from pipeline.errors import InkstoneError
from pipeline.readers import documents, jsonl
from pipeline.readers.documents import Reject

LEVEL = 1  # of zstd: three times as fast as the library's default, for a tenth more bytes


@dataclass
class Fragment:
    """A part of a document that is longer than a piece. `frame` has its text as it stands inside the quotes of a JSON
    line; `sample` is how it begins, by which the whole is judged."""

    frame: bytes
    sentences: bytes
    counts: list[int]  # of its classes of characters, by which the whole is judged
    excerpt: str
    raw: bytes  # of its page, for the digest of the whole
    characters: int
    joint: str  # what stands between it and the part before it
    report: Report


@dataclass(frozen=True)
class Row:
    """One whole document, where it is still to be decided whether it stays. `sketch` is for near duplicates."""

    line: bytes
    text: str
    fingerprint: bytes
    place: tuple[int, int]  # line and byte offset in its file
    sketch: duplicates.Sketch = None


@dataclass
class Cleaned:
    """What became of a task: the end of the document that was open, whole documents, the beginning of one that is.

    Whole documents are in `frame`, all their lines as zstd, with their `digests`; or else they are `rows`. `title`
    and `meta` are of the document that is open after it.
    """

    head: Fragment | None = None
    closed: bool = False  # whether the document that was open ends in this task
    frame: bytes = b""
    sentences: bytes = b""
    digests: list[bytes] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    tail: Fragment | None = None
    title: str = ""
    meta: Any = None
    rejects: list[Reject] = field(default_factory=list)
    report: Report = field(default_factory=Report)


@dataclass(frozen=True)
class Worker:
    """`worker(task)` is a Cleaned."""

    options: CleanOptions

    def __call__(self, task: Task) -> Cleaned:
        done = Cleaned()
        task, page = _cleaned(task, self.options, done)
        if page is None:
            done.closed = task.continues and not task.open
            return done
        _account(task, page, done.report)
        parts = bounds(page.array)
        first, last = 0, len(parts)
        continued = task.continues and not page.titles[0]
        done.closed = task.continues and not (continued and task.open and len(parts) == 1)
        if continued:
            done.head = _fragment(page.array[slice(*parts[0])], task, self.options)
            first = 1
        if task.open and (last - first or not continued):
            last -= 1
            done.tail = _fragment(page.array[slice(*parts[last])], task, self.options)
            done.title, done.meta = _title(task, page, last), _meta(task, page, last)
        _whole(task, page, parts, range(first, last), self.options, done)
        return done


@cache
def _cleaner(profile: str, options: CleanOptions) -> Cleaner:
    return Cleaner(profiles.PROFILES[profile], options)


def _cleaned(task: Task, options: CleanOptions, done: Cleaned) -> tuple[Task, Page | None]:
    """The page of a task, None where nothing is left of it. A text at which a rule fails is set aside, and the others
    are as without it."""
    cleaner = _cleaner(task.profile, options)
    try:
        return task, cleaned(task, cleaner)
    except (InkstoneError, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - a fault of ours must not cost a night's work: it is in the rejects and counted
        texts = split(_page(task))
        good = [number for number, text in enumerate(texts) if _is_safe(text, number, cleaner, task, done)]
        if not good:
            return task, None
        columns = {name: [getattr(task, name)[number] for number in good] for name in _COLUMNS}
        return msgspec.structs.replace(task, **columns), cleaner.clean([texts[number] for number in good])


_COLUMNS = ("titles", "metas", "lines", "offsets")


def cleaned(task: Task, cleaner: Cleaner) -> Page:
    """The page of a task after all rules; raises what a rule raises."""
    return cleaner.clean_page(_page(task), len(task.lines), task.characters)


def _page(task: Task) -> Codes:
    return Codes(np.frombuffer(task.page, "<u2"))


def _is_safe(text: str, number: int, cleaner: Cleaner, task: Task, done: Cleaned) -> bool:
    """Whether the text can be cleaned; otherwise it is counted as dropped, and its reject says which text it was."""
    try:
        cleaner.clean([text])
    except Exception as error:  # noqa: BLE001
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
        excerpt = f"{type(error).__name__}: {error}; sha256 {digest}: {text}"
        done.rejects.append(_reject(task, number, "bad-rule-failed", excerpt))
        done.report.came += len(text)
        done.report.drop("bad-rule-failed", 1, len(text))
        return False
    return True


def _reject(task: Task, number: int, reason: str, excerpt: str) -> Reject:
    return Reject(task.file, task.lines[number], task.offsets[number], reason, excerpt[: documents.EXCERPT])


def _whole(
    task: Task, page: Page, parts: list[tuple[int, int]], chosen: range, options: CleanOptions, done: Cleaned
) -> None:
    """Weed the whole documents, which are these parts of the page, and write those that stay."""
    if not chosen:
        return
    verdicts = filters.verdicts(page.array, filter_of(task.profile, options))
    kept = []
    for number in chosen:
        reason, origin = verdicts[number], int(page.origin[number])
        start, end = parts[number]
        if reason == "empty" and np.count_nonzero(page.origin == origin) > 1:
            reason = "empty" if end > start else "nothing"  # as what stands before the first heading: no document
        if reason == "":
            kept.append(number)
        elif reason != "nothing":
            text = text_of(page.array[start:end])
            done.report.drop(reason, 1, len(text))
            done.rejects.append(_reject(task, origin, reason, text))
    if not kept:
        return
    array = _chosen(page.array, parts, kept)
    encoded = text_of(array).encode()
    ends = [jsonl.line_end(_title(task, page, n), task.file, _meta(task, page, n)) for n in kept]
    made = [(jsonl.LINE_BEGINS, text, end) for text, end in zip(_in_json(array, encoded), ends, strict=True)]
    if options.dedup == "no":
        done.frame = frame(b"".join(itertools.chain.from_iterable(made)))
        done.digests = duplicates.digests(array)
        done.sentences = published(array, encoded, task, len(kept), options, done.report)
        return
    plain = split(array)
    for number, line, text, fingerprint in zip(kept, made, plain, duplicates.fingerprints(array), strict=True):
        sketch = duplicates.sketch(text) if options.dedup == "near" else None
        place = task.lines[int(page.origin[number])], task.offsets[int(page.origin[number])]
        done.rows.append(Row(b"".join(line), text, fingerprint, place, sketch))


def _chosen(page: Codes, parts: list[tuple[int, int]], kept: list[int]) -> Codes:
    """A page of the documents that are kept."""
    first, last = kept[0], kept[-1]
    if last - first + 1 == len(kept):
        return page[parts[first][0] : parts[last][1]]
    pieces = [piece for number in kept for piece in (_PART, page.units[slice(*parts[number])])]
    return Codes(np.concatenate(pieces[1:]))


_PART = np.zeros(1, "<u2")
_SPELLED = ((b"\\", b"\\\\"), (b'"', b'\\"'), (b"\n", b"\\n"), (b"\t", b"\\t"))  # the backslash first
_CONTROLS = "".join(map(chr, (*range(1, 9), *range(11, 32))))


def _in_json(page: Codes, encoded: bytes) -> list[memoryview | bytes]:
    """Each of the documents of a page (`encoded` is that as UTF-8) as it stands inside the quotes of a JSON line."""
    if has(page, _CONTROLS):  # which only a table of the user's brings in
        return [msgspec.json.encode(text)[1:-1] for text in split(page)]
    for character, spelled in _SPELLED:
        encoded = encoded.replace(character, spelled)
    found, whole, start = list[memoryview | bytes](), memoryview(encoded), 0
    while (end := encoded.find(0, start)) >= 0:
        found.append(whole[start:end])
        start = end + 1
    return [*found, whole[start:]]


def filter_of(profile: str, options: CleanOptions) -> filters.Filter:
    """What a document of this profile must have."""
    most = 0.0 if options.lacunae == "drop-unit" else filters.DEFAULT.max_lacunae
    return filters.Filter(profiles.PROFILES[profile].chinese, options.min_chars, options.min_han, most)


def _fragment(part: Codes, task: Task, options: CleanOptions) -> Fragment:
    report, inside, sentences = Report(), b"", b""
    if len(part):
        encoded = text_of(part).encode()
        inside = frame(*_in_json(part, encoded))
        sentences = published(part, encoded, task, 0, options, report)
    counts, excerpt = filters.counts(part)[0].tolist(), text_of(part[: 2 * documents.EXCERPT])[: documents.EXCERPT]
    size = characters(part)
    return Fragment(inside, sentences, counts, excerpt, part.units.tobytes(), size, task.joint, report)


def _title(task: Task, page: Page, number: int) -> str:
    origin = int(page.origin[number])
    return page.titles[number] or task.titles[origin] or (page.parsed[origin].title if page.parsed else "")


def _meta(task: Task, page: Page, number: int) -> Any:
    origin = int(page.origin[number])
    meta = task.metas[origin] or (page.parsed[origin].meta if page.parsed else None)
    if origin in page.notes and (not number or page.origin[number - 1] != origin):  # the first document of its text
        meta = {**(meta if isinstance(meta, dict) else {"meta": meta} if meta else {}), "notes": page.notes[origin]}
    return meta


def frame(data: bytes | memoryview) -> bytes:
    """A zstd frame of its own: frames one after another are one file."""
    return _compressor().compress(data)


@cache
def _compressor() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)


def _account(task: Task, page: Page, report: Report) -> None:
    """What the rules did to a page, as the report has it."""
    report.follow(page.came, page.effects, page.size)
    file = report.file(task.file)
    for kind, number in page.numbers:
        pattern = f"第N{kind}" if number else kind
        if number:
            numbers = file.numbers.setdefault(pattern, {})
            numbers[number] = numbers.get(number, 0) + 1
        report.headings[pattern] = report.headings.get(pattern, 0) + 1
    report.unheaded += page.unheaded
    if profiles.PROFILES[task.profile].chinese:
        faults = quotes.faults(page.array)
        report.reopened += faults["reopened"]
        report.orphans += faults["orphans"]


def published(page: Codes, encoded: bytes, task: Task, count: int, options: CleanOptions, report: Report) -> bytes:
    """The sentences of documents that stay, one a line; all that is published is counted in the report."""
    file = report.file(task.file)
    file.measure(report.measure(page))
    file.documents += count
    report.documents += count
    file.chinese = profiles.PROFILES[task.profile].chinese
    if file.chinese:
        made = lines.of_sentences(page, encoded, options.max_bytes, inside_quotes=options.split == "flat")
    else:
        made = lines.of_any(page, options.max_bytes)
    report.sentences.measure(made.characters, made.sizes)
    report.sentences.unterminated += made.unterminated
    add(report.sentences.resplit, made.resplit)
    return made.data

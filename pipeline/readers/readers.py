"""Read any file as a stream of documents or of JSON lines; `kinds.py` decides the kind of a file.

`read_documents` yields documents one by one, for cleaning. `read_json_lines` yields JSON lines, the format that
tokenizing splits into chunks. The members of an archive are read like the files of a folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from pipeline.errors import BadData
from pipeline.readers import archives, binary, columnar, csv_table, epub, html, json_lines, json_values
from pipeline.readers import encoding as encodings
from pipeline.readers.content import Content, ReadOptions, open_content
from pipeline.readers.documents import Document, Note, OnReject, Reject, log_note
from pipeline.readers.encoding import EncodingStats
from pipeline.readers.formats import docx, subtitles
from pipeline.readers.kinds import ARCHIVE, NO_FIELD, detect_kind
from pipeline.runtime.ledger import Ledger
from pipeline.runtime.progress import Advance
from pipeline.runtime.terminal import counted

_TEXT_FORMATS = ("text", "")  # the reader of texts refuses "", with the offset at which binary data begins
_READABLE_PROBLEMS = ("", "empty", "not text", NO_FIELD)  # left to the reader of the format
_LIBRARIES = {
    **dict.fromkeys(("parquet", "arrow"), ("pyarrow",)),
    **dict.fromkeys(("html", "epub"), ("selectolax",)),
    ARCHIVE: ("pyarrow", "selectolax"),
}


def read_documents(
    path: Path,
    ledger: Ledger,
    on_reject: OnReject,
    *,
    encoding: str = encodings.AUTO,
    text_fields: tuple[str, ...] = (),
    members: str = "",
    note: Note = log_note,
    advance: Advance = lambda count: None,
) -> Iterator[Document]:
    """Yield the documents of one file in order.

    Input and rejects are counted in `ledger`; the caller counts as output or dropped every document it receives.
    `encoding` applies to text, HTML and CSV, `text_fields` to records, `members` to archives. Raises BadData if the
    file is truncated, corrupt or of a kind that cannot be read, or if no field holds text.
    """
    options = ReadOptions(note, encoding, text_fields, members)
    for content in _contents(path, options, advance):
        if content.kind.format == "jsonl":
            yield from json_lines.read_documents(content, options, ledger, on_reject)
            continue
        for item in _items(content, options, ledger, on_reject):
            ledger.documents.came += 1
            text = item.excerpt if isinstance(item, Reject) else item.text
            ledger.characters.came += len(text)
            if isinstance(item, Reject):
                ledger.documents.record_dropped(item.reason, 1)
                ledger.characters.record_dropped(item.reason, len(text))
                on_reject(item)
            else:
                yield item


def read_json_lines(
    path: Path,
    advance: Advance = lambda count: None,
    *,
    encoding: str = encodings.AUTO,
    text_fields: tuple[str, ...] = (),
    members: str = "",
    note: Note = log_note,
) -> Iterator[bytes]:
    """Yield a file as blocks of JSON lines: JSON lines with `text` unchanged, any other document as one line.

    A record without text is a line that is not an object. Raises BadData like `read_documents`, also if a text ends
    within a character.
    """
    options = ReadOptions(note, encoding, text_fields, members)
    for content in _contents(path, options, advance):
        if content.kind.format == "jsonl":
            blocks = json_lines.read_blocks(content, options)
            yield from blocks if content.path or content.kind.archive else _with_last_newline(blocks)
        elif content.kind.format in _TEXT_FORMATS:
            yield from _text_line(content, options)
        else:
            for item in _items(content, options, Ledger(), lambda reject: None):
                yield json_lines.encode(item)


def has_many_documents(path: Path) -> bool:
    """Return True if a file may hold more than one document."""
    return detect_kind(path).format not in _TEXT_FORMATS


def libraries_of(path: Path) -> tuple[str, ...]:
    """Return the libraries whose version decides the text that is read from a file."""
    return _LIBRARIES.get(detect_kind(path).format, ())


def _contents(path: Path, options: ReadOptions, advance: Advance) -> Iterator[Content]:
    """Yield the content of a file, or of each member of an archive."""
    kind = detect_kind(path)
    if kind.problem not in _READABLE_PROBLEMS:
        raise BadData(f"{path}: {kind.problem}, not text", hint=binary.hint_for(kind.problem))
    content = open_content(path, kind, advance)
    if kind.format != ARCHIVE:
        yield content
        return
    omitted, count = archives.Omitted(), 0
    for member in archives.members(content, omitted, options.members):
        count += 1
        yield member
    if not count:
        raise BadData(f"{path}: no member can be read: {str(omitted) or 'it is empty'}", hint="name other files")
    if omitted.reasons:
        options.note(f"{path}: left out {omitted}")


def _items(content: Content, options: ReadOptions, ledger: Ledger, on_reject: OnReject) -> Iterator[Document | Reject]:
    """Yield the documents of one file, and its records without text."""
    match content.kind.format:
        case "html":
            return html.read(content, options.encoding)
        case "subtitles":
            document = _read_text(content, options, ledger, on_reject)
            return iter([subtitles.without_times(document, content.label, options.note)])
        case "epub":
            return epub.read(content)
        case "docx":
            return iter([docx.read(content)])
        case "json":
            return json_values.read(content, options)
        case "csv" | "tsv":
            return csv_table.read(content, options)
        case "parquet":
            return columnar.read_parquet(content, options)
        case "arrow":
            return columnar.read_arrow(content, options)
        case _:
            return iter([_read_text(content, options, ledger, on_reject)])


def _read_text(content: Content, options: ReadOptions, ledger: Ledger, on_reject: OnReject) -> Document:
    """Read a text file as one document. The bytes of a truncated last character are counted as a reject."""
    stats = EncodingStats()
    text = "".join(encodings.decode_blocks(content.blocks, content.label, stats, encoding=options.encoding))
    count_losses(stats, content.file, ledger, on_reject)
    if stats.errors:
        options.note(f"{content.label}: {counted(stats.errors, 'invalid bytes')} became U+FFFD")
    return Document(text, file=content.file)


def count_losses(stats: EncodingStats, file: str, ledger: Ledger, on_reject: OnReject) -> None:
    """Count the NULs that were removed from a text, and reject the bytes of a truncated last character."""
    ledger.characters.came += stats.nuls
    ledger.characters.record_dropped("nul", stats.nuls)
    if stats.truncated_bytes:
        ledger.documents.came += 1
        ledger.documents.record_dropped("truncated-end", 1)
        on_reject(Reject(file, 0, stats.truncated_offset, "truncated-end", stats.truncated_bytes.hex(" ")))


def _text_line(content: Content, options: ReadOptions) -> Iterator[bytes]:
    """Yield a text file, which is one document of any length, as one line."""
    stats = EncodingStats()
    yield b'{"text":"'
    for text in encodings.decode_blocks(content.blocks, content.label, stats, encoding=options.encoding):
        yield msgspec.json.encode(text)[1:-1]
    if stats.truncated_bytes:  # tokenizing has no ledger at this point in which to count it
        raise BadData(
            f"{content.label}: the file ends within a character "
            f"(bytes {stats.truncated_bytes.hex(' ')} at offset {stats.truncated_offset:,})",
            hint="download it again, or run `clean` on it, which keeps the rest and counts the lost bytes",
        )
    if stats.errors:
        raise BadData(
            f"{content.label}: not {stats.encoding} text: byte {stats.error_byte:#04x} at offset "
            f"{stats.error_offset:,}",
            hint="repair the file there, or run `clean` on it, which writes □ for invalid bytes and counts them",
        )
    if stats.nuls:
        options.note(f"{content.label}: removed {stats.nuls:,} NUL characters")
    yield b'"}\n'


def _with_last_newline(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the same bytes, and a newline if they do not end with one, so that other lines can follow."""
    last = b"\n"
    for block in blocks:
        last = block[-1:] or last
        yield block
    if last != b"\n":
        yield b"\n"

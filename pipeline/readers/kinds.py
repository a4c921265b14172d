"""Decide the kind of a file: from its content, then from its name without regard to case.

The content decides for files with a magic number, and for HTML and subtitles in a file that is named as plain text or
has no known suffix. It decides for JSON lines, but not in a file that is named as plain text: a .txt of JSON objects is
a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import BadData
from pipeline.readers import binary, chinese_poetry, encoding, fields
from pipeline.readers.compression import compression_suffix, decompress, detect_compression

HEAD_BYTES = 1 << 16
FORMATS = {  # suffixes of names, each also followed by .gz, .zst, .bz2 or .xz
    **dict.fromkeys((".txt", ".text", ".md", ".markdown", ".rst"), "text"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    **dict.fromkeys((".srt", ".vtt", ".ass", ".ssa"), "subtitles"),
    **dict.fromkeys((".jsonl", ".ndjson", ".jl"), "jsonl"),
    **{f".{name}": name for name in ("epub", "docx", "json", "csv", "tsv", "parquet", "arrow")},
}
ARCHIVE = "archive"
_ARCHIVES = {".zip": "zip", ".tar": "tar"}
_TAR_SUFFIXES = {".tgz": ".tar.gz", ".tzst": ".tar.zst", ".tbz2": ".tar.bz2", ".tbz": ".tar.bz2", ".txz": ".tar.xz"}
_SUFFIX = re.compile(r"(?<=.)\.[0-9A-Za-z_+-]*[A-Za-z_][0-9A-Za-z_+-]*$", re.DOTALL)
_NAMED_TEXT = (".txt", ".text", "")  # suffixes of files that are HTML or subtitles if their content is
_HTML = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*(?:<!doctype\s+html|<html[\s>])",
    re.IGNORECASE | re.DOTALL,
)
_SUBTITLES = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:WEBVTT\b|\d+[ \t]*\r?\n[\d:]{4,8}[,.]\d{1,3}[ \t]*-->)")
_JSON_LIST = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*\{\s*\"")
_LIST_START, _LIST_SEPARATOR = re.compile(r"\s*\[\s*"), re.compile(r"\s*,\s*")
_POEMS = re.compile(rb'"para(?:graphs)?" *: *\[')  # of chinese-poetry, also as JSON lines, for its own reader
NO_FIELD = "no text field"
_EPUB_MARKS = (b"mimetypeapplication/epub+zip", b"META-INF/container.xml")
_BOM = b"\xef\xbb\xbf"
_MAX_SCHEMA = 1 << 26  # bytes of the first message of an Arrow stream


@dataclass(frozen=True)
class FileKind:
    """Format of a file, and its containers.

    format        "text", "html", "subtitles", "epub", "docx", "json", "jsonl", "csv", "tsv", "parquet", "arrow" or
                  "archive"; "" if its content cannot be read as text
    compression   "zst", "gz", "bz2", "xz" or ""
    archive       "zip" or "tar" if it holds other files, else ""
    problem       why it cannot be read: "empty", "a PDF", "not text", "no text field"; "" if it can
    """

    format: str
    compression: str = ""
    archive: str = ""
    problem: str = ""


def detect_kind(path: Path) -> FileKind:
    """Return the kind of a file. Reads its first 64 KiB, decompressed if it is compressed."""
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
        compression = detect_compression(head)
        if not compression:
            return kind_of(path.name, head, is_complete=len(head) < HEAD_BYTES)
        file.seek(0)
        blocks, head, is_complete = decompress(file, str(path), block_size=HEAD_BYTES), b"", False
        with suppress(BadData):  # reading the whole file will raise it again
            while len(head) < HEAD_BYTES and not is_complete:
                block = next(blocks, b"")
                head, is_complete = head + block, not block
    return kind_of(path.name, head, is_complete=is_complete, compression=compression)


def kind_of(name: str, head: bytes, *, is_complete: bool, compression: str = "") -> FileKind:
    """Return the kind of a file from its name and `head`, the beginning of its decompressed content.

    `is_complete` is True if the head is the complete content.
    """
    suffix = format_suffix(name)
    kind = _by_magic_number(suffix, head)
    if kind.format or kind.problem:
        return FileKind(kind.format, compression, kind.archive, kind.problem)
    if is_complete and not head.removeprefix(_BOM).strip():
        return FileKind(FORMATS.get(suffix, "text"), compression, problem="empty")
    format_name = FORMATS.get(suffix, "") if suffix != ".docx" else ""  # a Word file has a magic number, this has none
    if format_name not in ("", "text", "html", "subtitles", "json"):
        return FileKind(format_name, compression)
    if suffix in _ARCHIVES:
        return FileKind(ARCHIVE, compression, _ARCHIVES[suffix])
    if format_name != "json":
        if not encoding.is_text(head[:HEAD_BYTES], is_complete=is_complete):
            return FileKind("", compression, problem="not text")
        if suffix in _NAMED_TEXT or not format_name:
            format_name = "html" if _HTML.match(head) else format_name
            format_name = "subtitles" if _SUBTITLES.match(head) else format_name
    if not format_name or (format_name == "json" and _has_json_lines(head, is_complete) and not _POEMS.search(head)):
        format_name = _json_structure(head, is_complete)
    if format_name == "json" and _lacks_text(head, is_complete):
        return FileKind("json", compression, problem=NO_FIELD)
    return FileKind(format_name or "text", compression)


def format_suffix(name: str) -> str:
    """Return the last suffix of a name in lower case, without that of a compression; "" if there is none.

    `a.JSONL.gz` gives `.jsonl`, `a.tgz` gives `.tar`, and `README` and `chapter.2` give "".
    """
    name = name.rpartition("/")[2].lower()
    match = _SUFFIX.search(name)
    if match and match[0] in _TAR_SUFFIXES:
        return ".tar"
    if compression_suffix(name):
        match = _SUFFIX.search(name.rpartition(".")[0])
    return match[0] if match else ""


def has_text_suffix(name: str) -> bool:
    """Return True if a file of this name is read from a folder without --include: it has a known suffix, or none.

    Return False for a hidden name, which begins with a dot.
    """
    suffix = format_suffix(name)
    return not name.startswith(".") and (not suffix or suffix in FORMATS or suffix in _ARCHIVES)


def without_compression(name: str) -> str:
    """Return a name without the suffix of a compression: `a.txt` for `a.txt.zst`."""
    return name.rpartition(".")[0] if compression_suffix(name) else name


def _by_magic_number(suffix: str, head: bytes) -> FileKind:
    """Return the kind that the magic number shows; one without format and problem if there is no magic number."""
    if head.startswith(b"PAR1"):
        return FileKind("parquet")
    if head.startswith(b"ARROW1\0\0") or _begins_arrow_stream(head):
        return FileKind("arrow")
    description = binary.describe(head)
    if head.startswith(b"PK\x03\x04"):
        if suffix == ".epub" or any(mark in head for mark in _EPUB_MARKS):
            return FileKind("epub")
        if suffix == ".docx" or (description == "a Word file" and b"[Content_Types].xml" in head):
            return FileKind("docx")
        if description != "a ZIP archive":
            return FileKind("", problem=description)
        return FileKind(ARCHIVE, archive="zip")
    if head.startswith(b"PK\x05\x06"):  # an archive without members
        return FileKind(ARCHIVE, archive="zip", problem="empty")
    if description == "a tar archive":
        return FileKind(ARCHIVE, archive="tar")
    return FileKind("", problem=description)


def _begins_arrow_stream(head: bytes) -> bool:
    """Return True if the first message of an Arrow stream may begin: a continuation mark and the size of a schema."""
    size = int.from_bytes(head[4:8], "little")
    return head.startswith(b"\xff\xff\xff\xff") and len(head) >= 8 and 0 < size < _MAX_SCHEMA and size % 8 == 0


def _json_structure(head: bytes, is_complete: bool) -> str:
    """Return "jsonl" or "json" if the head begins JSON with records, else "". For names that do not decide the kind."""
    if _has_json_lines(head, is_complete) or (not is_complete and head.startswith(b'{"') and b"\n" not in head):
        return "jsonl"
    return "json" if _JSON_LIST.match(head) or (is_complete and _is_object(head)) else ""


def _has_json_lines(head: bytes, is_complete: bool) -> bool:
    """Return True if the head has two lines or more, and the first and nine of ten others are objects."""
    lines = head.split(b"\n")
    if not is_complete:
        lines = lines[:-1]
    lines = [line for line in (line.removeprefix(_BOM).strip() for line in lines) if line]
    if len(lines) + (not is_complete) < 2 or not lines or not _is_object(lines[0]):
        return False
    return 10 * sum(map(_is_object, lines)) >= 9 * len(lines)


def _lacks_text(head: bytes, is_complete: bool) -> bool:
    """Return True if no field of the first entries of a JSON file holds text."""
    try:
        if is_complete:
            entries = [*fields.entries(msgspec.json.decode(head.removeprefix(_BOM)))]
        else:
            entries = list(_first_elements(head.removeprefix(_BOM).decode(errors="ignore")))
        if not entries and not is_complete:
            return False
        if any(isinstance(entry, str) for entry in entries) or chinese_poetry.has_poems(entries):
            return False
        objects = [entry for entry in entries if isinstance(entry, dict)]
        fields.choose(objects)
        return not objects
    except BadData:
        return True
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False  # its reader says why


def _first_elements(text: str) -> Iterator[Any]:
    """Yield the elements of a JSON list, as far as `text` holds them; nothing if it is another value."""
    decoder, position = json.JSONDecoder(), _LIST_START.match(text)
    end = position.end() if position else -1
    while 0 <= end < len(text):
        try:
            element, end = decoder.raw_decode(text, end)
        except ValueError:
            return
        yield element
        separator = _LIST_SEPARATOR.match(text, end)
        end = separator.end() if separator else -1


def _is_object(line: bytes) -> bool:
    if not line.removeprefix(_BOM).lstrip().startswith(b"{"):
        return False
    try:
        return isinstance(msgspec.json.decode(line.removeprefix(_BOM)), dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False

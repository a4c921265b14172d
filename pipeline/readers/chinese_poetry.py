"""Poems: the JSON of chinese-poetry, in all the shapes that its collections have.

An entry holds its text as `paragraphs`, `content` or `para`: a list of strings, a string, or a list of entries (a book
of volumes of poems). Every entry that holds text of its own, or nothing at all, is one document.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import BadData
from pipeline.readers.compression import blocks
from pipeline.readers.documents import Document
from pipeline.runtime.progress import Advance

_BOM = b"\xef\xbb\xbf"
_TEXT = ("paragraphs", "content", "para")
_TITLE = ("title", "rhythmic", "chapter", "section", "type")  # ci have a tune, the classics chapters
_PART = "subchapter"  # the second title of a poem, or that of one of its parts
_LISTS = ("prologue", "preface", "notes", "comment", "biography", "abstract")  # prose about a text, often a list


@dataclass(frozen=True)
class _Place:
    """What the entries around an entry say of it: their titles from the outside in, and the author."""

    titles: tuple[str, ...] = ()
    author: str = ""


@dataclass
class _Found:
    documents: list[Document] = field(default_factory=list)
    file: str = ""

    def add(self, text: str, title: str, meta: dict[str, str]) -> None:
        self.documents.append(Document(text, title, meta or None, self.file, len(self.documents) + 1))


class _NotPoems(Exception):
    """The reason why a JSON value is none of these shapes."""


def read(path: Path, advance: Advance = lambda count: None) -> Iterator[Document]:
    """The documents of one file in order, those without text among them; `line` is the number of the document.

    `meta` has the author, in `book` the titles of what the poem stands in, and every other field that is a string.
    Raises BadData for JSON of another kind.
    """
    data = b"".join(blocks(path, advance)).removeprefix(_BOM)
    found = _Found(file=path.name)
    try:
        value = msgspec.json.decode(data)
        entries = value if isinstance(value, list) else [value]
        if entries and not any(isinstance(entry, dict) and _holds_text(entry) for entry in entries):
            raise _NotPoems("no entry has a text")
        for entry in entries:
            _walk(entry, _Place(), found)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, _NotPoems) as error:
        raise BadData(
            f"{path}: not a chinese-poetry file (JSON objects with `paragraphs`, `content` or `para`): {error}",
            hint="give JSON lines with `text` as .jsonl, or plain text as .txt",
        ) from None
    yield from found.documents


def _holds_text(entry: dict[str, Any]) -> bool:
    return any(name in entry for name in _TEXT)


def _walk(entry: Any, place: _Place, found: _Found) -> None:
    """Add the documents of one entry and of those in it."""
    if not isinstance(entry, dict):
        raise _NotPoems(f"an entry is {type(entry).__name__}, not an object")
    own: list[str] = []
    inner: list[dict[str, Any]] = []
    for name in _TEXT:
        _sort(entry.get(name), own, inner)
    title, meta = _title_and_meta(entry, place)
    if own or not inner:
        found.add("\n".join(own), title, meta)
    inside = _Place((*place.titles, title) if title else place.titles, meta.get("author", ""))
    for each in inner:
        _walk(each, inside, found)


def _sort(value: Any, own: list[str], inner: list[dict[str, Any]]) -> None:
    """What a text field holds: paragraphs to `own`, entries to `inner`."""
    if isinstance(value, str):
        own.append(value)
    elif isinstance(value, dict):
        inner.append(value)
    elif isinstance(value, list):
        for each in value:
            _sort(each, own, inner)
    elif value is not None:
        raise _NotPoems(f"a paragraph is {type(value).__name__}, not a string")


def _title_and_meta(entry: dict[str, Any], place: _Place) -> tuple[str, dict[str, str]]:
    meta = {name: value.strip() for name, value in entry.items() if isinstance(value, str) and name not in _TEXT}
    for name in _LISTS:
        if isinstance(lines := entry.get(name), list):
            meta[name] = "\n".join(line for line in lines if isinstance(line, str) and line)
    title = next((meta.pop(name) for name in _TITLE if meta.get(name)), "")
    if not title and meta.get(_PART) and place.titles:  # 其一 of a poem that has parts
        title = f"{place.titles[-1]} {meta.pop(_PART)}"
    meta.setdefault("author", place.author)
    meta.setdefault("book", " ".join(place.titles))
    return title, {name: value for name, value in meta.items() if value}

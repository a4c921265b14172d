"""Read the JSON of chinese-poetry, in all the shapes that its collections have.

An entry holds its text as `paragraphs`, `content` or `para`: a list of strings, a string, or a list of entries (a book
of volumes of poems). Every entry that holds text of its own, or is empty, is one document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.readers.documents import Document

_TEXT_FIELDS = ("paragraphs", "content", "para")
_TITLE_FIELDS = ("title", "rhythmic", "chapter", "section", "type")  # ci have a tune, the classics chapters
_SUBTITLE_FIELD = "subchapter"  # the second title of a poem, or the title of one of its parts
_NOTE_FIELDS = ("prologue", "preface", "notes", "comment", "biography", "abstract")  # prose about a text, often a list


@dataclass(frozen=True)
class _Context:
    """Data that an entry inherits from the entries that contain it: titles, the outermost first, and the author."""

    titles: tuple[str, ...] = ()
    author: str = ""


@dataclass
class _Documents:
    """The documents of one file, numbered from 1 in `line`."""

    documents: list[Document] = field(default_factory=list)
    file: str = ""

    def add(self, text: str, title: str, meta: dict[str, str]) -> None:
        self.documents.append(Document(text, title, meta or None, self.file, len(self.documents) + 1))


class UnknownShapeError(Exception):
    """A JSON value does not have the shape of a chinese-poetry file; the message says why."""


def documents(entries: Sequence[Any], file: str) -> list[Document]:
    """Return the documents of the entries of a file in order, empty ones too; `line` is the number of the document.

    `meta` holds the author, the titles of the enclosing entries as `book`, and every other field that is a string.
    Raises UnknownShapeError for entries of another shape.
    """
    output = _Documents(file=file)
    for entry in entries:
        _read_entry(entry, _Context(), output)
    return output.documents


def has_poems(entries: Sequence[Any]) -> bool:
    """Return True if an entry has a field of poems and none has a field `text`."""
    objects = [entry for entry in entries if isinstance(entry, dict)]
    return any(map(_has_text, objects)) and not any(isinstance(entry.get("text"), str) for entry in objects)


def text_fields(entries: Sequence[Any]) -> tuple[str, ...]:
    """Return the names of the fields that hold the texts of objects."""
    return tuple(name for name in _TEXT_FIELDS if any(entry.get(name) for entry in entries))


def _has_text(entry: dict[str, Any]) -> bool:
    return any(name in entry and _may_be_text(entry[name]) for name in _TEXT_FIELDS)


def _may_be_text(value: Any) -> bool:
    """Return False for objects of another shape, such as those of `{"content": {"text": "…"}}`."""
    if isinstance(value, list):
        return not value or any(map(_may_be_text, value))
    return _has_text(value) if isinstance(value, dict) else True


def _read_entry(entry: Any, context: _Context, output: _Documents) -> None:
    """Add the documents of one entry and of its nested entries to `output`."""
    if not isinstance(entry, dict):
        raise UnknownShapeError(f"an entry must be an object, got {type(entry).__name__}")
    paragraphs: list[str] = []
    nested: list[dict[str, Any]] = []
    for name in _TEXT_FIELDS:
        _split_text(entry.get(name), paragraphs, nested)
    title, meta = _title_and_meta(entry, context)
    if paragraphs or not nested:
        output.add("\n".join(paragraphs), title, meta)
    inner_context = _Context((*context.titles, title) if title else context.titles, meta.get("author", ""))
    for inner_entry in nested:
        _read_entry(inner_entry, inner_context, output)


def _split_text(value: Any, paragraphs: list[str], nested: list[dict[str, Any]]) -> None:
    """Append the strings of a text field to `paragraphs` and its entries to `nested`."""
    if isinstance(value, str):
        paragraphs.append(value)
    elif isinstance(value, dict):
        nested.append(value)
    elif isinstance(value, list):
        for item in value:
            _split_text(item, paragraphs, nested)
    elif value is not None:
        raise UnknownShapeError(f"a paragraph must be a string, got {type(value).__name__}")


def _title_and_meta(entry: dict[str, Any], context: _Context) -> tuple[str, dict[str, str]]:
    meta = {name: value.strip() for name, value in entry.items() if isinstance(value, str) and name not in _TEXT_FIELDS}
    for name in _NOTE_FIELDS:
        if isinstance(lines := entry.get(name), list):
            meta[name] = "\n".join(line for line in lines if isinstance(line, str) and line)
    title = next((meta.pop(name) for name in _TITLE_FIELDS if meta.get(name)), "")
    if not title and meta.get(_SUBTITLE_FIELD) and context.titles:  # 其一 of a poem that has parts
        title = f"{context.titles[-1]} {meta.pop(_SUBTITLE_FIELD)}"
    meta.setdefault("author", context.author)
    meta.setdefault("book", " ".join(context.titles))
    return title, {name: value for name, value in meta.items() if value}

"""Documents, and the JSON lines that they are read from and written to; what is bad is counted and set aside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

EXCERPT = 200  # characters of a reject that are kept


@dataclass(frozen=True, slots=True)
class Document:
    """One text with where it came from. `line` counts from 1, `offset` in bytes of the decompressed file."""

    text: str
    title: str = ""
    meta: Any = None
    file: str = ""
    line: int = 1
    offset: int = 0

    def as_reject(self, reason: str) -> Reject:
        """The record of this document, or of a part of it, having been dropped."""
        return Reject(self.file, self.line, self.offset, reason, self.text[:EXCERPT])


@dataclass(frozen=True, slots=True)
class Reject:
    """Something that could not become a document, or did not stay one."""

    file: str
    line: int
    offset: int
    reason: str
    excerpt: str


OnReject = Callable[[Reject], None]

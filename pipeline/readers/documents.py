"""Documents, and rejects: the parts of the input that are not documents."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

EXCERPT_CHARACTERS = 200  # characters of a reject that are reported


@dataclass(frozen=True, slots=True)
class Document:
    """One text and its origin. `line` counts from 1, `offset` in bytes of the decompressed file."""

    text: str
    title: str = ""
    meta: Any = None
    file: str = ""
    line: int = 1
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Reject:
    """Part of the input that is not a document, or a document that was dropped."""

    file: str
    line: int
    offset: int
    reason: str
    excerpt: str


OnReject = Callable[[Reject], None]
Note = Callable[[str], None]  # receives one line for the user, such as the field that holds the text


def log_note(text: str) -> None:
    """Log a note for the user, where the caller shows notes in no other way."""
    logging.getLogger("pipeline").warning("%s", text)

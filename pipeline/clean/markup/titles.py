"""Titles of text files from their surroundings: the Readme.org beside them, or the folders that they are in."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from pipeline.clean.lazy_pattern import lazy_pattern

_LISTS = ("Readme.org", "README.org")  # of a Kanripo repository: the chapters of each file
_LINK = lazy_pattern(r"\[\[file:([^][\n]{1,200}?)(?:::[^][\n]{0,200})?\]\[([^][\n]{1,200})\]\]")
_BOOK = lazy_pattern(r"^#\+TITLE:[ \t]*(.*?)[ \t]*(?:/[ \t]*[A-Z0-9-]+[ \t]*)?$", re.MULTILINE | re.IGNORECASE)
_HAN = lazy_pattern("[\u3400-\u9fff\U00020000-\U0003ffff]")
_MAX_BYTES = 1 << 20  # of a list of chapters
MAX_TITLE = 60
_GENERIC_NAMES = frozenset(("text", "source", "target", "bitext", "content", "index"))  # of files, without suffix
_COLLECTIONS = frozenset(("古文原文", "双语数据"))  # folders of NiuTrans/Classical-Modern that hold all books


def file_title(path: Path, name: str) -> str:
    """Return the title of the text file `path`, "" if it is not known. `name` is its path below the input."""
    return listed_title(path) or folder_title(name)


def listed_title(path: Path) -> str:
    """Return the book and the chapters of a file as listed by a Readme.org beside it, "" if they are not listed.

    `[[file:KR4e0011_001.txt::001-1a][卷一]]` and `#+TITLE: 翠屏集 / WYG` give `翠屏集 卷一`.
    """
    for name in _LISTS:
        listing = path.parent / name
        try:
            state = listing.stat()
        except OSError:
            continue
        titles = _titles(listing, state.st_mtime_ns, state.st_size) if state.st_size <= _MAX_BYTES else {}
        return titles.get(path.name, "") if path != listing else ""
    return ""


@functools.lru_cache(maxsize=64)
def _titles(listing: Path, modified: int, size: int) -> dict[str, str]:
    """Return the titles by file name. Too long titles are left out: such a file has many chapters, with headings."""
    text = listing.read_text(encoding="utf-8-sig", errors="replace")
    match = _BOOK.search(text)
    book = match[1] if match else ""
    chapters: dict[str, dict[str, None]] = {}
    for name, chapter in _LINK.findall(text):
        chapters.setdefault(name, {})[chapter.removeprefix(book).strip()] = None
    titles = {name: f"{book} {'、'.join(filter(None, names))}".strip() for name, names in chapters.items()}
    return {name: title for name, title in titles.items() if len(title) <= MAX_TITLE}


def folder_title(name: str) -> str:
    """Return the Chinese names of the folders of a file with a generic name, else "".

    `史记/本纪/text.txt` gives `史记 本纪`.
    """
    *folders, file = name.split("/")
    if file.partition(".")[0].lower() not in _GENERIC_NAMES:
        return ""
    title = " ".join(folder for folder in folders if _HAN.search(folder) and folder not in _COLLECTIONS)
    return title if len(title) <= MAX_TITLE else ""

"""Collections of short titled texts, such as poems, with blank lines between them."""

from __future__ import annotations

from pipeline.clean.lazy_pattern import lazy_pattern

_BLANK_LINES = lazy_pattern(r"\n(?:[ \t\u3000]*\n)+")
_VERSE = lazy_pattern(r".{1,40}[，。！？；：、,.!?;”』」）)…]")
_TITLE = lazy_pattern(r".{0,39}[^，。！？；：、,.!?;”』」…]")
_MIN_POEMS, _POEM_RATIO = 10, 0.9  # of a collection: poems with different titles, and poems per block of lines
_TITLE_RATIO = 0.1  # different titles per poem; a play has fewer speakers


def is_poems(head: str) -> bool:
    """Return True if most blocks of a text that begins with `head` are a title and lines that each end in a mark.

    Return False for a play: names of speakers repeat more often than titles.
    """
    text = head.replace("\r\n", "\n").replace("\r", "\n").strip()
    blocks = [block.split("\n") for block in _BLANK_LINES.split(text)[:-1]]  # the last one may be incomplete
    titles = [block[0].strip() for block in blocks if _is_poem(block)]
    different = len(set(titles))
    return len(titles) >= _POEM_RATIO * len(blocks) and different >= max(_MIN_POEMS, _TITLE_RATIO * len(titles))


def _is_poem(lines: list[str]) -> bool:
    title, *verse = map(str.strip, lines)
    return bool(verse and _TITLE.fullmatch(title)) and all(map(_VERSE.fullmatch, verse))

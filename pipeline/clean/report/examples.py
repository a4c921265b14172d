"""What a rule changed, shown by excerpts of the text before and after it."""

from __future__ import annotations


def samples(before: str, after: str, most: int = 10) -> list[tuple[str, str]]:
    """What a rule changed in a page: excerpts of about 30 characters before and after it, in the order of the text.

    Each different change comes first once, then again as far as there is room. Only so many changes are looked at
    that a page takes no more than a moment.
    """
    found: dict[tuple[str, str], tuple[str, str]] = {}  # what is shown of a change, and what changed
    i = j = 0
    for _ in range(_LOOKED_AT):
        same = _same(before, after, i, j)
        i, j = i + same, j + same
        if i == len(before) and j == len(after):
            break
        old, new = _change(before, after, i, j)
        excerpt = (_excerpt(before, i, old), _excerpt(after, j, new))
        found.setdefault(excerpt, (before[i : i + old], after[j : j + new]))
        i, j = i + old, j + new
    first = {change: excerpt for excerpt, change in reversed(found.items())}
    chosen = sorted(found, key=lambda excerpt: first[found[excerpt]] != excerpt)[:most]
    return [excerpt for excerpt in found if excerpt in {*chosen}]


_LOOKED_AT = 500  # changes
_WINDOWS = (64, 512, 4_096)  # characters in which the end of a change is looked for
_ANCHOR = 6  # equal characters behind a change, by which its end is known
_AROUND = 12  # characters on either side of a change
_LONG = 24  # characters of a change that are shown


def _same(before: str, after: str, i: int, j: int) -> int:
    """How many characters are equal from `i` and `j` on."""
    size, found = 64, 0
    while True:
        a, b = before[i + found : i + found + size], after[j + found : j + found + size]
        if a == b and a:
            found += len(a)
            size *= 2
        elif size > 64:
            size = 64
        else:
            differing = (place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
            return found + next(differing, min(len(a), len(b)))


def _change(before: str, after: str, i: int, j: int) -> tuple[int, int]:
    """How many characters of each text the change at `i` and `j` takes, until they are equal again."""
    for window in _WINDOWS:
        old, new = before[i : i + window], after[j : j + window]
        if max(len(before) - i, len(after) - j) < window:  # the end of both is an anchor as well
            old, new = old + "\0" * _ANCHOR, new + "\0" * _ANCHOR
        anchors: dict[str, int] = {}
        for place in range(len(new) - _ANCHOR + 1):
            anchors.setdefault(new[place : place + _ANCHOR], place)
        met = ((place, anchors.get(old[place : place + _ANCHOR])) for place in range(len(old) - _ANCHOR + 1))
        ends = [(place, other) for place, other in met if other is not None]
        if ends:
            return min(ends, key=sum)
    # A long stretch that only went, or only came.
    went, came = before.find(after[j : j + window // 64], i), after.find(before[i : i + window // 64], j)
    if went >= 0 and j < len(after):
        return went - i, 0
    if came >= 0 and i < len(before):
        return 0, came - j
    return len(before) - i, len(after) - j


def _excerpt(text: str, place: int, length: int) -> str:
    shown = text[place : place + length]
    if length > _LONG:
        shown = f"{shown[: _LONG // 2]}…{shown[-_LONG // 2 :]}"
    left = text[max(place - _AROUND, 0) : place].rpartition("\0")[2]
    right = text[place + length : place + length + _AROUND].partition("\0")[0]
    return visible(left + shown + right)


def visible(text: str) -> str:
    """`text` with escapes for what cannot be seen: line ends, wide spaces, private characters."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)

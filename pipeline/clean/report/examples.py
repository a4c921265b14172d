"""Examples of the changes of a rule, as excerpts of the text before and after it."""

from __future__ import annotations

_MAX_CHANGES = 500  # examined in a page, so that a page takes only a moment
_WINDOWS = (64, 512, 4_096)  # characters in which the end of a change is searched
_ANCHOR = 6  # equal characters that mark the end of a change
_CONTEXT = 12  # characters on either side of a change
_MAX_SHOWN = 24  # characters of a change that are shown


def find_examples(before: str, after: str, limit: int = 10) -> list[tuple[str, str]]:
    """Return up to `limit` excerpts of about 30 characters before and after a rule, in the order of the text.

    Every kind of change is shown once before any is shown twice.
    """
    changes: dict[tuple[str, str], tuple[str, str]] = {}  # excerpts, and the old and new text of the change in them
    i = j = 0
    for _ in range(_MAX_CHANGES):
        equal = _equal_length(before, after, i, j)
        i, j = i + equal, j + equal
        if i == len(before) and j == len(after):
            break
        old_length, new_length = _change_lengths(before, after, i, j)
        excerpt = (_excerpt(before, i, old_length), _excerpt(after, j, new_length))
        changes.setdefault(excerpt, (before[i : i + old_length], after[j : j + new_length]))
        i, j = i + old_length, j + new_length
    first_excerpts = {change: excerpt for excerpt, change in reversed(changes.items())}
    repeats_last = sorted(changes, key=lambda excerpt: first_excerpts[changes[excerpt]] != excerpt)
    selected = {*repeats_last[:limit]}
    return [excerpt for excerpt in changes if excerpt in selected]


def _equal_length(before: str, after: str, i: int, j: int) -> int:
    """Return the number of characters that are equal from `i` and `j` on."""
    window, equal = 64, 0
    while True:
        old = before[i + equal : i + equal + window]
        new = after[j + equal : j + equal + window]
        if old == new and old:
            equal += len(old)
            window *= 2
        elif window > 64:
            window = 64
        else:
            differences = (index for index, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
            return equal + next(differences, min(len(old), len(new)))


def _change_lengths(before: str, after: str, i: int, j: int) -> tuple[int, int]:
    """Return the length in each text of the change at `i` and `j`: up to where the texts are equal again."""
    for window in _WINDOWS:
        old, new = before[i : i + window], after[j : j + window]
        if max(len(before) - i, len(after) - j) < window:  # the end of both is an anchor too
            old, new = old + "\0" * _ANCHOR, new + "\0" * _ANCHOR
        anchors: dict[str, int] = {}
        for index in range(len(new) - _ANCHOR + 1):
            anchors.setdefault(new[index : index + _ANCHOR], index)
        matches = ((index, anchors.get(old[index : index + _ANCHOR])) for index in range(len(old) - _ANCHOR + 1))
        lengths = [(old_length, new_length) for old_length, new_length in matches if new_length is not None]
        if lengths:
            return min(lengths, key=sum)
    # A long passage was only removed, or only inserted.
    next_old = before.find(after[j : j + window // 64], i)
    next_new = after.find(before[i : i + window // 64], j)
    if next_old >= 0 and j < len(after):
        return next_old - i, 0
    if next_new >= 0 and i < len(before):
        return 0, next_new - j
    return len(before) - i, len(after) - j


def _excerpt(text: str, start: int, length: int) -> str:
    change = text[start : start + length]
    if length > _MAX_SHOWN:
        change = f"{change[: _MAX_SHOWN // 2]}…{change[-_MAX_SHOWN // 2 :]}"
    context_before = text[max(start - _CONTEXT, 0) : start].rpartition("\0")[2]
    context_after = text[start + length : start + length + _CONTEXT].partition("\0")[0]
    return visible(context_before + change + context_after)


def visible(text: str) -> str:
    """Escape invisible characters: line ends, wide spaces, private use characters."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )

"""Natural order of file names: 第2回 before 第10回, 第九回 before 第十回, a2 before a10.

The order depends on the names alone, not on the locale or the file system.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePath

_CHINESE = "〇零一二三四五六七八九十百千两兩廿卅卌"
_FORMAL = "壹贰貳叁參叄肆伍陆陸柒捌玖"  # forms of digits in documents
NUMERALS = f"{_CHINESE}○{_FORMAL}拾佰仟0123456789０１２３４５６７８９"
_DIGITS = str.maketrans(
    dict(zip("〇零○一二三四五六七八九两兩０１２３４５６７８９", "00012345678922" + "0123456789", strict=True))
    | dict(zip(_FORMAL, "122333456678" + "9", strict=True))
    | {"廿": "2十", "卅": "3十", "卌": "4十"}
)
_POWERS = {"十": 10, "百": 100, "千": 1000, "拾": 10, "佰": 100, "仟": 1000}
_VOLUMES = "上中下"  # of a book in two or three
_TOKEN = re.compile(rf"(\d+|[{_CHINESE}]+|[{_VOLUMES}](?=[册卷部篇集.)）]|$)|\.)")
_DOT, _NUMBER, _TEXT = range(3)  # a.txt comes before a2.txt, a2 before ab


_Token = tuple[int, int, str]


def natural_key(path: PurePath | str) -> tuple[tuple[tuple[_Token, ...], ...], tuple[str, ...]]:
    """Return the key that sorts relative paths in natural order, folder by folder, without regard to case.

    Names that differ only in case, in leading zeros or in their Unicode form are sorted by their characters.
    """
    parts = PurePath(path).parts
    return tuple(tuple(_tokens(part)) for part in parts), parts


def _tokens(name: str) -> list[_Token]:
    tokens: list[_Token] = []
    for token in _TOKEN.split(unicodedata.normalize("NFC", name).casefold()):
        if token == ".":
            tokens.append((_DOT, 0, ""))
        elif token and token in _VOLUMES:
            tokens.append((_NUMBER, _VOLUMES.index(token) + 1, ""))
        elif _TOKEN.fullmatch(token):
            tokens.append((_NUMBER, int(token) if token.isdecimal() else parse_numeral(token), ""))
        elif token:
            tokens.append((_TEXT, 0, token))
    return tokens


def parse_numeral(numeral: str) -> int:
    """Return the value of a Chinese or Arabic numeral: 一百零八, 一〇八, 108, １０８ → 108; 廿三 → 23."""
    digits = numeral.translate(_DIGITS)
    if digits.isdigit():
        return int(digits)
    total = pending = 0
    for character in digits:
        if character in _POWERS:
            total += (pending or 1) * _POWERS[character]
            pending = 0
        else:
            pending = pending * 10 + int(character)
    return total + pending

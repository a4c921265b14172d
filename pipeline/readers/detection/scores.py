"""Scores of encodings for given bytes, from which encoding.py chooses one."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from functools import cache

from pipeline.readers.detection.common_characters import COMMON_CHARACTERS

_CLEAR = 0.3  # minimum score of the right encoding, and its minimum lead over the others
CERTAIN = 0.45  # a score that no Japanese or Korean text reaches
MIN_HITS = 8  # minimum number of common characters; with fewer, the score is 0

BIG5 = ("cp950", "big5hkscs")
UTF_16 = ("utf-16-le", "utf-16-be")
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\0\0", "utf-32-le"),  # before the mark of UTF-16, which is its prefix
    (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
    (b"\x84\x31\x95\x33", "gb18030"),
)

_WESTERN = re.compile(r"[À-ÖØ-Ýß-öø-ýÿŒœ’‘“”„–—…£«»°§\xa0]|(?<![^\s“«(—])[¿¡](?=\w)")
_CYRILLIC = ("cp1251", "koi8-r", "cp866", "iso8859-5")
_RUSSIAN = re.compile("[оеаинтсрвл]")  # two thirds of the letters of a text
_NEIGHBOURS, _MARK_IN_WORD = re.compile("[^\0-\x7f]{2}"), re.compile("[A-Za-z][“”„«»…£°§][A-Za-z]")
NOT_ASCII, _ASCII = re.compile(rb"[\x80-\xff]"), re.compile(r"[\0-\x7f]+")
_RUNS = re.compile(r"[^\0-\x7f]{2,}")  # Latin text decoded as Chinese has isolated ones, between letters
_UNLIKELY = re.compile(  # controls, Greek and Cyrillic, Hangul, box drawing, kana and bopomofo, private use
    r"[\0-\x08\x0e-\x1f\x7f-\x9f\u0370-\u052f\u1100-\u11ff\u2500-\u259f\u3040-\u312f\uac00-\ud7af\ue000-\uf8ff\ufffd]"
)
_KANA, _HANGUL = re.compile("[\u3041-\u30ff]+"), re.compile("[\uac00-\ud7a3]+")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff〇]+")


def han_ratio(text: str) -> float:
    """Return the fraction of Han characters among those that are not white space, 0 if there are none."""
    size = sum(map(len, text.split()))
    return sum(map(len, _HAN.findall(text))) / size if size else 0.0


def is_utf8(sample: bytes, is_complete: bool) -> bool:
    """Return True if bytes are UTF-8; the first one must not be ASCII.

    The last character may be truncated, and a few characters among many valid ones may be invalid.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoded = decoder.decode(sample)
    invalid = decoded.count("\ufffd")
    valid = _count_beyond_ascii(decoded) - invalid
    is_doubtful = invalid or (is_complete and decoder.getstate()[0])
    return valid >= max(16, 4 * invalid) if is_doubtful else bool(valid) or not is_complete


def is_western(sample: bytes) -> bool:
    """Return True for ASCII with a few accented letters and typographic marks of Windows' Western encoding."""
    text = sample.decode("cp1252", "replace")
    count, western = _count_beyond_ascii(text), "".join(_WESTERN.findall(text))
    is_sparse = 5 * count <= len(text) and 3 * len(_NEIGHBOURS.findall(text)) <= count
    is_sparse = is_sparse and 2 * (western.count("¿") + western.count("¡")) <= count  # else a Big5 comma, ¡A
    capitals = sum(map(str.isupper, western))
    return is_sparse and len(western) >= 0.98 * count >= 2 * capitals and not _MARK_IN_WORD.search(text)


def cyrillic(sample: bytes) -> str:
    """Return the encoding in which the bytes are most likely Russian, for a hint; "" if there is none."""
    for name in _CYRILLIC:
        text = sample.decode(name, "replace")
        count = _count_beyond_ascii(text)
        if 3 * count >= len(text) and 2 * len(_RUSSIAN.findall(text)) >= count:
            return name
    return ""


def utf8_prefix(data: bytes) -> int:
    """Return the number of bytes before the first that is not UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(data)


def japanese_or_korean(sample: bytes) -> str:
    """Return the encoding in which the bytes decode to kana or Hangul without an error, or "".

    Decoded as GB18030 or Big5, such text may have as many common characters as some Chinese poems. Chinese text of more
    than a few words is not mistaken for Japanese or Korean here.
    """
    for name, script, least_ratio in (("euc_jp", _KANA, 0.2), ("shift_jis", _KANA, 0.2), ("euc_kr", _HANGUL, 0.85)):
        decoded = _decode(sample, name)
        count, han = (sum(map(len, pattern.findall(decoded))) for pattern in (script, _HAN))
        if "\ufffd" not in decoded and count >= max(MIN_HITS, least_ratio * (count + han)):
            return name
    return ""


def scores_of(beginning: bytes, sample: bytes) -> dict[str, float]:
    """Return a score of at most 1 for each encoding: the evidence for Chinese text, or for UTF-16 of any text.

    `beginning` is the beginning of the file, for UTF-16, and `sample` begins with its first byte that is not ASCII.
    """
    big5 = min(BIG5, key=lambda name: _decode(sample, name).count("\ufffd"))
    candidates = [(name, sample) for name in ("gb18030", big5) if sample]
    candidates += [(name, beginning) for name in UTF_16 if beginning]
    return {name: _score(_decode(data, name), name) for name, data in candidates}


def _decode(data: bytes, name: str) -> str:
    """Decode any bytes with replacement characters, without a truncated last character."""
    return codecs.getincrementaldecoder(name)("replace").decode(data)


def _score(decoded: str, name: str) -> float:
    size = _count_beyond_ascii(decoded)
    runs = "".join(_RUNS.findall(decoded))
    hits = len(runs) - len(_common_pattern().sub("", runs))
    if name in UTF_16:  # where ASCII is evidence too: every second byte is a zero
        hits += sum(map(len, re.findall(r"[\t\n\r -~]+", decoded)))
        size = len(decoded)
    return (hits - len(_UNLIKELY.findall(decoded))) / size if hits >= MIN_HITS else 0.0


def _count_beyond_ascii(text: str) -> int:
    return len(text) - sum(map(len, _ASCII.findall(text)))


@cache
def _common_pattern() -> re.Pattern[str]:
    return re.compile(f"[{COMMON_CHARACTERS}]+")


def winner(scores: Mapping[str, float]) -> str:
    """Return the encoding with the best score, or "" if it is not clearly the best."""
    best = max(scores, key=lambda name: scores[name])
    second = max(score for name, score in scores.items() if name != best)
    return best if scores[best] >= _CLEAR and scores[best] - second >= _CLEAR else ""


def byte_order_mark(head: bytes) -> tuple[bytes, str]:
    """Return the byte order mark at the beginning and its encoding, or two empty values."""
    return next(((mark, name) for mark, name in _MARKS if head.startswith(mark)), (b"", ""))


def ascii_prefix(data: bytes) -> int:
    """Return the number of ASCII bytes at the beginning."""
    match = NOT_ASCII.search(data)
    return match.start() if match else len(data)

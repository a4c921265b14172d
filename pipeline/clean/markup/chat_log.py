"""Chat logs that WhatsApp, QQ, WeChat or Discord exported as text: a time and a name before each message.

The times go, the names stay: each message becomes one line, such as `Ann: See you.`, and its other lines follow.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from pipeline.clean import han_rich
from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.markup.parsed import Parsed, add_count
from pipeline.clean.rule import Counts

_DATE = r"(?:[0-9]{4}[-/.年][0-9]{1,2}[-/.月][0-9]{1,2}日?|[0-9]{1,2}[-/.][0-9A-Za-z]{1,3}[-/.][0-9]{2,4})"
_TIME = r"(?:[上下中]午|早上|晚上|凌晨)?[ ]?[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?(?:[ \u202f\xa0]?[AaPp]\.?[Mm]\b\.?)?"
_STAMP = lazy_pattern(  # its group is the remainder of the line, which is no part of the match
    rf"^[\u200e\u200f\ufeff]*(?:\[{_DATE},?[ ]{_TIME}\]|{_DATE}[,，]?[ ]{_TIME}(?:[ ][-–])?)[ \t]+(?=(\S[^\n]*))",
    re.MULTILINE,
)
_SPEAKER = lazy_pattern(r"([^:：\n]{1,40})[:：][ \t]*")
_ACCOUNT = lazy_pattern(r"[(（][0-9]{5,12}[)）]$|<[^<>\s@]+@[^<>\s@]+>$")  # after a name in QQ
_MEDIA = lazy_pattern(
    r"[\u200e\u200f]*(?:<[^<>\n]{0,40}(?:omitted|省略)[^<>\n]{0,40}>|"
    r"(?:image|video|audio|sticker|GIF|document) omitted|\[(?:图片|表情|动画表情|语音|视频|文件|链接)\])"
)
_LEVEL = lazy_pattern(r"\b(?:trace|debug|info|notice|warn|warning|error|critical|fatal)\b", re.IGNORECASE)
_MIN_MESSAGES, _MESSAGE_RATIO = 10, 0.2  # of a chat log: messages, and messages per line that is not blank
_MIN_DAILY = 2  # messages per date; a diary has one
_MAX_NAME = 40  # characters


def is_chat_log(head: str) -> bool:
    """Return True if many lines of a text that begins with `head` have a time, and then one of a few names.

    Diaries and news, with a time for each date, and logs of programs, with levels such as ERROR, are no chat logs.
    """
    head = head.replace("\r\n", "\n").replace("\r", "\n")
    stamps = list(_STAMP.finditer(head))
    starts, dates = [stamp[1] for stamp in stamps], {stamp[0].split()[0] for stamp in stamps}
    lines = sum(bool(line.strip()) for line in head.split("\n"))
    if len(starts) < max(_MIN_MESSAGES, _MESSAGE_RATIO * lines, _MIN_DAILY * len(dates)):
        return False
    pattern = _SPEAKER if _names_are_inline(starts) else None
    names = Counter(match[1] if pattern and (match := pattern.match(start)) else start for start in starts)
    speakers = (name for name, count in names.items() if count > 1 and len(name) <= _MAX_NAME)
    return 2 * sum(names[name] for name in speakers if not _LEVEL.search(name)) >= len(starts)


def chat_log(text: str, counts: Counts) -> Parsed:
    """Remove times, accounts and marks of media such as `<Media omitted>`; put a name before its message."""
    stamps = list(_STAMP.finditer(text))
    if not stamps:
        return Parsed(text)
    ends = [*(stamp.start() for stamp in stamps[1:]), len(text)]
    bodies = [text[stamp.end() : end] for stamp, end in zip(stamps, ends, strict=True)]
    is_inline = _names_are_inline([stamp[1] for stamp in stamps])
    colon = "：" if han_rich.is_han_rich(text[:10_000]) else ": "
    counts["time"] += len(stamps)
    lines = [text[: stamps[0].start()].strip("\n")]
    lines += _messages(bodies, is_inline, colon, counts)
    return Parsed("\n".join(filter(None, lines)) + "\n")


def _names_are_inline(starts: list[str]) -> bool:
    """Return True if a name and its message are on one line, with a colon between them."""
    return 2 * sum(_SPEAKER.match(start) is not None for start in starts) >= len(starts)


def _messages(bodies: list[str], is_inline: bool, colon: str, counts: Counts) -> Iterator[str]:
    """Yield the messages; `bodies` are the texts between the times."""
    for body in bodies:
        first, _, further_lines = body.partition("\n")
        if is_inline:
            speaker = _SPEAKER.match(first)
            name, message = (speaker[1], f"{first[speaker.end() :]}\n{further_lines}") if speaker else ("", body)
        else:
            name, message = _ACCOUNT.sub("", first.strip()), further_lines
            add_count(counts, "account", name != first.strip())
        message = message.strip()
        if _MEDIA.fullmatch(message) or not message:
            counts["media"] += 1
        else:
            yield f"{name}{colon}{message}" if name else message

"""Read subtitles: SubRip (.srt), WebVTT (.vtt) and SubStation Alpha (.ass, .ssa), without times, numbers and styles."""

from __future__ import annotations

import dataclasses
import html
import re

from pipeline.errors import BadData
from pipeline.readers.documents import Document, Note

_TIMES = r"[ \t]*(?:\d+:)?\d{1,2}:\d\d[,.:]\d{1,3}[ \t]*-->[^\n]*(?:\n|\Z)"
_CUE = re.compile(rf"^(?:[ \t]*\d+[ \t]*\n)?{_TIMES}", re.MULTILINE)
_NAMED_CUE = re.compile(rf"(?<=\n\n)[^\n]+\n(?={_TIMES})")  # WebVTT allows any name for a cue
_BLOCK = re.compile(  # the header and comments end before a blank line or, if that is missing, before a cue
    r"(?:\AWEBVTT|(?<=\n\n)(?:NOTE|STYLE|REGION)(?![^ \t\n]))[^\n]*(?:\n(?![^\n]*-->)[^\n]+)*"
)
_DIALOGUE = re.compile(r"^Dialogue:(?:[^,\n]*,){9}([^\n]*)", re.MULTILINE)
_STYLE = re.compile(
    r"\{(?:[^{}\n\\]|\\(?!p[1-9]))*\\p[1-9][^{}\n]*\}[^{\n]*|"  # a drawing of SubStation Alpha
    r"\{\\[^{}\n]*\}|</?(?:[biu]|font|c|v|lang|ruby|rt)\b[^<>\n]*>|<[\d:.]+>",
    re.IGNORECASE,
)


def without_times(document: Document, label: str, note: Note) -> Document:
    """Return the document with the text of its subtitles alone. Raises BadData if there is none."""
    text = text_of(document.text)
    if not text:
        raise BadData(f"{label}: the subtitles have no text", hint="remove the file from the input")
    note("subtitles, without their time codes")
    return dataclasses.replace(document, text=text)


def text_of(subtitles: str) -> str:
    """Return the lines of subtitles. In WebVTT a line that repeats the one before it is dropped: the text rolls up."""
    text = subtitles.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").lstrip()
    is_web = text.startswith("WEBVTT")
    if dialogue := _DIALOGUE.findall(text):
        text = re.sub(r"\\[Nn]", "\n", "\n".join(dialogue)).replace(r"\h", " ")
    elif is_web:
        text = html.unescape(_CUE.sub("\n", _NAMED_CUE.sub("", _BLOCK.sub("", text))))
    else:
        text = _CUE.sub("\n", text)
    lines = [line for line in map(str.strip, _STYLE.sub("", text).split("\n")) if line]
    return "\n".join(line for index, line in enumerate(lines) if not (is_web and index and line == lines[index - 1]))

"""Text for terminals, pipes and logs: without control characters, and with escapes for what cannot be shown.

File names, manifests, headers of servers and generated texts may contain escape sequences that clear the screen, or
marks that reverse the reading order. Every line that the program prints passes through `printable` or `json_line`.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from pipeline.errors import StorageFailed

_PLURAL_END = re.compile(r"(?:(?<=ch)|(?<=ss))es$|s$")
SPARKS, BAR = 24, 30  # characters of a sparkline and of the longest bar, at most

# Controls, line separators, marks of reading order, invisible format characters, and lone surrogates (bytes of a name
# that are not UTF-8). The joiners U+200C and U+200D stay: scripts and emoji need them.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_UNSAFE_BLOCK = re.compile(rf"(?![\t\n]){_UNSAFE.pattern}")
_UNSAFE_LINE = re.compile(rf"(?!\t){_UNSAFE.pattern}")


def printable(text: str) -> str:
    r"""Return `text` as one line that is safe to print: `\x1b` for an escape character, `\n` for a line break."""
    return _UNSAFE_LINE.sub(_escaped, text)


def printable_block(text: str) -> str:
    """Return `text` of several lines as it is safe to print; line breaks stay."""
    return _UNSAFE_BLOCK.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def json_line(fields: Mapping[str, Any], *, encoding: str = "utf-8") -> str:
    """Return `fields` as one line of JSON, with escapes for unsafe characters and those that `encoding` lacks."""
    is_unicode = encoding.lower().startswith("utf")
    return _UNSAFE.sub(_json_escaped, json.dumps(fields, ensure_ascii=not is_unicode))


def _json_escaped(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1]


def counted(count: float, plural: str) -> str:
    """Return a count with its noun, given in the plural: "1 file", "2,000 files", "0.5 minutes"."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {_PLURAL_END.sub('', plural) if number == '1' else plural}"


def about(count: int) -> str:
    """Return an estimate with two significant digits: "about 42,000"."""
    return f"about {int(float(f'{count:.1e}')):,}"


def data_size(count: float) -> str:
    """Return a number of bytes with its unit: "999 bytes", "42 kB", "1.5 MB"."""
    if count < 1000:
        return counted(int(count), "bytes")
    return f"{count / 1e3:.0f} kB" if count < 999_500 else f"{count / 1e6:,.1f} MB"


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Return rows as lines with aligned columns, in which a wide character, such as 砚, counts as two.

    `right` are the indices of the columns that are aligned to the right.
    """
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        blanks = [" " * (width - _width(cell)) for width, cell in zip(widths, row, strict=True)]
        cells = (blanks[index] + cell if index in right else cell + blanks[index] for index, cell in enumerate(row))
        lines.append("  ".join(cells).rstrip())
    return lines


def _width(text: str) -> int:
    """Return the columns that a terminal needs for a text."""
    marks = sum(unicodedata.combining(character) > 0 for character in text)
    return len(text) - marks + sum(unicodedata.east_asian_width(character) in "WF" for character in text)


def sparkline(values: Sequence[float]) -> str:
    """Return numbers as one character each, from the lowest to the highest; of many, `SPARKS` at equal distances."""
    count = len(values)
    if count > SPARKS:
        values = [values[round(index * (count - 1) / (SPARKS - 1))] for index in range(SPARKS)]
    low, high = min(values, default=0.0), max(values, default=0.0)
    levels = drawable("▁▂▃▄▅▆▇█", "_.-:=+*#")
    return "".join(levels[round((len(levels) - 1) * (value - low) / ((high - low) or 1.0))] for value in values)


def bars(counts: Sequence[int]) -> list[str]:
    """Return a bar for each count, `BAR` characters for the greatest; a count above 0 has at least the shortest bar."""
    eighths = drawable(" ▏▎▍▌▋▊▉█", " #")
    parts = len(eighths) - 1  # of a character
    unit = BAR * parts / max([1, *counts])
    lengths = [max(round(count * unit), min(count, 1)) for count in counts]
    return [(eighths[-1] * (length // parts) + eighths[length % parts]).rstrip() for length in lengths]


def drawable(characters: str, substitute: str) -> str:
    """Return `characters` if standard output can show them, else their ASCII substitute."""
    try:
        characters.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return substitute
    return characters


def write(text: str) -> None:
    """Write to standard output and flush it. Raises StorageFailed if that fails, BrokenPipeError for a closed pipe."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        problem = f"standard output: {(error.strerror or str(error)).lower()}"
        raise StorageFailed(problem, hint="what was built is kept; see it with `status`") from error


def escape_unencodable() -> None:
    """Make the standard streams write an escape for each character that their encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="backslashreplace")


def flush_or_discard() -> None:
    """Flush the standard streams. Discard the output of one that fails: the interpreter would fail on it at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            _discard(stream)


def _discard(stream: TextIO) -> None:
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()
    except (OSError, ValueError):  # a stream without a descriptor, or closed: nothing is left to flush
        return

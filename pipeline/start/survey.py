"""Survey inputs before anything is built: kinds of files, sizes, encodings, scripts, and a sample of the text.

Of a large input only a part is read, so that hundreds of megabytes take seconds. Numbers of characters are then
estimates.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.clean.markup.chat_log import chat_log, is_chat_log
from pipeline.clean.profiles import HEAD_CHARACTERS
from pipeline.readers import encoding as encodings
from pipeline.readers import readers
from pipeline.readers.kinds import detect_kind
from pipeline.runtime.ledger import Ledger

_READ = 6 << 20  # characters of all inputs together
_SAMPLED_FILES = 60  # of one input, spread evenly over it
_COUNTED = 500_000  # characters, spread over the sample, whose scripts are counted
_SCRIPTS = (
    ("Chinese", "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"),
    ("Japanese kana", "\u3041-\u30ff\u31f0-\u31ff"),
    ("Korean", "\uac00-\ud7a3\u1100-\u11ff"),
    ("Latin", "A-Za-z\u00c0-\u024f"),
    ("Cyrillic", "\u0400-\u052f"),
    ("Greek", "\u0370-\u03ff"),
    ("Arabic", "\u0600-\u06ff"),
    ("Devanagari", "\u0900-\u097f"),
    ("Thai", "\u0e00-\u0e7f"),
    ("Hebrew", "\u0590-\u05ff"),
)
_ENGLISH = re.compile(r"\b(?:the|and|of|to|in|that|was|is|it|he|with|for)\b", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z\u00c0-\u024f']+")
_CHINESE_START = re.compile(r"^[\u3000\s“「『]*([\u4e00-\u9fff]{2,4})", re.MULTILINE)
_LATIN_START = re.compile(r"^\s*[\"“'‘]?([A-Z][\w'’]*(?: [\w'’]+){1,2})", re.MULTILINE)
_PARAGRAPHS = 2000  # of the sample, from which prompts are taken
_ANY_START = re.compile(r"^\s*(\S{2,12})", re.MULTILINE)


@dataclass
class InputSummary:
    """One input that the user named. `characters` is an estimate unless the input was read to its end.

    `notes` are remarks of the readers, such as the field that holds the text.
    """

    reference: str
    files: int = 0
    bytes: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    encodings: Counter[str] = field(default_factory=Counter)
    documents: int = 0
    characters: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass
class Survey:
    """Contents of the inputs. `scripts` maps the name of a script to its fraction of the letters of the sample."""

    inputs: list[InputSummary]
    scripts: dict[str, float]
    is_english: bool
    sample: str

    @property
    def characters(self) -> int:
        return sum(entry.characters for entry in self.inputs)

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.inputs)

    @property
    def documents(self) -> int:
        return sum(entry.documents for entry in self.inputs)

    @property
    def chinese(self) -> float:
        return self.scripts.get("Chinese", 0.0)


def survey(
    inputs: Sequence[tuple[str, Sequence[Path]]],
    *,
    encoding: str = encodings.AUTO,
    text_fields: tuple[str, ...] = (),
) -> Survey:
    """Read a sample of each input, given as its name and its files; `encoding` and `text_fields` as in the readers.

    Raises BadData if a file cannot be read, BadConfig for an unknown encoding.
    """
    encodings.codec_name(encoding)
    summaries, texts = [], []
    budget = _READ // max(1, len(inputs))
    for reference, paths in inputs:
        summary, text = _survey_input(reference, paths, budget, encoding, text_fields)
        summaries.append(summary)
        texts.append(text)
    sample = "\n".join(texts)
    scripts = script_shares(sample)
    words = len(_WORD.findall(sample[:200_000]))
    is_english = words > 0 and len(_ENGLISH.findall(sample[:200_000])) > 0.1 * words
    return Survey(summaries, scripts, is_english, sample)


def _survey_input(
    reference: str, paths: Sequence[Path], budget: int, encoding: str, text_fields: tuple[str, ...]
) -> tuple[InputSummary, str]:
    summary = InputSummary(reference, len(paths), sum(path.stat().st_size for path in paths))
    for path in paths:
        summary.formats[path.suffix.lower().removeprefix(".") or "text"] += 1
    step = max(1, len(paths) // _SAMPLED_FILES)
    sampled = paths[::step]
    texts, bytes_read, records, single = [], 0, 0, 0
    for path in sampled:
        text, size, count = _read_sample(path, budget // len(sampled), summary, encoding, text_fields)
        texts.append(text)
        bytes_read += size
        records, single = records + (count or 0), single + (count is None)
    text = "\n".join(texts)
    scale = summary.bytes / bytes_read if bytes_read else 1.0
    summary.characters = int(sum(map(len, texts)) * scale)
    summary.documents = max(1, int(records * scale) + single * len(paths) // len(sampled))
    return summary, text


def _read_sample(
    path: Path, limit: int, summary: InputSummary, encoding: str, text_fields: tuple[str, ...]
) -> tuple[str, int, int | None]:
    """Return up to about `limit` characters of a file, the number of bytes that they take in it, and of records.

    The number of records is None for a text file, which is one document however long it is.
    """
    size = 0

    def advance(count: int) -> None:
        nonlocal size
        size += count

    if detect_kind(path).format == "text":
        stats = encodings.EncodingStats()
        blocks = encodings.read_text(path, stats, encoding=encoding, advance=advance)
        text = "".join(_until(blocks, limit))
        summary.encodings[stats.encoding or "utf-8"] += 1
        share = _share(size, text, limit)
        if is_chat_log(text[:HEAD_CHARACTERS]):
            summary.notes.append("chat log, without its times")
            text = chat_log(text.replace("\r\n", "\n"), Counter()).text
        return text[:limit], share, None
    ledger = Ledger()
    documents = readers.read_documents(
        path,
        ledger,
        lambda reject: None,
        encoding=encoding,
        text_fields=text_fields,
        note=summary.notes.append,
        advance=advance,
    )
    texts = list(_until((document.text for document in documents), limit))
    if rejected := sum(ledger.documents.dropped.values()):
        reasons = ", ".join(ledger.documents.dropped)
        summary.notes.append(f"{rejected:,} of {ledger.documents.came:,} documents rejected: {reasons}")
    text = "\n".join(texts)
    if text and not size:  # the reader reports its bytes at the end
        size = path.stat().st_size
    return text[:limit], _share(size, text, limit), len(texts)


def _share(size: int, text: str, limit: int) -> int:
    """Estimate the bytes of the first `limit` characters of a `text` that takes `size` bytes."""
    return int(size * min(1.0, limit / len(text))) if text else size


def _until(texts: Iterator[str], limit: int) -> Iterator[str]:
    """Yield texts until their total is `limit` characters."""
    total = 0
    for text in texts:
        yield text
        total += len(text)
        if total >= limit:
            return


def script_shares(text: str) -> dict[str, float]:
    """Return the fraction of each script among the letters of a text, the largest first, without those below 1 %."""
    text = text[:: 1 + len(text) // _COUNTED]
    counts = {name: len(re.findall(f"[{ranges}]", text)) for name, ranges in _SCRIPTS}
    total = sum(counts.values())
    shares = {name: count / total for name, count in counts.items() if total and count / total >= 0.01}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def prompts(sample: str, count: int = 3) -> tuple[str, ...]:
    """Return `count` beginnings of paragraphs from all parts of the sample, as prompts.

    Each has two to four Chinese characters, or two or three words. There are fewer if the sample has fewer paragraphs.
    """
    beginnings: list[str] = []
    is_chinese = script_shares(sample).get("Chinese", 0) >= 0.2
    for pattern in (*((_CHINESE_START,) if is_chinese else ()), _LATIN_START, _ANY_START):
        starts = list(dict.fromkeys(match[1] for match in itertools.islice(pattern.finditer(sample), _PARAGRAPHS)))
        for index in range(min(count, len(starts))):
            start = starts[(2 * index + 1) * len(starts) // (2 * count)]
            if len(beginnings) < count and start not in beginnings:
                beginnings.append(start)
        if len(beginnings) == count:
            break
    return tuple(beginnings)

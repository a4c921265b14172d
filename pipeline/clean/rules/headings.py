"""Chapter headings of Chinese books.

A heading is a line of its own, or the start of the line that holds the complete chapter
(`第二段  高俅奸佞虽堪恨，…`). In the second case only the heading is removed; the remainder of the line is the text.
Numbers inside lines and lines such as `一 灭门` are headings where a series proves it (series.py), and so are the
matches of `--heading`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.rules import series
from pipeline.clean.rules.series import KINDS, NUMBER, Heading, Lines, MissedNumber, Ordinals
from pipeline.clean.utf16 import (
    BLANKS,
    HAN,
    LINE_ENDS,
    SEPARATOR,
    Utf16Text,
    class_table,
    delete_units,
    encode_utf16,
    expand_ranges,
    insert_unit,
    is_member,
    is_one_of,
    positions_of,
    replace_units,
    units_at,
)
from pipeline.sources.order import NUMERALS, parse_numeral

MAX_TITLE = 40
_BLANK = f"[{BLANKS}]"
_NUMBERED = f"第{_BLANK}?{NUMBER}{_BLANK}?[{KINDS}]"
_VOLUME = f"卷[之第]?(?:{NUMBER}(?:[上中下]|之{NUMBER})?|[上中下])"
_WORK = "《[^《》]{0,12}》"
_HEADING = lazy_pattern(
    rf"""{_BLANK}*
    (?: (?: (?:{_WORK})? (?:正文|目[录錄]) {_BLANK}+ | {_WORK} {_BLANK}+ )?
        (?: [^\s，。！？：；“”‘’「」、【】（）—–]{{0,8}} {_NUMBERED} )
      | (?: [{HAN}·]{{1,24}} 卷第{NUMBER}[上中下]? | {_VOLUME} )
      | 楔{_BLANK}*子 | 引首 | 序言? | 自{_BLANK}*序 | 跋 | 凡{_BLANK}*例 | 附{_BLANK}*[录錄] )
    (?= {_BLANK} | $ )""",
    re.VERBOSE,
)
# Headings only if their line is complete and is not a sentence.
_WORDS = (
    "(?:[译譯编編代原]|[再初]版|作者)?(?:[后後]~[记記]|[前引]~言|[后後]?序言?)|尾~[声聲]|前~[记記]|引~子|序~[章幕曲]"
    "|[终終]~[章曲]|番~外篇?|[内內]容(?:[简簡]介|提要)|出版[说說]明|附~[录錄]|[上中下][册冊卷]"
).replace("~", f"{_BLANK}*")
_SEPARATORS = "：、．.·・:。—–|｜/／_~～★☆-"
_OWN_LINE = lazy_pattern(
    rf"""(?: (?: [^\s，。！？：；“”‘’「」、]{{1,8}} (?: {_BLANK}+ | {_BLANK}*[：>＞]{_BLANK}* )
            | 【[^【】]{{1,12}}】{_BLANK}* )?
        [^\s，。！？：；“”‘’「」、【（〔〖(\[〈＜<『—–-]{{0,8}} {_NUMBERED}
        (?: [（(] (?:[上中下续續]|{NUMBER}) [）)] )? (?: [{_SEPARATORS}]+ (?=.) )?
      | [【（〔〖《〈＜<(\[] {_NUMBERED} (?: [{BLANKS}：、·] [^】）〕〗》〉＞>)\]]+ )? [】）〕〗》〉＞>)\]]
      | [「『] {_NUMBERED} [」』] (?= {_BLANK} | $ )
      | (?: {_WORK} | [{HAN}]{{1,8}} ) [{BLANKS}·・/／]{{0,2}} {_VOLUME} (?= [{BLANKS}·・/／] | $ )
      | {_VOLUME} (?= [·・/／：] )
      | (?:{_WORDS}) (?:{NUMBER})? (?: [{BLANKS}：、·:] | $ )
      | [A-Z]?[0-9]+(?:\.[0-9]+)* {_BLANK}? 《[^《》]{{1,24}}》 $
      | 《[^《》]{{1,24}} 第{NUMBER}》 $ )""",
    re.VERBOSE,
)
_ORNAMENTS = "☆★◆◇※＝=~～*＊#_"
_ORNAMENTED = lazy_pattern(
    rf"{_BLANK}*(?:[{_ORNAMENTS}]+[、．.]?|([-—–]+)){_BLANK}*(\S.*?){_BLANK}*([{_ORNAMENTS}—–-]*){_BLANK}*"
)
_MARKED = lazy_pattern(rf"{_BLANK}*(?:◎|\#+[ \t]|\*\*[ \t]|==)")
_STOP = lazy_pattern("[，。！？：；、“”‘’「」…—]")
_SENTENCE = lazy_pattern("[。“”「」]|…(?!…*$)|：[“‘「『]|[，、：；—]$")  # a line with this is not a title
_QUOTATION = lazy_pattern("“[^“”。]{1,20}”|「[^「」。]{1,20}」")  # a title, if nothing follows
_END_MARK = lazy_pattern("[（(]?[完终終毕畢竟][）)]?")  # 卷一 终
_VERSE_OPENING = lazy_pattern(f"{_BLANK}([诗詩词詞]曰：?)$")
_TITLE_END, _TITLE_END_SINGLE = lazy_pattern(f"{_BLANK}{{2,}}"), lazy_pattern("\u3000")
_COUPLET = lazy_pattern(rf"([{HAN}]{{5,11}}){_BLANK}+([{HAN}]{{5,11}}){_BLANK}+")
_NUMBER_OF_KIND = lazy_pattern(f"第{_BLANK}?({NUMBER}){_BLANK}?([{KINDS}])")
_OTHER_NUMBERS = (
    ("卷N", lazy_pattern(f"卷[之第]?({NUMBER})")),
    ("N《…》", series.NUMBER_OF_WORK),
    ("《…第N》", lazy_pattern(f"第({NUMBER})》")),
)
_MAX_PREFIX = 25  # units before 第 or 卷 in a heading: a work, 正文, a blank and a word; or a book
_SCANNED_UNITS = 200  # of a line: enough to recognise a heading
_AFTER_VOLUME = NUMERALS + "之第上中下"
_IS_MARKUP, _IS_WORD, _IS_DIGIT = 1, 2, 3  # kinds of first units, besides the numbers after 第 and 卷
_SECOND_UNITS = "子首言序例录錄声聲记記章幕曲外后後前版者容册冊卷：、·:" + NUMERALS + BLANKS + LINE_ENDS


@dataclass
class HeadingSplit:
    """A page split at its headings. Documents are identified by their index on the page."""

    page: Utf16Text
    origin: np.ndarray  # of each document, the index of the document on the old page that it is part of
    titles: dict[int, str]  # by document, for those that start with a heading
    numbers: list[tuple[str, int]]  # pattern and number of each heading, as ("第N回", 12); 0 if it has no number
    lines_without_heading: int = 0  # lines without a heading, in texts whose headings share the line of their chapter
    missed: list[MissedNumber] = field(default_factory=list)
    matches: Counter[str] = field(default_factory=Counter)  # of each pattern of the user


def split_at_headings(
    page: Utf16Text, policy: str, patterns: Sequence[re.Pattern[str]] = (), titles: Sequence[str] = ()
) -> HeadingSplit:
    """Remove the headings of a page.

    With the policy "boundary" each heading starts a new document, and becomes its title. With "drop" it is only
    removed. With "keep" it stays and is only counted. `patterns` match further headings within a line; `titles` are
    those of the documents of the page, if they have any.
    """
    lines, numbers = series.lines_of(page), series.ordinals(page)
    counts = Counter({pattern.pattern: 0 for pattern in patterns})
    matches = _matches(page, lines, patterns, counts) if patterns else []
    cuts = _cuts(page, lines, numbers, matches) if policy != "keep" else numbers.starts[:0]
    if len(cuts):  # they become headings at line starts
        page = insert_unit(page, cuts, "\n")
        matches = [
            (start + int(np.searchsorted(cuts, start, side="right")), end + int(np.searchsorted(cuts, end)))
            for start, end in matches
        ]
        lines, numbers = series.lines_of(page), series.ordinals(page)
    headings = _headings(page, lines, numbers, matches, titles)
    chapters = series.chapter_headings(page, headings)
    split = HeadingSplit(
        page,
        np.arange(len(positions_of(page, SEPARATOR)) + 1),
        {},
        [(chapter.pattern, chapter.number) for chapter in chapters],
        matches=counts,
    )
    inline_count = sum(heading.has_body for heading in headings)
    text_lines = int(np.count_nonzero(lines.ends > lines.starts)) if inline_count else 0
    if 2 * inline_count > text_lines:
        split.lines_without_heading = text_lines - inline_count
    if policy != "keep":
        starts, ends = (np.array([heading[column] for heading in headings], int) for column in (0, 1))
        split.missed = series.missed_numbers(page, lines, numbers, (starts, ends))
        if policy == "boundary" and chapters:
            _start_documents(split, chapters)
        split.page = delete_units(split.page, expand_ranges(starts, ends)) if headings else split.page
    return split


def _outside_headings(page: Utf16Text, lines: Lines, inline: np.ndarray) -> np.ndarray:
    """Return the positions without those of a heading that begins its line with a word, as in `正文 第一回 …`."""
    line = lines.at(inline)
    is_near = inline - lines.first[line] <= series.MAX_INDENT
    heads = [at for at in line[is_near].tolist() if _parse_line(page, int(lines.starts[at]), int(lines.ends[at]))]
    outside: np.ndarray = inline[~(is_near & is_member(line, np.array(heads, int)))]
    return outside


def _cuts(page: Utf16Text, lines: Lines, numbers: Ordinals, matches: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the positions inside lines where headings start: those of matches, and those of a series outside them."""
    inline = _outside_headings(page, lines, series.inline_headings(page, lines, numbers))
    if not matches:
        return inline
    starts, ends = np.array(matches).T
    last = np.searchsorted(starts, inline, side="right") - 1
    is_outside = (last < 0) | (inline >= ends[last])
    return np.sort(np.concatenate((inline[is_outside], starts[~is_member(starts, lines.starts)])))


def has_weak_series(head: str) -> bool:
    """Return True if the first characters of a text show that it numbers its chapters by lines such as `一 灭门`.

    Further chapters may be anywhere in the text, so a text with such a series must be read completely.
    """
    short = series.MAX_WEAK + series.MAX_INDENT
    page = encode_utf16("\n".join([line if len(line) <= short else "。" for line in head.split("\n")]))
    lines, numbers = series.lines_of(page), series.ordinals(page)
    return bool(series.weak_headings(page, lines, numbers, lambda at: _sections(page, lines, at, {}, ()), min_run=2))


def _start_documents(split: HeadingSplit, chapters: Sequence[Heading]) -> None:
    """Start a document at each chapter of the page of `split`."""
    starts = np.array([chapter.start for chapter in chapters], int)
    nuls = positions_of(split.page, SEPARATOR)
    is_boundary = (starts > 0) & (units_at(split.page, starts - 1) != 0)
    boundaries = starts[is_boundary] - 1
    documents = np.searchsorted(nuls, starts) + np.cumsum(is_boundary)
    split.titles = dict(zip(documents.tolist(), (chapter.title for chapter in chapters), strict=True))
    split.origin = np.sort(np.concatenate((split.origin, np.searchsorted(nuls, boundaries))))
    split.page = replace_units(split.page, boundaries, 0)


def _headings(
    page: Utf16Text, lines: Lines, numbers: Ordinals, matches: Sequence[tuple[int, int]], titles: Sequence[str]
) -> list[Heading]:
    """Return the headings of a page in order: matches of patterns, known shapes, and lines of a series."""
    headings: dict[int, Heading] = {}  # by line
    for start, end in matches:
        title = _join_blanks(series.text_of(page, start, end))
        line = int(lines.at(np.array([start]))[0])
        has_body = bool(series.text_of(page, end, int(lines.ends[line])).strip(BLANKS))
        headings.setdefault(line, Heading(start, end, title, *_pattern_and_number(title), has_body))
    for line in _candidate_lines(page, lines, numbers):
        if line not in headings and (heading := _parse_line(page, int(lines.starts[line]), int(lines.ends[line]))):
            headings[line] = heading
    for weak in series.weak_headings(page, lines, numbers, lambda at: _sections(page, lines, at, headings, titles)):
        start, end = int(lines.starts[weak.line]), int(lines.ends[weak.line])
        headings[weak.line] = Heading(start, end, _join_blanks(weak.title), weak.pattern, weak.number)
    return [headings[line] for line in sorted(headings)]


def _sections(
    page: Utf16Text, lines: Lines, at: np.ndarray, headings: dict[int, Heading], titles: Sequence[str]
) -> np.ndarray:
    """Return a section number for the lines `at`, and -1 for those in a section that has a number in its title."""
    document = np.searchsorted(positions_of(page, SEPARATOR), lines.starts)
    is_numbered = np.zeros(document[-1] + 1, bool)
    for index in {*document[at].tolist()} if any(titles) else ():
        is_numbered[index] = series.is_numbered(titles[index])
    heads = np.array(sorted(headings), int)
    sections = []
    for line, head in zip(at.tolist(), (np.searchsorted(heads, at, side="right") - 1).tolist(), strict=True):
        index = int(document[line])
        in_section = head >= 0 and document[heads[head]] == index
        is_blocked = series.is_numbered(headings[int(heads[head])].title) if in_section else is_numbered[index]
        is_blocked |= line in headings
        sections.append(-1 if is_blocked else len(document) + head if in_section else index)
    return np.array(sections)


def _matches(
    page: Utf16Text, lines: Lines, patterns: Sequence[re.Pattern[str]], counts: Counter[str]
) -> list[tuple[int, int]]:
    """Return start and end of the matches of patterns within lines, in order and without overlaps, and count them.

    A match at the start of a line includes the blanks before it.
    """
    spans: list[tuple[int, int]] = []
    for start, end in zip(lines.starts.tolist(), lines.ends.tolist(), strict=True):
        line = series.text_of(page, start, end)
        previous = 0
        for first, last, pattern in sorted((*m.span(), p.pattern) for p in patterns for m in p.finditer(line)):
            if first < previous or not line[first:last].strip(BLANKS):
                continue
            counts[pattern] += 1
            first = first if line[:first].strip(BLANKS) else 0
            unit, stop = (start + len(encode_utf16(line[:offset])) for offset in (first, last))
            spans.append((unit, stop))
            previous = last
    return spans


def _candidate_lines(page: Utf16Text, lines: Lines, numbers: Ordinals) -> list[int]:
    """Return the lines whose units allow a heading."""
    first = lines.first
    kinds = _first_kinds().take(units_at(page, first))
    is_candidate = kinds == _IS_MARKUP
    words = np.flatnonzero(kinds == _IS_WORD)
    is_candidate[words] = is_one_of(units_at(page, first[words] + 1), _SECOND_UNITS)
    works = np.flatnonzero(kinds == _IS_DIGIT)
    is_candidate[works] = is_one_of(units_at(page, lines.ends[works] - 1), "》")
    line = lines.at(numbers.starts)
    distance = numbers.starts - first[line]
    is_number = numbers.has_kind | is_one_of(units_at(page, numbers.ends), "》")
    is_candidate[line[is_number & (distance <= _MAX_PREFIX)]] = True
    volumes = numbers.volumes
    volumes = volumes[is_one_of(units_at(page, volumes + 1), _AFTER_VOLUME)]
    ends = series.skip(page, series.skip(page, volumes + 1, "之第", 1), _AFTER_VOLUME, series.MAX_DIGITS)
    volumes = volumes[is_one_of(units_at(page, ends), BLANKS + LINE_ENDS + "·・/／：")]
    line = lines.at(volumes)
    is_candidate[line[volumes - first[line] <= _MAX_PREFIX]] = True
    return np.flatnonzero(is_candidate).tolist()


@cache
def _first_kinds() -> np.ndarray:
    """Return the kind of line that each unit may start."""
    return class_table(
        (_IS_MARKUP, "◎#*=" + _ORNAMENTS),
        (_IS_WORD, "楔引序自跋凡附尾后後前终終番译譯编編代原再初作内內出上中下"),
        (_IS_DIGIT, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    )


def _parse_line(page: Utf16Text, start: int, end: int) -> Heading | None:
    line = series.text_of(page, start, min(end, start + _SCANNED_UNITS))
    heading = parse_heading(line, is_complete=end - start <= _SCANNED_UNITS)
    if not heading:
        return None
    title, body = heading
    removed = len(encode_utf16(line[: len(line) - len(body)]))
    return Heading(start, start + removed, title, *_pattern_and_number(title), bool(body))


def _pattern_and_number(title: str) -> tuple[str, int]:
    """Return the pattern of a title and its number, as ("第N回", 12), or its first word and 0.

    Of 第一卷 … 第三章 the chapter counts.
    """
    if numbered := _NUMBER_OF_KIND.findall(title):
        number, kind = numbered[-1] if numbered[0][1] in "卷部集篇" else numbered[0]
        return f"第N{kind}", parse_numeral(number)
    for pattern, shape in _OTHER_NUMBERS:
        if match := shape.search(title):
            return pattern, parse_numeral(match[1])
    return title.split()[0][:4], 0


def parse_heading(line: str, *, is_complete: bool = True) -> tuple[str, str] | None:
    """Return (title, body) if `line` starts with a heading, else None. The body of an own-line heading is "".

    `is_complete` is False for the start of a line that is longer than any title.
    """
    if _MARKED.match(line) and is_complete and len(line) <= MAX_TITLE and not re.search("[。！？，]", line):
        title = _join_blanks(line.strip(BLANKS + "◎#*="))
        return (title, "") if title else None
    if is_complete and (inner := _ORNAMENTED.fullmatch(line)) and (inner[3] or not inner[1]):
        plain = parse_heading(inner[2])
        return plain if plain and not plain[1] else None
    heading = _HEADING.match(line)
    if not heading:
        return _parse_own_line(line.strip(BLANKS)) if is_complete else None
    name = heading.group().strip(BLANKS)
    remainder = line[heading.end() :].lstrip(BLANKS)
    if is_complete and len(remainder) <= MAX_TITLE:
        if _END_MARK.fullmatch(remainder.strip(BLANKS)):
            return None
        verse = _VERSE_OPENING.search(remainder)
        title = remainder[: verse.start()] if verse else remainder
        if _is_title(name, title.rstrip(BLANKS)):
            return _join_blanks(f"{name} {title}"), verse[1] if verse else ""
    # The title, if there is one, ends at a gap that comes before any punctuation.
    stop = _STOP.search(remainder)
    limit = min(stop.start() if stop else len(remainder), MAX_TITLE)
    if (couplet := _COUPLET.match(remainder, 0, limit)) and len(couplet[1]) == len(couplet[2]):
        return _join_blanks(f"{name} {couplet[0]}"), remainder[couplet.end() :]
    gap = _TITLE_END.search(remainder, 0, limit) or _TITLE_END_SINGLE.search(remainder, 0, limit)
    if gap:
        return _join_blanks(f"{name} {remainder[: gap.start()]}"), remainder[gap.end() :]
    return name, remainder


def _is_title(name: str, title: str) -> bool:
    """Return True if the text after the number of a chapter is its title, not the start of the chapter.

    Clauses of a title are equally long, but for those of modern chapters.
    """
    if name[-1] == "章" and _QUOTATION.fullmatch(title):
        return True
    clauses = re.split("[，、；]", title)
    is_even = all(len(clause) == len(clauses[0]) for clause in clauses) or name[-1] in "章节節"
    return is_even and not _SENTENCE.search(title)


def _parse_own_line(line: str) -> tuple[str, str] | None:
    """Return the title of a line that is a heading only as a complete line."""
    if len(line) > MAX_TITLE + _MAX_PREFIX:
        return None
    heading = _OWN_LINE.match(line)
    if not heading:
        return None
    remainder = line[heading.end() :]
    if _SENTENCE.search(remainder) or _NUMBER_OF_KIND.search(remainder) or _END_MARK.fullmatch(remainder.strip(BLANKS)):
        return None
    is_closed = heading.group()[-1] in "】）〕〗》〉＞>)]" + _SEPARATORS + BLANKS
    return (_join_blanks(line), "") if is_closed or not remainder or remainder[0] in BLANKS + "·・/／：" else None


def _join_blanks(title: str) -> str:
    return " ".join(title.split())

"""Text files become text: what encoding their bytes are in, and whether they are a text at all.

A byte order mark is proof. Without one, bytes that are UTF-8 throughout are UTF-8. Others are read as GB18030, as Big5
and as UTF-16: in the right one Chinese is full of common characters and of ，。, in a wrong one there are next to none
(18,000 pieces of novels and poems, of 50 characters and more, score 0.2 to 1 there and 0.08 at most elsewhere). To take
the first one that fits would not do: the codec of GB18030 accepts the bytes of Big5. Where none wins clearly, nothing
is guessed.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.errors import BadConfig, BadData
from pipeline.readers.compression import blocks
from pipeline.runtime.progress import Advance

AUTO = "auto"
HEAD = 1 << 16  # bytes by which an encoding is told
_ENOUGH = 1 << 13  # bytes of these that are looked at first, which most often do
_WINDOW = 1 << 10  # bytes by which binary data is told
_CLEAR = 0.3  # the score that the right encoding has at least, and by which it leads
_SURE = 0.45  # a score that no Japanese or Korean text has
_HITS = 8  # common characters without which there is no score

_BIG5 = ("cp950", "big5hkscs")
_UTF_16 = ("utf-16-le", "utf-16-be")
# GB2312 and GBK are parts of GB18030; cp950 is Big5 as it is written, which has 裏 and 恒
_MEANT = {"gb2312": "gb18030", "gbk": "gb18030", "big5": "cp950"}
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\0\0", "utf-32-le"),  # before that of UTF-16, with which it begins
    (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
    (b"\x84\x31\x95\x33", "gb18030"),
)

_KINDS = (  # the place of some bytes in a file, the bytes, and what the file is then
    (0, b"%PDF", "a PDF"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Word file"),
    (0, b"{\\rtf", "an RTF file"),
    (60, b"BOOKMOBI", "a Kindle book"),
    (0, b"AT&TFORM", "a DjVu file"),
    (0, b"\x1f\x8b\x08", "gzip data"),
    (0, b"\x28\xb5\x2f\xfd", "zstd data"),
    (0, b"\xfd7zXZ\0", "xz data"),
    (4, b"1AY&SY", "bzip2 data"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"GIF8", "a GIF picture"),
    (0, b"SQLite format 3\0", "an SQLite database"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"\x7fELF", "a program"),
)
_ZIPS = (
    (b"mimetypeapplication/epub+zip", "an EPUB book"),
    (b"mimetypeapplication/vnd.oasis.opendocument", "an OpenDocument file"),
    (b"word/", "a Word file"),
    (b"xl/", "an Excel file"),
)
_SUFFIXES = {"gzip data": ".gz", "zstd data": ".zst", "a Parquet file": ".parquet"}

_NOT_ASCII, _ASCII = re.compile(rb"[\x80-\xff]"), re.compile(r"[\0-\x7f]+")
_NO_TEXT = bytes({*range(0x20), 0x7F} - {*b"\t\n\v\f\r\x1a\x1b"})  # what no text has many of
_RUNS = re.compile(r"[^\0-\x7f]{2,}")  # in Latin text that is read as Chinese they stand alone, between letters
_ODD = re.compile(  # controls, Greek and Cyrillic, Hangul, box drawing, kana and bopomofo, private use
    r"[\0-\x08\x0e-\x1f\x7f-\x9f\u0370-\u052f\u1100-\u11ff\u2500-\u259f\u3040-\u312f\uac00-\ud7af\ue000-\uf8ff\ufffd]"
)
_KANA, _HANGUL = re.compile("[\u3041-\u30ff]+"), re.compile("[\uac00-\ud7a3]+")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff〇]+")

_COMMON = (  # the commonest of novels, poems and news, of simplified and of traditional text, and their marks
    "一七万三上下不与专且世业东两並个中为主么义之九也书了争事二于云五些交亦产京亭亲人什今从他仙代令以们件任休众会"
    "传似但位住体何作你使來依便保信個們倒候倚做傳像儿元兄先光党入內全兩八公六共关兵其内再写军决几出刀分则初別利别"
    "到制則前力办功加务动動務包化北区區十千半华单南即却卷历原去又及友双反发取受变口古只叫可台史司吃各合同名后向君"
    "吟听吴吹告员呢周命和品哥商問喜單四回因国國在地场坏坐垂城基堂堪報場士声处外多夜大天太夫失头女她好如始委子字孙"
    "孤学孩學它安宋完官定实客家容寄寒實寨寫对寻导将將專對導小少尚就尽居展山州工己已市师帘带師帶常干平年并幽幾广应"
    "府度庭廣建开式引弟张張强归当形影往待很後得從微德心必志快念怎思性总恨恩息情想愁意感應成我或战戰房所手才打找技"
    "把报拿持指据接提據收改放政故教散数數文斜断斯新方於无日旧早时明易星春是時晚景暗暮曲更書曾最會月有服望朝期木未"
    "本术朱机杀权李条来杨杯東松极林果枝柳校样桃梁梅條梦業極楼横樹機權次欲歌正此步武歷歸死每比毛氏民气氣水求汉江池"
    "沈沒沙没河治法波活派流济浮海深清游湖溪满滿濟火点為烟無然照燕爭爱爲父片版物特玉王现珠現理甚生產用由电界留當發"
    "白百的盡目直相看真眼眾着知石研碧社神离秋种科程種究空窗立站竹笑第等算管系紅紫給總红组经结给统绿网美義翠老者而"
    "联聯聲胜能脸臉自至與舞船色花芳若苦英草莫華萬落著處虽行衣表被西要見視见观视觉解言記設詩話語說論識議變计认让议"
    "记许论设识话该语说请读谁调象資资走起越跟路身車輕轉车转轻辦边达过运近还这进远连送這通造逢連進遊運過道達遠還邊"
    "那郎部都酒醉里重量金錢钱银長长門開間關门问闲间队阳际院陽随際难雖雙離難雨雪雲電霜露青非面革音領題须领题風风飛"
    "飞首香馬马體高麼黃黄點黨龙"
    "，。、：；！？“”‘’「」『』《》（）—…·\u3000"
)


@dataclass
class Facts:
    """What reading a text file tells about it; complete when the last piece of its text has come."""

    encoding: str = ""
    mark: bytes = b""  # the byte order mark that it began with, which is no part of the text
    cut: bytes = b""  # the bytes of a last character that is not whole, which is not in the text either
    cut_at: int = 0  # and their offset in the decompressed file


def text(path: Path, facts: Facts, *, encoding: str = AUTO, advance: Advance = lambda count: None) -> Iterator[str]:
    """The text of a file in pieces, some of them empty; `facts` is filled on the way.

    A byte order mark is proof of its encoding, whatever `encoding` says. Raises BadData for what is empty or no text,
    has bytes that are not of its encoding, or is in none that can be told; BadConfig where there is no `encoding`.
    """
    asked, name, blank, offset = _asked(encoding), "", True, 0
    found = blocks(path, advance)
    decoder = codecs.getincrementaldecoder("ascii")()
    try:
        for offset, block in _told(found, asked, facts):
            if name != facts.encoding:  # at first, and where the first character comes that is not ASCII
                name = facts.encoding
                decoder = codecs.getincrementaldecoder(name)()
            pending = decoder.getstate()[0]
            start = offset - len(pending)
            try:
                piece = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                if block:
                    _refuse_zeros(error.object[: error.start].decode(name), name, start)
                    after = error.object[error.start :] + next(found, b"")
                    raise _not_of(name, start + error.start, after, asked) from None
                facts.cut, facts.cut_at, piece = pending, start, ""
            _refuse_zeros(piece, name, start)
            blank = blank and (not piece or piece.isspace())
            yield piece
        if blank:
            what = "there is only white space in it" if offset > len(facts.mark) else "the file is empty"
            raise BadData(what, hint="leave it out, or look at where it comes from")
    except BadData as error:
        if error.what.startswith(f"{path}: "):  # as what is said about its compression
            raise
        raise BadData(f"{path}: {error.what}", hint=error.hint) from None


def detect(head: bytes, *, whole: bool) -> str:
    """The encoding of a text of which this is the `head`, or the `whole`; "ascii" where nothing tells one yet.

    Raises BadData, which does not name the file, for what is no text, or in no encoding that can be told.
    """
    _refuse_other_kinds(head)
    return _marked(head)[1] or _recognised(head, whole, 0)


def share_of_han(text: str) -> float:
    """How much of a text is Han characters, of all that is not white space; 0 where there is nothing else."""
    size = sum(map(len, text.split()))
    return sum(map(len, _HAN.findall(text))) / size if size else 0.0


def _told(found: Iterator[bytes], asked: str, facts: Facts) -> Iterator[tuple[int, bytes]]:
    """The blocks of a file with their offsets, and an empty one last; before each, `facts` knows its encoding."""
    head, whole = _head(found, HEAD)
    facts.mark, _ = _marked(head)
    facts.encoding = detect(head, whole=whole) if asked == AUTO else _confirmed(asked, head, whole)
    offset = len(facts.mark)
    block = head[offset:]
    while block:
        yield offset, block
        offset += len(block)
        if asked == AUTO and facts.encoding == "ascii":
            block, whole = _head(found, 1)
            facts.encoding = _recognised(block, whole, offset)
        else:
            block = next(found, b"")
    yield offset, b""


def _head(found: Iterator[bytes], size: int) -> tuple[bytes, bool]:
    """The next `size` bytes at least, with all that tells their encoding, and whether the file ends with them."""
    held, whole = _take(found, size)
    if not whole and not held.isascii():
        more, whole = _take(found, _beyond_ascii(held) + HEAD - len(held))
        held += more
    return held, whole


def _take(found: Iterator[bytes], size: int) -> tuple[bytes, bool]:
    """The next blocks, `size` bytes or more together, and whether the file ends with them."""
    taken, left = list[bytes](), size
    while left > 0:
        if not (block := next(found, b"")):
            return b"".join(taken), True
        taken.append(block)
        left -= len(block)
    return b"".join(taken), False


def _beyond_ascii(data: bytes) -> int:
    """Where the first byte lies that is not ASCII."""
    first = _NOT_ASCII.search(data)
    return first.start() if first else len(data)


def _asked(encoding: str) -> str:
    """Python's name of an encoding, and of the wider one where a narrow one is named."""
    if encoding == AUTO:
        return AUTO
    try:
        "".encode(encoding)  # refuses what is no encoding of text, as base64
        name = codecs.lookup(encoding).name
    except (LookupError, ValueError):
        raise BadConfig(f"there is no encoding {encoding!r}", hint="for example auto, utf-8, gb18030, big5") from None
    return _MEANT.get(name, name)


def _confirmed(asked: str, head: bytes, whole: bool) -> str:
    """The encoding that was asked for. Raises BadData where the text would pass for it, and is clearly in another."""
    _refuse_other_kinds(head)
    if marked := _marked(head)[1]:
        return marked
    if asked.startswith("utf-8"):  # which takes nothing else for its own
        return asked
    try:
        seen = _recognised(head, whole, 0)
    except BadData:
        seen = ""
    if asked == "utf-16":
        if seen in _UTF_16:
            return seen
        raise BadData("UTF-16 without a byte order mark", hint="say --encoding utf-16-le or utf-16-be")
    if seen in ("", "ascii", asked) or {seen, asked} <= {*_BIG5}:
        return asked
    if seen == "utf-8" and len(_NOT_ASCII.findall(head[:HEAD])) < 4 * _HITS:  # too few to know better
        return asked
    raise BadData(f"--encoding {asked}, but what is in it is {seen}", hint="leave --encoding out for this file")


def _recognised(head: bytes, whole: bool, offset: int) -> str:
    """What `detect` tells of a head without a mark that begins at `offset` of its file, after nothing but ASCII."""
    begin = b"" if offset else head[:HEAD]  # UTF-16 would have been told from the first byte on
    if _is_binary(begin):
        if name := _winner(_scores(begin[:_ENOUGH], b"")) or _winner(_scores(begin, b"")):
            return name
        place = next(place for place, byte in enumerate(begin) if byte in _NO_TEXT)
        fault = _fault(begin[:place])
        raise _binary(fault if fault >= _WINDOW else place)
    if head.isascii():
        if b"\x1b$" in begin:
            raise BadData("it changes its encoding by escapes (ISO-2022)", hint="say --encoding iso2022_jp or its like")
        return "ascii"
    start = _beyond_ascii(head)
    sample = head[start : start + HEAD]
    if _reads_as_utf8(sample, whole and start + HEAD >= len(head)):
        return "utf-8"
    scores = _scores(begin[:_ENOUGH], sample[:_ENOUGH])
    if max(scores.values()) < _SURE:
        scores = _scores(begin, sample)
    name = _winner(scores)
    if max(scores.values()) < _SURE and (other := _japanese_or_korean(sample)):
        raise BadData(f"it reads as Japanese or Korean in {other}", hint=f"say --encoding {other}")
    if name:
        return name
    if _is_binary(sample[:_WINDOW]):
        raise _binary(offset + start)
    seen = ", ".join(f"{max(score, 0):.0%} as {name}" for name, score in scores.items())
    place = start + _fault(sample)
    raise BadData(
        f"its encoding cannot be told: not UTF-8 (byte {head[place]:#04x} at offset {offset + place:,}), "
        f"and too little of it is common Chinese ({seen})",
        hint="name it with --encoding, for example gb18030, big5, shift_jis, euc_jp, euc_kr, cp1252",
    )


def _reads_as_utf8(sample: bytes, whole: bool) -> bool:
    """Whether bytes, the first of them not ASCII, are UTF-8: all of them, but for a cut last one and a few bad ones."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    found = decoder.decode(sample)
    wrong = found.count("\ufffd")
    right = _count_beyond_ascii(found) - wrong
    doubted = wrong or (whole and decoder.getstate()[0])
    return right >= max(16, 4 * wrong) if doubted else bool(right) or not whole


def _fault(data: bytes) -> int:
    """Where bytes stop being UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(data)


def _japanese_or_korean(sample: bytes) -> str:
    """The encoding in which bytes are full of kana or Hangul without a fault. As GB18030 or Big5 such text may have as
    many common characters as some poems; and Chinese text in none of the three is that, for more than a few words.
    """
    for name, script, share in (("euc_jp", _KANA, 0.2), ("shift_jis", _KANA, 0.2), ("euc_kr", _HANGUL, 0.85)):
        found = _read(sample, name)
        count, han = (sum(map(len, each.findall(found))) for each in (script, _HAN))
        if "\ufffd" not in found and count >= max(_HITS, share * (count + han)):
            return name
    return ""


def _scores(begin: bytes, sample: bytes) -> dict[str, float]:
    """How much like Chinese text, or any in UTF-16, a file reads that begins so and has `sample` at its first byte that
    is not ASCII: by encoding, 1 at most.
    """
    big5 = min(_BIG5, key=lambda name: _read(sample, name).count("\ufffd"))
    candidates = [(name, sample) for name in ("gb18030", big5) if sample]
    candidates += [(name, begin) for name in _UTF_16 if begin]
    return {name: _score(_read(data, name), name) for name, data in candidates}


def _read(data: bytes, name: str) -> str:
    """Bytes as text, whatever they are; without a cut last character."""
    return codecs.getincrementaldecoder(name)("replace").decode(data)


def _score(found: str, name: str) -> float:
    size = _count_beyond_ascii(found)
    runs = "".join(_RUNS.findall(found))
    hits = len(runs) - len(_common().sub("", runs))
    if name in _UTF_16:  # in which ASCII is a proof too: each letter with a byte of zeros
        hits += sum(map(len, re.findall(r"[\t\n\r -~]+", found)))
        size = len(found)
    return (hits - len(_ODD.findall(found))) / size if hits >= _HITS else 0.0


def _count_beyond_ascii(text: str) -> int:
    return len(text) - sum(map(len, _ASCII.findall(text)))


@cache
def _common() -> re.Pattern[str]:
    return re.compile(f"[{_COMMON}]+")


def _winner(scores: Mapping[str, float]) -> str:
    """The encoding with the best score, "" where that is not clear."""
    best = max(scores, key=lambda name: scores[name])
    others = [score for name, score in scores.items() if name != best]
    return best if scores[best] >= _CLEAR and scores[best] - max(others) >= _CLEAR else ""


def _marked(head: bytes) -> tuple[bytes, str]:
    """The byte order mark at the beginning, and the encoding that it proves; nothing where there is none."""
    return next(((mark, name) for mark, name in _MARKS if head.startswith(mark)), (b"", ""))


def _refuse_other_kinds(head: bytes) -> None:
    """Raises BadData for the kinds of files that are taken for texts most often."""
    kind = next((kind for place, magic, kind in _KINDS if head.startswith(magic, place)), "")
    if head.startswith(b"PK\x03\x04"):
        kind = next((each for magic, each in _ZIPS if magic in head[:HEAD]), "a ZIP archive")
    if kind:
        suffix = _SUFFIXES.get(kind)
        hint = f"let its name end in {suffix}" if suffix else "save what it holds as plain text (.txt) first"
        raise BadData(f"{kind}, not a text", hint=hint)


def _refuse_zeros(piece: str, name: str, start: int) -> None:
    if (place := piece.find("\0")) >= 0:
        raise _binary(start + len(piece[:place].encode(name, "replace")))


def _is_binary(data: bytes) -> bool:
    """Whether bytes have a zero among them, or more control characters than any text."""
    return b"\0" in data or len(data) - len(data.translate(None, _NO_TEXT)) > max(8, len(data) // 100)


def _binary(place: int) -> BadData:
    if place < _WINDOW:
        hint = "leave it out; or, if it is UTF-16 without a byte order mark, say --encoding utf-16-le or utf-16-be"
        return BadData(f"binary data, not a text (at offset {place:,})", hint=hint)
    return BadData(
        f"a text up to offset {place:,}, and binary data after it",
        hint=f"get the file again, or keep its beginning with `head -c {place}`",
    )


def _not_of(name: str, place: int, after: bytes, asked: str) -> BadData:
    """What to say of bytes that are not of the encoding `name`; `after` is what the file has from them on."""
    if _is_binary(after[:_WINDOW]):
        return _binary(place)
    return BadData(
        f"not {name} text: byte {after[0]:#04x} at offset {place:,}",
        hint="what comes before is that: mend it there, or name another with --encoding"
        if asked == AUTO
        else "leave --encoding out, name the right one (gb18030, big5, utf-16), or check that it is a text",
    )

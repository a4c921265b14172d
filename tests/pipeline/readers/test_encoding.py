"""Text files: every encoding decodes to the same text; other files and undetected encodings are errors."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import BadConfig, BadData
from pipeline.readers import compression, content, readers
from pipeline.readers import encoding as encodings
from pipeline.readers.detection.scores import han_ratio
from pipeline.readers.documents import Document, Reject
from pipeline.readers.encoding import HEAD_BYTES, EncodingStats, detect
from pipeline.runtime.ledger import Ledger

ROOT = Path(__file__).resolve().parents[3]
BOOK = (ROOT / "pipeline" / "sample" / "yanshan.txt").read_text(encoding="utf-8-sig")
POEM = "秦川雄帝宅，函谷壯皇居。\n綺殿千尋起，離宮百雉餘。\n連甍遙接漢，飛觀迥凌虛。\n雲日隱層闕，風煙出綺疏。\n"

# Variants of a text file: the detected name, and how it is encoded.
VARIANTS: dict[str, tuple[str, Callable[[str], bytes]]] = {
    "utf-8": ("utf-8", lambda text: text.encode()),
    "utf-8 with a mark": ("utf-8", lambda text: text.encode("utf-8-sig")),
    "utf-16-le": ("utf-16-le", lambda text: text.encode("utf-16-le")),
    "utf-16-be": ("utf-16-be", lambda text: text.encode("utf-16-be")),
    "utf-16-le with a mark": ("utf-16-le", lambda text: ("\ufeff" + text).encode("utf-16-le")),
    "utf-16-be with a mark": ("utf-16-be", lambda text: ("\ufeff" + text).encode("utf-16-be")),
    "utf-32-le with a mark": ("utf-32-le", lambda text: ("\ufeff" + text).encode("utf-32-le")),
    "utf-32-be with a mark": ("utf-32-be", lambda text: ("\ufeff" + text).encode("utf-32-be")),
    "gb18030": ("gb18030", lambda text: text.encode("gb18030")),
    "gb18030 with a mark": ("gb18030", lambda text: ("\ufeff" + text).encode("gb18030")),
}
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "a.txt": bytes,
    "a.txt.gz": gzip.compress,
    "a.txt.zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


def file_of(folder: Path, data: bytes, name: str = "a.txt") -> Path:
    path = folder / name
    path.write_bytes(PACKINGS[name](data) if name in PACKINGS else data)
    return path


def read(path: Path, encoding: str = "auto") -> tuple[list[Document], list[Reject], Ledger]:
    """Read a file, and close its ledger."""
    ledger, rejects = Ledger(), list[Reject]()
    documents = list(readers.read_documents(path, ledger, rejects.append, encoding=encoding))
    ledger.documents.out += len(documents)
    ledger.characters.out += sum(len(document.text) for document in documents)
    ledger.close(max_bad=0)
    return documents, rejects, ledger


def text_of(path: Path, encoding: str = "auto") -> tuple[str, EncodingStats]:
    stats = EncodingStats()
    return "".join(encodings.read_text(path, stats, encoding=encoding)), stats


def refused(path: Path, encoding: str = "auto") -> BadData:
    """Return the error of a file: one line that names it, with a hint, the same from both readers."""
    with pytest.raises(BadData) as caught:
        read(path, encoding)
    with pytest.raises(BadData) as caught_again:
        list(readers.read_json_lines(path, encoding=encoding))
    assert caught.value.message.startswith(f"{path}: ")
    assert caught.value.message.count(str(path)) == 1
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert str(caught_again.value) == str(caught.value)
    return caught.value


def in_big5(text: str) -> str:
    """Return the characters of a text that Big5 can encode, in Python's table and in Microsoft's."""
    encodable = (
        character for character in text if character.encode("big5", "ignore").decode("cp950", "ignore") == character
    )
    return "".join(encodable)


# The same text in every encoding


@pytest.mark.parametrize("name", PACKINGS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_book_is_the_same_document_in_every_encoding_and_compression(tmp_path: Path, variant: str, name: str) -> None:
    encoding, encode = VARIANTS[variant]
    path = file_of(tmp_path, encode(BOOK), name)
    (document,), rejects, ledger = read(path)
    assert document == Document(BOOK, file=name)
    assert rejects == []
    assert ledger.characters.came == len(BOOK)
    _, stats = text_of(path)
    assert (stats.encoding, stats.truncated_bytes) == (encoding, b"")
    assert bool(stats.byte_order_mark) == ("mark" in variant)


def test_novel_and_songs_are_the_same_text_in_every_encoding(tmp_path: Path, shared: Path) -> None:
    for name in ("shuihu_raw.txt", "song_ci.txt"):
        text = (shared / "data" / name).read_text(encoding="utf-8-sig")
        assert text_of(shared / "data" / name)[0] == text
        for variant in ("gb18030", "utf-16-le", "utf-16-be with a mark"):
            encoding, encode = VARIANTS[variant]
            decoded, stats = text_of(file_of(tmp_path, encode(text)))
            assert decoded == text
            assert stats.encoding == encoding
        encodable = in_big5(text[:300_000])
        assert text_of(file_of(tmp_path, encodable.encode("big5")))[0] == encodable


@pytest.fixture(scope="module")
def poems(shared: Path) -> list[str]:
    """Poems of the Tang in traditional characters."""
    lines = b"".join(compression.read_blocks(shared / "data" / "tang_poems.jsonl.zst")).splitlines()
    return [json.loads(line)["text"] for line in lines]


def test_traditional_poems_round_trip_in_big5(tmp_path: Path, poems: list[str]) -> None:
    text = "\n".join(poem for poem in poems[:10_000] if in_big5(poem) == poem)
    assert len(text) > 100_000
    for encoding in ("big5", "cp950", "big5hkscs"):
        decoded, stats = text_of(file_of(tmp_path, text.encode(encoding)))
        assert decoded == text
        assert stats.encoding in ("cp950", "big5hkscs")


def test_hong_kong_characters_are_read_as_big5hkscs(tmp_path: Path) -> None:
    text = POEM * 3 + "佢哋嘅嘢喺嗰度啲人都冇咗"
    decoded, stats = text_of(file_of(tmp_path, text.encode("big5hkscs")))
    assert (decoded, stats.encoding) == (text, "big5hkscs")


@pytest.mark.parametrize("size", [50, 120, 1000])
def test_heads_of_real_texts_are_never_detected_wrongly(poems: list[str], shared: Path, size: int) -> None:
    texts = [(shared / "data" / name).read_text(encoding="utf-8-sig") for name in ("shuihu_raw.txt", "song_ci.txt")]
    texts.append("\n".join(poems))
    draw, detected_count, total = random.Random(size), 0, 0
    for text in texts:
        for encoding in ("utf-8", "gb18030", "cp950", "utf-16-le", "utf-16-be"):
            for start in [0, *(draw.randrange(len(text) - size) for _ in range(60))]:
                head = text[start : start + size]
                head = in_big5(head) if encoding == "cp950" else head
                total += 1
                try:
                    detected = detect(head.encode(encoding), is_complete=True)
                except BadData:
                    continue
                assert detected == encoding, head
                detected_count += 1
    assert detected_count >= 0.99 * total


def test_big5_is_never_detected_as_gb18030(poems: list[str]) -> None:
    mistaken = 0
    for poem in poems[::7]:
        data = in_big5(poem).encode("big5")
        try:
            data.decode("gb18030")
            mistaken += 1
        except UnicodeDecodeError:
            pass
        try:
            assert detect(data, is_complete=True) in ("cp950", "big5hkscs", "ascii")
        except BadData:
            assert len(poem) < 80
    assert mistaken > 100, "GB18030 decodes many of them"


SMALL = BOOK[:300].replace("\n", "\n\nEnglish too: caf\u00e9\n", 2)


@given(
    variant=st.sampled_from(sorted(VARIANTS)),
    cuts=st.lists(st.integers(0, 3000), max_size=12),
    ascii_first=st.sampled_from([0, 1, 100]),
)
@settings(max_examples=80)
def test_text_is_the_same_for_any_blocks(
    tmp_path_factory: pytest.TempPathFactory, variant: str, cuts: list[int], ascii_first: int
) -> None:
    text = "a line in English\n" * ascii_first + SMALL
    data = VARIANTS[variant][1](text)
    boundaries = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    blocks = [data[start:end] for start, end in pairwise(boundaries)]
    path = file_of(tmp_path_factory.mktemp("blocks"), data)
    with pytest.MonkeyPatch.context() as patch:
        for module in (encodings, content):
            patch.setattr(module, "read_blocks", lambda path, advance: iter(blocks))
        patch.setattr(encodings, "HEAD_BYTES", 600)  # so that the sample ends within the text
        decoded, stats = text_of(path)
        assert (decoded, stats.encoding) == (text, VARIANTS[variant][0])
        line = b"".join(readers.read_json_lines(path))
    assert json.loads(line) == {"text": text}


@given(text=st.text(st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"]), max_size=60), size=...)
@settings(max_examples=60)
def test_text_with_a_mark_or_a_requested_encoding_round_trips(
    tmp_path_factory: pytest.TempPathFactory, text: str, size: bool
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.txt"
    for requested, written in (("auto", "utf-8-sig"), ("auto", "utf-16"), ("gb18030", "utf-16"), ("utf-8", "utf-8")):
        path.write_bytes(text.encode(written))
        if text.strip():
            try:
                assert text_of(path, requested)[0] == text
            except BadData as error:  # as "{\\rtf"
                assert "not text" in error.message or "binary" in error.message  # noqa: PT017
        else:
            refused(path, requested)


# A first non-ASCII character far from the beginning


@pytest.mark.parametrize("before", [10, HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + 1, 3 * HEAD_BYTES + 5, 5 << 20])
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "big5"])
def test_chinese_after_a_long_ascii_head_is_detected(tmp_path: Path, before: int, encoding: str) -> None:
    text = ("The Project Gutenberg EBook, and so on.\n" * (before // 40 + 1))[:before] + POEM * 4 + "The end.\n" * 9
    for name in PACKINGS if before < 1 << 20 else ["a.txt"]:
        decoded, stats = text_of(file_of(tmp_path, text.encode(encoding), name))
        assert decoded == text
        assert stats.encoding == {"big5": "cp950"}.get(encoding, encoding)


def test_ascii_text_is_detected_as_ascii(tmp_path: Path) -> None:
    for text in ("English.\n", "English.\n" * 20_000):
        decoded, stats = text_of(file_of(tmp_path, text.encode()))
        assert (decoded, stats.encoding) == (text, "ascii")
        decoded, stats = text_of(file_of(tmp_path, text.encode("utf-16-le")))
        assert (decoded, stats.encoding) == (text, "utf-16-le")


def test_head_may_end_within_a_character_and_a_complete_text_may_not() -> None:
    data = ("abc" + "水" * 100).encode()
    for cut in range(len(data) - 3, len(data)):
        assert detect(data[:cut], is_complete=False) == "utf-8"
    assert detect(b"abc\xe6\xb0", is_complete=False) == "utf-8"
    with pytest.raises(BadData):
        detect(b"abc\xe6\xb0", is_complete=True)
    assert detect(b"abc", is_complete=False) == detect(b"abc", is_complete=True) == "ascii"


def test_memory_is_constant_for_long_texts(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("the peak is read from /proc")
    script = (
        "import sys\nfrom pathlib import Path\nfrom pipeline.readers import encoding as encodings\n"
        "size = sum(map(len, encodings.read_text(Path(sys.argv[1]), encodings.EncodingStats())))\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(size, int(status.split('VmHWM:')[1].split()[0]) // 1024)\n"
    )

    long = random.Random(1).randbytes(20_000_000).hex()
    for text, encoding in ((long + POEM * 10, "big5"), (POEM * 400_000, "utf-8")):
        path = file_of(tmp_path, text.encode(encoding))
        command = [sys.executable, "-c", script, str(path)]
        process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=True)
        size, megabytes = map(int, process.stdout.split())
        assert size == len(text)
        assert megabytes < 75


# Without a clear winner nothing is guessed

ENGLISH = "“Well, Prince,” she said, “if you don’t tell me that this means war…” He’d nothing to say — not a word.\n"
FRENCH = (
    "Longtemps, je me suis couché de bonne heure. Parfois, à peine ma bougie éteinte, créée ; où ça ? réélu, Noël.\n"
)
GERMAN = "Als Gregor Samsa eines Morgens aus unruhigen Träumen erwachte, fand er sich auf seinem Rücken; größer, süß.\n"
DENSE = "Le café était fermé. Il faisait très froid à l’été. Il faisait très froid à l’été.\n"
SPANISH = "¿Qué dices? —preguntó el niño. ¡No lo sé! Mañana vendrá «¿quién?» y nada más.\n"
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n"
GREEK = "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.\n"
THAI = "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ ต่างมีเหตุผลและมโนธรรม\n"
KOREAN = (
    "모든 국민은 법 앞에 평등하다. 누구든지 성별·종교 또는 사회적 신분에 의하여 정치적·경제적·사회적 생활의 모든 "
    "영역에 있어서 차별을 받지 아니한다. 동해 물과 백두산이 마르고 닳도록 하느님이 보우하사 우리나라 만세.\n"
)
JAPANESE = (
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所でニャーニャー泣いて"
    "いた事だけは記憶している。吾輩はここで始めて人間というものを見た。\n"
)
FOREIGN = [
    (ENGLISH, "mac_roman"),
    ("An old man said ，no more than this ，and went home.\n", "big5"),
    (FRENCH, "cp850"),
    (FRENCH, "mac_roman"),
    (GERMAN, "cp437"),
    *((RUSSIAN, name) for name in ("cp1251", "koi8-r", "cp866")),
    (GREEK, "iso8859-7"),
    (THAI, "tis-620"),
    (KOREAN, "euc_kr"),
    *((JAPANESE, name) for name in ("shift_jis", "euc_jp", "iso2022_jp")),
]


@pytest.mark.parametrize(("text", "encoding"), FOREIGN, ids=[f"{text[:5]}-{encoding}" for text, encoding in FOREIGN])
def test_other_encodings_are_refused_unless_requested(tmp_path: Path, text: str, encoding: str) -> None:
    for times in (1, 30, 2000):
        path = file_of(tmp_path, text.encode(encoding, "ignore") * times)
        error = refused(path)
        assert "--encoding" in error.hint
        assert "binary" not in error.message
        assert text_of(path, encoding)[0] == text.encode(encoding, "ignore").decode(encoding) * times


@pytest.mark.parametrize("size", [30, 60, 100])
def test_short_japanese_and_korean_extracts_are_refused(size: int) -> None:
    for text, encoding in ((KOREAN, "euc_kr"), (JAPANESE, "euc_jp"), (JAPANESE, "shift_jis")):
        for start in range(len(text) - size):
            with pytest.raises(BadData):
                detect(text[start : start + size].encode(encoding), is_complete=True)


def test_japanese_and_korean_errors_name_their_encoding() -> None:
    for text, encoding in ((KOREAN, "euc_kr"), (JAPANESE, "euc_jp"), (JAPANESE, "shift_jis")):
        with pytest.raises(BadData, match="the text is Japanese or Korean") as caught:
            detect(text.encode(encoding), is_complete=True)
        assert caught.value.hint == f"pass --encoding {encoding}"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [(ENGLISH, "cp1252"), (FRENCH, "latin-1"), (GERMAN, "latin-1"), (DENSE, "cp1252"), (SPANISH, "cp1252")],
)
@pytest.mark.parametrize("times", [1, 30, 2000])
def test_western_text_is_read(tmp_path: Path, text: str, encoding: str, times: int) -> None:
    text = text.encode(encoding, "ignore").decode(encoding) * times
    decoded, stats = text_of(file_of(tmp_path, text.encode(encoding)))
    assert decoded == text
    assert stats.encoding == "cp1252"


@pytest.mark.parametrize("encoding", ["cp1251", "koi8-r", "cp866", "iso8859-5"])
def test_error_names_the_likely_encoding_of_russian_text(tmp_path: Path, encoding: str) -> None:
    for text in (RUSSIAN, f"Chapter 1\n\n{RUSSIAN * 2000}"):
        assert refused(file_of(tmp_path, text.encode(encoding))).hint == (
            f"it looks like Russian: pass --encoding {encoding}"
        )
    for text, other in ((GREEK, "iso8859-7"), (THAI, "tis-620"), (ENGLISH, "mac_roman")):
        assert "for example gb18030" in refused(file_of(tmp_path, text.encode(other, "ignore"))).hint


def test_undetected_encoding_reports_scores_and_first_invalid_byte(tmp_path: Path) -> None:
    data = "naïve — and ".encode() * 2 + ENGLISH.encode("cp1252")
    error = refused(file_of(tmp_path, data))
    offset = data.index(b"\x93")
    assert f"the encoding was not detected: not UTF-8 (byte 0x93 at offset {offset:,})" in error.message
    assert "0% as gb18030, 0% as " in error.message
    assert "cp1252" in error.hint
    late = b"plain English\n" * 10_000
    error = refused(file_of(tmp_path, late + data))
    assert f"byte 0x93 at offset {len(late) + offset:,})" in error.message


def test_other_languages_in_utf8_are_read(tmp_path: Path) -> None:
    for text in (ENGLISH, FRENCH * 1000, RUSSIAN, GREEK, THAI, KOREAN, JAPANESE):
        decoded, stats = text_of(file_of(tmp_path, text.encode()))
        assert (decoded, stats.encoding) == (text, "utf-8")


def test_han_ratio_distinguishes_chinese() -> None:
    assert han_ratio("水 滸\n傳") == 1
    assert han_ratio("水，a\n") == pytest.approx(1 / 3)
    assert han_ratio("𠮷〇㐀") == 1
    assert han_ratio(" \n") == han_ratio("") == han_ratio(ENGLISH) == 0
    assert han_ratio(BOOK) > 0.7
    assert 0 < han_ratio(JAPANESE) < 0.5


# A requested encoding


@pytest.mark.parametrize("requested", ["gb2312", "GBK", "cp936", "gb18030"])
def test_gb2312_and_gbk_are_read_as_gb18030(tmp_path: Path, requested: str) -> None:
    text = "𠮷䶮\n" + BOOK[:200]
    assert text_of(file_of(tmp_path, text.encode("gb18030")), requested) == (text, EncodingStats("gb18030"))


def test_big5_is_read_as_cp950(tmp_path: Path) -> None:
    assert text_of(file_of(tmp_path, "這裏".encode("cp950")), "big5")[0] == "這裏"


@pytest.mark.parametrize("requested", ["gb18030", "big5", "utf-16-le", "latin-1", "shift_jis", "utf-8"])
def test_byte_order_mark_overrides_the_requested_encoding(tmp_path: Path, requested: str) -> None:
    for variant in (variant for variant in VARIANTS if "mark" in variant):
        assert text_of(file_of(tmp_path, VARIANTS[variant][1](BOOK)), requested)[0] == BOOK


@pytest.mark.parametrize("order", ["le", "be"])
def test_utf16_without_a_mark_is_read_by_its_exact_name(tmp_path: Path, order: str) -> None:
    path = file_of(tmp_path, BOOK.encode(f"utf-16-{order}"))
    assert text_of(path, "utf-16")[0] == BOOK
    russian = file_of(tmp_path, RUSSIAN.encode(f"utf-16-{order}"))
    error = refused(russian, "utf-16")
    assert "without a byte order mark" in error.message
    assert text_of(russian, f"utf-16-{order}")[0] == RUSSIAN
    assert "utf-16-le or utf-16-be" in refused(russian).hint


@pytest.mark.parametrize(
    ("requested", "data", "detected"),
    [
        ("gb18030", POEM.encode("big5"), "cp950"),
        ("big5", BOOK.encode("gb18030"), "gb18030"),
        ("gb18030", BOOK.encode(), "utf-8"),
        ("latin-1", BOOK.encode(), "utf-8"),
        ("cp1252", BOOK.encode("gb18030"), "gb18030"),
        ("utf-16-be", BOOK.encode("utf-16-le"), "utf-16-le"),
        ("utf-16-le", BOOK.encode("gb18030"), "gb18030"),
    ],
)
def test_text_clearly_in_another_encoding_than_requested_is_refused(
    tmp_path: Path, requested: str, data: bytes, detected: str
) -> None:
    error = refused(file_of(tmp_path, data), requested)
    assert f"but the content is {detected}" in error.message
    assert "leave out --encoding" in error.hint


@pytest.mark.parametrize("requested", ["klingon", "base64", "", "a\0b"])
def test_unknown_encoding_raises_bad_config(tmp_path: Path, requested: str) -> None:
    with pytest.raises(BadConfig, match="unknown encoding"):
        text_of(file_of(tmp_path, b"abc"), requested)


# Files that are not text


def zipped(names: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    return out.getvalue()


def sqlite(folder: Path) -> bytes:
    with sqlite3.connect(folder / "a.db") as database:
        database.execute("create table a (b)")
    return (folder / "a.db").read_bytes()


OTHER_KINDS = [
    (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504), "an old Word file"),
    (b"{\\rtf1\\ansi\\deff0 hello}", "an RTF file"),
    (zipped({"[Content_Types].xml": b"<a/>", "ppt/slides.xml": b"<a/>"}), "a PowerPoint file"),
    (zipped({"[Content_Types].xml": b"<a/>", "xl/workbook.xml": b"<a/>"}), "an Excel file"),
    (zipped({"mimetype": b"application/vnd.oasis.opendocument.text"}), "an OpenDocument file"),
    (gzip.compress(gzip.compress(BOOK.encode())), "gzip data"),
    (bz2.compress(zstandard.ZstdCompressor().compress(BOOK.encode())), "zstd data"),
    (gzip.compress(bz2.compress(BOOK.encode())), "bzip2 data"),
    (gzip.compress(lzma.compress(BOOK.encode())), "xz data"),
    (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a PNG image"),
    (b"\xff\xd8\xff\xe0\0\x10JFIF\0", "a JPEG image"),
    (b"GIF89a\x01\0\x01\0", "a GIF image"),
    (bytes(60) + b"BOOKMOBI" + bytes(100), "a Kindle book"),
    (Path(sys.executable).resolve().read_bytes()[:5000], "a program"),
]


@pytest.mark.parametrize(("data", "kind"), OTHER_KINDS, ids=[kind for _, kind in OTHER_KINDS])
@pytest.mark.parametrize("requested", ["auto", "gb18030", "latin-1"])
def test_other_file_formats_are_recognised(tmp_path: Path, data: bytes, kind: str, requested: str) -> None:
    if kind == "a program" and not data.startswith(b"\x7fELF"):
        pytest.skip("programs look otherwise here")
    error = refused(file_of(tmp_path, data), requested)
    assert error.message.endswith(f": {kind}, not text")


def test_database_is_recognised(tmp_path: Path) -> None:
    assert "an SQLite database, not text" in refused(file_of(tmp_path, sqlite(tmp_path))).message


def book_with_nuls(count: int) -> tuple[str, bytes]:
    """Return a text of 12,000 characters, and its bytes with so many NULs, 11 lines apart."""
    lines = ["话说那老人坐在船头。\n"] * 1000
    marked = [f"\0{line}" if n % 11 == 0 and n // 11 < count else line for n, line in enumerate(lines)]
    return "".join(lines), "".join(marked).encode()


@pytest.mark.parametrize("count", [1, 11])
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_few_nuls_are_removed_and_counted(tmp_path: Path, count: int, encoding: str) -> None:
    text, data = book_with_nuls(count)
    stats = EncodingStats()
    path = file_of(tmp_path, data.decode().encode(encoding))
    assert "".join(encodings.read_text(path, stats)) == text
    assert stats.nuls == count


def test_many_nuls_are_refused_with_their_number_and_a_command(tmp_path: Path) -> None:
    error = refused(file_of(tmp_path, book_with_nuls(12)[1]))
    assert error.message.endswith(
        ": 12 NUL characters in 11,012 characters, the first at offset 0; up to 1 in 1,000 is removed"
    )
    assert "tr -d" in error.hint


def test_hole_of_zeros_is_refused_however_long_the_text(tmp_path: Path) -> None:
    line = "话说那老人坐在船头。\n".encode()
    error = refused(file_of(tmp_path, line * 3000 + bytes(8) + line * 3000))
    assert f"text up to offset {len(line) * 3000:,}, and binary data after it" in error.message


@pytest.mark.parametrize(
    "data", [b"", b" \n\t\r\n", "　　\n　".encode(), b"\xef\xbb\xbf", "\ufeff \n".encode("utf-16-le")]
)
@pytest.mark.parametrize("requested", ["auto", "utf-8"])
def test_file_without_characters_is_empty(tmp_path: Path, data: bytes, requested: str) -> None:
    error = refused(file_of(tmp_path, data), requested)
    assert error.message.endswith(
        ": the file is empty" if len(data) in (0, 3) else ": the file contains only white space"
    )


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_are_refused(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    for size in (200, 5000, 200_000):
        error = refused(file_of(tmp_path, draw.randbytes(size)))
        assert size == 200 or "binary data, not text (at offset " in error.message


def test_numbers_and_controls_are_binary(tmp_path: Path) -> None:
    for data in (
        b"".join(number.to_bytes(2, "little") for number in range(5000)),
        b"".join(number.to_bytes(4, "little") for number in range(5000)),
        bytes(range(1, 9)) * 100,
        b"abc\0def",
        b"\0",
    ):
        assert "binary data, not text" in refused(file_of(tmp_path, data)).message


def test_few_control_characters_do_not_make_text_binary(tmp_path: Path) -> None:
    text = "林\x01冲\x1b[0m\x0c" + POEM + "\x1a"
    for encoding in ("utf-8", "gb18030", "big5hkscs"):
        text = text if encoding != "big5hkscs" else text.replace("冲", "衝")
        assert text_of(file_of(tmp_path, text.encode(encoding)))[0] == text


@pytest.mark.parametrize("times", [100, 3000])
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "big5", "utf-16-le"])
@pytest.mark.parametrize("tail", [bytes(5000), b"\0" + random.Random(1).randbytes(5000)], ids=["zeros", "random"])
def test_text_followed_by_binary_data_is_refused_with_the_offset(
    tmp_path: Path, times: int, encoding: str, tail: bytes
) -> None:
    text = (POEM * times).encode(encoding)
    error = refused(file_of(tmp_path, text + bytes(2) + tail))
    assert f"text up to offset {len(text):,}, and binary data after it" in error.message
    assert f"head -c {len(text)}" in error.hint


@pytest.mark.parametrize("seed", range(10))
def test_text_followed_by_random_bytes_is_refused_near_the_offset(tmp_path: Path, seed: int) -> None:
    text = POEM.encode() * 1000
    error = refused(file_of(tmp_path, text + random.Random(seed).randbytes(100_000)))
    assert "and binary data after it" in error.message
    offset = int(error.hint.rpartition(" ")[2].rstrip("`"))
    assert len(text) <= offset < len(text) + 20


# Invalid bytes


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "big5"])
@pytest.mark.parametrize("before", [5, 2000, 30_000])
def test_invalid_byte_is_replaced_and_counted(tmp_path: Path, encoding: str, before: int) -> None:
    data, after = (POEM * before).encode(encoding), (POEM * 40).encode(encoding)
    path = file_of(tmp_path, data + b"\xff" + after, "a.txt.gz")
    for requested in ("auto", encoding):
        text, stats = text_of(path, requested)
        assert text == POEM * before + "\ufffd" + POEM * 40
        assert (stats.errors, stats.error_offset, stats.error_byte) == (1, len(data), 0xFF)
        meant = {"big5": "cp950"}.get(encoding, encoding)
        with pytest.raises(BadData, match=f"not {meant} text: byte 0xff at offset {len(data):,}") as caught:
            list(readers.read_json_lines(path, encoding=requested))
        assert "`clean`" in caught.value.hint


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_lone_surrogate_of_utf_16_is_replaced_and_counted(tmp_path: Path, encoding: str) -> None:
    mark, lone = "\ufeff".encode(encoding), "\ud800".encode(encoding, "surrogatepass")
    data = mark + (POEM * 40).encode(encoding) + lone + (POEM * 40).encode(encoding)
    text, stats = text_of(file_of(tmp_path, data))
    assert text == POEM * 40 + "\ufffd" + POEM * 40
    assert stats.errors == 1


@given(
    cuts=st.lists(st.integers(1, 2000), max_size=8), offsets=st.lists(st.integers(700, 1500), min_size=1, max_size=3)
)
@settings(max_examples=40)
def test_invalid_bytes_are_replaced_alike_for_any_blocks(cuts: list[int], offsets: list[int]) -> None:
    data = (POEM * 20).replace("\n", "〇").encode()[: 3 * 500]
    for offset in sorted(offsets, reverse=True):
        data = data[:offset] + b"\xff" + data[offset:]
    boundaries = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    blocks = [data[start:end] for start, end in pairwise(boundaries)]
    with pytest.MonkeyPatch.context() as patch:
        for module in (encodings, content):
            patch.setattr(module, "read_blocks", lambda path, advance: iter(blocks))
        if (expected := data.decode(errors="replace")).count("\ufffd") <= 3:
            text, stats = text_of(Path("a.txt"))
            assert text == expected
            assert (stats.errors, data[stats.error_offset]) == (expected.count("\ufffd"), stats.error_byte)
            assert stats.error_offset == len(expected.partition("\ufffd")[0].encode())
        else:
            with pytest.raises(BadData, match=r"not utf-8 text: byte 0x.. at offset [0-9,]+, and \d+ more"):
                text_of(Path("a.txt"))


@pytest.mark.parametrize(("lines", "accepted"), [(1, 3), (140, 3), (500, 10)])
def test_invalid_bytes_are_accepted_up_to_a_share(tmp_path: Path, lines: int, accepted: int) -> None:
    line = POEM.strip().replace("\n", "").encode("gb18030") + b"\n"  # 97 bytes
    for count in (accepted, accepted + 1):
        path = file_of(tmp_path, b"\xff" * count + line * (lines * 21 // 97 + 1))
        if count == accepted:
            assert text_of(path)[1].errors == accepted
        else:
            assert f"byte 0xff at offset 0, and {accepted} more" in refused_text(path)


def refused_text(path: Path) -> str:
    with pytest.raises(BadData) as caught:
        text_of(path)
    return caught.value.message


def test_text_of_another_encoding_is_refused_before_all_of_it_is_decoded(tmp_path: Path) -> None:
    data = (POEM * 700).encode() + (POEM * 5000).encode("gb18030")
    error = refused_text(file_of(tmp_path, data))
    assert f"not utf-8 text: byte 0xc7 at offset {len((POEM * 700).encode()):,}, and" in error
    assert int(error.split()[-2].replace(",", "")) < 2000


@pytest.mark.parametrize("name", PACKINGS)
@pytest.mark.parametrize(
    ("encoding", "lost"), [("utf-8", 1), ("utf-8", 2), ("gb18030", 1), ("big5", 1), ("utf-16-le", 1), ("utf-16-be", 1)]
)
def test_truncated_last_character_is_rejected_and_the_rest_kept(
    tmp_path: Path, name: str, encoding: str, lost: int
) -> None:
    complete = (POEM * 5).strip()  # ends with 。
    data = complete.encode(encoding)[:-lost]
    (document,), (reject,), ledger = read(file_of(tmp_path, data, name))
    assert document.text == complete[:-1]
    cut_at = len(complete[:-1].encode(encoding))
    assert reject == Reject(name, 0, cut_at, "truncated-end", data[cut_at:].hex(" "))
    assert ledger.documents.to_dict() == {"in": 2, "out": 1, "dropped": {"truncated-end": 1}}
    with pytest.raises(BadData, match=f"the file ends within a character .* at offset {cut_at:,}") as caught:
        list(readers.read_json_lines(tmp_path / name))
    assert "`clean`" in caught.value.hint


def test_truncated_supplementary_character_is_set_aside(tmp_path: Path) -> None:
    text = POEM * 5
    for encoding, size in (("utf-16-le", 4), ("utf-16-be", 4), ("utf-8", 4), ("gb18030", 4)):
        data = (text + "𠮷").encode(encoding)
        for lost in range(1, size):
            decoded, stats = text_of(file_of(tmp_path, data[:-lost]))
            assert (decoded, stats.truncated_bytes, stats.truncated_offset) == (
                text,
                data[len(data) - 4 : -lost],
                len(data) - 4,
            )

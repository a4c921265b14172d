"""From files to documents: nothing broken passes for whole, and nothing is dropped without a reason."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import documents
from pipeline.documents import Document, Reject, ZstdLines
from pipeline.errors import BadConfig, BadData
from pipeline.ledger import Ledger

SLICE = 1 << 14  # what one call of the zstd reader is given


def read(path: Path, *, encoding: str = "utf-8") -> tuple[list[Document], list[Reject], Ledger]:
    """Everything in a file, with its ledger closed as a stage would close it."""
    ledger, rejects = Ledger(), list[Reject]()
    found = list(documents.read(path, ledger, rejects.append, encoding=encoding))
    ledger.documents.out += len(found)
    ledger.characters.out += sum(len(document.text) for document in found)
    ledger.close(max_bad=1.0)
    return found, rejects, ledger


def json_lines(count: int) -> bytes:
    """Documents that hardly compress."""
    text = [hashlib.sha256(bytes([n % 256, n // 256])).hexdigest() for n in range(count)]
    return b"".join(documents.json_line(text[n], f"第{n}回", "test", {"n": n}) for n in range(count))


def frame(data: bytes, *, checksum: bool = False, sized: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=sized).compress(data)


def skippable(size: int) -> bytes:
    """A skippable frame of `size` bytes (RFC 8878, section 3.1.2)."""
    return b"\x53\x2a\x4d\x18" + (size - 8).to_bytes(4, "little") + b"\0" * (size - 8)


def file_of(folder: Path, data: bytes, name: str = "a.jsonl.zst") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def refuse(path: Path, match: str | None = None) -> None:
    with pytest.raises(BadData, match=match) as caught:
        read(path)
    assert caught.value.exit_code == 65
    assert str(path) in caught.value.what


def texts(path: Path) -> list[str]:
    return [document.text for document in read(path)[0]]


def plain_texts(data: bytes) -> list[str]:
    return [json.loads(line)["text"] for line in data.splitlines()]


@pytest.mark.parametrize("sized", [True, False])
def test_a_whole_frame_gives_every_document(tmp_path: Path, sized: bool) -> None:
    data = json_lines(500)
    assert texts(file_of(tmp_path, frame(data, sized=sized))) == plain_texts(data)


def test_concatenated_frames_give_the_documents_of_all(tmp_path: Path) -> None:
    data = json_lines(300)
    cuts = [0, 1, 1000, 20_000, len(data)]
    frames = [frame(data[start:end]) for start, end in pairwise(cuts)]
    assert texts(file_of(tmp_path, b"".join(frames))) == plain_texts(data)


def test_a_skippable_frame_is_skipped_wherever_it_stands(tmp_path: Path) -> None:
    one, other = json_lines(20), json_lines(20)
    whole = skippable(8) + frame(one) + skippable(100) + frame(other) + skippable(40_000)
    assert texts(file_of(tmp_path, whole)) == plain_texts(one + other)


@pytest.mark.parametrize("distance", range(-5, 6))
def test_a_frame_may_begin_anywhere_around_the_end_of_a_slice(tmp_path: Path, distance: int) -> None:
    data = json_lines(20)
    path = file_of(tmp_path, skippable(SLICE + distance) + frame(data))
    assert texts(path) == plain_texts(data)


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("sized", [True, False])
def test_a_file_cut_short_anywhere_is_bad_data(tmp_path: Path, checksum: bool, sized: bool) -> None:
    whole = frame(json_lines(1000), checksum=checksum, sized=sized)
    for twentieth in range(20):
        refuse(file_of(tmp_path, whole[: len(whole) * twentieth // 20]), "cut short|the file is empty")
    refuse(file_of(tmp_path, whole[:-1]), "cut short")


def test_a_second_frame_cut_short_is_bad_data(tmp_path: Path) -> None:
    first, second = frame(json_lines(100)), frame(json_lines(100))
    for twentieth in range(1, 20):
        refuse(file_of(tmp_path, first + second[: len(second) * twentieth // 20]), "frame 2 is cut short")


def test_a_skippable_frame_cut_short_is_bad_data(tmp_path: Path) -> None:
    refuse(file_of(tmp_path, frame(json_lines(1)) + skippable(1000)[:-1]), "frame 2 is cut short")


@pytest.mark.parametrize("garbage", [b"\n", b"\0", b"\x28", b"\x28\xb5\x2f", b"\x28\xb5\x2f\xfe", b"\0" * SLICE, b"{}"])
def test_garbage_after_a_frame_is_bad_data(tmp_path: Path, garbage: bytes) -> None:
    refuse(file_of(tmp_path, frame(json_lines(10)) + garbage), "where zstd frame 2 should begin")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "the file is empty"),
        (b"\x28\xb5", "something that is not zstd"),
        (gzip.compress(b"text"), "gzip data"),
        (b"\n  <!DOCTYPE html><html>Log in</html>", "a web page"),
        (b'{"text": "plain"}\n', "something that is not zstd"),
    ],
)
def test_what_is_not_zstd_is_bad_data_and_named(tmp_path: Path, data: bytes, what: str) -> None:
    refuse(file_of(tmp_path, data), what)


def test_a_bit_flipped_under_a_checksum_is_bad_data(tmp_path: Path) -> None:
    whole = frame(json_lines(200), checksum=True)
    for twentieth in range(1, 20):
        flipped = bytearray(whole)
        flipped[len(whole) * twentieth // 20] ^= 1
        refuse(file_of(tmp_path, bytes(flipped)), "frame 1 is (broken|cut short)")


def test_a_window_over_128_mib_is_bad_data(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28)
    compressor = zstandard.ZstdCompressor(compression_params=parameters, level=1).compressobj()
    refuse(file_of(tmp_path, compressor.compress(b"a" * 100) + compressor.flush()), "frame 1 is broken")


def test_what_zstd_lines_writes_is_read_back_and_has_a_checksum(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl.zst"
    data = json_lines(100)
    with ZstdLines(path) as out:
        for line in data.splitlines(keepends=True):
            out.write(line)
    assert texts(path) == plain_texts(data)
    assert zstandard.get_frame_parameters(path.read_bytes()).has_checksum


def test_rejects_are_written_as_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "rejects.jsonl.zst"
    with ZstdLines(path) as out:
        out.write_reject(Reject("a.jsonl", 3, 40, "bad-json", "{水"))
    lines = b"".join(compression.blocks(path)).splitlines()
    assert [json.loads(line) for line in lines] == [
        {"file": "a.jsonl", "line": 3, "offset": 40, "reason": "bad-json", "excerpt": "{水"}
    ]


def test_gzip_members_give_the_documents_of_all(tmp_path: Path) -> None:
    one, other = json_lines(100), json_lines(100)
    path = file_of(tmp_path, gzip.compress(one) + gzip.compress(other), "a.jsonl.gz")
    assert texts(path) == plain_texts(one + other)


def test_gzip_cut_short_is_bad_data(tmp_path: Path) -> None:
    whole = gzip.compress(json_lines(1000))
    for twentieth in range(1, 20):
        refuse(file_of(tmp_path, whole[: len(whole) * twentieth // 20], "a.jsonl.gz"), "not whole gzip data")
    refuse(file_of(tmp_path, whole[:-1], "a.jsonl.gz"), "not whole gzip data")


def test_an_empty_gzip_file_is_bad_data(tmp_path: Path) -> None:
    refuse(file_of(tmp_path, b"", "a.jsonl.gz"))


@pytest.mark.parametrize("broken", [b"garbage", b"<html>", gzip.compress(b"a")[:-1] + b"\xff"])
def test_broken_gzip_is_bad_data(tmp_path: Path, broken: bytes) -> None:
    refuse(file_of(tmp_path, broken, "a.txt.gz"), "not whole gzip data")
    refuse(file_of(tmp_path, gzip.compress(b"text") + b"garbage", "a.txt.gz"), "not whole gzip data")


def heard(path: Path) -> int:
    counts: list[int] = []
    for _ in compression.blocks(path, counts.append):
        pass
    return sum(counts)


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", frame)])
def test_progress_hears_of_every_byte_of_the_file(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    path = file_of(tmp_path, pack(json_lines(500)), name)
    assert heard(path) == path.stat().st_size


def test_progress_hears_of_a_magic_number_that_two_slices_share(tmp_path: Path) -> None:
    path = file_of(tmp_path, skippable(SLICE - 2) + frame(json_lines(20)))
    assert heard(path) == path.stat().st_size


@given(
    data=st.lists(st.sampled_from([b"\n", b"\r\n", b"a", b"\x85", "\u2028".encode(), b"\x1c"])).map(b"".join), cuts=...
)
def test_lines_are_those_of_a_naive_split_for_any_blocks(data: bytes, cuts: list[int]) -> None:
    bounds = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    pieces = (data[start:end] for start, end in pairwise(bounds))
    naive = data.split(b"\n")
    if not naive[-1]:
        naive.pop()
    found = list(documents.lines(pieces))
    assert [line for _, line in found] == naive
    assert all(data[offset : offset + len(line)] == line for offset, line in found)
    assert [offset for offset, _ in found] == [sum(len(line) + 1 for line in naive[:n]) for n in range(len(naive))]


@given(st.lists(st.text(), max_size=20), st.integers(1, 50))
@settings(max_examples=50, deadline=None)
def test_documents_survive_being_written_and_read(
    tmp_path_factory: pytest.TempPathFactory, written: list[str], size: int
) -> None:
    data = b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in written)
    frames = [frame(data[start : start + size]) for start in range(0, len(data), size)] or [frame(b"")]
    path = file_of(tmp_path_factory.mktemp("written"), b"".join(frames))
    assert texts(path) == written


DEEP = b"[" * 100_000 + b"]" * 100_000
DIGITS = b"9" * 5000


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "blank-line"),
        (b" \t\r", "blank-line"),
        (b"not json", "bad-json"),
        (b'{"text": "cut', "bad-json"),
        (b'{"text": "a"} {"text": "b"}', "bad-json"),
        (b"{'text': 'a'}", "bad-json"),
        (b'{"text": "a", "meta": NaN}', "bad-json"),
        (b'{"text": "a\x01b"}', "bad-json"),
        (b'{"text": "\xff"}', "bad-json"),
        (b'{"text": "\xed\xa0\x80"}', "bad-json"),
        (b'{"text": "\\ud800"}', "bad-json"),
        (b'{"text": "\\udc00 and on"}', "bad-json"),
        (b'{"text": "a", "meta": "\\ud800"}', "bad-json"),
        (b"\xef\xbb\xbf" + b'{"text": "a"}', "bad-json"),
        (b'{"text": "a", "meta": ' + DEEP + b"}", "bad-json"),
        (b'{"text": "a", "other": ' + DEEP + b"}", "bad-json"),
        (b'{"title": "a"}', "bad-record"),
        (b'{"text": null}', "bad-record"),
        (b'{"text": ["a"]}', "bad-record"),
        (b'{"text": 7}', "bad-record"),
        (b'["text"]', "bad-record"),
        (b'"text"', "bad-record"),
        (b"null", "bad-record"),
        (b'{"text": "a", "meta": ' + DIGITS + b"}", "bad-record"),
        (b'{"text": "a", "meta": 1e999}', "bad-record"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_broken_line_is_counted_with_its_reason_and_place(tmp_path: Path, line: bytes, reason: str) -> None:
    before, after = '{"text": "在前"}\n'.encode(), b'{"text": "after"}\n'
    found, rejects, ledger = read(file_of(tmp_path, before + line + b"\n" + after, "a.jsonl"))
    assert [(document.text, document.line) for document in found] == [("在前", 1), ("after", 3)]
    assert found[1].offset == len(before) + len(line) + 1
    assert ledger.documents.to_dict() == {"in": 3, "out": 2, "dropped": {reason: 1}}
    assert ledger.documents.bad == (reason != "blank-line")
    shown = line.decode(errors="replace")
    assert rejects == [Reject("a.jsonl", 2, len(before), reason, shown[:200])]
    assert ledger.characters.dropped == ({reason: len(shown)} if shown else {})


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"text": "a"}\r', "a"),
        (b'  {"text": "a"}  ', "a"),
        ('{"text": "一\u2028二\u2029三\x85四"}'.encode(), "一\u2028二\u2029三\x85四"),
        (b'{"text": "\\ud83d\\ude00"}', "😀"),
        (b'{"text": "\\u0000"}', "\0"),
        (b'{"text": ""}', ""),
        (b'{"text": "first", "text": "last"}', "last"),
        (b'{"text": "a", "other": ' + DIGITS + b"}", "a"),
        (b'{"text": "a", "title": 7, "meta": {"pile_set_name": "Pile-CC"}}', "a"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_an_odd_line_that_is_json_is_one_document(tmp_path: Path, line: bytes, text: str) -> None:
    found, rejects, ledger = read(file_of(tmp_path, line + b"\n" + line, "a.jsonl"))
    assert [(document.text, document.line, document.offset) for document in found] == [
        (text, 1, 0),
        (text, 2, len(line) + 1),
    ]
    assert rejects == []
    assert ledger.documents.came == 2


def test_title_and_meta_come_with_the_text(tmp_path: Path) -> None:
    line = '{"text": "a", "title": "第一回", "meta": {"pile_set_name": "Pile-CC"}}\n{"text": "b", "title": 7}'
    first, second = read(file_of(tmp_path, line.encode(), "a.jsonl"))[0]
    assert (first.title, first.meta, first.file) == ("第一回", {"pile_set_name": "Pile-CC"}, "a.jsonl")
    assert (second.title, second.meta) == ("", None)


@given(st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_any_bytes_are_parsed_or_counted(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    found, rejects, ledger = read(file_of(tmp_path_factory.mktemp("any"), data, "a.jsonl"))
    assert len(found) + len(rejects) == ledger.documents.came == len(data.split(b"\n")) - (data[-1:] in (b"", b"\n"))


def test_an_empty_plain_file_holds_no_documents(tmp_path: Path) -> None:
    assert read(file_of(tmp_path, b"", "a.jsonl"))[0] == []


def test_json_lines_leave_empty_fields_out() -> None:
    assert documents.json_line("水", "", "", None) == '{"text":"水"}\n'.encode()


def test_chinese_poetry_gives_one_document_a_poem(tmp_path: Path) -> None:
    poems = [
        {"author": "和岘", "paragraphs": ["气和玉烛，", "叡化著鸿明。"], "rhythmic": "导引"},
        {"title": "静夜思", "author": "李白", "paragraphs": ["床前明月光"], "tags": ["月"]},
        {"chapter": "学而篇", "paragraphs": ["子曰"]},
        {"paragraphs": []},
    ]
    found, rejects, ledger = read(file_of(tmp_path, json.dumps(poems).encode(), "ci.song.0.json"))
    assert [(document.title, document.text, document.meta, document.line) for document in found] == [
        ("导引", "气和玉烛，\n叡化著鸿明。", {"author": "和岘"}, 1),
        ("静夜思", "床前明月光", {"author": "李白"}, 2),
        ("学而篇", "子曰", None, 3),
        ("", "", None, 4),
    ]
    assert rejects == []
    assert ledger.characters.came == sum(len(document.text) for document in found)


@pytest.mark.parametrize("data", [b"", b"{}", b'[{"text": "a"}]', b'[{"paragraphs": "a"}]', b'[{"paragraphs": ["a"'])
def test_json_of_another_shape_is_bad_data(tmp_path: Path, data: bytes) -> None:
    refuse(file_of(tmp_path, data, "a.json"), "not a chinese-poetry file")


def test_json_nested_too_deeply_is_bad_data(tmp_path: Path) -> None:
    refuse(file_of(tmp_path, b'[{"paragraphs": [], "tags": ' + DEEP + b"}]", "a.json"))


def test_the_real_chinese_poetry_files_are_read_whole(shared: Path) -> None:
    for path in sorted((shared / "data" / "chinese-poetry").glob("*.json")):
        poems = json.loads(path.read_text())
        assert texts(path) == ["\n".join(poem["paragraphs"]) for poem in poems]


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "big5", "utf-16"])
@pytest.mark.parametrize(("name", "pack"), [("a.txt", bytes), ("a.txt.gz", gzip.compress), ("a.txt.zst", frame)])
def test_a_text_file_is_one_document(tmp_path: Path, name: str, pack: Callable[[bytes], bytes], encoding: str) -> None:
    text = "水滸傳\r\n第一回\n\n"
    (found,), rejects, ledger = read(file_of(tmp_path, pack(text.encode(encoding)), name), encoding=encoding)
    assert (found.text, found.file, found.line, found.offset) == (text, name, 1, 0)
    assert rejects == []
    assert (ledger.documents.came, ledger.characters.came) == (1, len(text))


def test_text_in_another_encoding_than_named_is_bad_data_with_its_place(tmp_path: Path) -> None:
    path = file_of(tmp_path, b"abc" + "中文".encode("gb18030"), "a.txt")
    refuse(path, "not utf-8 text: byte 0xd6 at offset 3")


def test_an_encoding_that_does_not_exist_is_a_bad_option(tmp_path: Path) -> None:
    for encoding in ("klingon", "base64"):
        with pytest.raises(BadConfig, match="there is no encoding") as caught:
            read(file_of(tmp_path, b"abc", "a.txt"), encoding=encoding)
        assert caught.value.exit_code == 78


def test_the_pile_is_what_a_naive_reading_says(shared: Path) -> None:
    path = shared / "data" / "pile_val.jsonl.zst"
    with open(path, "rb") as handle:
        whole = zstandard.ZstdDecompressor().stream_reader(handle).read()
    naive = [json.loads(line) for line in whole.split(b"\n") if line]
    found, rejects, ledger = read(path)
    assert len(found) == 200
    assert [(document.text, document.meta) for document in found] == [(line["text"], line["meta"]) for line in naive]
    assert rejects == []
    assert ledger.characters.came == sum(len(line["text"]) for line in naive)
    assert all(whole[document.offset :].startswith(b'{"text"') for document in found)

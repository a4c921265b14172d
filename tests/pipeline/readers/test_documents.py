"""From files to documents: damaged input is an error, and every reject has a reason."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from pipeline.errors import BadConfig, BadData
from pipeline.readers import compression, jsonl, readers
from pipeline.readers.documents import Document, Reject
from pipeline.readers.jsonl import ZstdWriter
from pipeline.runtime.ledger import Ledger

ROOT = Path(__file__).resolve().parents[3]
BOM = b"\xef\xbb\xbf"


def read(path: Path, *, encoding: str = "utf-8") -> tuple[list[Document], list[Reject], Ledger]:
    """Read a file, and close its ledger as a stage would."""
    ledger, rejects = Ledger(), list[Reject]()
    documents = list(readers.read_documents(path, ledger, rejects.append, encoding=encoding))
    ledger.documents.out += len(documents)
    ledger.characters.out += sum(len(document.text) for document in documents)
    ledger.close(max_bad=1.0)
    return documents, rejects, ledger


def json_lines(count: int) -> bytes:
    """Return documents that hardly compress."""
    text = [hashlib.sha256(bytes([n % 256, n // 256])).hexdigest() for n in range(count)]
    return b"".join(jsonl.encode_line(text[n], f"第{n}回", "test", {"n": n}) for n in range(count))


def frame(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def file_of(folder: Path, data: bytes, name: str = "a.jsonl.zst") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def refuse(path: Path, match: str | None = None) -> None:
    with pytest.raises(BadData, match=match) as caught:
        read(path)
    assert caught.value.exit_code == 65
    assert str(path) in caught.value.message


def texts(path: Path) -> list[str]:
    return [document.text for document in read(path)[0]]


def plain_texts(data: bytes) -> list[str]:
    return [json.loads(line)["text"] for line in data.splitlines()]


def test_concatenated_frames_yield_all_documents(tmp_path: Path) -> None:
    data = json_lines(300)
    cuts = [0, 1, 1000, 20_000, len(data)]
    frames = [frame(data[start:end]) for start, end in pairwise(cuts)]
    assert texts(file_of(tmp_path, b"".join(frames))) == plain_texts(data)


def test_zstd_writer_round_trips_with_a_checksum(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl.zst"
    data = json_lines(100)
    with ZstdWriter(path) as out:
        for line in data.splitlines(keepends=True):
            out.write(line)
    assert texts(path) == plain_texts(data)
    assert zstandard.get_frame_parameters(path.read_bytes()).has_checksum


def test_rejects_are_written_as_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "rejects.jsonl.zst"
    with ZstdWriter(path) as out:
        out.write_reject(Reject("a.jsonl", 3, 40, "bad-json", "{水"))
    lines = b"".join(compression.read_blocks(path)).splitlines()
    assert [json.loads(line) for line in lines] == [
        {"file": "a.jsonl", "line": 3, "offset": 40, "reason": "bad-json", "excerpt": "{水"}
    ]


@given(st.lists(st.text(), max_size=20), st.integers(1, 50))
@settings(max_examples=50)
def test_documents_round_trip(tmp_path_factory: pytest.TempPathFactory, written: list[str], size: int) -> None:
    data = b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in written)
    frames = [frame(data[start : start + size]) for start in range(0, len(data), size)] or [frame(b"")]
    path = file_of(tmp_path_factory.mktemp("written"), b"".join(frames))
    assert texts(path) == written


def in_blocks(data: bytes, cuts: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(bounds)]


def naive_lines(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    return lines if lines[-1] else lines[:-1]


@given(
    data=st.lists(st.sampled_from([b"\n", b"\r\n", b"a", b"\x85", "\u2028".encode(), b"\x1c"])).map(b"".join), cuts=...
)
def test_lines_equal_a_naive_split_for_any_blocks(data: bytes, cuts: list[int]) -> None:
    naive = naive_lines(data)
    lines = list(jsonl.split_lines(iter(in_blocks(data, cuts))))
    assert [line for _, line, _ in lines] == naive
    assert all(is_complete for _, _, is_complete in lines)
    assert [offset for offset, _, _ in lines] == [sum(len(line) + 1 for line in naive[:n]) for n in range(len(naive))]


@given(
    data=st.lists(st.sampled_from([b"\n", b"a" * 7, b"b" * 12, b"c"]), max_size=30).map(b"".join),
    size=st.integers(1, 20),
)
def test_overlong_line_is_truncated_and_later_lines_are_complete(data: bytes, size: int) -> None:
    naive = naive_lines(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "MAX_LINE_BYTES", 20)
        patch.setattr(jsonl, "EXCERPT_CHARACTERS", 5)
        lines = list(jsonl.split_lines(data[at : at + size] for at in range(0, len(data), size)))
    assert [offset for offset, _, _ in lines] == [sum(len(line) + 1 for line in naive[:n]) for n in range(len(naive))]
    for line, (_, returned, is_complete) in zip(naive, lines, strict=True):
        assert is_complete == (len(line) <= 20)
        assert line.startswith(returned)
        assert returned == line if is_complete else returned


def test_overlong_line_is_rejected_and_the_rest_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 3 << 20)
    long = jsonl.encode_line("水" * (1 << 20), "", "", None)
    path = file_of(tmp_path, b'{"text":"a"}\n' + long * 2 + b'{"text":"b"}\n', "a.jsonl")
    documents, rejects, ledger = read(path)
    assert [(document.text, document.line, document.offset) for document in documents] == [
        ("a", 1, 0),
        ("b", 4, 13 + 2 * len(long)),
    ]
    assert [(reject.line, reject.offset, reject.reason) for reject in rejects] == [
        (2, 13, "bad-too-long"),
        (3, 13 + len(long), "bad-too-long"),
    ]
    assert rejects[0].excerpt.startswith('{"text":"水')
    assert ledger.documents.dropped == {"bad-too-long": 2}


DEEP = b"[" * 100_000 + b"]" * 100_000
DIGITS = b"9" * 5000


@pytest.mark.parametrize("meta", [DIGITS, b"1e999", b'"\xff"'], ids=["digits", "infinite", "not-utf-8"])
def test_invalid_meta_is_dropped_and_the_text_kept(tmp_path: Path, meta: bytes) -> None:
    """Case 31."""
    (document,), rejects, _ = read(
        file_of(tmp_path, b'{"text": "a", "title": ' + meta + b', "meta": ' + meta + b"}", "a.jsonl")
    )
    assert (document.text, document.title, document.meta, rejects) == ("a", "", None, [])


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
        (b'{"text": "a"}\0', "bad-json"),
        (b'{"text": "a\0b"}', "bad-json"),
        (b'{"text": "a", "meta": ' + DEEP + b"}", "bad-json"),
        (b'{"text": "a", "other": ' + DEEP + b"}", "bad-json"),
        (b'{"title": "a"}', "bad-record"),
        (b'{"text": null}', "bad-record"),
        (b'{"text": ["a"]}', "bad-record"),
        (b'{"text": 7}', "bad-record"),
        (b'["text"]', "bad-record"),
        (b'"text"', "bad-record"),
        (b"null", "bad-record"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_invalid_line_is_rejected_with_reason_and_offset(tmp_path: Path, line: bytes, reason: str) -> None:
    """Case 31."""
    before, after = '{"text": "在前"}\n'.encode(), b'{"text": "after"}\n'
    documents, rejects, ledger = read(file_of(tmp_path, before + line + b"\n" + after, "a.jsonl"))
    assert [(document.text, document.line) for document in documents] == [("在前", 1), ("after", 3)]
    assert documents[1].offset == len(before) + len(line) + 1
    assert ledger.documents.to_dict() == {"in": 3, "out": 2, "dropped": {reason: 1}}
    assert ledger.documents.bad == (reason != "blank-line")
    text = line.decode(errors="replace")
    assert rejects == [Reject("a.jsonl", 2, len(before), reason, text[:200])]
    assert ledger.characters.dropped == ({reason: len(text)} if text else {})


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
def test_unusual_but_valid_line_is_one_document(tmp_path: Path, line: bytes, text: str) -> None:
    """Case 30."""
    documents, rejects, ledger = read(file_of(tmp_path, line + b"\n" + line, "a.jsonl"))
    assert [(document.text, document.line, document.offset) for document in documents] == [
        (text, 1, 0),
        (text, 2, len(line) + 1),
    ]
    assert rejects == []
    assert ledger.documents.came == 2


def test_title_and_meta_are_read(tmp_path: Path) -> None:
    line = '{"text": "a", "title": "第一回", "meta": {"pile_set_name": "Pile-CC"}}\n{"text": "b", "title": 7}'
    first, second = read(file_of(tmp_path, line.encode(), "a.jsonl"))[0]
    assert (first.title, first.meta, first.file) == ("第一回", {"pile_set_name": "Pile-CC"}, "a.jsonl")
    assert (second.title, second.meta) == ("", None)


@given(st.binary(max_size=200).filter(lambda data: data[:2] not in (b"\xff\xfe", b"\xfe\xff")))
@settings(max_examples=50)
def test_any_bytes_are_parsed_or_rejected(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    try:
        documents, rejects, ledger = read(file_of(tmp_path_factory.mktemp("any"), data, "a.jsonl"))
    except BadData:  # the beginning is that of another format, or no field holds text
        return
    assert len(documents) + len(rejects) == ledger.documents.came == len(naive_lines(data.removeprefix(BOM)))


def test_empty_jsonl_file_has_no_documents(tmp_path: Path) -> None:
    assert read(file_of(tmp_path, b"", "a.jsonl"))[0] == []


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_byte_order_mark_before_json_lines_is_skipped(tmp_path: Path, name: str) -> None:
    packers: dict[str, Callable[[bytes], bytes]] = {".jsonl": bytes, ".gz": gzip.compress, ".zst": frame}
    pack = packers[Path(name).suffix]
    assert read(file_of(tmp_path, pack(BOM), name))[0] == []
    assert texts(file_of(tmp_path, pack(BOM + b'{"text":"a"}\n{"text":"b"}\n'), name)) == ["a", "b"]


def test_byte_order_mark_before_any_line_is_skipped(tmp_path: Path) -> None:
    """Files joined by `cat` have marks between them."""
    line = b'{"text":"a"}'
    for mark in (BOM, b""):
        path = file_of(tmp_path, mark + line + b"\n" + BOM + line + b"\n" + BOM, "a.jsonl")
        documents, rejects, _ = read(path)
        assert [(document.text, document.line, document.offset) for document in documents] == [
            ("a", 1, 0),
            ("a", 2, 13),
        ]
        assert [reject.reason for reject in rejects] == ["bad-json"]
        ledger = Ledger()
        rows = jsonl.decode_lines(b"".join(readers.read_json_lines(path)), "a", 0, ledger, rejects.append)
        assert rows[:2] == [(0, "a", ""), (13, "a", "")]


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("a.jsonl.zst", BOM + b'{"text":"a"}\n', b'{"text":"a"}\n'),
        ("a.txt.zst", BOM + b"a", b'{"text":"a"}\n'),
        ("a.txt.zst", "\ufeffa".encode("utf-16-le"), b'{"text":"a"}\n'),
    ],
)
def test_byte_order_mark_may_span_two_blocks(tmp_path: Path, name: str, data: bytes, text: bytes) -> None:
    path = file_of(tmp_path, b"".join(frame(data[at : at + 1]) for at in range(len(data))), name)
    assert b"".join(readers.read_json_lines(path)) == text


def test_json_line_omits_empty_fields() -> None:
    assert jsonl.encode_line("水", "", "", None) == '{"text":"水"}\n'.encode()


def test_chinese_poetry_yields_one_document_per_poem(tmp_path: Path) -> None:
    poems = [
        {"author": "和岘", "paragraphs": ["气和玉烛，", "叡化著鸿明。"], "rhythmic": "导引"},
        {"title": "静夜思", "author": "李白", "paragraphs": ["床前明月光"], "tags": ["月"]},
        {"chapter": "学而篇", "paragraphs": ["子曰"]},
        {"paragraphs": []},
    ]
    documents, rejects, ledger = read(file_of(tmp_path, json.dumps(poems).encode(), "ci.song.0.json"))
    assert [(document.title, document.text, document.meta, document.line) for document in documents] == [
        ("导引", "气和玉烛，\n叡化著鸿明。", {"author": "和岘"}, 1),
        ("静夜思", "床前明月光", {"author": "李白"}, 2),
        ("学而篇", "子曰", None, 3),
        ("", "", None, 4),
    ]
    assert rejects == []
    assert ledger.characters.came == sum(len(document.text) for document in documents)


@pytest.mark.parametrize("data", [b"{", b'[{"paragraphs": ["a"', b"words, and no JSON", b'["\xff"]', b"{}\n7 8"])
def test_file_that_is_not_json_raises_bad_data(tmp_path: Path, data: bytes) -> None:
    refuse(file_of(tmp_path, data, "a.json"), "not JSON")


@pytest.mark.parametrize("data", [b"{}", b"[1, 2]", b"7", b'[{"paragraphs": 7}]', b'[{"n": 1}, {"n": 2}]'])
def test_json_without_text_raises_bad_data(tmp_path: Path, data: bytes) -> None:
    refuse(file_of(tmp_path, data, "a.json"), "no field text")


def test_deeply_nested_json_raises_bad_data(tmp_path: Path) -> None:
    refuse(file_of(tmp_path, b'[{"paragraphs": [], "tags": ' + DEEP + b"}]", "a.json"))


def test_real_chinese_poetry_files_are_read_completely(shared: Path) -> None:
    for path in sorted((shared / "data" / "chinese-poetry").glob("*.json")):
        poems = json.loads(path.read_text())
        assert texts(path) == ["\n".join(poem["paragraphs"]) for poem in poems]


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "big5", "utf-16"])
@pytest.mark.parametrize(("name", "pack"), [("a.txt", bytes), ("a.txt.gz", gzip.compress), ("a.txt.zst", frame)])
def test_text_file_is_one_document(tmp_path: Path, name: str, pack: Callable[[bytes], bytes], encoding: str) -> None:
    text = "水滸傳\r\n第一回\n\n"
    (document,), rejects, ledger = read(file_of(tmp_path, pack(text.encode(encoding)), name), encoding=encoding)
    assert (document.text, document.file, document.line, document.offset) == (text, name, 1, 0)
    assert rejects == []
    assert (ledger.documents.came, ledger.characters.came) == (1, len(text))


@given(
    st.text(max_size=50).filter(lambda text: text.strip() and "\0" not in text),
    st.sampled_from(["utf-8", "utf-16", "utf-8-sig"]),
    st.integers(4, 9),
)
@settings(max_examples=100)
def test_text_is_one_json_line_for_any_blocks(
    tmp_path_factory: pytest.TempPathFactory, text: str, encoding: str, size: int
) -> None:
    text = text.removeprefix("\ufeff")
    data = text.encode(encoding)
    frames = [frame(data[at : at + size]) for at in range(0, len(data), size)] or [frame(b"")]
    path = file_of(tmp_path_factory.mktemp("text"), b"".join(frames), "a.txt.zst")
    line = b"".join(readers.read_json_lines(path))
    assert line.count(b"\n") == line.endswith(b"\n") == 1
    assert json.loads(line) == {"text": text}


def test_text_in_another_encoding_raises_bad_data_with_the_offset(tmp_path: Path) -> None:
    path = file_of(tmp_path, b"abc" + "中文".encode("gb18030"), "a.txt")
    refuse(path, "not utf-8 text: byte 0xd6 at offset 3")


@pytest.mark.parametrize("encoding", ["klingon", "base64", "zlib"])
def test_unknown_encoding_raises_bad_config(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(BadConfig, match="unknown encoding") as caught:
        read(file_of(tmp_path, b"abc", "a.txt"), encoding=encoding)
    assert caught.value.exit_code == 78


# Parquet


def table(folder: Path, columns: dict[str, Any], **options: Any) -> Path:
    path = folder / "a.parquet"
    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def test_parquet_rows_are_documents_with_title_and_meta(tmp_path: Path) -> None:
    meta = [{"pile_set_name": "Pile-CC"}, None]
    path = table(tmp_path, {"id": [1, 2], "text": ["水\n", "b"], "title": ["第一回", None], "meta": meta})
    documents, rejects, ledger = read(path)
    assert [(document.text, document.title, document.meta, document.line) for document in documents] == [
        ("水\n", "第一回", meta[0], 1),
        ("b", "", None, 2),
    ]
    assert (rejects, ledger.documents.came, ledger.characters.came) == ([], 2, 3)
    assert b"".join(readers.read_json_lines(path)).splitlines() == [
        '{"text":"水\\n","title":"第一回","meta":{"pile_set_name":"Pile-CC"}}'.encode(),
        b'{"text":"b"}',
    ]


@pytest.mark.parametrize("compressed", ["none", "snappy", "gzip", "zstd"])
@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
def test_rows_of_all_groups_are_in_order(tmp_path: Path, compressed: str, kind: pyarrow.DataType) -> None:
    rows = [f"第{n}回 \U0001f600" for n in range(2000)]
    path = table(tmp_path, {"text": pyarrow.array(rows, kind)}, compression=compressed, row_group_size=300)
    progress: list[int] = []
    documents = list(readers.read_documents(path, Ledger(), print, advance=progress.append))
    assert [(document.text, document.line) for document in documents] == [
        (text, n) for n, text in enumerate(rows, start=1)
    ]
    assert sum(progress) == path.stat().st_size


def test_null_text_is_an_empty_document(tmp_path: Path) -> None:
    path = table(tmp_path, {"text": ["a", None, "b"]})
    assert [(document.text, document.line) for document in read(path)[0]] == [("a", 1), ("", 2), ("b", 3)]
    assert b"".join(readers.read_json_lines(path)).count(b"\n") == 3


def test_document_without_text_becomes_an_empty_line(tmp_path: Path) -> None:
    poems = file_of(tmp_path, b'[{"paragraphs": [], "title": "a"}]', "a.json")
    for path in (poems, table(tmp_path, {"text": pyarrow.array([None], pyarrow.string())})):
        (line,) = b"".join(readers.read_json_lines(path)).splitlines()
        record = jsonl.parse_line(line)
        assert not isinstance(record, str)
        assert record.text == ""


def test_parquet_file_without_rows_has_no_documents(tmp_path: Path) -> None:
    assert read(table(tmp_path, {"text": pyarrow.array([], pyarrow.string())}))[0] == []


def test_truncated_parquet_file_raises_bad_data(tmp_path: Path) -> None:
    data = table(tmp_path, {"text": [str(n) for n in range(5000)]}).read_bytes()
    for twentieth in range(20):
        refuse(
            file_of(tmp_path, data[: len(data) * twentieth // 20], "a.parquet"),
            "truncated or corrupt Parquet file",
        )
    refuse(file_of(tmp_path, data[:-1], "a.parquet"), "truncated or corrupt Parquet file")
    refuse(file_of(tmp_path, b'{"text": "a"}\n' * 10, "a.parquet"), "truncated or corrupt Parquet file")


def test_damaged_parquet_page_raises_bad_data(tmp_path: Path) -> None:
    path = table(tmp_path, {"text": [f"第{n}回" for n in range(5000)]}, compression="gzip")
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    refuse(file_of(tmp_path, bytes(damaged), "a.parquet"), "truncated or corrupt Parquet file")


def test_parquet_title_that_is_not_a_string_is_ignored(tmp_path: Path) -> None:
    (document,) = read(table(tmp_path, {"text": ["a"], "title": [7]}))[0]
    assert document.title == ""


# Real texts


def test_pile_equals_a_naive_reading(shared: Path) -> None:
    path = shared / "data" / "pile_val.jsonl.zst"
    with open(path, "rb") as handle:
        data = zstandard.ZstdDecompressor().stream_reader(handle).read()
    naive = [json.loads(line) for line in data.split(b"\n") if line]
    documents, rejects, ledger = read(path)
    assert len(documents) == 200
    assert [(document.text, document.meta) for document in documents] == [
        (line["text"], line["meta"]) for line in naive
    ]
    assert rejects == []
    assert ledger.characters.came == sum(len(line["text"]) for line in naive)
    assert all(data[document.offset :].startswith(b'{"text"') for document in documents)

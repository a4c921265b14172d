"""What a file is: its content decides, then its name."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from pipeline.readers.kinds import FileKind, detect_kind, format_suffix, has_text_suffix, without_compression

RECORDS = [{"text": f"第{n}回", "n": n} for n in range(50)]
LINES = b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS)
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "zst": zstandard.ZstdCompressor().compress,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


def kind(folder: Path, name: str, data: bytes) -> FileKind:
    path = folder / name
    path.write_bytes(data)
    return detect_kind(path)


def parquet_bytes() -> bytes:
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), out)
    return out.getvalue()


def arrow_bytes(*, stream: bool) -> bytes:
    out, rows = io.BytesIO(), pyarrow.Table.from_pylist(RECORDS)
    new = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with new(out, rows.schema) as writer:
        writer.write_table(rows)
    return out.getvalue()


def zip_bytes(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def tar_bytes() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"text"))
    return out.getvalue()


BY_NAME = {
    "a.txt": "text",
    "A.TXT": "text",
    "a.md": "text",
    "a.Markdown": "text",
    "a.rst": "text",
    "a.text": "text",
    "README": "text",
    "a.py": "text",
    "a.html": "html",
    "a.HTM": "html",
    "a.xhtml": "html",
    "a.csv": "csv",
    "a.TSV": "tsv",
    "a.jsonl": "jsonl",
    "a.NDJSON": "jsonl",
    "a.jl": "jsonl",
}


@pytest.mark.parametrize("compression", PACKERS)
@pytest.mark.parametrize("name", BY_NAME)
def test_plain_content_is_told_by_the_name(tmp_path: Path, name: str, compression: str) -> None:
    data = PACKERS[compression](b"the first line, and\nthe second\n")
    full_name = f"{name}.{compression}" if compression else name
    assert kind(tmp_path, full_name, data) == FileKind(BY_NAME[name], compression)


def test_suffix_of_a_compression_is_not_needed(tmp_path: Path) -> None:
    assert kind(tmp_path, "a.jsonl", gzip.compress(LINES)) == FileKind("jsonl", "gz")
    assert kind(tmp_path, "a.txt.zst", b"plain") == FileKind("text")


@pytest.mark.parametrize(
    ("name", "format_name"),
    [
        ("a.txt", "text"),
        ("a.md", "text"),
        ("data", "jsonl"),
        ("a.log", "jsonl"),
        ("a.json", "jsonl"),
        ("01-LINES.JSONL", "jsonl"),
        ("a.csv", "csv"),
    ],
)
def test_json_lines_are_told_by_content_unless_the_name_says_text(tmp_path: Path, name: str, format_name: str) -> None:
    for lines in (LINES, b"\xef\xbb\xbf" + LINES, LINES * 100, b"\n" + LINES):
        assert kind(tmp_path, name, lines).format == format_name


def test_long_first_line_of_json_lines(tmp_path: Path) -> None:
    line = json.dumps({"text": "a" * 100_000}).encode()
    assert kind(tmp_path, "data", line + b"\n" + line).format == "jsonl"


@pytest.mark.parametrize("name", ["a.json", "data"])
@pytest.mark.parametrize(
    "data", [json.dumps(RECORDS).encode(), json.dumps(RECORDS * 2000, indent=1).encode(), b'{"data": [{"text": "a"}]}']
)
def test_json_value_is_told_from_json_lines(tmp_path: Path, name: str, data: bytes) -> None:
    assert kind(tmp_path, name, data).format == "json"


def test_text_that_begins_with_a_bracket_is_text(tmp_path: Path) -> None:
    assert kind(tmp_path, "notes", b"[1] the first note\n[2] the second\n").format == "text"
    assert kind(tmp_path, "poem", b'{"so he said}\nand went\n').format == "text"


@pytest.mark.parametrize("name", ["a.parquet", "a.bin", "a", "a.txt", "a.arrow"])
def test_binary_formats_are_told_by_their_magic_numbers(tmp_path: Path, name: str) -> None:
    assert kind(tmp_path, name, parquet_bytes()) == FileKind("parquet")
    assert kind(tmp_path, name, arrow_bytes(stream=True)) == FileKind("arrow")
    assert kind(tmp_path, name, arrow_bytes(stream=False)) == FileKind("arrow")
    assert kind(tmp_path, name, gzip.compress(parquet_bytes())) == FileKind("parquet", "gz")


@pytest.mark.parametrize(
    "head",
    [
        b"<!doctype html><p>a",
        b"\n <!-- saved -->\n<!DOCTYPE HTML>\n",
        b"\xef\xbb\xbf<html lang=en>",
        b'<?xml version="1.0"?>\n<html xmlns="http://www.w3.org/1999/xhtml">',
    ],
)
def test_html_is_told_by_content(tmp_path: Path, head: bytes) -> None:
    for name in ("page", "a.txt", "a.xml", "a.html"):
        assert kind(tmp_path, name, head).format == "html"
    assert kind(tmp_path, "a.md", head).format == "text"


def test_archives_and_books(tmp_path: Path) -> None:
    book = zip_bytes({"mimetype": b"application/epub+zip", "META-INF/container.xml": b"<a/>"})
    assert kind(tmp_path, "book.zip", book) == FileKind("epub")
    assert kind(tmp_path, "a.ZIP", zip_bytes({"a.txt": b"a"})) == FileKind("archive", archive="zip")
    assert kind(tmp_path, "a", tar_bytes()) == FileKind("archive", archive="tar")
    for compression, pack in PACKERS.items():
        if compression:
            assert kind(tmp_path, f"a.tar.{compression}", pack(tar_bytes())) == FileKind("archive", compression, "tar")
    assert kind(tmp_path, "a.tgz", gzip.compress(tar_bytes())) == FileKind("archive", "gz", "tar")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "empty"),
        (b" \n\t\n", "empty"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a PNG image"),
        (zip_bytes({"[Content_Types].xml": b"<a/>", "xl/workbook.xml": b"<a/>"}), "an Excel file"),
        (b"\x7fELF\2\1\1" + bytes(100), "a program"),
        (bytes(range(256)) * 20, "not text"),
        (b"\0" * 5000, "not text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a pointer of Git LFS"),
        (zip_bytes({}), "empty"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_file_that_cannot_be_read_has_a_problem(tmp_path: Path, data: bytes, problem: str) -> None:
    for name in ("a.txt", "a", "a.bin"):
        assert kind(tmp_path, name, data).problem == problem
        assert kind(tmp_path, name, gzip.compress(data)) == FileKind(
            kind(tmp_path, name, data).format, "gz", kind(tmp_path, name, data).archive, problem
        )


@pytest.mark.parametrize("encoding", ["gb18030", "big5", "utf-16", "utf-16-le", "utf-8-sig", "latin-1"])
def test_text_in_any_encoding_is_text(tmp_path: Path, encoding: str) -> None:
    text = "señor, the café is closed\n" * 40 if encoding == "latin-1" else "話說那老人坐在船頭，不知何處去。\n" * 40
    assert kind(tmp_path, "a.txt", text.encode(encoding)) == FileKind("text")


def test_text_with_one_nul_is_text(tmp_path: Path) -> None:
    assert kind(tmp_path, "a.txt", b"one line\n" * 500 + b"\0" + b"more\n" * 500) == FileKind("text")


@pytest.mark.parametrize("data", [b"PK\x03\x04", gzip.compress(LINES, mtime=0)[:30], b"\x28\xb5\x2f\xfd\x00"])
def test_truncated_file_does_not_raise(tmp_path: Path, data: bytes) -> None:
    detected = kind(tmp_path, "a.jsonl", data)
    assert detected.compression in ("", "gz", "zst")


def test_suffix_is_found_in_any_case_and_without_compression() -> None:
    assert [format_suffix(name) for name in ("a.JSONL.GZ", "x/b.tgz", "README", "chapter.2", ".md", "a.b.Txt")] == [
        ".jsonl", ".tar", "", "", "", ".txt",
    ]  # fmt: skip
    assert [without_compression(name) for name in ("a.txt.ZST", "a.txt", "a.gz")] == ["a.txt", "a.txt", "a"]


def test_names_that_a_folder_takes() -> None:
    taken = "a.txt A.TXT a.md.gz README a.jsonl.zst a.csv.XZ a.epub a.zip a.tar.gz a.tgz a.tar.zst part-0001 a.arrow"
    taken += " a.docx a.srt"
    assert all(map(has_text_suffix, taken.split()))
    refused = "a.py a.pdf a.doc .hidden .a.txt a.png a.py.gz Makefile.am"
    assert not any(map(has_text_suffix, refused.split()))

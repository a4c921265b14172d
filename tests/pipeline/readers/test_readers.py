"""Files as people have them: every format is read as documents and as JSON lines, and both are the same."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from pipeline.errors import BadData
from pipeline.readers import archives, readers
from pipeline.readers.documents import Document, Reject
from pipeline.readers.kinds import detect_kind
from pipeline.runtime.ledger import Ledger

PROSE = ["The old man sat in the boat, and waited.", 'She said: "No."\nAnd went.', "却说那老人坐在船头，不知何处去。"]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "zst": zstandard.ZstdCompressor().compress,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


def file_of(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def read(
    path: Path, text_fields: tuple[str, ...] = (), encoding: str = "auto"
) -> tuple[list[Document], list[Reject], list[str]]:
    """Read a file both ways, and return documents, rejects and notes. The ledger must add up."""
    ledger, rejects, notes = Ledger(), list[Reject](), list[str]()
    documents = list(
        readers.read_documents(
            path, ledger, rejects.append, encoding=encoding, text_fields=text_fields, note=notes.append
        )
    )
    ledger.documents.out, ledger.characters.out = len(documents), sum(len(document.text) for document in documents)
    ledger.close(max_bad=1.0)
    lines = b"".join(
        readers.read_json_lines(path, encoding=encoding, text_fields=text_fields, note=lambda text: None)
    ).splitlines()
    records = [json.loads(line) for line in lines if line.startswith(b'{"')]
    assert [record["text"] for record in records if "text" in record] == [document.text for document in documents]
    assert [record.get("title", "") for record in records if "text" in record] == [doc.title for doc in documents]
    return documents, rejects, notes


def texts(path: Path, text_fields: tuple[str, ...] = ()) -> list[str]:
    return [document.text for document in read(path, text_fields)[0]]


def refused(path: Path, text_fields: tuple[str, ...] = ()) -> BadData:
    with pytest.raises(BadData) as caught:
        read(path, text_fields)
    assert str(path) in caught.value.message
    assert caught.value.hint
    with pytest.raises(BadData) as again:
        list(readers.read_json_lines(path, text_fields=text_fields))
    assert again.value.message == caught.value.message
    return caught.value


# Records


def lines_of(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.jl", "A.JSONL", "data"])
def test_json_lines_have_any_suffix(tmp_path: Path, name: str) -> None:
    data = lines_of([{"text": text, "title": "a"} for text in PROSE])
    path = file_of(tmp_path, name, data)
    assert texts(path) == PROSE
    assert b"".join(readers.read_json_lines(path)) == data.encode()


def test_text_in_another_field_is_taken_and_said(tmp_path: Path) -> None:
    records = [{"content": text, "url": "a", "title": f"t{n}", "meta": {"n": n}} for n, text in enumerate(PROSE)]
    data = lines_of(records) + "\n{broken\n" + lines_of([{"url": "a"}, {"content": "last"}])
    documents, rejects, notes = read(file_of(tmp_path, "a.jsonl", data))
    assert [(document.text, document.title, document.line) for document in documents] == [
        *((text, f"t{n}", n + 1) for n, text in enumerate(PROSE)),
        ("last", "", 7),
    ]
    assert documents[1].meta == {"n": 1}
    assert [(reject.line, reject.reason) for reject in rejects] == [
        (4, "blank-line"), (5, "bad-json"), (6, "bad-record"),
    ]  # fmt: skip
    assert notes == ["text from field content"]
    assert data.encode()[documents[1].offset :].startswith(b'{"content": "She')


def test_converted_json_lines_keep_their_places(tmp_path: Path) -> None:
    data = '{"content": "one"}\n\n{broken\n{"url": "a"}\n{"content": "two"}'
    lines = b"".join(readers.read_json_lines(file_of(tmp_path, "a.jsonl", data))).split(b"\n")
    assert lines == [b'{"text":"one"}', b"", b"{broken", b"\"{'url': 'a'}\"", b'{"text":"two"}', b""]


def test_requested_field_wins_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a.jsonl", lines_of([{"text": "a", "data": {"body": text}} for text in PROSE]))
    assert texts(path) == ["a"] * 3
    assert texts(path, ("data.body",)) == PROSE
    error = refused(path, ("body",))
    assert error.message == f"{path}: no field body; fields: text, data.body"
    assert error.hint == "pass --text-field data.body"


def test_json_lines_in_utf_16(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a.jsonl", lines_of([{"text": text} for text in PROSE]).encode("utf-16"))
    assert texts(path) == PROSE


@pytest.mark.parametrize(
    "value",
    [
        PROSE,
        [{"text": text} for text in PROSE],
        [{"story": text, "n": 1} for text in PROSE],
        {"version": 1, "data": [{"text": text} for text in PROSE], "tags": ["a"]},
        {"a": {"text": PROSE[0]}, "b": {"text": PROSE[1]}, "c": {"text": PROSE[2]}},
        [{"paragraphs": [text]} for text in PROSE],
        {"poems": [{"content": text} for text in PROSE]},
        {str(number): text for number, text in enumerate(PROSE)},
    ],
)
def test_json_of_any_shape(tmp_path: Path, value: Any) -> None:
    for indent in (None, 1):
        assert texts(file_of(tmp_path, "a.json", json.dumps(value, ensure_ascii=False, indent=indent))) == PROSE


@pytest.mark.parametrize(("before", "after"), [("[\n", "]\n"), ("", "]\n"), ("", "")])
@pytest.mark.parametrize("comma", [",", ""])
def test_json_lines_in_brackets(tmp_path: Path, before: str, after: str, comma: str) -> None:
    poems = [json.dumps({"paragraphs": [text], "author": "李白"}, ensure_ascii=False) for text in PROSE]
    path = file_of(tmp_path, "a.json", before + f"{comma}\n".join(poems) + "\n" + after)
    documents, rejects, _ = read(path)
    assert [(document.text, document.meta) for document in documents] == [(text, {"author": "李白"}) for text in PROSE]
    assert rejects == []


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_field_of_the_text_is_said_of_json_and_json_lines(tmp_path: Path, name: str) -> None:
    records = [{"title": "t", "content": text} for text in PROSE]
    data = json.dumps(records) if name == "a.json" else lines_of(records)
    assert read(file_of(tmp_path, name, data))[2] == ["text from field content"]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_text_in_an_object_within_content_is_found(tmp_path: Path, name: str) -> None:
    records = [{"author": None, "title": None, "content": {"text": text, "meta": {"n": "1"}}} for text in PROSE]
    data = json.dumps(records) if name == "a.json" else lines_of(records)
    documents, _, notes = read(file_of(tmp_path, name, data))
    assert [document.text for document in documents] == list(PROSE)
    assert notes == ["text from field content.text"]


def test_lists_of_a_json_object_that_are_not_read_are_said(tmp_path: Path) -> None:
    value = {"train": [{"story": text} for text in PROSE], "test": [{"story": PROSE[0]}]}
    assert read(file_of(tmp_path, "a.json", json.dumps(value)))[2] == [
        "records from train; not read: test; save each as a file to read them too",
        "text from field story",
    ]


def test_authors_without_texts_are_a_problem(tmp_path: Path) -> None:
    authors = [{"description": "某人，字子某。", "name": "某", "short_description": "某人"}]
    for count in (1, 2000):
        path = file_of(tmp_path, "author.song.json", json.dumps(authors * count, ensure_ascii=False))
        assert detect_kind(path).problem == "no text field"
        assert "no field text; fields: description, name, short_description" in refused(path).message
        assert texts(path, ("description",)) == ["某人，字子某。"] * count


def test_parquet_and_arrow_take_the_column_that_dominates(tmp_path: Path) -> None:
    rows = [{"id": n, "content": text, "title": f"t{n}"} for n, text in enumerate(PROSE * 400)]
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "a.parquet")
    for name, new in (("a.arrow", pyarrow.ipc.new_stream), ("b.arrow", pyarrow.ipc.new_file)):
        with new(tmp_path / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=500)
    file_of(tmp_path, "c.parquet.zst", PACKERS["zst"]((tmp_path / "a.parquet").read_bytes()))
    for name in ("a.parquet", "a.arrow", "b.arrow", "c.parquet.zst"):
        documents, _, notes = read(tmp_path / name)
        assert [(document.text, document.title, document.line) for document in documents] == [
            (row["content"], row["title"], line) for line, row in enumerate(rows, start=1)
        ]
        assert notes == ["text from field content"]
        assert texts(tmp_path / name, ("title,content",))[:1] == [f"t0\n\n{PROSE[0]}"]


def test_truncated_arrow_stream_is_refused(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([{"text": text} for text in PROSE * 400])
    with pyarrow.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    data = (tmp_path / "a.arrow").read_bytes()
    for size in (100, len(data) // 2, len(data) - 8, len(data) - 1):
        assert "truncated or corrupt Arrow file" in refused(file_of(tmp_path, "b.arrow", data[:size])).message


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    assert "2 columns are named text" in refused(tmp_path / "a.parquet").message


# CSV


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_in_any_dialect(tmp_path: Path, separator: str, encoding: str, end: str) -> None:
    quoted = ['"' + text.replace('"', '""') + '"' for text in PROSE * 5]
    rows = [separator.join((str(n), text, "x")) for n, text in enumerate(quoted)]
    data = end.join([separator.join(("id", "content", "kind")), *rows])
    documents, rejects, notes = read(file_of(tmp_path, "a.csv", data.encode(encoding)))
    assert [document.text for document in documents] == PROSE * 5
    assert (rejects, notes, documents[0].line) == ([], ["text from field content"], 2)


@pytest.mark.parametrize(
    ("columns", "title", "author", "dynasty", "text"),
    [
        ("题目,朝代,作者,内容", 0, 2, 1, 3),
        ("作者,詩題,正文,註,時代", 1, 0, 4, 2),
        ("title,author,content,dynasty", 0, 1, 3, 2),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_table_of_poems_gives_title_author_and_dynasty(
    tmp_path: Path, columns: str, title: int, author: int, dynasty: int, text: int, suffix: str
) -> None:
    names, cells = columns.split(","), [""] * len(columns.split(","))
    cells[title], cells[author], cells[dynasty], cells[text] = "静夜思", "李白", "唐", "床前明月光。疑是地上霜。"
    cells = [cell or "一首思乡的诗，写于扬州旅舍。" * 3 for cell in cells]
    if suffix == "csv":
        path = file_of(tmp_path, "a.csv", "\n".join([columns, *[",".join(cells)] * 3]))
    else:
        path = tmp_path / "a.parquet"
        parquet.write_table(pyarrow.table({name: [cell] for name, cell in zip(names, cells, strict=True)}), path)
    documents, rejects, _ = read(path)
    assert not rejects
    assert {(document.text, document.title) for document in documents} == {("床前明月光。疑是地上霜。", "静夜思")}
    assert documents[0].meta == {"author": "李白", "dynasty": "唐"}


def test_csv_without_header_whose_only_column_is_text(tmp_path: Path) -> None:
    lines = ["It was late, and cold.", "He went, she stayed, they wept, and so on.", "Nobody came"] * 3
    assert texts(file_of(tmp_path, "a.csv", "\n".join(lines))) == lines
    assert texts(file_of(tmp_path, "b.csv", "text\n" + "\n".join(lines))) == lines


def test_csv_without_header_has_numbered_columns(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a.csv", "\n".join(f'{n},"{text} - {n}"' for n, text in enumerate(["a b c", "d e f"] * 4)))
    documents, _, notes = read(path)
    assert (len(documents), documents[0].text, notes) == (8, "a b c - 0", ["text from field column2"])


def test_quotes_in_tsv_are_part_of_the_text(tmp_path: Path) -> None:
    rows = [f'"Hello" he said {n}\t{n}' for n in range(9)] + ['"and she\t9']
    assert texts(file_of(tmp_path, "a.tsv", "text\tn\n" + "\n".join(rows))) == [row.split("\t")[0] for row in rows]


def test_row_with_other_cells_is_rejected(tmp_path: Path) -> None:
    rows = [f"{n},a text of words {n}" for n in range(20)]
    documents, rejects, _ = read(file_of(tmp_path, "a.csv", "\n".join(["id,text", *rows, "1,2,3", "7,last"])))
    assert (len(documents), documents[-1].text) == (21, "last")
    assert [(reject.line, reject.reason) for reject in rejects] == [(22, "bad-record")]


def test_csv_that_ends_within_a_cell_is_refused(tmp_path: Path) -> None:
    rows = [f'{n},"a text of words {n}"' for n in range(300)]
    path = file_of(tmp_path, "a.csv", "\n".join(["id,text", *rows, '300,"and cut']))
    assert "line 302: a quotation mark that is not closed" in refused(path).message


def test_short_csv_that_ends_within_a_cell_is_no_list_of_texts(tmp_path: Path) -> None:
    rows = [f'{n},"first, second, {n}"' for n in range(9)]
    path = file_of(tmp_path, "a.csv", "\n".join(["id,text", *rows, '9,"and cut', "10,more"]))
    assert "line 11: a quotation mark that is not closed" in refused(path).message


def test_categories_are_a_column_of_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": pyarrow.array(PROSE).dictionary_encode()}), path)
    assert texts(path) == PROSE
    parquet.write_table(pyarrow.table({"text": pyarrow.array([PROSE])}), path)
    assert refused(path).hint == "convert it to strings"


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.arrow", "a.json", "a.html", "a.epub", "a.txt", "a.txt.gz"])
def test_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    refused(file_of(tmp_path, name, b""))


# Pages and books

PAGE = """<!DOCTYPE html><html><head><title>A &amp; B</title><meta charset="{}"><style>p {{}}</style></head><body>
<nav><ul><li>Home</ul></nav><h1>第一回</h1><p>却说那老人
坐在船头，<b>不知</b>何处去。<p>　　Second&nbsp;line<br>third<script>var a = "</p>";</script>
<ruby>漢<rp>(</rp><rt>hàn</rt></ruby><table><tr><td>1<td>2</table><pre>  a
    b</pre></body></html>"""
PAGE_TEXT = "第一回\n却说那老人 坐在船头，不知何处去。\n　　Second\xa0line\nthird 漢\n1 2\n  a\n    b"


@pytest.mark.parametrize("encoding", ["utf-8", "gb2312", "gbk", "utf-16", "big5"])
def test_page_is_one_document_of_lines(tmp_path: Path, encoding: str) -> None:
    page, text = PAGE.format(encoding), PAGE_TEXT
    if encoding in ("gb2312", "gbk", "big5"):
        page, text = page.replace("漢", "山"), text.replace("漢", "山")
    if encoding == "big5":
        page, text = page.replace("却说", "話說").replace("坐在船头", "上"), text.replace("却说", "話說")
        page, text = page.replace("不知何处去", "去").replace("何处去", "去"), text.replace("坐在船头", "上")
        text = text.replace("何处去", "去").replace("hàn", "")
        page = page.replace("hàn", "x")
    data = page.replace("hàn", "han").encode("gb18030" if encoding == "gb2312" else encoding)
    for name in ("a.html", "a.html.gz") if encoding == "utf-16" else ("a.html", "page", "a.txt", "a.html.gz"):
        (document,), rejects, _ = read(file_of(tmp_path, name, gzip.compress(data) if name.endswith("gz") else data))
        assert (document.text, document.title, rejects) == (text, "第一回", [])


def test_page_without_text_is_refused(tmp_path: Path) -> None:
    assert "the page has no text" in refused(file_of(tmp_path, "a.html", "<html><body><img src=a></body>")).message


def book(pages: dict[str, str], *, extra: dict[str, str] | None = None, spine: list[str] | None = None) -> bytes:
    out = io.BytesIO()
    names = list(pages)
    items = "".join(
        f'<item id="i{n}" href="{name.replace(" ", "%20")}" media-type="application/xhtml+xml"/>'
        for n, name in enumerate(names)
    )
    order = "".join(f'<itemref idref="i{names.index(name)}"/>' for name in spine or names)
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">'
        "<dc:title>The Book</dc:title><dc:creator>An Author</dc:creator></metadata>"
        f'<manifest>{items}<item id="css" href="a.css" media-type="text/css"/></manifest>'
        f"<spine>{order}</spine></package>"
    )
    container = (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="OEBPS/a.opf"/></rootfiles></container>'
    )
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr("META-INF/container.xml", container)
        archive.writestr("OEBPS/a.opf", package)
        for name, page in (pages | (extra or {})).items():
            archive.writestr(f"OEBPS/{name}" if name in pages else name, page)
    return out.getvalue()


def xhtml(body: str) -> str:
    return f'<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head><body>{body}</body></html>'


CHAPTERS = {
    "text/two.xhtml": xhtml("<h2>Two</h2><p>Later<a id='x'/>, he went.</p>"),
    "cover.xhtml": xhtml("<img src='a.png'/>"),
    "text/chapter 1.xhtml": xhtml("<h2>One</h2><p>At first, he came.</p>"),
}


@pytest.mark.parametrize("name", ["a.epub", "A.EPUB", "book", "a.zip"])
def test_book_is_read_in_the_order_of_its_spine(tmp_path: Path, name: str) -> None:
    data = book(CHAPTERS, spine=["cover.xhtml", "text/chapter 1.xhtml", "text/two.xhtml"])
    documents, rejects, _ = read(file_of(tmp_path, name, data))
    assert [(document.title, document.text, document.line) for document in documents] == [
        ("One", "One\nAt first, he came.", 1),
        ("Two", "Two\nLater, he went.", 2),
    ]
    assert documents[0].meta == {"book": "The Book", "author": "An Author"}
    assert rejects == []


def test_damaged_and_locked_books_are_refused(tmp_path: Path) -> None:
    data = book(CHAPTERS)
    assert "truncated or corrupt" in refused(file_of(tmp_path, "a.epub", data[: len(data) // 2])).message
    locked = '<encryption xmlns:e="x"><e:CipherReference URI="OEBPS/text/two.xhtml"/></encryption>'
    path = file_of(tmp_path, "b.epub", book(CHAPTERS, extra={"META-INF/encryption.xml": locked}))
    assert "OEBPS/text/two.xhtml is encrypted" in refused(path).message
    missing = book(CHAPTERS).replace(b"text/two.xhtml", b"text/tow.xhtml", 1)
    refused(file_of(tmp_path, "c.epub", missing))
    assert "has no text" in refused(file_of(tmp_path, "d.epub", book({"a.xhtml": xhtml("")}))).message


# Archives

MEMBERS = {
    "novel/a.txt": PROSE[0].encode(),
    "b.jsonl": lines_of([{"text": text} for text in PROSE]).rstrip().encode(),
    "c.csv.gz": gzip.compress(b"id,content\n1,some words of a text\n2,other words\n"),
    "notes/d.md": b"# Title\n\nA note.\n",
    "e.html": b"<html><body><p>page</body></html>",
    "__MACOSX/._a.txt": b"\0\1",
    ".hidden/a.txt": b"hidden",
    "image.png": b"\x89PNG\r\n\x1a\n",
    "f.txt": b"%PDF-1.7 named .txt",
    "g.txt": b"",
}
MEMBER_TEXTS = [PROSE[0], *PROSE, "some words of a text", "other words", "# Title\n\nA note.\n", "page"]


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("novel")
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def packed_tar(name: str, members: dict[str, bytes]) -> bytes:
    return PACKERS[name](tarred(members))


ARCHIVES: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "a.zip": zipped,
    "a.tar": tarred,
    "a.tgz": lambda members: gzip.compress(tarred(members)),
    **{f"a.tar.{name}": partial(packed_tar, name) for name in PACKERS},
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_members_of_an_archive_are_read_and_others_left_out_with_a_word(tmp_path: Path, name: str) -> None:
    documents, rejects, notes = read(file_of(tmp_path, name, ARCHIVES[name](MEMBERS)))
    assert [document.text for document in documents] == MEMBER_TEXTS
    assert documents[0].file == f"{name}/novel/a.txt"
    assert rejects == []
    assert notes[-1] == (
        f"{tmp_path / name}: left out 2 hidden (__MACOSX/._a.txt), 1 .png file (image.png), 1 a PDF (f.txt), "
        "1 empty (g.txt)"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_parquet_and_book_in_an_archive(tmp_path: Path) -> None:
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([{"text": text} for text in PROSE]), out)
    members = {"a.parquet": out.getvalue(), "b.epub": book(CHAPTERS)}
    expected = [*PROSE, "Two\nLater, he went.", "One\nAt first, he came."]
    for name in ("a.zip", "a.tar.gz"):
        assert texts(file_of(tmp_path, name, ARCHIVES[name](members))) == expected


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar.zst"])
def test_truncated_archive_is_refused(tmp_path: Path, name: str) -> None:
    members = {f"{n}.txt": bytes(f"{n} words " * 3000, "ascii") for n in range(5)}
    data = ARCHIVES[name](members)
    for size in (len(data) // 3, len(data) // 2, len(data) - 20):
        refused(file_of(tmp_path, name, data[:size]))


def test_tar_that_ends_between_members_is_refused(tmp_path: Path) -> None:
    whole = tarred({"a.txt": b"a" * 512, "b.txt": b"b" * 512})
    assert "no end mark" in refused(file_of(tmp_path, "a.tar", whole[:1024])).message


def test_archive_within_an_archive_is_refused_by_name(tmp_path: Path) -> None:
    for inner in ("in.zip", "in.tar.gz"):
        path = file_of(tmp_path, "a.zip", zipped({"a.txt": b"text", inner: ARCHIVES[f"a{inner[2:]}"](MEMBERS)}))
        assert f"{inner}: an archive within an archive" in refused(path).message


def test_archive_is_bounded_in_members_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_of(tmp_path, "a.zip", zipped({f"{n}.txt": b"a text" for n in range(9)}))
    monkeypatch.setattr(archives, "MAX_MEMBERS", 8)
    assert "more than 8 members" in refused(path).message
    bomb = zipped({"a.txt.bz2": bz2.compress(b"a" * (64 << 20))})
    assert "over the limit" in refused(file_of(tmp_path, "b.zip", bomb)).message


def test_archive_without_a_readable_member_is_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a.zip", zipped({"a.png": b"\x89PNG", "b.png": b"", "c.doc": b"PK"}))
    assert "no member can be read: 2 .png files (a.png), 1 .doc file (c.doc)" in refused(path).message


def test_names_in_gbk_are_decoded() -> None:
    info = zipfile.ZipInfo("第一回.txt".encode("gbk").decode("cp437"))
    assert archives.member_name(info) == "第一回.txt"


# Other kinds


def test_file_that_cannot_be_read_is_named_with_what_to_do(tmp_path: Path) -> None:
    error = refused(file_of(tmp_path, "a.txt", b"%PDF-1.7\n%\xe2\xe3"))
    assert error.message.endswith("a.txt: a PDF, not text")
    assert "pdftotext" in error.hint


def test_few_nuls_are_counted_in_the_ledger(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a.txt", "话说那老人坐在船头。\n" * 200 + "\0" + "不知何处去。\n" * 200)
    ledger, notes = Ledger(), list[str]()
    (document,) = readers.read_documents(path, ledger, print)
    assert "\0" not in document.text
    assert ledger.characters.dropped == {"nul": 1}
    b"".join(readers.read_json_lines(path, note=notes.append))
    assert notes == [f"{path}: removed 1 NUL characters"]


def test_libraries_that_decide_the_text(tmp_path: Path) -> None:
    for name, data, libraries in (
        ("a.jsonl", b'{"text": "a"}', ()),
        ("a.html", b"<html>", ("selectolax",)),
        ("a.epub", book(CHAPTERS), ("selectolax",)),
        ("a.zip", zipped(MEMBERS), ("pyarrow", "selectolax")),
    ):
        assert readers.libraries_of(file_of(tmp_path, name, data)) == libraries

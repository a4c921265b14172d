"""Word documents are read by paragraphs, from a folder, an archive or by name."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from pipeline.errors import BadData
from pipeline.readers.kinds import detect_kind
from pipeline.readers.readers import read_documents
from pipeline.runtime.ledger import Ledger
from pipeline.sources.walk import walk

NAMESPACES = (
    'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main" '
    'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
)
BODY = (
    '<w:p><w:pPr><w:tabs><w:tab w:val="left"/></w:tabs></w:pPr><w:r><w:t>第一回</w:t></w:r></w:p>'
    '<w:p><w:r><w:t xml:space="preserve">他 </w:t></w:r><w:r><w:t>走了 &amp; </w:t><w:br/><w:t>来了</w:t></w:r>'
    "<w:del><w:r><w:delText>gone</w:delText></w:r></w:del>"
    "<w:moveFrom><w:r><w:t>moved</w:t></w:r></w:moveFrom></w:p><w:p/>"
    "<w:p><mc:AlternateContent><mc:Choice><w:t>box</w:t></mc:Choice><mc:Fallback><w:t>box</w:t></mc:Fallback>"
    "</mc:AlternateContent><w:r><w:tab/><w:instrText>PAGE</w:instrText><w:t>end</w:t></w:r></w:p><w:p/>"
)


def word_file(body: str, **members: str) -> bytes:
    document = f"<w:document {NAMESPACES}><w:body>{body}</w:body></w:document>"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("word/document.xml", members.get("document", document))
    return out.getvalue()


def texts(path: Path) -> list[str]:
    return [document.text for document in read_documents(path, Ledger(), lambda reject: None)]


@pytest.mark.parametrize("name", ["a.docx", "a.DOCX", "a", "a.txt"])
def test_paragraphs_and_breaks_are_lines(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(word_file(BODY))
    assert texts(tmp_path / name) == ["第一回\n他 走了 &\n来了\n\nbox\tend"]


def test_word_file_in_an_archive_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("b/a.docx", word_file(BODY))
    assert texts(tmp_path / "a.zip") == ["第一回\n他 走了 &\n来了\n\nbox\tend"]


def test_folder_takes_word_files_and_leaves_out_their_locks(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(word_file(BODY))
    (tmp_path / "~$a.docx").write_bytes(b"\x05admin" + bytes(156))
    found = walk(tmp_path)
    assert [path.name for path in found.files] == ["a.docx"]
    assert len(found.left_out) == 1
    assert detect_kind(tmp_path / "~$a.docx").problem == "not text"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (word_file("<w:p/>"), "the Word file has no text"),
        (word_file("", document="<w:p>"), "word/document.xml is not XML"),
        (word_file("", document='<?xml version="1.0" encoding="none"?><w/>'), "is not XML: unknown encoding"),
        (word_file(BODY)[:-30], "truncated or corrupt"),
        (word_file(BODY).replace(b"word/document.xml", b"word/documents.ml"), "is missing from the Word file"),
    ],
)
def test_damaged_and_empty_word_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.docx").write_bytes(data)
    with pytest.raises(BadData, match=message):
        texts(tmp_path / "a.docx")

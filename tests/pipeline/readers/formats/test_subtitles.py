"""Subtitles are read without times, numbers and styles."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from pipeline.errors import BadData
from pipeline.readers.formats.subtitles import text_of
from pipeline.readers.kinds import detect_kind, has_text_suffix
from pipeline.readers.readers import read_documents
from pipeline.runtime.ledger import Ledger

SUBRIP = (
    "1\r\n00:00:11,000 --> 00:00:13,500\r\n<i>He left</i>\r\n- at 10.\r\n\r\n"
    "2\r\n00:00:14,100 --> 00:00:16,000 X1:0\r\n{\\an8}42\r\n"
)
WEB = (
    "WEBVTT Kind: captions\nLanguage: en\n\nNOTE made by\nhand\n\nintro\n00:01.000 --> 00:02.000 align:start\n"
    "<v Ann>so &amp; so\n\n00:02.000 --> 00:03.000\nso &amp; so\nand<00:00:02.500><c> on</c>\n"
)
ALPHA = (
    "[Script Info]\nTitle: a\n\n[Events]\nFormat: Layer, Start\n"
    "Dialogue: 0,0:00:01.00,0:00:03.00,Default,,0,0,0,,{\\fad(1,2)}你好，世界\\NHello, {\\i1}you{\\i0}\n"
    "Comment: 0,0:00:01.00,0:00:03.00,Default,,0,0,0,,no\n"
    "Dialogue: 0,0:00:04.00,0:00:05.00,Default,,0,0,0,,{\\p1}m 0 0 l 9 0{\\p0}\n"
)


@pytest.mark.parametrize(
    ("subtitles", "text"),
    [
        (SUBRIP, "He left\n- at 10.\n42"),
        ("\ufeff" + SUBRIP.replace("\r\n\r\n", "\r\n"), "He left\n- at 10.\n42"),
        (WEB, "so & so\nand on"),
        (ALPHA, "你好，世界\nHello, you"),
        ("1\n00:00:01,000 --> 00:00:02,000\nNo.\n\n2\n00:00:03,000 --> 00:00:04,000\nNo.", "No.\nNo."),
        ("1 < 2 --> 3\n\n<script> stays", "1 < 2 --> 3\n<script> stays"),
        ("WEBVTT\n00:01.000 --> 00:02.000\nfirst\n\nNOTE a\n00:02.000 --> 00:03.000\nsecond", "first\nsecond"),
        (WEB.replace("and<", "NOTE it\nSTYLE, and<"), "so & so\nNOTE it\nSTYLE, and on"),
        (ALPHA.replace("{\\p1}", "{\\clip(m 0 0 l 9 0)\\p1}"), "你好，世界\nHello, you"),
        ("{" + "\\p1" * 30_000, "{" + "\\p1" * 30_000),
    ],
)
def test_text_of_subtitles_has_no_times_numbers_and_styles(subtitles: str, text: str) -> None:
    assert text_of(subtitles) == text


@pytest.mark.parametrize("name", ["a.srt", "a.VTT", "a.ass.gz", "a.ssa"])
def test_folder_takes_subtitles(name: str) -> None:
    assert has_text_suffix(name)


@pytest.mark.parametrize("content", [SUBRIP, WEB])
def test_text_file_with_the_content_of_subtitles_is_subtitles(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    assert detect_kind(tmp_path / "a.txt").format == "subtitles"
    (tmp_path / "b.txt").write_text(f"A text.\n{content}", encoding="utf-8")
    assert detect_kind(tmp_path / "b.txt").format == "text"


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16"])
def test_subtitles_in_an_archive_and_in_any_encoding_are_read(tmp_path: Path, encoding: str) -> None:
    line = "他们在院子里说话，后来大家都走了。"
    subtitles = "".join(f"{n}\n00:00:{n:02},000 --> 00:00:{n:02},900\n{line}\n\n" for n in range(20))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.srt", subtitles.encode(encoding))
    notes: list[str] = []
    documents = read_documents(tmp_path / "a.zip", Ledger(), lambda reject: None, note=notes.append)
    assert [document.text for document in documents] == ["\n".join([line] * 20)]
    assert notes == ["subtitles, without their time codes"]


def test_subtitles_without_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\n\n")
    with pytest.raises(BadData, match="the subtitles have no text"):
        list(read_documents(tmp_path / "a.srt", Ledger(), lambda reject: None))

"""A text file gets its title from the Readme.org beside it, or from the folders that it is in."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import zstandard

from pipeline.clean import stage
from pipeline.clean.markup.titles import file_title, folder_title, listed_title
from pipeline.clean.options import CleanOptions
from pipeline.runtime.progress import SilentProgress
from pipeline.sources.inputs import resolve_inputs

README = """#+TITLE: 翠屏集 / WYG
* 目次
 - [[file:KR4e0011_000.txt::000-1a][翠屏集 目録]]
 - [[file:KR4e0011_000.txt::000-4a][序]]
 - [[file:KR4e0011_000.txt::000-7a][序]]
 - [[file:KR4e0011_001.txt][卷一]]
"""
LONG = "".join(f"[[file:KR2a0001_005.txt][5.{number} 〈列傳〉第{number}]]\n" for number in range(70))


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("KR4e0011_000.txt", "翠屏集 目録、序"),
        ("KR4e0011_001.txt", "翠屏集 卷一"),
        ("KR4e0011_002.txt", ""),
        ("KR2a0001_005.txt", ""),
        ("Readme.org", ""),
    ],
)
def test_readme_beside_a_file_gives_book_and_chapters_unless_they_are_too_many(
    name: str, title: str, tmp_path: Path
) -> None:
    (tmp_path / "Readme.org").write_text(README + LONG, encoding="utf-8")
    assert listed_title(tmp_path / name) == title


def test_changed_readme_gives_the_new_title(tmp_path: Path) -> None:
    for title in ("卷一", "第一卷"):
        (tmp_path / "Readme.org").write_text(f"[[file:a.txt][{title}]]", encoding="utf-8")
        assert file_title(tmp_path / "a.txt", "a.txt") == title


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("史记/本纪/text.txt", "史记 本纪"),
        ("classical-prose/古文原文/史记/本纪/五帝本纪/text.txt", "史记 本纪 五帝本纪"),
        ("双语数据/论语/学而篇/source.txt", "论语 学而篇"),
        ("论语/学而篇/target.TXT", "论语 学而篇"),
        ("史记/五帝本纪.txt", ""),
        ("books/text.txt", ""),
        ("text.txt", ""),
        ("长" * 61 + "/text.txt", ""),
    ],
)
def test_folders_give_the_title_of_a_file_whose_name_says_nothing(name: str, title: str) -> None:
    assert folder_title(name) == title


def clean(folder: Path, root: Path) -> list[dict[str, str]]:
    entries = resolve_inputs(root, str(folder), corpora=False)
    built = stage.clean(root, "c", entries, CleanOptions(), SilentProgress()).artifact
    data = zstandard.ZstdDecompressor().stream_reader(built.file("documents.jsonl.zst").read_bytes()).read()
    return [msgspec.json.decode(line) for line in data.splitlines()]


def test_titles_reach_the_documents_and_a_changed_readme_makes_another_corpus(tmp_path: Path) -> None:
    book = tmp_path / "in" / "史记" / "本纪"
    book.mkdir(parents=True)
    (book / "text.txt").write_text("黄帝者，少典之子。\n姓公孙，名曰轩辕。\n", encoding="utf-8")
    (book / "KR1a0001_001.txt").write_text("乾元亨利貞。\n", encoding="utf-8")
    root = tmp_path / "artifacts"
    assert [row.get("title", "") for row in clean(tmp_path / "in", root)] == ["", "史记 本纪"]
    (book / "Readme.org").write_text("#+TITLE: 周易\n[[file:KR1a0001_001.txt][上經]]\n", encoding="utf-8")
    assert [row.get("title", "") for row in clean(tmp_path / "in", root)] == ["周易 上經", "史记 本纪"]

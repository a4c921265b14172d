"""The files of a folder that hold text, and the reasons why others are left out."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from pipeline.errors import InputMissing
from pipeline.sources.walk import LeftOut, NotText, Walk, require_text, summarize, walk
from tests.conftest import ROOT

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
PDF = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<</Type/Catalog>>\nendobj\n"


def write(folder: Path, **contents: bytes | str) -> Path:
    """Write files by name, with `__` for "." and `___` for "/"."""
    for name, content in contents.items():
        write_file(folder, name.replace("___", "/").replace("__", "."), content)
    return folder


def write_file(folder: Path, name: str, content: bytes | str = "") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def names(result: Walk, folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in result.files]


def reasons(result: Walk) -> dict[str, str]:
    return {entry.name: entry.reason for entry in result.left_out}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "texts"
    path.mkdir()
    return path


def test_folders_far_below_are_left_out_with_a_word(folder: Path) -> None:
    deep = "/".join("d" * 100)
    write_file(folder, f"{deep}/a.txt", "taken\n")
    write_file(folder, f"{deep}/d/" + "/".join("e" * 500) + "/b.txt", "too deep\n")
    result = walk(folder)
    assert names(result, folder) == [f"{deep}/a.txt"]
    assert reasons(result) == {f"{deep}/d/": "more than 100 folders deep"}


def test_texts_are_taken_whatever_the_case_of_their_suffix(folder: Path) -> None:
    for name in ("B.TXT", "a.txt", "c.Txt", "d.md", "e.text", "LICENSE"):
        write_file(folder, name, f"the text of {name}\n")
    result = walk(folder)
    assert names(result, folder) == ["a.txt", "B.TXT", "c.Txt", "d.md", "e.text", "LICENSE"]
    assert result.left_out == []


def test_what_is_no_text_is_left_out_with_its_reason(folder: Path) -> None:
    write_file(folder, "a.txt", "text\n")
    write_file(folder, "scan.txt", PDF)
    write_file(folder, "cover.txt", PNG)
    write_file(folder, "photo.JPG", PNG)
    write_file(folder, "clip.mp4", b"x")
    write_file(folder, "model.bin", b"x")
    write_file(folder, "empty.txt")
    result = walk(folder)
    assert names(result, folder) == ["a.txt"]
    assert reasons(result) == {
        "clip.mp4": "a video",
        "cover.txt": "a PNG image",
        "empty.txt": "empty",
        "model.bin": "a .bin file",
        "photo.JPG": "an image",
        "scan.txt": "a PDF",
    }


def test_hidden_entries_and_copies_of_editors_are_left_out(folder: Path) -> None:
    for name in (
        *("book.txt", "._book.txt", "__MACOSX/._book.txt", ".git/config", ".ipynb_checkpoints/a.txt", "book.txt~"),
        *("#book.txt#", "book.txt.swp", "node_modules/x/README.md", "deep/.DS_Store"),
    ):
        write_file(folder, name, f"the text of {name}\n")
    result = walk(folder)
    assert names(result, folder) == ["book.txt"]
    assert reasons(result) == {
        "#book.txt#": "a backup",
        "._book.txt": "hidden",
        ".git/": "hidden",
        ".ipynb_checkpoints/": "hidden",
        "__MACOSX/": "of another tool",
        "book.txt.swp": "a backup",
        "book.txt~": "a backup",
        "deep/.DS_Store": "hidden",
        "node_modules/": "of another tool",
    }


def test_a_hidden_folder_that_is_named_is_read(tmp_path: Path) -> None:
    write_file(tmp_path / ".notes", "a.md", "text\n")
    assert names(walk(tmp_path / ".notes"), tmp_path / ".notes") == ["a.md"]


def test_only_included_files_are_taken_whatever_their_suffix(folder: Path) -> None:
    for name in ("tool.py", "deep/Other.PY", "notes.md", "deep/tool.c"):
        write_file(folder, name, f"# {name}\n")
    assert names(walk(folder, include=["*.py"]), folder) == ["deep/Other.PY", "tool.py"]
    assert reasons(walk(folder, include=["*.py"])) == {"deep/tool.c": "not included", "notes.md": "not included"}
    assert names(walk(folder, include=["*.py", "notes*"]), folder) == ["deep/Other.PY", "notes.md", "tool.py"]
    assert names(walk(folder, include=["deep/*"]), folder) == ["deep/Other.PY", "deep/tool.c"]


def test_excluded_files_and_folders_are_left_out(folder: Path) -> None:
    for name in ("a.txt", "b.txt", "drafts/c.txt", "deep/drafts/d.txt", "deep/e.txt"):
        write_file(folder, name, f"text of {name}\n")
    assert names(walk(folder, exclude=["drafts/"]), folder) == ["a.txt", "b.txt", "deep/e.txt"]
    assert names(walk(folder, exclude=["deep/drafts", "B*"]), folder) == ["a.txt", "deep/e.txt", "drafts/c.txt"]
    assert reasons(walk(folder, exclude=["drafts", "b.txt"])) == {
        "b.txt": "excluded",
        "deep/drafts/": "excluded",
        "drafts/": "excluded",
    }


def test_text_and_its_compressed_copies_are_one(folder: Path) -> None:
    text = b'{"text":"one"}\n' * 100
    write_file(folder, "a.jsonl", text)
    write_file(folder, "a.jsonl.zst", zstandard.compress(text))
    write_file(folder, "a.jsonl.gz", gzip.compress(text))
    write_file(folder, "b.txt.gz", gzip.compress(b"another\n"))
    write_file(folder, "c.txt", "c")
    write_file(folder, "c.txt.zst", zstandard.compress(b"not c"))
    result = walk(folder)
    assert names(result, folder) == ["a.jsonl", "b.txt.gz", "c.txt"]
    assert reasons(result) == {
        "a.jsonl.gz": "same as a.jsonl",
        "a.jsonl.zst": "same as a.jsonl",
        "c.txt.zst": "other content than c.txt beside it",
    }


def test_same_content_counts_once(folder: Path) -> None:
    long = "一" * 50_000
    for name, text in {"1.txt": long + "a", "2.txt": long + "b", "deep/3.txt": long + "a", "10.md": "x"}.items():
        write_file(folder, name, text)
    result = walk(folder)
    assert names(result, folder) == ["1.txt", "2.txt", "10.md"]
    assert reasons(result) == {"deep/3.txt": "same as 1.txt"}


def test_links_to_folders_are_followed_once(folder: Path, tmp_path: Path) -> None:
    real = tmp_path / "real"
    write(real, a__txt="a\n", b__txt="b\n")
    write(folder, c__txt="c\n", inner___d__txt="d\n")
    for link, target in {"part2": real, "part3": real, "again": folder / "inner", "up": folder}.items():
        (folder / link).symlink_to(target)
    (real / "loop").symlink_to(real)
    result = walk(folder)
    assert names(result, folder) == ["c.txt", "inner/d.txt", "part2/a.txt", "part2/b.txt"]
    assert reasons(result) == {
        "again/": "same as inner",
        "part2/loop/": "same as part2",
        "part3/": "same as part2",
        "up/": f"same as {folder}",
    }


@pytest.mark.parametrize("target", ["nowhere.txt", "shard3.txt"])
def test_link_without_a_target_is_an_error(folder: Path, target: str) -> None:
    write_file(folder, "a.txt", "a")
    (folder / "shard3.txt").symlink_to(target)
    with pytest.raises(InputMissing, match=rf"shard3\.txt: a link to {target}, which does not exist") as caught:
        walk(folder)
    assert (caught.value.exit_code, "--exclude 'shard3.txt'" in caught.value.hint) == (66, True)
    assert names(walk(folder, exclude=["shard3.txt"]), folder) == ["a.txt"]


@pytest.mark.parametrize("name", ["closed", "closed.txt"])
def test_unreadable_entry_is_an_error(folder: Path, name: str) -> None:
    write_file(folder, "a.txt", "a")
    path = folder / name
    write_file(path, "b.txt", "b") if name == "closed" else write_file(folder, name, "b")
    path.chmod(0)
    code = (
        "import os, pathlib\n"
        "from pipeline.errors import NotPermitted\n"
        "from pipeline.sources.walk import walk\n"
        "os.getuid() or os.setuid(65534)\n"
        "try:\n"
        "    walk(pathlib.Path('.'))\n"
        "except NotPermitted as error:\n"
        "    print(error.exit_code, error)\n"
        "print(len(walk(pathlib.Path('.'), exclude=['closed*']).files))\n"
    )
    folder.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    path.chmod(0o700)
    assert run.stdout.splitlines() == [
        f"77 {name}: permission denied (make it readable, or leave it out with --exclude {name!r})",
        "1",
    ], run.stderr


def test_pipes_and_sockets_are_not_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(folder, "a.txt", "a")
    os.mkfifo(folder / "pipe.txt")
    monkeypatch.chdir(folder)  # the path of a socket may have 108 bytes at most
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket.txt")
        result = walk(folder)
    assert names(result, folder) == ["a.txt"]
    assert set(reasons(result).values()) == {"neither a file nor a folder"}


def test_artifacts_are_left_out_by_path_and_by_content(folder: Path) -> None:
    write_file(folder, "book.txt", "text")
    write_file(folder, "mine/notes.txt", "fresh store without artifacts")
    write_file(folder, "old/corpora/book/0123456789abcdef/manifest.json", "{}")
    write_file(folder, "cache/raw/book/sources.lock.json", "{}")
    result = walk(folder, leave_out=[folder / "deep" / ".." / "mine"])
    assert names(result, folder) == ["book.txt"]
    assert reasons(result) == {"cache/": "artifacts", "mine/": "artifacts", "old/": "artifacts"}


def test_folder_that_holds_artifacts_itself_keeps_its_texts(folder: Path) -> None:
    write_file(folder, "book.txt", "text")
    write_file(folder, "corpora/book/0123456789abcdef/sentences.txt", "text 2")
    assert names(walk(folder, leave_out=[folder]), folder) == ["book.txt"]


def test_raw_cache_is_read_without_its_lock_file_and_decompressed_copies(folder: Path) -> None:
    for name in ("a.txt", "sources.lock.json", "decompressed/b.txt"):
        write_file(folder, name, f"{{}} {name}")
    assert names(walk(folder), folder) == ["a.txt"]


def test_json_without_a_text_field_is_left_out_unless_the_user_names_one(folder: Path) -> None:
    write_file(folder, "ci.song.0.json", json.dumps([{"author": "李某", "paragraphs": ["却说阿渊来到江边。"]}]))
    write_file(folder, "author.song.json", json.dumps([{"name": "李某", "description": "字子某"}]))
    write_file(folder, "posts.json", json.dumps([{"body": "a text", "id": 1}]))
    result = walk(folder)
    assert names(result, folder) == ["ci.song.0.json", "posts.json"]
    assert reasons(result) == {"author.song.json": "no text field"}
    assert len(walk(folder, text_fields=["description"]).files) == 3
    require_text(folder / "author.song.json")  # its reader lists the fields


def test_folder_without_text_says_what_was_left_out(folder: Path) -> None:
    write(folder, a__png=PNG, b__toml="x = 1", c__toml="y = 2", d__txt="")
    with pytest.raises(InputMissing, match=r"left out 4 of 4 files: 2 \.toml files, 1 image, 1 empty") as caught:
        walk(folder)
    assert '--include "*.toml"' in caught.value.hint
    with pytest.raises(InputMissing, match=r"no text matches --include \*\.py; left out 4 of 4 files: 4 not included"):
        walk(folder, include=["*.py"])


def test_folder_of_images_and_binary_data_is_not_offered_include(folder: Path) -> None:
    write(folder, a__png=PNG, b__db=PDF)
    with pytest.raises(InputMissing, match=r"no text in this folder; left out 2 of 2 files") as caught:
        walk(folder)
    assert "--include" not in caught.value.hint
    assert "these are read: .txt, .text, .md, .markdown, .rst, .html" in caught.value.hint


def test_texts_of_other_suffixes_are_proposed_if_they_hold_more_than_is_read(folder: Path) -> None:
    write(folder, a__txt="a note\n", b__py="x = 1\n", c__py="y = 2\n", d__bin=bytes(999), e__png=PNG)
    result = walk(folder)
    assert summarize(result.left_out, 1).endswith(
        '1 image; the .py files hold more text than is read: --include "*.py" reads them instead'
    )
    write(folder, f__txt="a longer note\n" * 9)
    assert "--include" not in summarize(walk(folder).left_out, 2)


def test_file_name_that_is_not_utf_8_is_listed(folder: Path) -> None:
    write_file(folder, "a.txt", "a")
    with open(os.fsencode(folder) + b"/d\xca\xe9.bin", "wb") as file:
        file.write(b"x")
    assert reasons(walk(folder)) == {"d\\udcca\\udce9.bin": "a .bin file"}


def test_summary_counts_reasons_and_names_folders() -> None:
    left_out = [LeftOut(f"{number}.png", "an image") for number in range(2)]
    left_out += [LeftOut("a.txt", "empty"), LeftOut("b.txt", "a PDF"), LeftOut("c.txt", "same as d.txt")]
    assert summarize(left_out, 30) == "left out 5 of 35 files: 1 PDF, 2 images, 1 empty, 1 same as d.txt"
    more = [*left_out, LeftOut("e.txt", "same as f.txt"), LeftOut("old/", "excluded")]
    assert summarize(more, 30) == (
        "left out 6 of 36 files: 1 PDF, 2 images, 2 same as other files, 1 empty; folder old/ (excluded)"
    )
    assert summarize([LeftOut("a/", "hidden"), LeftOut("b/", "hidden")], 1) == (
        "left out 2 folders: a/ (hidden), b/ (hidden)"
    )


def test_summary_names_documents_first_and_every_kind() -> None:
    kinds = [
        "empty",
        "hidden",
        "an image",
        "a backup",
        "a PDF",
        "no text field",
        "a .docx file",
        "a .py file",
        "artifacts",
    ]
    left_out = [LeftOut(f"{reason}{n}", reason) for reason in kinds for n in range(1 if " ." in reason else 2)]
    assert summarize(left_out, 1) == (
        "left out 16 of 17 files: 2 PDFs, 1 .docx file, 2 empty, 2 hidden, 2 images, 2 backups, "
        "5 more (no text field, artifacts, .py)"
    )


@pytest.mark.parametrize(("content", "problem"), [(b"", "the file is empty"), (PDF, "a PDF, not text")])
def test_named_file_that_is_no_text_is_an_error(tmp_path: Path, content: bytes, problem: str) -> None:
    path = write_file(tmp_path, "a.txt", content)
    with pytest.raises(NotText, match=f"a.txt: {problem}") as caught:
        require_text(path)
    assert caught.value.exit_code == 65
    require_text(write_file(tmp_path, "b.txt", "text"))


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"Rar!\x1a\x07\x01\0", "unpack it, then name the folder, or leave it out"),
        (b"7z\xbc\xaf\x27\x1c\0\x04", "unpack it, then name the folder, or leave it out"),
        (PNG, "leave it out"),
    ],
)
def test_named_file_of_another_kind_says_what_to_do(tmp_path: Path, content: bytes, hint: str) -> None:
    with pytest.raises(NotText) as caught:
        require_text(write_file(tmp_path, "a.bin", content))
    assert caught.value.hint == hint

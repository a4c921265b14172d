"""Pointers of Git LFS and similar programs are refused wherever the file itself is expected."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from pipeline.clean.options import CleanOptions
from pipeline.clean.stage import clean
from pipeline.errors import BadData
from pipeline.runtime.progress import SilentProgress
from pipeline.sources import pointers
from pipeline.sources.catalogue import resolve_source
from pipeline.sources.download import download
from pipeline.sources.inputs import resolve_inputs
from pipeline.sources.walk import NotText, walk
from tests.support.bad_server import running_server

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n"
POINTERS = [
    (LFS, "Git LFS", "git lfs pull"),
    (LFS.replace(b"\n", b"\r\n"), "Git LFS", "git lfs pull"),
    (b"version https://hawser.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS", "git lfs pull"),
    (b"/annex/objects/SHA256E-s5--" + b"0" * 64 + b".txt\n", "git-annex", "git annex get"),
    (b"# xet version 0\nfilesize = 12\nhash = '00'\n", "Xet", "server of its repository"),
]


@pytest.mark.parametrize(("content", "program", "hint"), POINTERS)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.zst", "a.parquet"])
def test_pointer_is_refused_as_a_file_and_in_a_folder(
    root: Path, tmp_path: Path, content: bytes, program: str, hint: str, name: str
) -> None:
    (tmp_path / "b.txt").write_text("却说阿渊。")
    path = tmp_path / name
    path.write_bytes(content)
    for reference in (path, tmp_path):
        for call in (
            lambda reference=reference: resolve_inputs(root, str(reference), corpora=False),
            lambda reference=reference: resolve_source(str(reference), environment={}),
        ):
            with pytest.raises(NotText, match=f"{name}: a pointer of {program}, not the file itself") as caught:
                call()
            assert (caught.value.exit_code, hint in caught.value.hint) == (65, True)
    assert walk(tmp_path, exclude=[name]).files == [tmp_path / "b.txt"]


@pytest.mark.parametrize(
    "text", ["version https is not git-lfs", "/annex/objects are described here\n", "# xet version 0 is a format\n"]
)
def test_text_about_pointers_is_a_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert walk(tmp_path).files == [tmp_path / "a.txt"]


def test_pointer_in_an_archive_is_refused(root: Path, tmp_path: Path) -> None:
    """The archives that GitHub makes of a repository hold its pointers."""
    path = tmp_path / "book.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "却说阿渊。")
        archive.writestr("b.txt", LFS)
    inputs = resolve_inputs(root, str(path), corpora=False)
    with pytest.raises(BadData, match=r"b\.txt: a pointer of Git LFS"):
        clean(root, "book", inputs, CleanOptions(), SilentProgress())


def test_pointer_from_a_server_is_not_pinned_and_the_old_file_stays(root: Path) -> None:
    """Case 39."""
    with running_server() as server:
        server.files["/book.txt"] = b"x" * 50
        source = resolve_source(f"{server.url}/book.txt", environment={})
        path = download(root, source, SilentProgress()).path
        server.files["/book.txt"] = LFS
        for _ in range(2):
            with pytest.raises(BadData, match="the server sent a pointer of Git LFS") as caught:
                download(root, source, SilentProgress(), update=True)
            assert "git lfs pull" in caught.value.hint
        assert (path / "book.txt").read_bytes() == b"x" * 50
        server.files["/book.txt"] = b"y" * 200
        assert download(root, source, SilentProgress(), update=True).fetched == 1
        assert sorted(entry.name for entry in path.iterdir()) == [".lock", ".origin", "book.txt", "sources.lock.json"]


@pytest.mark.parametrize(
    ("url", "content"),
    [
        (
            "https://raw.githubusercontent.com/a/b/main/x.txt",
            "https://media.githubusercontent.com/media/a/b/main/x.txt",
        ),
        ("https://github.com/a/b/raw/main/x.txt", "https://media.githubusercontent.com/media/a/b/main/x.txt"),
        (
            "https://huggingface.co/datasets/a/b/raw/main/x.txt",
            "https://huggingface.co/datasets/a/b/resolve/main/x.txt",
        ),
        ("https://huggingface.co/a/b/raw/main/x.txt", "https://huggingface.co/a/b/resolve/main/x.txt"),
        ("https://example.org/a/b/raw/main/x.txt", ""),
    ],
)
def test_address_of_the_content_is_known_for_public_servers(url: str, content: str) -> None:
    assert pointers._content_url(url) == content

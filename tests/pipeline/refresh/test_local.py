"""Refresh of local files: text that vanished or shrank is never taken without being told to."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import TryAgain, UpstreamChanged
from pipeline.refresh import recipe as recipes
from pipeline.refresh import state
from pipeline.runtime.progress import Advance, SilentProgress
from pipeline.sources import hashes
from pipeline.sources.catalogue import resolve_source
from pipeline.sources.download import download
from pipeline.store import artifact
from tests.pipeline.refresh.test_refresh import make_plan, results, run, stage

RECIPE = """
name = "mine"
[download]
source = {source}
[clean]
unit = "paragraph"
[tokenizer]
kind = "char"
vocab_size = 0
[train]
preset = "sample"
"""


@pytest.fixture
def novels(tmp_path: Path) -> Path:
    folder = tmp_path / "novels"
    folder.mkdir()
    for name in "ab":
        lines = (f"却说阿渊到江边{name}，见一老渔翁坐在船头饮酒，第{number}次。" for number in range(20))
        (folder / f"{name}.txt").write_text("\n\n".join(lines), encoding="utf-8")
    return folder


class Nights:
    """A recipe whose sources are local, refreshed as often as a test likes."""

    def __init__(self, root: Path, *sources: Path) -> None:
        self.root, self.path = root, root.parent / "mine.toml"
        names = ", ".join(f'"{source}"' for source in sources)
        self.path.write_text(RECIPE.format(source=names if len(sources) == 1 else f"[{names}]"), encoding="utf-8")

    def run(self, **options: Any) -> dict[str, str]:
        return results(run(self.root, recipes.load(self.path), stage(self.root, []), through="clean", **options))

    def refused(self) -> str:
        """Assert that plan and refresh refuse the source and keep the corpus; return the message."""
        before = artifact.find(self.root, "corpora", "mine")
        with pytest.raises(UpstreamChanged) as caught:
            make_plan(self.root, recipes.load(self.path), stage(self.root, []), through="clean")
        with pytest.raises(UpstreamChanged) as again:
            self.run()
        assert (caught.value.message, caught.value.exit_code) == (again.value.message, 10)
        assert artifact.find(self.root, "corpora", "mine") == before
        return caught.value.message


def cut(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8")[:100], encoding="utf-8")


LOSSES: dict[str, tuple[Callable[[Path], object], str]] = {
    "vanished": (lambda path: path.unlink(), r"b.txt vanished; the old copy is kept"),
    "shrank": (cut, r"b.txt shrank from 1,\d+ to \d+ bytes; the old"),
    "emptied": (lambda path: path.write_bytes(b""), r"b.txt shrank from 1,\d+ to 0 bytes"),
    "replaced": (lambda path: path.write_bytes(b"%PDF-1.7\n" + bytes(9000)), r"b.txt is left out now \(a PDF\)"),
}


@pytest.mark.parametrize("listed", [False, True], ids=["folder", "list"])
@pytest.mark.parametrize("loss", LOSSES)
def test_lost_text_is_refused_and_accepted_with_allow_shrink(
    root: Path, novels: Path, tmp_path: Path, loss: str, listed: bool
) -> None:
    """Case 12."""
    (tmp_path / "other.txt").write_text("山色青青，江水茫茫。", encoding="utf-8")
    nights = Nights(root, novels, *([tmp_path / "other.txt"] if listed else []))
    nights.run()
    change, message = LOSSES[loss]
    change(novels / "b.txt")
    assert message.partition(" ")[0] in nights.refused()
    with pytest.raises(UpstreamChanged, match=message):
        nights.run()
    assert nights.run(allow_shrink=True)["clean"] == "built"
    assert set(nights.run().values()) == {"unchanged"}


def test_all_losses_are_counted(root: Path, novels: Path) -> None:
    nights = Nights(root, novels)
    nights.run()
    (novels / "a.txt").rename(novels / "a.bak~")
    cut(novels / "b.txt")
    assert nights.refused().endswith("a.txt vanished, and 1 more; the old copy is kept")


@pytest.mark.parametrize("source", ["file", "folder", "emptied", "list"])
def test_source_that_vanished_is_refused(root: Path, novels: Path, source: str) -> None:
    paths = {"file": [novels / "a.txt"], "list": [novels / "a.txt", novels / "b.txt"]}.get(source, [novels])
    nights = Nights(root, *paths)
    nights.run()
    if source == "emptied":
        for path in novels.iterdir():
            path.unlink()
    else:
        shutil.rmtree(novels) if source == "folder" else (novels / "a.txt").unlink()
    message = nights.refused()
    assert message.endswith("the old copy is kept")
    if source != "emptied":
        assert message.startswith(f"{paths[0]} vanished")
    recorded = state.read(root, "mine")
    assert (recorded.exit_code, recorded.error) == (10, message), "`status --check` says the same"


def test_added_grown_and_renamed_files_are_taken(root: Path, novels: Path) -> None:
    nights = Nights(root, novels)
    nights.run()
    (novels / "b.txt").rename(novels / "c.txt")
    (novels / "b.txt").write_text("新添一回书，话说渔翁归去。", encoding="utf-8")  # shorter than the old one
    with open(novels / "a.txt", "a", encoding="utf-8") as file:
        file.write("\n\n且听下回分解。")
    assert nights.run() == {"download": "built", "clean": "built"}
    assert [path.name for path in sorted((root / "raw" / "novels").glob("*.txt"))] == ["a.txt", "b.txt", "c.txt"]


def test_file_that_the_recipe_leaves_out_is_not_lost(root: Path, novels: Path) -> None:
    nights = Nights(root, novels)
    nights.run()
    text = nights.path.read_text(encoding="utf-8")
    nights.path.write_text(text.replace("[clean]", 'exclude = ["b*"]\n[clean]'), encoding="utf-8")
    assert nights.run()["clean"] == "built"


def test_source_taken_out_of_a_list_is_not_lost(root: Path, novels: Path) -> None:
    Nights(root, novels / "a.txt", novels / "b.txt").run()
    (novels / "b.txt").unlink()
    path = Nights(root, novels / "a.txt").path
    path.write_text(path.read_text(encoding="utf-8").replace(f'"{novels}/a.txt"', f'["{novels}/a.txt"]'))
    assert set(results(run(root, recipes.load(path), stage(root, []), through="clean")).values()) == {"unchanged"}


def test_other_bytes_of_the_same_size_and_time_are_taken(
    root: Path, novels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "_SETTLED", 0)  # the hash of the copy is cached at once
    nights = Nights(root, novels)
    nights.run()
    path = novels / "b.txt"
    status = path.stat()
    path.write_text(path.read_text(encoding="utf-8").replace("渔", "樵"), encoding="utf-8")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert nights.run() == {"download": "built", "clean": "built"}


def test_touched_file_is_not_copied_again(root: Path, novels: Path) -> None:
    nights = Nights(root, novels)
    nights.run()
    os.utime(novels / "b.txt", ns=(1, 1))
    assert set(nights.run().values()) == {"unchanged"}


class Meddler(SilentProgress):
    """Runs `change` when the first bytes of a file were copied."""

    def __init__(self, change: Callable[[], object]) -> None:
        super().__init__()
        self._change = change

    @contextmanager
    def bar(self, title: str, total: int | None) -> Iterator[Advance]:
        def advance(count: int) -> None:
            self._change()

        yield advance


def overwrite(path: Path) -> None:
    """Change one byte in place, and set the time back."""
    status = path.stat()
    with open(path, "r+b") as file:
        file.write(b"\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text("第二回"),
        lambda path: path.write_bytes(path.read_bytes() * 2),
        overwrite,
        lambda path: path.unlink(missing_ok=True),
    ],
    ids=["cut", "grown", "same size and time", "deleted"],
)
def test_file_that_changes_while_it_is_copied_is_refused(
    root: Path, novels: Path, change: Callable[[Path], object]
) -> None:
    source = resolve_source(str(novels / "a.txt"), environment={})
    old = download(root, source, SilentProgress()).path / "a.txt"
    before, lock_file = old.read_bytes(), (root / "raw" / "a" / "sources.lock.json").read_bytes()
    (novels / "a.txt").write_bytes(before + "且听下回分解。".encode())
    with pytest.raises(TryAgain, match="changed while it was copied; the old copy is kept"):
        download(root, source, Meddler(lambda: change(novels / "a.txt")))
    assert old.read_bytes() == before
    assert (root / "raw" / "a" / "sources.lock.json").read_bytes() == lock_file


@pytest.mark.parametrize("linked", [False, True])
def test_source_folder_that_contains_the_artifacts_works_every_night(
    novels: Path, tmp_path: Path, linked: bool
) -> None:
    root = novels / "artifacts"
    if linked:
        (tmp_path / "store").mkdir()
        root.symlink_to(tmp_path / "store")
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE.format(source=f'"{novels}"'), encoding="utf-8")
    train = stage(root, [])
    assert set(results(run(root, recipes.load(path), train)).values()) == {"built"}
    (novels / "latest").symlink_to("artifacts/corpora/mine/current")
    for _ in range(2):
        assert set(results(run(root, recipes.load(path), train)).values()) == {"unchanged"}
    (novels / "c.txt").write_text("新添一回书，话说渔翁归去。", encoding="utf-8")
    assert results(run(root, recipes.load(path), train))["clean"] == "built"
    corpus = artifact.find(root, "corpora", "mine")
    assert [entry.name for entry in corpus.manifest.inputs] == [f"novels/{name}.txt" for name in "abc"]

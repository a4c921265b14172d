"""Report files: written by the command and by a refresh, replaced, listed, verified and pruned."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import cli
from pipeline.maintenance import retention, status, verify
from pipeline.report import page, reports
from pipeline.store import artifact
from tests.conftest import Inkstone
from tests.pipeline.report.conftest import read, run

RECIPE = """
name = "book"
[download]
source = "book.txt"
[tokenizer]
kind = "char"
[report]
lang = "{lang}"
"""
TEXT = "第一回　起\n话说天下大势，分久必合！\n第二回　承\n却说次日天明，众人起身？\n"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("TIKTOKEN_CACHE_DIR", "XDG_CACHE_HOME"):  # no other tokenizers to compare with, which take seconds
        monkeypatch.setenv(name, str(tmp_path))
    (tmp_path / "book.txt").write_text(TEXT * 3, encoding="utf-8")
    path = tmp_path / "book.toml"
    path.write_text(RECIPE.format(lang="zh"), encoding="utf-8")
    return path


def problems(root: Path) -> dict[str, list[str]]:
    return dict(verify.verify(root, "reports"))


def test_refresh_writes_the_report_in_the_language_of_the_recipe(root: Path, recipe: Path) -> None:
    run(root, "refresh", recipe, "--through", "tokenize")
    path = root / "reports" / "book.html"
    first = path.read_bytes()
    assert b'<html lang="zh-Hans">' in first
    assert page.refs_of(first) == [read(root, kind, "book").ref for kind in ("corpora", "tokens")]
    before = path.stat().st_ino
    run(root, "refresh", recipe, "--through", "tokenize")
    assert path.stat().st_ino == before  # nothing was built
    (recipe.parent / "book.txt").write_text(TEXT * 4, encoding="utf-8")
    with open(path, "rb") as reader:  # one who reads the old page gets it to its end
        run(root, "refresh", recipe, "--through", "tokenize")
        assert reader.read() == first
    assert page.refs_of(path.read_bytes()) == [read(root, kind, "book").ref for kind in ("corpora", "tokens")]
    assert path.read_bytes() != first


def test_refresh_after_a_kill_before_or_within_the_report_writes_it(root: Path, recipe: Path) -> None:
    path = root / "reports" / "book.html"
    pages = []
    for copies in (3, 4):
        (recipe.parent / "book.txt").write_text(TEXT * copies, encoding="utf-8")
        run(root, "refresh", recipe, "--through", "clean")
        pages.append(path.read_bytes())
    path.write_bytes(pages[0])
    leftover = path.with_name(".tmp.book.html.00000000.1.0123abcd")
    leftover.write_text("half a page")
    run(root, "refresh", recipe, "--through", "clean")
    assert path.read_bytes() == pages[1]
    assert not leftover.exists()


def test_refresh_of_a_recipe_with_another_language_is_refused(root: Path, recipe: Path, capfd: Any) -> None:
    recipe.write_text(RECIPE.format(lang="fr"), encoding="utf-8")
    assert cli.main(["--artifacts", str(root), "refresh", str(recipe)]) == 78
    assert "lang must be one of en, zh, got fr" in capfd.readouterr().err


def test_report_that_cannot_be_written_does_not_fail_the_night(root: Path, recipe: Path, capfd: Any) -> None:
    root.mkdir()
    (root / "reports").write_text("a file, not a folder")
    assert cli.main(["--artifacts", str(root), "refresh", str(recipe), "--through", "clean"]) == 0
    assert "warning: no report: " in capfd.readouterr().err
    assert read(root, "corpora", "book")


def test_status_names_a_report_and_says_when_it_is_older_than_its_artifacts(root: Path, recipe: Path) -> None:
    def row() -> status.StatusRow:
        return next(row for row in status.status(root) if row.ref == "reports/book.html")

    run(root, "refresh", recipe, "--through", "clean")
    assert (row().state, row().summary) == ("current", f"about {read(root, 'corpora', 'book').ref}")
    (recipe.parent / "book.txt").write_text(TEXT * 5, encoding="utf-8")
    run(root, "clean", recipe.parent / "book.txt")
    assert row().summary.endswith("; 1 no longer current")
    path = root / "reports" / "book.html"
    path.write_bytes(path.read_bytes()[:-200])
    assert row().state == "damaged"


def test_verify_notices_a_changed_report(root: Path, recipe: Path) -> None:
    run(root, "refresh", recipe, "--through", "clean")
    assert problems(root) == {"reports/book.html": []}
    path = root / "reports" / "book.html"
    path.write_bytes(path.read_bytes().replace("章".encode(), "节".encode(), 1))
    assert "not the report that was written" in problems(root)["reports/book.html"][0]


def test_prune_deletes_a_report_when_none_of_its_generations_is_left(root: Path, recipe: Path) -> None:
    book = recipe.parent / "book.txt"
    for copies in (3, 4):
        book.write_text(TEXT * copies, encoding="utf-8")
        run(root, "clean", book)
        run(root, "report", "corpora/book", "--out", root / "reports" / f"{copies}.html")
    planned = [row.ref for row in retention.prune(root, keep=1, dry_run=True) if row.removed]
    assert [row.ref for row in retention.prune(root, keep=1) if row.removed] == planned
    assert "reports/3.html" in planned
    assert reports.paths(root) == [root / "reports" / "4.html"]


def test_killed_writer_of_a_report_leaves_what_prune_deletes(root: Path) -> None:
    leftover = root / "reports" / ".tmp.book.html.00000000.1.0123abcd"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("half a page")
    assert [row.state for row in status.status(root) if row.ref.endswith(leftover.name)] == ["leftover"]
    retention.prune(root)
    assert not leftover.exists()
    assert reports.paths(root) == []


def test_command_writes_one_artifact_or_the_chain_of_a_name(inkstone: Inkstone, root: Path, recipe: Path) -> None:
    run(root, "refresh", recipe, "--through", "tokenize")
    one = inkstone("report", "corpora/book", "--lang", "en")
    assert one["artifacts"] == [read(root, "corpora", "book").ref]
    assert Path(one["path"]) == root / "reports" / "corpora-book.html"
    assert one["counts"]["bytes"] == os.path.getsize(one["path"])
    whole = inkstone("report", "book", "--out", recipe.parent / "out.html")
    assert whole["artifacts"] == [read(root, kind, "book").ref for kind in ("corpora", "tokens")]
    assert inkstone("report", recipe)["artifacts"] == whole["artifacts"]
    failed = inkstone("report", "nothing", code=66)
    assert "nothing: no artifact has this name" in failed["error"]


def test_report_of_a_chain_names_what_was_deleted(root: Path, recipe: Path, capfd: Any) -> None:
    run(root, "refresh", recipe, "--through", "tokenize")
    deleted = read(root, "corpora", "book")
    shutil.rmtree(root / "corpora" / "book")
    assert cli.main(["--artifacts", str(root), "report", "book"]) == 0
    assert f"warning: the report leaves out {deleted.ref}: " in capfd.readouterr().err
    assert page.refs_of((root / "reports" / "book.html").read_bytes()) == [read(root, "tokens", "book").ref]


@pytest.mark.parametrize("name", ["book.txt", "folder", ""])
def test_file_that_is_no_report_is_not_replaced(root: Path, recipe: Path, capfd: Any, name: str) -> None:
    run(root, "refresh", recipe, "--through", "clean")
    (recipe.parent / "folder").mkdir()
    out = recipe.parent / name if name else ""
    assert cli.main(["--artifacts", str(root), "report", "corpora/book", "--out", str(out)]) == 73
    assert "exists and is not a report" in capfd.readouterr().err
    assert (recipe.parent / "book.txt").read_text(encoding="utf-8") == TEXT * 3


def test_report_of_a_damaged_artifact_is_refused(root: Path, recipe: Path, capfd: Any) -> None:
    run(root, "refresh", recipe, "--through", "clean")
    corpus = artifact.find(root, "corpora", "book")
    corpus.file("sentences.txt").write_text("short")
    assert cli.main(["--artifacts", str(root), "report", "corpora/book"]) == 65
    assert "sentences.txt: 5 bytes where the manifest says" in capfd.readouterr().err

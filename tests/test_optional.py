"""Exit codes before any work: optional packages that are missing, names that are not UTF-8, unknown encodings."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import cli
from pipeline import errors
from pipeline.errors import BadConfig, InternalError, WorkerLost, to_inkstone_error
from pipeline.sources.http import server_date
from pipeline.store.drafts import _in_utf8
from pipeline.store.manifest import Identity

NOT_UTF8 = os.fsdecode(b"d\xca\xe9")
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(root: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; return its exit code and what it wrote to standard error."""

    def run(*arguments: object) -> tuple[int, str]:
        code = cli.main(["--artifacts", str(root), "--quiet", *map(str, arguments)])
        return code, capfd.readouterr().err

    return run


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("第一回　某回\n　　话说天明，众人起身。行了一里，到了一处！\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("package", "extra"),
    [
        ("rensa", "dedup"),
        ("OpenCC", "zh"),
        ("tensorboard", "logging"),
        ("gguf", "exchange"),
        ("uvicorn", "serve"),
        ("obstore", "scale"),
        ("ray", "scale"),
    ],
)
def test_missing_package_is_named_with_the_extra_that_installs_it(package: str, extra: str) -> None:
    for error in (PackageNotFoundError(package), ModuleNotFoundError("none", name=f"{package}.inner")):
        failure = to_inkstone_error(error)
        assert (type(failure), failure.hint) == (BadConfig, errors.install_command(extra))
        assert package in failure.message


def test_other_errors_of_import_are_bugs() -> None:
    assert isinstance(to_inkstone_error(ModuleNotFoundError("no", name="pipeline.nothing")), InternalError)
    assert isinstance(to_inkstone_error(ImportError("cannot import name")), InternalError)
    assert to_inkstone_error(ModuleNotFoundError("no", name="h5py")).hint == "pip install h5py"


def test_identity_names_a_missing_package() -> None:
    with pytest.raises(BadConfig, match="needs the Python package no-such-thing"):
        _ = Identity("corpora", "a", {}, (), libraries=("msgspec", "no-such-thing")).key


@pytest.mark.parametrize(
    ("options", "package"), [(("--dedup", "near"), "rensa"), (("--script", "simplified"), "opencc")]
)
def test_missing_package_is_told_before_the_work(
    options: tuple[str, ...], package: str, run: Run, root: Path, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", _without(package))
    code, err = run("clean", book, *options)
    assert code == 78
    assert package in err
    assert "pip install" in err
    assert not list(root.rglob("manifest.json"))


def test_engine_that_is_not_installed_is_named_with_its_extra(
    run: Run, root: Path, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))
    for command in (("tokenize", book), ("refresh", "sample")):
        code, err = run(*command, "--engine", "ray")
        assert code == 78
        assert f"Python package ray, which is not installed — {errors.install_command('scale')}" in err
    assert not root.exists()


def _without(package: str) -> Callable[[str], str]:
    def version(name: str) -> str:
        if name == package:
            raise PackageNotFoundError(name)
        return "1"

    return version


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "SOCKS5h://127.0.0.1:1"])
def test_socks_proxy_without_pysocks_is_a_configuration_error(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from threading import Event

    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "socks" else find(name))
    with pytest.raises(BadConfig, match="PySocks") as caught:
        server_date("http://example.invalid", Event())
    assert caught.value.hint == "pip install PySocks"


def test_unknown_encoding_is_refused_for_every_format(run: Run, tmp_path: Path) -> None:
    records = tmp_path / "a.jsonl"
    records.write_text('{"text": "a b c"}\n', encoding="utf-8")
    for command in (("clean", records), ("start", records, "--plan")):
        code, err = run(*command, "--encoding", "nonsense")
        assert code == 78
        assert "unknown encoding 'nonsense'" in err


def test_text_in_a_folder_whose_name_is_not_utf8_is_cleaned(run: Run, root: Path, tmp_path: Path, book: Path) -> None:
    folder = tmp_path / NOT_UTF8
    folder.mkdir()
    book.rename(folder / "book.txt")
    assert run("clean", folder, "--name", "book") == (0, "")
    assert run("clean", folder / "book.txt", "--rebuild") == (0, "")
    assert r"d\\udcca\\udce9/book.txt" in next(root.glob("corpora/book/*/run.json")).read_text(encoding="utf-8")
    assert run("status", "--json") == (0, "")


@pytest.mark.parametrize("command", [("download",), ("start",), ("start", "--plan")])
def test_source_whose_name_is_not_utf8_is_refused(
    command: tuple[str, ...], run: Run, root: Path, tmp_path: Path, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / NOT_UTF8
    folder.mkdir()
    book.rename(folder / "book.txt")
    code, err = run(*command, folder)
    assert code == 78
    assert r"d\udcca\udce9" in err
    assert "rename the file or folder" in err
    assert not root.exists()
    assert not list(tmp_path.glob("*.toml"))


def test_file_whose_name_is_not_utf8_is_refused(run: Run, root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / f"{NOT_UTF8}.txt").write_text("话说天明。\n", encoding="utf-8")
    for command in ("clean", "download", "start"):
        assert run(command, folder)[0] == 78
    assert not list(root.rglob("manifest.json"))


def test_option_that_is_not_utf8_is_a_configuration_error(run: Run, book: Path) -> None:
    code, err = run("clean", book, "--notes", f"{NOT_UTF8}=drop")
    assert (code, "bug" in err) == (78, False)
    code, err = run("clean", book, "--boilerplate", NOT_UTF8)
    assert (code, "bug" in err) == (78, False)


def test_no_memory_is_not_a_bug() -> None:
    assert isinstance(to_inkstone_error(MemoryError()), WorkerLost)


def test_paths_are_escaped_at_any_depth() -> None:
    assert _in_utf8({NOT_UTF8: [(NOT_UTF8, 1, None)]}) == {r"d\udcca\udce9": [[r"d\udcca\udce9", 1, None]]}

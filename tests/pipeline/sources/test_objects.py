"""Objects in a bucket as inputs: the same artifacts as from local files, pinned by their ETag, without secrets."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cli
import pipeline
from pipeline import errors
from pipeline.sources.inputs import resolve_inputs
from pipeline.sources.objects.fetch import fetch_objects
from pipeline.sources.walk import LeftOut
from pipeline.store.bucket import Bucket, Object
from tests.support.object_store import SECRET

pytest.importorskip("obstore")
BOOK = (Path(pipeline.__file__).parent / "sample" / "yanshan.txt").read_text(encoding="utf-8")
NAMES = ("book/1.txt", "book/10.txt", "book/2.txt", "book/deep/3.txt")
FILES = {name: BOOK[start : start + 2000] for name, start in zip(NAMES, range(0, 8000, 2000), strict=True)}
OTHERS = {"book/cover.jpg": "no text", "book/empty.txt": "", "other.txt": "四" * 99}


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a folder with the files, in a bucket."""
    url = request.getfixturevalue("s3") if request.param == "s3" else (tmp_path / "bucket").as_uri()
    for name, text in {**FILES, **OTHERS}.items():
        Bucket(url).create(name, text.encode())
    return str(url)


def names(root: Path, url: str, **options: Any) -> list[str]:
    return list(fetch_objects(root, url, **options).values())


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("book/1.txt", ["1.txt"]),
        ("book/*.txt", ["1.txt", "2.txt", "10.txt"]),
        ("book/", ["1.txt", "2.txt", "10.txt", "deep/3.txt"]),
        ("b?ok/[12].txt", ["book/1.txt", "book/2.txt"]),
        ("*/*/3.txt", ["book/deep/3.txt"]),
    ],
)
def test_url_names_an_object_a_pattern_or_a_folder(root: Path, url: str, pattern: str, expected: list[str]) -> None:
    assert names(root, f"{url}/{pattern}") == expected


def test_objects_of_a_folder_that_are_no_text_are_left_out(root: Path, url: str) -> None:
    left_out: list[LeftOut] = []
    assert names(root, f"{url}/book", exclude=["10.txt", "deep/*"], left_out=left_out) == ["1.txt", "2.txt"]
    assert {entry.name: entry.reason for entry in left_out} == {
        "10.txt": "excluded",
        "deep/3.txt": "excluded",
        "cover.jpg": "no suffix of a text",
        "empty.txt": "empty",
    }
    assert names(root, f"{url}/book", include=["2.*"]) == ["2.txt"]
    for missing in ("none", "book/*.md"):
        with pytest.raises(errors.InputMissing, match="no object to read"):
            names(root, f"{url}/{missing}")


def test_object_is_fetched_again_only_when_it_changed(root: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed: list[str] = []
    stream = Bucket.stream

    def counting(bucket: Bucket, name: str, pinned: Object | None = None) -> Any:
        streamed.append(name.rpartition("/")[2])
        return stream(bucket, name, pinned)

    monkeypatch.setattr(Bucket, "stream", counting)
    first = resolve_inputs(root, f"{url}/book/*.txt", corpora=True)
    again = resolve_inputs(root, f"{url}/book/*.txt", corpora=True)
    assert (first, streamed) == (again, ["1.txt", "2.txt", "10.txt"])
    former = Bucket(url).stat("book/2.txt")
    assert former
    Bucket(url).replace("book/2.txt", ("新" * 99).encode(), former)
    changed = resolve_inputs(root, f"{url}/book/*.txt", corpora=True)
    assert streamed[3:] == ["2.txt"]
    assert [file.digest for file in first if file not in changed] == [first[1].digest]
    assert len(list((root / "objects").rglob("*.txt"))) == 3


def test_object_that_changes_after_the_listing_is_refused(
    root: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing: Callable[..., Any] = Bucket.objects

    def then_changed(bucket: Bucket, prefix: str = "") -> list[Object]:
        listed = list(listing(bucket, prefix))
        entry = next(entry for entry in listed if entry.name.endswith("/2.txt"))
        bucket.replace(entry.name, "新".encode() * 99, entry)
        return listed

    monkeypatch.setattr(Bucket, "objects", then_changed)
    with pytest.raises(errors.UpstreamChanged, match=r"2\.txt: the object changed"):
        names(root, f"{url}/book/*.txt")
    assert not list((root / "objects").rglob("2.txt"))


def test_corpus_of_a_bucket_is_that_of_local_files(root: Path, url: str, tmp_path: Path) -> None:
    for name, text in FILES.items():
        path = tmp_path / "local" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    arguments = ["--name", "book", "--jobs", "1", "--quiet"]
    assert cli.main(["clean", str(tmp_path / "local" / "book"), *arguments, "--artifacts", str(root)]) == 0
    assert cli.main(["clean", f"{url}/book/", *arguments, "--artifacts", str(tmp_path / "b")]) == 0
    assert cli.main(["clean", f"{url}/book/", "--quiet", "--artifacts", str(tmp_path / "b")]) == 0
    stores = [root, tmp_path / "b"]
    assert len({path.read_bytes() for store in stores for path in store.glob("corpora/book/*/manifest.json")}) == 1
    assert (tmp_path / "b" / "corpora" / "book" / "current").is_symlink()


def test_no_secret_is_written_anywhere(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INKSTONE_CACHE", str(tmp_path / "cache"))
    Bucket(s3).create("in/book.txt", BOOK.encode())
    store, log = f"{s3}/store", str(tmp_path / "log")
    shared = ["--artifacts", store, "--log-json", log, "--debug"]
    commands = [
        ["clean", f"{s3}/in/*.txt", "--name", "book", "--jobs", "1", *shared],
        ["train-tokenizer", "book", "--kind", "char", *shared],
        ["tokenize", "book", "--jobs", "1", "--val-fraction", "0", *shared],
        ["pull", store, "tokens/book", "--artifacts", str(tmp_path / "pulled"), "--log-json", log],
        ["inspect", "tokens", "book", "--artifacts", str(tmp_path / "pulled")],
        ["push", "tokens/book", f"{s3}/copy", "--artifacts", str(tmp_path / "pulled")],
    ]
    assert [cli.main(command) for command in commands] == [0] * len(commands)
    assert cli.main(["tokenize", "none", *shared]) == errors.InputMissing.exit_code
    assert cli.main(["status", *shared]) == errors.BadConfig.exit_code
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    written += [b"".join(Bucket(s3).stream(entry.name)) for entry in Bucket(s3).objects()]
    assert len(written) > 30
    assert not [data for data in [*written, "".join(capfd.readouterr()).encode()] if SECRET.encode() in data]


def test_without_obstore_one_line_names_the_extra(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert cli.main(["pull", "s3://bucket", "tokens/book", "--artifacts", str(root)]) == errors.BadConfig.exit_code
    error = capfd.readouterr().err
    assert "obstore" in error
    assert "[scale]" in error

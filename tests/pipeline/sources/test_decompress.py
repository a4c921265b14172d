"""The decompress stage: the plain file, or an error and no file."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from pipeline.errors import BadConfig, BadData, CannotCreate, InputMissing
from pipeline.runtime.progress import SilentProgress
from pipeline.sources.decompress import decompress

PLAIN = "".join(f"第{n}回\n" for n in range(1, 5000)).encode()
compress_zstd = zstandard.ZstdCompressor(write_checksum=True).compress

PACKED = pytest.mark.parametrize(("name", "pack"), [("a.txt.zst", compress_zstd), ("a.txt.gz", gzip.compress)])
Pack = Callable[[bytes], bytes]


@PACKED
def test_plain_file_is_written_beside_the_compressed_one(tmp_path: Path, name: str, pack: Pack) -> None:
    (tmp_path / name).write_bytes(pack(PLAIN))
    assert decompress([tmp_path / name], None, SilentProgress()) == [tmp_path / "a.txt"]
    assert (tmp_path / "a.txt").read_bytes() == PLAIN
    assert sorted(os.listdir(tmp_path)) == sorted(["a.txt", name])


@PACKED
def test_plain_file_is_written_to_the_given_folder(tmp_path: Path, name: str, pack: Pack) -> None:
    (tmp_path / name).write_bytes(pack(PLAIN) + pack(b"and on"))
    out = tmp_path / "new" / "folder"
    assert decompress([tmp_path / name], out, SilentProgress()) == [out / "a.txt"]
    assert (out / "a.txt").read_bytes() == PLAIN + b"and on"
    assert os.listdir(out) == ["a.txt"]


@PACKED
def test_truncated_file_leaves_no_output(tmp_path: Path, name: str, pack: Pack) -> None:
    """Case 24."""
    compressed = pack(PLAIN)
    for twentieth in range(20):
        (tmp_path / name).write_bytes(compressed[: len(compressed) * twentieth // 20])
        with pytest.raises(BadData) as caught:
            decompress([tmp_path / name], None, SilentProgress())
        assert caught.value.exit_code == 65
        assert os.listdir(tmp_path) == [name]


@PACKED
def test_trailing_garbage_leaves_no_output(tmp_path: Path, name: str, pack: Pack) -> None:
    """Case 25."""
    for trailing in (b"garbage", pack(PLAIN)[:-1]):
        (tmp_path / name).write_bytes(pack(PLAIN) + trailing)
        with pytest.raises(BadData):
            decompress([tmp_path / name], None, SilentProgress())
        assert os.listdir(tmp_path) == [name]


def test_bomb_leaves_no_output(tmp_path: Path) -> None:
    """Case 27."""
    (tmp_path / "a.txt.zst").write_bytes(compress_zstd(bytes(64 << 20)))
    with pytest.raises(BadData, match="over the limit"):
        decompress([tmp_path / "a.txt.zst"], None, SilentProgress())
    assert os.listdir(tmp_path) == ["a.txt.zst"]


@PACKED
def test_existing_file_is_never_replaced(tmp_path: Path, name: str, pack: Pack) -> None:
    (tmp_path / "a.txt").write_bytes(b"old")
    (tmp_path / name).write_bytes(pack(PLAIN))
    with pytest.raises(CannotCreate):
        decompress([tmp_path / name], None, SilentProgress())
    assert (tmp_path / "a.txt").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["a.txt.zst", "a.txt.gz"])
def test_empty_file_leaves_no_output(tmp_path: Path, name: str) -> None:
    """Case 28."""
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(BadData):
        decompress([tmp_path / name], None, SilentProgress())
    assert os.listdir(tmp_path) == [name]


def test_empty_text_is_decompressed(tmp_path: Path) -> None:
    (tmp_path / "a.txt.zst").write_bytes(compress_zstd(b""))
    decompress([tmp_path / "a.txt.zst"], None, SilentProgress())
    assert (tmp_path / "a.txt").read_bytes() == b""


@pytest.mark.parametrize("name", ["a.txt", "a.zip", "a", ".zst"])
def test_name_without_a_compressed_suffix_is_refused_before_any_output(tmp_path: Path, name: str) -> None:
    good, invalid = tmp_path / "good.txt.zst", tmp_path / name
    good.write_bytes(compress_zstd(PLAIN))
    invalid.write_bytes(compress_zstd(PLAIN))
    with pytest.raises(BadConfig, match="not a compressed file") as caught:
        decompress([good, invalid], None, SilentProgress())
    assert caught.value.exit_code == 78
    assert not (tmp_path / "good.txt").exists()


def test_missing_file_is_refused_before_any_output(tmp_path: Path) -> None:
    good = tmp_path / "good.txt.zst"
    good.write_bytes(compress_zstd(PLAIN))
    for missing in (tmp_path / "no.zst", tmp_path):
        with pytest.raises(InputMissing, match="no such file") as caught:
            decompress([good, missing], tmp_path / "out", SilentProgress())
        assert caught.value.exit_code == 66
    assert os.listdir(tmp_path) == ["good.txt.zst"]


def test_two_files_with_the_same_target_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "a.txt.zst" for folder in ("one", "other")]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(compress_zstd(path.parent.name.encode()))
    with pytest.raises(BadConfig):
        decompress(paths, tmp_path / "out", SilentProgress())

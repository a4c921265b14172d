"""Decompression: complete or an error, in bounded memory.

Case numbers are those of docs/design/reliability.md, section 2.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import BadData
from pipeline.readers import compression

ROOT = Path(__file__).resolve().parents[3]
SLICE = 1 << 14  # bytes around which frames are placed
MIB = 1 << 20


def rough(size: int) -> bytes:
    """Return reproducible bytes that hardly compress."""
    return b"".join(hashlib.sha256(n.to_bytes(4, "big")).digest() for n in range(size // 32 + 1))[:size]


def frame(data: bytes, *, checksum: bool = False, sized: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=sized).compress(data)


def skippable(size: int, kind: int = 3) -> bytes:
    """Return a skippable frame of `size` bytes (RFC 8878, section 3.1.2)."""
    return bytes([0x50 + kind]) + b"\x2a\x4d\x18" + (size - 8).to_bytes(4, "little") + b"\0" * (size - 8)


def header(window_log: int) -> bytes:
    """Return the header of a frame that needs a window of 2**window_log bytes (RFC 8878, section 3.1.1.1)."""
    return compression.ZSTD_MAGIC + bytes([0, (window_log - 10) << 3])


def repeating(blocks: int) -> bytes:
    """Return a frame whose blocks of 4 bytes each expand to 128 KiB, the limit of the format."""
    body = [((MIB // 8 << 3) | 2 | (number == blocks - 1)).to_bytes(3, "little") + b"a" for number in range(blocks)]
    return header(17) + b"".join(body)


def block_boundaries(compressed: bytes) -> list[int]:
    """Return the offsets of the block boundaries of a frame (RFC 8878, section 3.1.1.2)."""
    boundaries, last = [zstandard.frame_header_size(compressed)], False
    while not last:
        block = int.from_bytes(compressed[boundaries[-1] : boundaries[-1] + 3], "little")
        last = bool(block & 1)
        repeats = block >> 1 & 3 == 1  # one byte in the file, whatever its size
        boundaries.append(boundaries[-1] + 3 + (1 if repeats else block >> 3))
    return boundaries


def file_of(folder: Path, data: bytes, name: str = "a.zst") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def decompress(path: Path) -> bytes:
    return b"".join(compression.read_blocks(path))


def refuse(path: Path, match: str | None = None) -> None:
    with pytest.raises(BadData, match=match) as caught:
        decompress(path)
    assert caught.value.exit_code == 65
    assert str(path) in caught.value.message
    assert caught.value.hint


# Complete files


@given(st.binary(max_size=300), st.booleans(), st.booleans())
@settings(max_examples=50)
def test_any_bytes_round_trip_in_every_format(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, checksum: bool, sized: bool
) -> None:
    folder = tmp_path_factory.mktemp("any")
    assert decompress(file_of(folder, frame(data, checksum=checksum, sized=sized))) == data
    assert decompress(file_of(folder, gzip.compress(data), "a.gz")) == data
    if not compression.detect_compression(data):  # the content decides, not the name
        assert decompress(file_of(folder, data, "a.txt")) == data


@pytest.mark.parametrize("distance", range(-5, 6))
def test_frame_may_begin_around_a_read_boundary(tmp_path: Path, distance: int) -> None:
    data = rough(3 * SLICE)
    assert decompress(file_of(tmp_path, skippable(SLICE + distance) + frame(data))) == data
    before = frame(rough(SLICE + distance))
    assert decompress(file_of(tmp_path, before + frame(data))) == rough(SLICE + distance) + data


def test_thousands_of_tiny_frames_are_decompressed(tmp_path: Path) -> None:
    data = rough(5000)
    frames = b"".join(frame(data[at : at + 1]) for at in range(len(data)))
    assert decompress(file_of(tmp_path, frames)) == data


def test_concatenated_gzip_members_are_decompressed(tmp_path: Path) -> None:
    first, second = rough(100), rough(MIB + 1)
    compressed = gzip.compress(first) + gzip.compress(b"") + gzip.compress(second)
    assert decompress(file_of(tmp_path, compressed, "a.gz")) == first + second


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.txt.gz", "a.txt"])
def test_empty_content_is_not_an_error(tmp_path: Path, name: str) -> None:
    pack: dict[str, Callable[[bytes], bytes]] = {".zst": frame, ".gz": gzip.compress, ".txt": bytes}
    assert decompress(file_of(tmp_path, pack[Path(name).suffix](b""), name)) == b""


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", frame)])
def test_progress_counts_every_byte_of_the_file(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    path = file_of(tmp_path, pack(rough(3 * MIB)), name)
    assert total_progress(path) == path.stat().st_size


def test_progress_is_complete_if_a_magic_number_spans_two_reads(tmp_path: Path) -> None:
    path = file_of(tmp_path, skippable(SLICE - 2) + frame(rough(2000)))
    assert total_progress(path) == path.stat().st_size


def total_progress(path: Path) -> int:
    counts: list[int] = []
    for _ in compression.read_blocks(path, counts.append):
        pass
    return sum(counts)


def test_check_zstd_reads_a_file_of_any_name_to_its_end(tmp_path: Path) -> None:
    compressed = frame(rough(100_000))
    compression.check_zstd(file_of(tmp_path, compressed, "part-0001"))
    with pytest.raises(BadData, match="truncated"):
        compression.check_zstd(file_of(tmp_path, compressed[:-1], "part-0001"))


# Case 24: truncation

LARGE = rough(MIB)  # eight blocks


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("sized", [True, False])
def test_file_truncated_at_a_block_boundary_raises_bad_data(tmp_path: Path, checksum: bool, sized: bool) -> None:
    """Case 24."""
    compressed = frame(LARGE, checksum=checksum, sized=sized)
    boundaries = block_boundaries(compressed)
    assert len(boundaries) > 8
    assert boundaries[-1] + 4 * checksum == len(compressed)
    for boundary in boundaries:
        for cut in {boundary - 1, boundary, boundary + 1, boundary + 3}:
            if cut < len(compressed):
                refuse(file_of(tmp_path, compressed[:cut]), f"frame 1 is truncated, the file ends at byte {cut:,}")
    assert decompress(file_of(tmp_path, compressed)) == LARGE


@pytest.mark.parametrize("checksum", [True, False])
def test_file_truncated_anywhere_raises_bad_data(tmp_path: Path, checksum: bool) -> None:
    """Case 24."""
    dice = random.Random(24)
    compressed = frame(LARGE[: MIB // 4], checksum=checksum)
    for cut in [
        *range(20),
        *dice.sample(range(20, len(compressed)), 100),
        *range(len(compressed) - 20, len(compressed)),
    ]:
        refuse(file_of(tmp_path, compressed[:cut]), "data that is not zstd" if 0 < cut < 4 else "truncated|is empty")


def test_gzip_file_truncated_anywhere_raises_bad_data(tmp_path: Path) -> None:
    """Case 24."""
    compressed = gzip.compress(rough(2000), mtime=0)
    for cut in range(len(compressed)):
        refuse(
            file_of(tmp_path, compressed[:cut], "a.gz"),
            "truncated or corrupt gzip data" if cut else "the file is empty",
        )


# Case 25: data after a frame


@pytest.mark.parametrize(
    "garbage", [b"\n", b"\0", b"\x28", b"\x28\xb5\x2f", b"\x28\xb5\x2f\xfe", b"\x60\x2a\x4d\x18", b"\0" * SLICE, b"{}"]
)
def test_garbage_after_a_frame_raises_bad_data(tmp_path: Path, garbage: bytes) -> None:
    """Case 25."""
    refuse(file_of(tmp_path, frame(rough(500)) + garbage), "where zstd frame 2 should begin, at byte")


@pytest.mark.parametrize("garbage", [b"garbage", b"<html>", b"\0 and on", b"\x1f\x8b", b"\x1f\x8b\x08"])
def test_garbage_after_a_gzip_member_raises_bad_data(tmp_path: Path, garbage: bytes) -> None:
    """Case 25."""
    refuse(file_of(tmp_path, gzip.compress(rough(500)) + garbage, "a.gz"), "truncated or corrupt gzip data")


def test_truncated_second_frame_raises_bad_data(tmp_path: Path) -> None:
    """Case 25."""
    first, second = frame(rough(500)), frame(rough(700))
    for cut in range(4, len(second)):
        refuse(file_of(tmp_path, first + second[:cut]), "frame 2 is truncated")
    assert decompress(file_of(tmp_path, first + second)) == rough(500) + rough(700)


def test_concatenated_frames_are_decompressed(tmp_path: Path) -> None:
    """Case 25."""
    cuts = [0, 1, 1000, 1000, 20_000, 300_000]
    frames = [frame(LARGE[start:end], sized=bool(start % 2)) for start, end in pairwise(cuts)]
    assert decompress(file_of(tmp_path, b"".join(frames))) == LARGE[:300_000]


@pytest.mark.parametrize("kind", range(16))
def test_skippable_frame_is_skipped_at_any_position(tmp_path: Path, kind: int) -> None:
    """Case 25."""
    compressed = skippable(8, kind) + frame(b"one") + skippable(100, kind) + frame(b"two") + skippable(40_000, kind)
    assert decompress(file_of(tmp_path, compressed)) == b"onetwo"
    refuse(file_of(tmp_path, frame(b"one") + skippable(1000, kind)[:-1]), "frame 2 is truncated")


# Case 26: flipped bits. Without a checksum the hash of the file detects them: tests/pipeline/sources/test_inputs.py


def test_flipped_bit_with_a_checksum_raises_bad_data(tmp_path: Path) -> None:
    """Case 26."""
    dice = random.Random(26)
    compressed = frame(LARGE[: MIB // 4], checksum=True)
    for _ in range(150):
        flipped = bytearray(compressed)
        flipped[dice.randrange(zstandard.frame_header_size(compressed), len(compressed))] ^= 1 << dice.randrange(8)
        refuse(file_of(tmp_path, bytes(flipped)), "corrupt zstd data near|frame 1 is truncated|frame 2 should begin")


def test_flipped_bit_in_the_header_never_changes_the_text(tmp_path: Path) -> None:
    """Case 26."""
    compressed = frame(LARGE[: MIB // 4], checksum=True)
    for bit in range(8 * zstandard.frame_header_size(compressed)):
        flipped = bytearray(compressed)
        flipped[bit // 8] ^= 1 << bit % 8
        with suppress(BadData):  # a few bits of the header do not affect the content
            assert decompress(file_of(tmp_path, bytes(flipped))) == LARGE[: MIB // 4]


def test_flipped_bit_in_gzip_raises_bad_data(tmp_path: Path) -> None:
    """Case 26."""
    dice = random.Random(26)
    compressed = gzip.compress(rough(20_000), mtime=0)
    for _ in range(150):
        flipped = bytearray(compressed)
        flipped[dice.randrange(10, len(compressed))] ^= 1 << dice.randrange(8)
        refuse(file_of(tmp_path, bytes(flipped), "a.gz"), "truncated or corrupt gzip data")


# Case 27: bombs


def peak(read: str, path: Path) -> int:
    """Return the peak memory in MiB of a process that runs `read` on a file and must refuse it."""
    if sys.platform != "linux":
        pytest.skip("the peak is read from /proc")
    script = (
        "import sys\nfrom pathlib import Path\nfrom pipeline.readers import compression, readers\n"
        "from pipeline.tokens import chunks\n"
        "from pipeline.errors import BadData\nfrom pipeline.runtime.ledger import Ledger\n"
        f"path = Path(sys.argv[1])\ntry:\n    for item in {read}:\n        pass\n"
        "except BadData as error:\n    print(error, file=sys.stderr)\n"
        "else:\n    sys.exit('it was accepted')\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(int(status.split('VmHWM:')[1].split()[0]) // 1024)\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert process.returncode == 0, process.stderr
    return int(process.stdout)


READERS = pytest.mark.parametrize(
    "read",
    [
        "compression.read_blocks(path)",
        "readers.read_documents(path, Ledger(), print)",
        "chunks.split_chunks(readers.read_json_lines(path))",
    ],
)


@READERS
@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.txt.zst"])
def test_bomb_is_refused_in_little_memory(tmp_path: Path, name: str, read: str) -> None:
    """Case 27."""
    bomb = frame(bytes(64 * MIB))
    assert len(bomb) < 2100
    path = file_of(tmp_path, bomb, name)
    refuse(path, "expand to .*, over the limit")
    assert peak(read, path) < 300


def test_bomb_is_detected_early(tmp_path: Path) -> None:
    """Case 27."""
    path = file_of(tmp_path, repeating(20_000))
    refuse(path, r"its first \d,\d{3} bytes expand to .* \(a decompression bomb\?")


def test_bomb_after_text_is_read_in_small_blocks(tmp_path: Path) -> None:
    """Case 27."""
    path = file_of(tmp_path, frame(rough(100_000)) + repeating(5000))
    assert max(map(len, compression.read_blocks(path))) <= 4 * MIB


def test_repeated_text_is_not_a_bomb(tmp_path: Path) -> None:
    """Case 27."""
    data = b"the same line again and again\n" * 200_000
    assert decompress(file_of(tmp_path, frame(data))) == data


@pytest.mark.parametrize("window_log", [28, 31, 41])
def test_window_above_128_mib_raises_bad_data(tmp_path: Path, window_log: int) -> None:
    """Case 27."""
    path = file_of(tmp_path, header(window_log) + b"\x09\0\0a")
    refuse(path, "a zstd frame needs a window of more than 128 MiB")
    assert peak("compression.read_blocks(path)", path) < 100


def test_window_of_128_mib_is_read(tmp_path: Path) -> None:
    """Case 27."""
    assert decompress(file_of(tmp_path, header(27) + b"\x09\0\0a")) == b"a"


def test_single_segment_of_two_gibibytes_raises_bad_data(tmp_path: Path) -> None:
    """Case 27."""
    path = file_of(tmp_path, compression.ZSTD_MAGIC + b"\xe0" + (2 << 30).to_bytes(8, "little") + b"\x09\0\0a")
    refuse(path, "needs a window of more than 128 MiB")


# Case 28: other content under the name


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"\x28\xb5", "data that is not zstd where zstd frame 1 should begin, at byte 0"),
        (b"abcd", "data that is not zstd"),
        (b"\x28\xb5\x2f\xfd", "frame 1 is truncated, the file ends at byte 4"),
        (b"<html>", "a web page"),
        (b"\n  <!DOCTYPE html><html>Log in</html>", "a web page"),
        (b'{"text": "plain"}\n', "data that is not zstd"),
        (bytes(5000), "data that is not zstd"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_data_that_is_not_zstd_raises_bad_data(tmp_path: Path, data: bytes, message: str) -> None:
    """Case 28."""
    refuse(file_of(tmp_path, data), message)


@pytest.mark.parametrize("data", [b"abcd", b"<html>", b"\x1f", b"\x1f\x8b\x08\0", bytes(5000)])
def test_data_that_is_not_gzip_raises_bad_data(tmp_path: Path, data: bytes) -> None:
    """Case 28."""
    refuse(file_of(tmp_path, data, "a.gz"), "truncated or corrupt gzip data")


def test_empty_gzip_file_raises_bad_data(tmp_path: Path) -> None:
    """Case 28."""
    refuse(file_of(tmp_path, b"", "a.gz"), "the file is empty")


# bzip2 and xz, and which format it is

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "zst": frame,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}
STREAMS = pytest.mark.parametrize("name", ["bz2", "xz"])


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("file_name", ["a.txt", "a.ZST", "a.gz", "a.bz2", "a"])
def test_content_decides_the_format_not_the_name(tmp_path: Path, name: str, file_name: str) -> None:
    packed = PACKERS[name](b"text\n")
    assert compression.detect_compression(packed) == name
    assert decompress(file_of(tmp_path, packed, file_name)) == b"text\n"


@STREAMS
def test_streams_after_another_are_joined_and_progress_adds_up(tmp_path: Path, name: str) -> None:
    parts = [rough(3 * MIB), b"", b"a" * 5 * MIB, "水".encode()]
    packed = (b"\0" * 8).join(map(PACKERS[name], parts)) + b"\0" * 4
    progress: list[int] = []
    path = file_of(tmp_path, packed, f"a.{name}")
    assert b"".join(compression.read_blocks(path, progress.append)) == b"".join(parts)
    assert sum(progress) == len(packed)


@STREAMS
def test_truncated_stream_raises_bad_data(tmp_path: Path, name: str) -> None:
    packed = PACKERS[name](rough(30_000)) + PACKERS[name](b"and on")
    second = len(PACKERS[name](rough(30_000)))
    for size in (12, 100, len(packed) // 2, second - 1, second + 12, len(packed) - 5, len(packed) - 1):
        refuse(file_of(tmp_path, packed[:size], f"a.{name}"))


@STREAMS
@pytest.mark.parametrize("tail", [b"more", b"<html>" * 9, frame(b"text")])
def test_other_data_after_a_stream_raises_bad_data(tmp_path: Path, name: str, tail: bytes) -> None:
    refuse(file_of(tmp_path, PACKERS[name](b"text") + tail, f"a.{name}"), "after a stream")


@STREAMS
def test_damaged_stream_raises_bad_data(tmp_path: Path, name: str) -> None:
    packed = bytearray(PACKERS[name](rough(30_000)))
    packed[len(packed) // 2] ^= 1
    refuse(file_of(tmp_path, bytes(packed), f"a.{name}"), "corrupt")


@STREAMS
def test_name_alone_is_not_enough(tmp_path: Path, name: str) -> None:
    refuse(file_of(tmp_path, b"", f"a.{name}"), "the file is empty")
    refuse(file_of(tmp_path, b"plain text" * 9, f"a.{name}"), "corrupt")


def test_bzip2_bomb_is_refused(tmp_path: Path) -> None:
    """64 MiB of zeros in 100 bytes or so."""
    packed = bz2.compress(bytes(64 * MIB))
    assert len(packed) * 16_384 < 64 * MIB
    refuse(file_of(tmp_path, packed, "a.bz2"), "over the limit of 16,384 to 1")

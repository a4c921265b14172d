"""Chunks and parts concatenate to the text, whatever blocks it arrives in."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.readers import jsonl
from pipeline.tokenizers import Characters, Tiktoken
from pipeline.tokens import chunks
from pipeline.tokens.chunks import Chunk, LongText, Unbroken, last_boundary

ROOT = Path(__file__).resolve().parents[3]
CHUNK, UNIT, LONG, MAX, EXCERPT = 16, 64, 40, 100, 10
ANYWHERE, WORDS = Characters.boundary, Tiktoken.boundary


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Shrink all sizes to a few hundred bytes at most."""
    with pytest.MonkeyPatch.context() as patch:
        sizes = {
            "CHUNK_BYTES": CHUNK,
            "UNIT_BYTES": UNIT,
            "LONG_LINE": LONG,
            "MAX_LINE_BYTES": MAX,
            "_EXCERPT": EXCERPT,
        }
        for name, size in sizes.items():
            patch.setattr(chunks, name, size)
        yield


def naive(text: bytes) -> list[Chunk]:
    """Return the chunks of a text in memory, by their definition."""
    groups: dict[int, list[tuple[int, bytes]]] = {}
    offset = 0
    for line in text.splitlines(keepends=True):
        groups.setdefault(offset // CHUNK, []).append((offset, line))
        offset += len(line)
    expected = []
    for group in groups.values():
        short = [line for _, line in group if len(line) <= LONG]
        if short:
            expected.append(Chunk(group[0][0], b"".join(short)))
        expected += [
            Chunk(at, line[:EXCERPT] if len(line) > MAX else line, long=len(line) <= MAX, overlong=len(line) > MAX)
            for at, line in group
            if len(line) > LONG
        ]
    return expected


def plain(actual: Iterator[Chunk]) -> list[Chunk]:
    return [Chunk(chunk.offset, bytes(chunk.data), chunk.long, chunk.overlong) for chunk in actual]


def in_blocks(text: bytes, cuts: list[int]) -> Iterator[bytes]:
    bounds = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return (text[start:end] for start, end in pairwise(bounds))


def lines_up_to(longest: int) -> st.SearchStrategy[bytes]:
    line = st.integers(0, longest).map(lambda size: b"abcdefghij" * (size // 10) + b"x" * (size % 10))
    return st.tuples(st.lists(line, max_size=20), st.booleans()).map(lambda made: b"\n".join(made[0]) + b"\n" * made[1])


CUTS = st.lists(st.integers(0, 1 << 20), max_size=20)


@given(lines_up_to(MAX - 1), CUTS)
@settings(max_examples=300)
def test_chunks_concatenate_to_the_text_for_any_blocks(text: bytes, cuts: list[int]) -> None:
    actual = plain(chunks.split_chunks(in_blocks(text, cuts)))
    assert b"".join(chunk.data for chunk in actual) == text
    assert [chunk.offset for chunk in actual] == [sum(len(c.data) for c in actual[:n]) for n in range(len(actual))]
    assert actual == naive(text)


@given(lines_up_to(MAX - 1))
def test_chunk_holds_complete_lines_that_begin_in_one_range(text: bytes) -> None:
    for chunk in chunks.split_chunks(iter([text])):
        starts = [chunk.offset + match.end() for match in re.finditer(rb"\n(?=.)", chunk.data, re.S)]
        assert {start // CHUNK for start in (chunk.offset, *starts)} == {chunk.offset // CHUNK}
        assert chunk.unit == chunk.offset // UNIT
        assert chunk.data.endswith(b"\n") or chunk.offset + len(chunk.data) == len(text)


@given(lines_up_to(3 * MAX), st.booleans())
@settings(max_examples=300)
def test_overlong_line_is_cut_and_later_offsets_are_right(text: bytes, whole: bool) -> None:
    blocks = iter([text]) if whole else (text[at : at + 1] for at in range(len(text)))
    actual = plain(chunks.split_chunks(blocks))
    assert actual == naive(text)
    assert all(text.startswith(chunk.data, chunk.offset) for chunk in actual)


@given(lines_up_to(3 * MAX), CUTS)
@example(b"x" * 200 + b"\n" + b"line\n" * 30, [150])
def test_chunks_after_an_overlong_line_do_not_depend_on_blocks(text: bytes, cuts: list[int]) -> None:
    assert plain(chunks.split_chunks(in_blocks(text, cuts))) == naive(text)


def test_empty_text_has_no_chunks() -> None:
    assert list(chunks.split_chunks(iter([]))) == list(chunks.split_chunks(iter([b"", b""]))) == []


# The parts of a long document

ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "/": "\\/", "\b": "\\b", "\f": "\\f", "\\": "\\\\"}
ALPHABET = 'ab cd fu0123456789AFdD水浒。，\n\r\t"/\b\f\\\\\\\u0301\u00e9\u4e00\uffff😀𠮷'


def escaped(character: str, style: int) -> str:
    r"""Write a character of a JSON string as itself, as a short escape, or as \uXXXX in either case."""
    if style == 0 and character not in '"\\' and character >= " ":
        return character
    if style == 1 and character in ESCAPES:
        return ESCAPES[character]
    units = character.encode("utf-16-be")
    form = "\\u{:04X}" if style == 2 else "\\u{:04x}"
    return "".join(form.format(int.from_bytes(units[at : at + 2], "big")) for at in range(0, len(units), 2))


SPELLED = st.lists(st.tuples(st.sampled_from(ALPHABET), st.integers(0, 3)), max_size=60)


@given(SPELLED, st.integers(1, 20), st.sampled_from([ANYWHERE, WORDS]))
@settings(max_examples=700)
@example([("水", 3)] * 40, 1, ANYWHERE)
@example([("😀", 2)] * 40, 1, ANYWHERE)
@example([("\\", 1)] * 40, 1, ANYWHERE)
@example([("\\", 1), ("n", 0)] * 40, 1, ANYWHERE)
@example([("\\", 3), ("\n", 1)] * 40, 1, ANYWHERE)
@example([("\\", 1), ("u", 0), ("0", 0), ("0", 0), ("4", 0), ("1", 0)] * 20, 1, ANYWHERE)
def test_parts_concatenate_to_the_text_for_any_json_escapes(
    spelled: list[tuple[str, int]], part: int, boundary: re.Pattern[str]
) -> None:
    text = "".join(character for character, _ in spelled)
    line = '{"text":"' + "".join(escaped(*character) for character in spelled) + '"}\n'
    actual = parts_of(line.encode(), part, boundary)
    assert "".join(actual) == text
    ends = [sum(map(len, actual[: n + 1])) for n in range(len(actual) - 1)]
    assert all(boundary.match(text, end) for end in ends)


def parts_of(line: bytes, part: int, boundary: re.Pattern[str] | None) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "PART_BYTES", part)
        return list(LongText(line).parts(boundary))


@given(st.text(), st.integers(1, 30), st.booleans())
@settings(max_examples=300)
def test_parts_of_any_json_text_concatenate_to_it(text: str, part: int, ascii_only: bool) -> None:
    line = json.dumps({"meta": {"a": [1]}, "text": text}, ensure_ascii=ascii_only).encode()
    assert "".join(parts_of(line, part, ANYWHERE)) == text


FRAGMENTS = [
    b"\\",
    b"\\\\",
    b"u",
    b"\\u",
    b"d83d",
    b"dc00",
    b"\\ud83d",
    b"\\ude00",
    b"0041",
    b"n",
    b"/",
    b"a",
    b'"',
    b'\\"',
]
FRAGMENTS += ["水".encode(), b"\xe6", b"\xb0", b"\xff", b"\n", b"\0", b"abcdefghijklm"]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30), st.integers(1, 12))
@settings(max_examples=700)
@example([b"\\ud83d", b"\\ude00"] * 5, 1)
@example([b"\\ud83d"] * 5, 1)
@example([b"abcdefghijklm", b"\xe6"], 1)
def test_invalid_text_is_invalid_in_parts_too(fragments: list[bytes], part: int) -> None:
    line = b'{"text":"' + b"".join(fragments) + b'"}'
    record = jsonl.parse_line(line)
    try:
        actual = "".join(parts_of(line, part, ANYWHERE))
    except (msgspec.DecodeError, UnicodeDecodeError):
        assert isinstance(record, str)
    else:
        assert not isinstance(record, str)
        assert record.text == actual


def test_escaped_chinese_is_cut_into_parts_of_the_requested_size() -> None:
    text = "水浒传" * 1000
    actual = parts_of(json.dumps({"text": text}).encode(), 300, ANYWHERE)
    assert "".join(actual) == text
    assert max(map(len, actual)) <= 60


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"title": "a"}', msgspec.ValidationError),
        (b'{"text": ["a"]}', msgspec.ValidationError),
        (b'{"text": null}', msgspec.ValidationError),
        (b'{"text": 7}', msgspec.ValidationError),
        (b'["text"]', msgspec.ValidationError),
        (b'{"text": "a"', msgspec.DecodeError),
        (b'{"text": "a"} {}', msgspec.DecodeError),
        (b"", msgspec.DecodeError),
    ],
)
def test_invalid_long_line_raises(line: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        LongText(line)


def test_long_text_reads_the_meta_of_its_line() -> None:
    assert LongText(b'{"meta": {"pile_set_name": "Books3"}, "text": "a"}').meta == {"pile_set_name": "Books3"}
    assert LongText(b'{"text": "a"}').meta is None


def test_text_without_a_boundary_raises_unbroken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "MAX_UNBROKEN", 50)
    line = json.dumps({"text": "x" * 100}).encode()
    with pytest.raises(Unbroken):
        parts_of(line, 10, WORDS)
    with pytest.raises(Unbroken):
        parts_of(line, 10, None)
    assert list(LongText(b'{"text": "a\\nb"}').parts(None)) == ["a\nb"]
    assert parts_of(json.dumps({"text": "x" * 30}).encode(), 10, WORDS) == ["x" * 30]


@given(st.text(st.sampled_from("ab \n水。"), max_size=40), st.integers(0, 10_000))
def test_last_boundary_is_the_last_match_inside_the_text(text: str, more: int) -> None:
    text += "x" * more
    for boundary in (WORDS, ANYWHERE):
        ends = [match.start() for match in boundary.finditer(text) if 0 < match.start() < len(text)]
        assert last_boundary(boundary, text) == (ends[-1] if ends else 0)


# Memory


def peak(script: str) -> int:
    """Return the peak memory, in MiB, of a process that runs a script."""
    if sys.platform != "linux":
        pytest.skip("the peak is read from /proc")
    head = (
        "import re\nfrom pathlib import Path\nfrom pipeline.readers import documents\n"
        "from pipeline.tokens import chunks\n"
    )
    tail = "\nprint(int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) // 1024)\n"
    command = [sys.executable, "-c", head + script + tail]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert process.returncode == 0, process.stderr
    return int(process.stdout)


def test_line_of_300_mb_is_cut_in_less_than_700_mib() -> None:
    script = (
        "def blocks():\n"
        '    yield b\'{"text":"\'\n'
        "    yield from [b'the quick brown fox ' * 50_000] * 300\n"
        "    yield b'\"}\\n'\n"
        "(chunk,) = chunks.split_chunks(blocks())\n"
        "assert chunk.long and len(chunk.data) == 300_000_012\n"
        "parts = chunks.LongText(chunk.data).parts(re.compile('(?<=[a-z])(?= [a-z])'))\n"
        "assert sum(map(len, parts)) == 300_000_000"
    )
    assert peak(script) < 700


def test_line_of_a_gibibyte_is_skipped_and_the_next_is_read() -> None:
    """Case 29 of docs/design/reliability.md."""
    script = (
        "def blocks():\n"
        "    yield from [bytes(1 << 20)] * 1024\n"
        "    yield b'\\nand on'\n"
        "first, after = chunks.split_chunks(blocks())\n"
        "assert first.overlong and first.offset == 0 and len(first.data) < 2000\n"
        "assert (after.offset, after.data) == ((1 << 30) + 1, b'and on')"
    )
    assert peak(script) < 700

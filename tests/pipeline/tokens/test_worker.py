"""The worker: one chunk to encoded documents, equal to the slow reference."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import BadData
from pipeline.readers import jsonl
from pipeline.readers.documents import Reject
from pipeline.runtime.ledger import Ledger
from pipeline.tokenizers import Characters, Tiktoken, Tokenizer, Unencodable
from pipeline.tokens import worker
from pipeline.tokens.split import SplitRule, digest_of, threshold_of
from pipeline.tokens.tasks import DocumentFilter, FileSpec, LongDocument, Part, TokenizeTask
from pipeline.tokens.worker import Batch, Encoded
from tests.support.tokenizing import is_held_out

ROOT = Path(__file__).resolve().parents[3]
LETTERS = Characters("abcdefghijklmnopqrstuvwxyz 水浒传\n", "letters")
QUARTER = SplitRule("document", 0, threshold_of(0.25), 0.25)
OFFSET = 1000  # of the chunk in its file's text


def spec(**fields: object) -> FileSpec:
    defaults = {"split": "train", "rule": None, "filter": DocumentFilter(), "digests": False} | fields
    return FileSpec("<u4", "a.jsonl", **defaults)  # type: ignore[arg-type]


def task(data: bytes, of: FileSpec | None = None, **fields: object) -> TokenizeTask:
    defaults = {"file": 0, "unit": 0, "offset": OFFSET, "check_first": 8} | fields
    return TokenizeTask(of or spec(), size=len(data), lines=data, **defaults)  # type: ignore[arg-type]


def encoded(
    data: bytes, of: FileSpec | None = None, tokenizer: Tokenizer = LETTERS, **fields: object
) -> tuple[Encoded, list[list[list[int]]]]:
    """Encode a chunk. Returns the result and the ids of each document of each batch, without end-of-text."""
    out = worker.encode(tokenizer, task(data, of, **fields))
    if out.fault:
        raise out.fault
    rows = []
    for batch in out.batches:
        assert len(batch.ids) == batch.lengths.sum()
        parts = np.split(batch.ids, np.cumsum(batch.lengths)[:-1])
        assert all(part[-1] == tokenizer.end_of_text for part in parts if len(batch.lengths))
        rows.append([part[:-1].tolist() for part in parts if len(batch.lengths)])
    return out, rows


def lines_of(*texts: str) -> bytes:
    return b"".join(jsonl.encode_line(text, "", "", None) for text in texts)


# Lines of a chunk, decoded together and one by one

GOOD = [
    b'{"text":"a"}',
    b'{"text":"b","meta":{"pile_set_name":"Pile-CC"}}',
    '{"text": "一\u2028二\u2029\x85", "title": "水"}'.encode(),
    b' {"text":"blank before"}',
    b'{"text":"blank after"} ',
    b'{"text":"carriage return"}\r',
    b'{"text":"\\ud83d\\ude00 \\u0000"}',
    b'{"text":""}',
    b'{"text":"first","text":"last"}',
    b'{"text":"a","meta":{"pile_set_name":"x"},"meta":{"pile_set_name":"y"}}',
    b'{"text":"a","meta":["list"]}',
    b'{"text":"a","meta":7}',
    b'{"text":"a","meta":null}',
    b'{"text":"a","meta":"name"}',
    b'{"text":"a","meta":"{\\"pile_set_name\\":\\"Pile-CC\\"}"}',
    b'{"text":"a","title":"","source":"","meta":""}',
    b'{"text":"a","meta":{"pile_set_name":7}}',
    b'{"text":"a","meta":{"pile_set_name":null}}',
    b'{"text":"a","meta":{"other":[{}]}}',
    b'{"text":"a","title":7,"other":' + b"9" * 5000 + b"}",
    b'{"text":"{\\n}"}',
]
BAD = [
    b"",
    b" \t\r",
    b"not json",
    b"{}",
    b"[]",
    b"null",
    b'"text"',
    b"{",
    b"}",
    b'{"text":"cut',
    b'{"text":null}',
    b'{"text":["a"]}',
    b'{"text":7}',
    b'{"title":"a"}',
    b'{"text":"a"}{"text":"b"}',
    b'{"text":"a"} {"text":"b"} {"text":"c"}',
    b'{\n  "text": "pretty",\n  "meta": {}\n}',
    b'{"text":"a","meta":{}\n}',
    b'{"text":"a","x":[{}\n,{}]}',
    b'{"text":"a","x":"}\n{"}',
    b'[{"text":"a"},\n{"text":"b"}]',
    b'{"text":"a","meta":NaN}',
    b'{"text":"a","meta":Infinity}',
    b'{"text":"a","other":' + b"[" * 3000 + b"]" * 3000 + b"}",
    b'{"text":"\\ud800"}',
    b'{"text":"\\udc00\\ud800"}',
    b'{"text":"a","title":"\\ud800"}',
    b'{"text":"\xff"}',
    b'{"text":"\xed\xa0\x80"}',
    b'{"text":"a\0b"}',
    b'{"text":"a\tb"}',
    b'{"text":"a"}\0',
    b"\xef\xbb\xbf" + b'{"text":"a"}',
    b"\xff\xfe",
    "{“text”:“a”}".encode(),
]


def one_by_one(data: bytes) -> tuple[list[jsonl.DecodedLine], Ledger, list[Reject]]:
    """Decode each line of a chunk by itself."""
    ledger, rejects = Ledger(), list[Reject]()
    rows: list[jsonl.DecodedLine] = []
    for number, (offset, line, _) in enumerate(jsonl.split_lines(iter([data]))):
        record = jsonl.parse_line(line)
        if isinstance(record, str):
            jsonl.reject_line(ledger, rejects.append, record, line, "a.jsonl", number, OFFSET + offset)
            rows.append((OFFSET + offset, None, ""))
        else:
            ledger.documents.came += 1
            ledger.characters.came += len(record.text)
            rows.append((OFFSET + offset, record.text, jsonl.pile_set_name(record.meta)))
    return rows, ledger, rejects


def at_once(data: bytes) -> tuple[list[jsonl.DecodedLine], Ledger, list[Reject]]:
    ledger, rejects = Ledger(), list[Reject]()
    return jsonl.decode_lines(data, "a.jsonl", OFFSET, ledger, rejects.append), ledger, rejects


CHUNKS = st.tuples(
    st.lists(st.sampled_from(GOOD), max_size=6),
    st.lists(st.sampled_from([*GOOD, *BAD]), max_size=4),
    st.lists(st.sampled_from(GOOD), min_size=1, max_size=6),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
).map(lambda made: made[3].join([*made[0], *made[1], *made[2]]) + made[3] * made[4])


@given(CHUNKS)
@settings(max_examples=600)
@example(b'{"text":"a"}{"text":"b"}\n{"text":"c"}')
@example(b'{"text":"a"}{"text":"b"}\n\n{"text":"c"}')
@example(b'{"text":"a"}{"text":"b"}\n{}\n')
@example(b'{"text":"a","x":{}\n{"text":"b"}{"text":"c"}\n')
@example(b"\n")
@example(b"\n\n{}\n")
def test_batch_decoding_equals_line_by_line(data: bytes) -> None:
    """Case 31 of docs/design/reliability.md."""
    assert at_once(data) == one_by_one(data)


@given(st.lists(st.sampled_from([b"{", b"}", b"\n", b'"text"', b":", b",", b'"a"', b"[", b"]", b" ", b'{"text":"a"}'])))
@settings(max_examples=600)
def test_any_json_tokens_decode_as_line_by_line(tokens: list[bytes]) -> None:
    """Case 31 of docs/design/reliability.md."""
    if data := b"".join(tokens):
        assert at_once(data) == one_by_one(data)


@pytest.mark.parametrize("line", [*GOOD, *BAD], ids=lambda line: repr(line)[2:42])
def test_each_kind_of_line_decodes_alike_among_any_neighbours(line: bytes) -> None:
    """Case 31 of docs/design/reliability.md."""
    for neighbour in (b'{"text":"a"}\n', b"bad\n", b""):
        data = neighbour + line + b"\n" + neighbour
        assert at_once(data) == one_by_one(data)


@pytest.mark.parametrize(
    "line",
    [
        b'{"text":"a","title":' + b"9" * 5000 + b"}",
        b'{"text":"a","meta":{"x":' + b"9" * 5000 + b"}}",
        b'{"text":"a","meta":{"x":1e999}}',
        b'{"text":"a","title":"\xff"}',
        b'{"text":"a","meta":{"x":"\xff"}}',
        b'{"text":"a","meta":{"\xff":1}}',
    ],
    ids=lambda line: repr(line)[2:42],
)
def test_bad_title_or_meta_is_judged_alike_either_way(line: bytes) -> None:
    """Case 31 of docs/design/reliability.md."""
    assert at_once(line) == one_by_one(line)


def test_a_hundred_thousand_brackets_are_one_bad_line() -> None:
    """Case 31 of docs/design/reliability.md."""
    deep = b'{"text":"a","other":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    rows, ledger, rejects = at_once(b'{"text":"a"}\n' + deep + b'\n{"text":"b"}\n')
    assert [text for _, text, _ in rows] == ["a", None, "b"]
    assert [(reject.line, reject.offset, reject.reason) for reject in rejects] == [(1, OFFSET + 13, "bad-json")]
    assert ledger.documents.came == 3


@given(CHUNKS)
@settings(max_examples=200)
def test_chunk_encodes_to_its_documents_and_the_ledger_adds_up(data: bytes) -> None:
    out, rows = encoded(data)
    expected, ledger, rejects = one_by_one(data)
    documents = [(number, row) for number, row in enumerate(expected) if row[1]]
    assert rows == ([[LETTERS.encode(text or "") for _, (_, text, _) in documents]] if documents else [])
    for batch in out.batches:
        assert batch.offsets.tolist() == [offset for _, (offset, _, _) in documents]
        assert batch.lines.tolist() == [number for number, _ in documents]
        assert batch.characters.tolist() == [len(text or "") for _, (_, text, _) in documents]
        assert batch.sets == [name for _, (_, _, name) in documents]
    assert out.lines == len(expected)
    assert [reject for reject in out.rejects if reject.reason != "empty"] == rejects
    assert (
        out.ledger.documents.came
        == ledger.documents.came
        == len(documents) + sum(out.ledger.documents.dropped.values())
    )
    assert out.ledger.characters.came == sum(len(row[1] or "") for _, row in documents) + sum(
        out.ledger.characters.dropped.values()
    )


# Filters and splits


def test_documents_are_filtered_by_set_and_length() -> None:
    data = b"".join(
        msgspec.json.encode({"text": text, "meta": {"pile_set_name": name}}) + b"\n"
        for text, name in [("abc", "Books3"), ("", "Books3"), ("a", "Books3"), ("abc", "ArXiv"), ("abc", "")]
    )
    reasons = {
        DocumentFilter(): ["empty"],
        DocumentFilter(min_chars=2): ["empty", "too-short"],
        DocumentFilter(include_sets=("Books3",)): ["empty", "set-not-included", "set-not-included"],
        DocumentFilter(exclude_sets=("Books3", "")): ["empty", *["set-excluded"] * 3],
        DocumentFilter(include_sets=("None",)): ["empty", *["set-not-included"] * 4],
    }
    for choice, expected in reasons.items():
        out, rows = encoded(data, spec(filter=choice))
        assert sorted(reject.reason for reject in out.rejects) == expected
        assert sum(map(len, rows)) == 5 - len(expected)
        assert out.ledger.documents.came == 5


def test_documents_are_divided_by_a_hash_of_their_text() -> None:
    texts = [f"{chr(97 + n % 26)}{'水' * (n // 26)}" for n in range(400)]
    out, rows = encoded(lines_of(*texts), spec(split="", rule=QUARTER))
    assert [batch.split for batch in out.batches] == ["train", "val"]
    assert 60 < len(rows[1]) < 140
    held_out = {text for text in texts if is_held_out(text, 0.25)}
    assert rows[1] == [LETTERS.encode(text) for text in texts if text in held_out]
    second, _ = encoded(lines_of(*texts[200:], "xyz"), spec(split="", rule=QUARTER))
    assert set(texts[200:]) & held_out == {texts[200:][n] for n in second.batches[1].lines if n < 200}


@pytest.mark.parametrize(
    ("fields", "hashed"), [({}, False), ({"digests": True}, True), ({"split": "", "rule": QUARTER}, True)]
)
def test_text_is_hashed_only_if_the_hash_is_needed(fields: dict[str, object], hashed: bool) -> None:
    out, _ = encoded(lines_of("a", "b"), spec(**fields))
    digests = [digest for batch in out.batches for digest in batch.digests]
    assert sorted(digests) == sorted(digest_of(text) if hashed else b"" for text in "ab")


# Documents in parts, and refused lines


def test_parts_have_the_ids_of_the_document_and_one_end_of_text() -> None:
    texts, ids = ["ab ", "cd", "水浒"], list[int]()
    long = LongDocument(7, "", b"")
    for number, text in enumerate(texts):
        part = Part("train", text, ends_row=number == 2)
        out = worker.encode(LETTERS, task(b"", long=long, parts=(part,), is_first=number == 0, is_last=number == 2))
        assert (out.lines, out.compared, out.batches) == (int(number == 0), int(number == 0), [])
        assert [part_ids.dtype for part_ids in out.parts] == [np.dtype("<u4")]
        ids += out.parts[0].tolist()
    assert ids == [*LETTERS.encode("".join(texts)), LETTERS.end_of_text]


def test_refused_line_is_counted_and_gives_no_ids() -> None:
    out, rows = encoded(b'{"text":"the beginning', refused="bad-too-long")
    assert rows == []
    assert out.rejects == [Reject("a.jsonl", 0, OFFSET, "bad-too-long", '{"text":"the beginning')]
    assert (out.lines, out.ledger.documents.came, out.ledger.documents.dropped) == (1, 1, {"bad-too-long": 1})
    out, rows = encoded(b"", refused="set-excluded", long=LongDocument(9_000_000, "Books3", b""))
    assert (rows, out.lines, out.ledger.characters.dropped) == ([], 1, {"set-excluded": 9_000_000})


# Comparison with the reference encoder


class Wrong(Characters):
    """Tokenizer whose batch encoder gives wrong ids for texts that contain `wrong`."""

    encoder = "wrong"

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        flat, lengths = super().encode_batch(texts)
        return flat + np.repeat(["wrong" in text for text in texts], lengths).astype(np.uint32), lengths


WRONG = Wrong("abcdefghijklmnopqrstuvwxyz ", "letters")


def test_difference_in_a_compared_document_raises_bad_data() -> None:
    data = lines_of("right", "wrong", "right")
    with pytest.raises(
        BadData, match=f"the document at byte {OFFSET + 17:,} of its text is encoded differently by wrong"
    ):
        encoded(data, tokenizer=WRONG)
    out, _ = encoded(data, tokenizer=WRONG, check_first=1)
    assert out.compared == 1


def test_beginning_of_a_very_long_document_is_compared() -> None:
    long = "wrong word " * 10_000
    with pytest.raises(BadData):
        encoded(lines_of(long), tokenizer=WRONG)
    with pytest.raises(BadData):
        encoded(b"", tokenizer=WRONG, long=LongDocument(len(long), "", b""), parts=(Part("train", long),))


def test_about_one_document_in_a_thousand_is_compared() -> None:
    data = lines_of(*["abc"] * 20_000)
    result, _ = encoded(data, check_first=0)
    assert 10 <= result.compared <= 40
    half = len(data) // 2
    parts = [encoded(data[:half], check_first=0), encoded(data[half:], check_first=0, offset=OFFSET + half)]
    assert sum(out.compared for out, _ in parts) == result.compared


# The real encodings

ODD = (
    st.text(st.characters(max_codepoint=0x2FF) | st.characters(min_codepoint=0x1F000, max_codepoint=0x1FAFF))
    | st.text(
        st.characters(exclude_categories=["Cs", "Cn"])
    )  # unassigned characters may be in the tables of one library only
)
RUNS = st.lists(
    st.tuples(
        st.sampled_from([" ", "\n", "\r", "\t", "\u3000", "\u00a0", "\u2028", "\x1c", "\x85", "\u180e", "\ufeff"])
        | st.sampled_from(["'", "s", "'S", "’", "İ", "ǅ", "ʰ", "ª", "ß", "K", "ſ", "\u0345", "Ⅷ", "²", "٣", "𝟘", "½"])
        | st.sampled_from(
            ["\u0301", "\u200d", "\ufe0f", "👨", "🇨", "\U000e0061", "\U000f0000", "\uffff", "\0", "水", "한"]
        )
        | st.characters(exclude_categories=["Cs", "Cn"]),
        st.integers(1, 4),
    ).map(lambda made: made[0] * made[1]),
    max_size=25,
).map("".join)


@pytest.mark.parametrize("name", ["r50k_base", "cl100k_base", "o200k_base"])
def test_every_document_has_the_ids_of_tiktoken(shared: Path, name: str) -> None:
    tokenizer = Tiktoken.named(name)
    assert tokenizer.encoder == "gigatoken"

    @given(st.lists(ODD | RUNS, min_size=1, max_size=20).map(lambda texts: [text for text in texts if text] or ["a"]))
    @settings(max_examples=150)
    def check(texts: list[str]) -> None:
        _, (rows,) = encoded(lines_of(*texts), tokenizer=tokenizer, check_first=0)
        assert rows == [tokenizer.encode(text) for text in texts]

    check()


HARD = """
import random
dice = random.Random(1)
letters, han = "abcdefghijklmnopqrstuvwxyz", "的一是不了人我在有他这为之大来以个中上们"
hard = {
    "letters": "".join(dice.choices(letters, k=1 << 20)),
    "han": "".join(dice.choices(han, k=1 << 16)),
    "a": "a" * 100_000,
    "code points": "".join(map(chr, range(0x300))),
    "bytes": "".join(map(chr, range(0x100))) * 100,
    "NUL": "\\0" * 100_000,
    "spaces": " " * 1_000_000,
    "newlines": "\\n" * 200_000,
    "spaces at last": "a" + " " * 1_000_000 + "b",
    "line ends": "\\r\\n" * 100_000,
    "dots": "." * 200_000,
    "digits": "0123456789" * 30_000,
    "emoji": "😀" * 50_000,
    "families": "👨‍👩‍👧‍👦" * 20_000,
    "marks": "e" + "\\u0301" * 100_000,
    "apostrophes": "'s" * 100_000,
}
"""


@pytest.mark.parametrize("name", ["r50k_base", "cl100k_base", "o200k_base"])
def test_hard_documents_have_the_ids_of_tiktoken_within_seconds(shared: Path, name: str) -> None:
    script = HARD + (
        "import sys, time\n"
        "from pipeline.tokenizers import Tiktoken, Unencodable\n"
        "tokenizer = Tiktoken.named(sys.argv[1])\n"
        "for name, text in hard.items():\n"
        "    start = time.monotonic()\n"
        "    fast = tokenizer.encode_batch([text])[0].tolist()\n"
        "    seconds = time.monotonic() - start\n"
        "    assert seconds < 20, f'{name}: {seconds}'\n"
        "    try:\n        assert fast == tokenizer.encode(text), name\n"
        "    except Unencodable:\n        print(name)\n        assert tokenizer.decode(fast) == text, name\n"
        "    assert time.monotonic() - start < 40, name\n"
    )
    command = [sys.executable, "-c", script, name]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert process.returncode == 0, process.stderr
    panics = ["spaces", "spaces at last"] if name == "o200k_base" else ["spaces at last"]
    assert process.stdout.splitlines() == panics


def test_unencodable_document_is_rejected_alone(shared: Path) -> None:
    tokenizer = Tiktoken.named("o200k_base", "tiktoken")
    data = lines_of("before", " " * 1_000_000, "after")
    out, (rows,) = encoded(data, tokenizer=tokenizer)
    assert rows == [tokenizer.encode("before"), tokenizer.encode("after")]
    assert [(reject.line, reject.reason) for reject in out.rejects] == [(1, "bad-not-encodable")]
    assert out.ledger.characters.dropped == {"bad-not-encodable": 1_000_000}
    out, rows_only = encoded(lines_of(" " * 1_000_000), tokenizer=tokenizer)
    assert (rows_only, out.ledger.documents.came) == ([[]], 1)
    part = Part("train", " " * 1_000_000)
    with pytest.raises(BadData, match="cannot encode the document at byte"):
        encoded(b"", tokenizer=tokenizer, long=LongDocument(1_000_000, "", b""), parts=(part,))
    with pytest.raises(Unencodable):
        tokenizer.encode(" " * 1_000_000)


def test_gigatoken_encodes_a_long_run_of_spaces(shared: Path) -> None:
    tokenizer = Tiktoken.named("o200k_base")
    out, (rows,) = encoded(lines_of(" " * 1_000_000), tokenizer=tokenizer)
    assert tokenizer.decode(rows[0]) == " " * 1_000_000
    assert out.rejects == []
    assert isinstance(out.batches[0], Batch)

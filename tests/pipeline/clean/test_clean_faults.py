"""`inkstone clean` under faults: cases 29 to 35 of docs/design/reliability.md, section 2.

After each fault the published corpus is either the old one or the new one, complete to the last byte. The next clean
run gives the bytes of an undisturbed one and leaves nothing behind. No lock is held, and everything is counted.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pipeline.clean.cleaner import Cleaner
from pipeline.clean.utf16 import Utf16Text, decode_utf16
from pipeline.readers import compression
from pipeline.store import artifact
from tests.support import chaos, faults
from tests.support.faults import Command, Run

SAMPLE = chaos.SAMPLE.parent
BOOK = chaos.SAMPLE.read_text(encoding="utf-8-sig")
GOOD = ["却说林冲别了众人，取路投沧州来。", "话说宋江在酒楼上自饮酒。", "武松提了哨棒，大着步自过景阳冈来。"]

linux = pytest.mark.skipif(sys.platform != "linux", reason="lists processes in /proc")


def clean(root: Path, *inputs: Path, name: str = "some", jobs: int = 1, **options: object) -> Command:
    arguments = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)]
    return Command(root, ("--json", "clean", *inputs, "--name", name, "--jobs", jobs, *arguments))


def succeed(command: Command) -> Run:
    """Run a command that must succeed."""
    run = command.run_forked()
    assert run.code == 0, run.err
    return run


def current(root: Path, name: str = "some") -> artifact.Artifact:
    corpus = artifact.find(root, "corpora", name)
    assert artifact.find_problems(corpus, deep=True) == []
    return corpus


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in b"".join(compression.read_blocks(path)).split(b"\n") if line]


def texts(root: Path) -> list[str]:
    return [entry["text"] for entry in entries(current(root).file("documents.jsonl.zst"))]


def rejects(folder: Path) -> list[dict[str, Any]]:
    return entries(folder / "rejects.jsonl.zst")


def ledger(root: Path) -> dict[str, dict[str, Any]]:
    """Return the ledger of a corpus, after checking that it adds up."""
    tallies = current(root).manifest.ledger
    for tally in tallies.values():
        assert tally["in"] + sum(tally.get("added", {}).values()) == tally["out"] + sum(tally["dropped"].values())
    return tallies


def line(text: str, **fields: object) -> bytes:
    return json.dumps({"text": text, **fields}, ensure_ascii=False).encode()


def write_lines(path: Path, lines: Sequence[bytes]) -> Path:
    path.write_bytes(b"".join(json_line + b"\n" for json_line in lines))
    return path


def checksums(root: Path, name: str = "some") -> dict[str, str]:
    """Return the SHA-256 of every file of a corpus except run.json, which records time and host."""
    folder = current(root, name).path
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name != "run.json"
    }


# Case 29: very long lines


def run_with_peak(command: Command) -> tuple[Run, int]:
    """Run a command. Return the run and its peak memory in MiB."""
    process = command.start()
    assert process.stdout
    assert process.stderr
    out, err = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.communicate()
    return Run(process.returncode, out, err), usage.ru_maxrss >> 10


@linux
def test_line_of_a_gibibyte_is_rejected_and_the_rest_is_read(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "long.jsonl"
    with open(path, "wb") as file:
        file.write(line(GOOD[0]) + b'\n{"text":"')
        start = file.tell()
        file.seek((1 << 30) - 1, os.SEEK_CUR)  # a sparse file, which takes no disk space
        file.write(b'"}\n' + line(GOOD[1]) + b"\n")
    run, peak = run_with_peak(clean(root, path, max_bad=0.5))
    assert run.code == 0, run.err
    assert peak < 1500, "the limit of 512 MiB per line is held twice: in blocks and joined"
    assert texts(root) == GOOD[:2]
    assert ledger(root)["documents"] == {"in": 3, "out": 2, "dropped": {"bad-too-long": 1}}
    (reject,) = rejects(current(root).path)
    assert (reject["file"], reject["line"], reject["reason"]) == ("long.jsonl", 2, "bad-too-long")
    assert reject["offset"] == start - len(b'{"text":"')
    path.unlink()


@linux
def test_text_of_one_long_line_is_cleaned_completely_in_little_memory(tmp_path: Path, root: Path) -> None:
    text = BOOK.replace("\n", "").replace("\u3000", "").replace(" ", "").replace("回", "章") * 200
    (tmp_path / "one.txt").write_text(text, encoding="utf-8")
    (tmp_path / "small.txt").write_text(text[: len(text) // 200], encoding="utf-8")
    _, small = run_with_peak(clean(tmp_path / "small", tmp_path / "small.txt"))
    run, peak = run_with_peak(clean(root, tmp_path / "one.txt"))
    assert run.code == 0, run.err
    assert peak < small + 250, "the line has 5 million characters, 16 MB"
    assert ledger(root)["documents"] == {"in": 1, "out": 1, "dropped": {}}
    assert "".join(texts(root)) == text
    longest = max(current(root).file("sentences.txt").read_bytes().split(b"\n"), key=len)
    assert len(longest) <= 4192


# Case 30: unusual characters and invalid bytes

INVALID_LINES = {
    "bad UTF-8": b'{"text": "\xff\xe6\xb0"}',
    "a lone surrogate in UTF-8": b'{"text": "\xed\xa0\x80"}',
    "a lone surrogate as an escape": b'{"text": "\\ud800"}',
    "a NUL byte": b'{"text": "a\0b"}',
    "a NUL byte after the line": b'{"text": "a"}\0',
    "a control character": b'{"text": "a\x01b"}',
}
NORMALISED_LINES = {
    "U+2028 and its like": (line("林\u2028冲\u2029上\x85山"), "林\n冲\n上\n山"),
    "CRLF inside": (line("林冲。\r\n宋江。\r武松。"), "林冲。\n宋江。\n武松。"),
    "CRLF at its end": (line("林冲。") + b"\r", "林冲。"),
    "control characters": (line("林\x01冲\x1b上\x7f山\x9f。"), "林冲上山。"),
    "a NUL as an escape": (line("林\0冲。"), "林冲。"),
    "byte order marks inside": (line("\ufeff林\ufeff冲。"), "林冲。"),
    "zero-width marks": (line("林\u200b冲\u200e上\u2060山\u00ad。"), "林冲上山。"),
    "a surrogate pair as escapes": (b'{"text": "\\ud842\\udfb7\xe5\xb1\xb1\xe3\x80\x82"}', "𠮷山。"),
}


def test_every_line_that_is_not_utf8_or_not_json_is_counted(tmp_path: Path, root: Path) -> None:
    lines = [line(GOOD[0])]
    for bad in INVALID_LINES.values():
        lines += [bad, line(GOOD[1])]
    lines += [b"", b" \t"]
    path = write_lines(tmp_path / "odd.jsonl", lines)
    run = succeed(clean(root, path, max_bad=1))
    tally = ledger(root)["documents"]
    assert tally["in"] == path.read_bytes().count(b"\n")
    assert tally["dropped"] == {"bad-json": len(INVALID_LINES), "blank-line": 2}
    assert texts(root) == [GOOD[0], *[GOOD[1]] * len(INVALID_LINES)]
    offsets = [sum(len(json_line) + 1 for json_line in lines[:index]) for index in range(len(lines))]
    reasons = {(reject["line"], reject["offset"]): reject["reason"] for reject in rejects(current(root).path)}
    assert reasons == {
        (index + 1, offsets[index]): "blank-line" if not json_line.strip() else "bad-json"
        for index, json_line in enumerate(lines)
        if json_line not in map(line, GOOD)
    }
    assert "Traceback" not in run.err


def test_control_and_zero_width_characters_are_removed_and_counted(tmp_path: Path, root: Path) -> None:
    path = write_lines(tmp_path / "odd.jsonl", [json_line for json_line, _ in NORMALISED_LINES.values()])
    succeed(clean(root, path, profile="plain"))
    assert texts(root) == [text for _, text in NORMALISED_LINES.values()]
    tally = ledger(root)
    assert tally["documents"] == {"in": len(NORMALISED_LINES), "out": len(NORMALISED_LINES), "dropped": {}}
    before = "".join(json.loads(json_line)["text"] for json_line, _ in NORMALISED_LINES.values())
    controls = sum(map(before.count, "\x01\x1b\x7f\x9f\0\ufeff\u200b\u200e\u2060\u00ad"))
    assert tally["characters"]["in"] == len(before)
    assert tally["characters"]["dropped"] == {"controls": controls, "newlines": before.count("\r\n")}


@pytest.mark.parametrize("name", ["book.jsonl", "book.txt"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_byte_order_mark_and_line_ends_do_not_change_the_corpus(
    tmp_path: Path, root: Path, name: str, ending: str
) -> None:
    text = "\n".join(GOOD) + "\n"
    data = line(text) + b"\n" if name.endswith(".jsonl") else text.encode()
    (tmp_path / name).write_bytes(data)
    succeed(clean(tmp_path / "plain", tmp_path / name))
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + data.replace(b"\n", ending.encode()))
    succeed(clean(root, tmp_path / name))
    assert texts(root) == texts(tmp_path / "plain")
    assert ledger(root)["characters"]["out"] == ledger(tmp_path / "plain")["characters"]["out"]


BYTES = BOOK.encode()
BROKEN_TEXTS: dict[str, tuple[bytes, str]] = {
    "bad byte": (b"abc\n" * 7500 + b"\xff" * 500 + BYTES, "byte 0xff at offset 30,000"),
    "surrogate": (("林冲。" * 50 + "\ud800" * 500).encode("utf-8", "surrogatepass") + BYTES, "byte 0xed at offset 450"),
    "zeros": (BYTES + bytes(4096), "and binary data after it"),
    "word": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(5000), "an old Word file, not text"),
    "empty": (b"", "the file is empty"),
    "blank": ("\n　\n".encode() * 10, "only white space"),
    "japanese": (("吾輩は猫である。名前はまだ無い。" * 5).encode("shift_jis"), "Japanese or Korean in shift_jis"),
}


@pytest.mark.parametrize("kind", BROKEN_TEXTS)
def test_undecodable_text_ends_the_command_and_the_old_corpus_stays(tmp_path: Path, root: Path, kind: str) -> None:
    data, message = BROKEN_TEXTS[kind]
    path = tmp_path / "book.txt"
    path.write_text(GOOD[0], encoding="utf-8")
    succeed(clean(root, path))
    old = faults.published(root)
    path.write_bytes(data)
    broken = clean(root, path).run_forked()
    assert message in broken.err
    path.write_text("".join(GOOD), encoding="utf-8")
    succeed(clean(tmp_path / "quiet", path))
    expected = faults.published(tmp_path / "quiet")
    rerun = clean(root, path).run_forked
    faults.assert_survived(root, rerun, expected, [broken], code=65, names=["book.txt"], old=old)


def test_truncated_last_character_is_rejected_and_the_rest_is_kept(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "cut.txt"
    for encoding, lost in (("utf-8", 1), ("utf-8", 2), ("gb18030", 1), ("utf-16-le", 1)):
        data = ("".join(GOOD) * 3).encode(encoding)
        path.write_bytes(data[:-lost])
        succeed(clean(root, path))
        assert texts(root) == [("".join(GOOD) * 3)[:-1]]
        assert ledger(root)["documents"] == {"in": 2, "out": 1, "dropped": {"truncated-end": 1}}
        (reject,) = rejects(current(root).path)
        offset = len(("".join(GOOD) * 3)[:-1].encode(encoding))
        assert (reject["file"], reject["reason"], reject["offset"]) == ("cut.txt", "truncated-end", offset)
        assert bytes.fromhex(reject["excerpt"]) == data[offset:-lost]


# Case 31: lines that are not documents

DEEP = b"[" * 100_000 + b"]" * 100_000
NOT_DOCUMENTS: dict[str, tuple[bytes, str]] = {
    "a list": (b'["text"]', "bad-record"),
    "a string": (b'"text"', "bad-record"),
    "a number": (b"7", "bad-record"),
    "null": (b"null", "bad-record"),
    "no text": (b'{"body": "a"}', "bad-record"),
    "text is null": (b'{"text": null}', "bad-record"),
    "text is a list": (b'{"text": ["a"]}', "bad-record"),
    "text is a number": (b'{"text": 7}', "bad-record"),
    "text is an object": (b'{"text": {}}', "bad-record"),
    "text is NaN": (b'{"text": NaN}', "bad-json"),
    "NaN elsewhere": (b'{"text": "a", "meta": NaN}', "bad-json"),
    "cut": (b'{"text": "cut', "bad-json"),
    "two in one": (b'{"text": "a"} {"text": "b"}', "bad-json"),
    "no JSON": (b"text", "bad-json"),
    "nested a hundred thousand times": (b'{"text": "a", "meta": ' + DEEP + b"}", "bad-json"),
    "only nested": (DEEP, "bad-record"),
}
DOCUMENTS: dict[str, tuple[bytes, str]] = {
    "duplicate keys": ('{"text": "先有的。", "text": "林冲。"}'.encode(), "林冲。"),
    "an integer of 5,000 digits": ('{"text": "宋江。", "meta": '.encode() + b"9" * 5000 + b"}", "宋江。"),
    "a number that overflows": ('{"text": "武松。", "meta": 1e999}'.encode(), "武松。"),
    "a title that is not a string": ('{"text": "史进。", "title": [7], "other": {"a": []}}'.encode(), "史进。"),
}


def test_lines_that_are_not_documents_are_counted_by_reason(tmp_path: Path, root: Path) -> None:
    lines = [line(GOOD[0])]
    for bad, _ in NOT_DOCUMENTS.values():
        lines += [bad, line(GOOD[2])]
    lines += [json_line for json_line, _ in DOCUMENTS.values()]
    run = succeed(clean(root, write_lines(tmp_path / "odd.jsonl", lines), max_bad=1))
    reasons = [reason for _, reason in NOT_DOCUMENTS.values()]
    tally = ledger(root)["documents"]
    assert tally["in"] == len(lines)
    assert tally["dropped"] == {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    assert texts(root) == [GOOD[0], *[GOOD[2]] * len(NOT_DOCUMENTS), *(text for _, text in DOCUMENTS.values())]
    expected = [(2 * index + 2, reason) for index, reason in enumerate(reasons)]
    assert [(reject["line"], reject["reason"]) for reject in rejects(current(root).path)] == expected
    assert "Traceback" not in run.err


def test_lines_that_are_not_documents_do_not_change_the_others(tmp_path: Path, root: Path) -> None:
    rng = random.Random(31)
    good = [line(f"{text}第{index}次。") for index, text in enumerate(GOOD * 40)]
    mixed = [*good]
    for bad, _ in NOT_DOCUMENTS.values():
        mixed.insert(rng.randrange(len(mixed)), bad)
    path = tmp_path / "some.jsonl"
    write_lines(path, good)
    succeed(clean(tmp_path / "quiet", path))
    write_lines(path, mixed)
    succeed(clean(root, path, max_bad=1))
    for name in ("documents.jsonl.zst", "sentences.txt"):
        path, expected = (current(folder).file(name) for folder in (root, tmp_path / "quiet"))
        assert b"".join(compression.read_blocks(path)) == b"".join(compression.read_blocks(expected))


# Case 32: too many bad lines


def test_too_many_bad_lines_publish_nothing_and_keep_the_rejects(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "some.jsonl"
    good = [line(f"{text}第{index}次。") for index, text in enumerate(GOOD * 500)]
    write_lines(path, good)
    succeed(clean(root, path))
    old = faults.published(root)
    write_lines(path, [*good, b"no JSON", b'{"text": 7}'])
    failed = clean(root, path).run_forked()
    [rejects_file] = (root / "corpora" / "some").glob(".draft-*/rejects.jsonl.zst")
    assert str(rejects_file.parent) in failed.err
    assert [(reject["line"], reject["reason"]) for reject in rejects(rejects_file.parent)] == [
        (1501, "bad-json"),
        (1502, "bad-record"),
    ]
    assert "2 of 1,502 documents are bad (1 bad-json, 1 bad-record)" in failed.err
    succeed(clean(tmp_path / "quiet", path, max_bad=0.01))
    rerun = clean(root, path, max_bad=0.01).run_forked
    expected = faults.published(tmp_path / "quiet")
    faults.assert_survived(root, rerun, expected, [failed], code=11, names=["--max-bad 0.001"], old=old)


def test_bad_lines_at_the_limit_pass_and_one_more_fails(tmp_path: Path, root: Path) -> None:
    good = [line(f"{text}第{index}次。") for index, text in enumerate(GOOD * 333)]
    path = write_lines(tmp_path / "some.jsonl", [*good, b"no JSON"])
    assert clean(root, path).run_forked().code == 0, "1 of 1,000"
    write_lines(path, [*good[1:], b"no JSON"])
    assert clean(root, path).run_forked().code == 11, "1 of 999"


# Case 33: a rule that crashes


def crash_at(patch: pytest.MonkeyPatch, *marks: str) -> None:
    """Make cleaning raise an unexpected error on every text that contains one of `marks`."""
    original = Cleaner.clean_page

    def crashing(self: Cleaner, page: Utf16Text, *arguments: Any) -> Any:
        if any(mark in decode_utf16(page) for mark in marks):
            raise ZeroDivisionError("a bug of a rule")
        return original(self, page, *arguments)

    patch.setattr(Cleaner, "clean_page", crashing)


def test_document_on_which_a_rule_crashes_is_rejected_with_location_and_hash(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line(f"{text}第{index}次。") for index, text in enumerate(GOOD * 10)]
    fatal = "此处有炸药，规则到此便坏。"
    lines[7:7] = [line(fatal)]
    path = write_lines(tmp_path / "some.jsonl", lines)
    with monkeypatch.context() as patch:
        crash_at(patch, "炸")
        strict = clean(root, path).run_forked()
        run = succeed(clean(root, path, max_bad=0.1))
    faults.assert_one_error(strict, 11, ["1 of 31 documents are bad"])
    assert "Traceback" not in run.err
    assert len(texts(root)) == 30
    assert not any("炸" in text for text in texts(root))
    tally = ledger(root)
    ((reason, count),) = tally["documents"]["dropped"].items()
    assert count == 1
    assert reason.startswith("bad-"), "counts towards --max-bad"
    assert tally["documents"] == {"in": 31, "out": 30, "dropped": {reason: 1}}
    assert tally["characters"]["dropped"][reason] == len(fatal)
    (reject,) = rejects(current(root).path)
    assert (reject["file"], reject["line"], reject["reason"]) == ("some.jsonl", 8, reason)
    assert reject["offset"] == sum(len(json_line) + 1 for json_line in lines[:7])
    assert hashlib.sha256(fatal.encode()).hexdigest()[:16] in json.dumps(reject)


def test_crashing_rule_does_not_change_other_documents(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line(f"{text}第{index}次。") for index, text in enumerate(GOOD * 10)]
    succeed(clean(tmp_path / "quiet", write_lines(tmp_path / "some.jsonl", lines)))
    lines[0:0], lines[20:20] = [line("炸一。")], [line("炸二。")]
    path = write_lines(tmp_path / "some.jsonl", [*lines, line("炸三。")])
    crash_at(monkeypatch, "炸")
    succeed(clean(root, path, max_bad=0.2))
    for name in ("documents.jsonl.zst", "sentences.txt"):
        path, expected = (current(folder).file(name) for folder in (root, tmp_path / "quiet"))
        assert b"".join(compression.read_blocks(path)) == b"".join(compression.read_blocks(expected))


# Case 34: workers that are killed


@pytest.fixture(scope="module")
def long_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of many tasks, which takes seconds."""
    path = tmp_path_factory.mktemp("long") / "long.txt"
    with open(path, "w", encoding="utf-8") as out:
        for copy in range(250):
            out.write(BOOK.replace("砚", f"砚{copy}"))
    os.utime(path, (1e9, 1e9))
    return path


@linux
def test_killed_worker_ends_the_command_with_71_and_the_next_run_is_undisturbed(
    long_text: Path, tmp_path: Path, root: Path
) -> None:
    quiet = clean(tmp_path / "quiet", long_text, jobs=2).run()
    assert quiet.code == 0, quiet.err
    expected, disturbed = faults.published(tmp_path / "quiet"), []
    rng = random.Random(34)
    for _ in range(2):
        process = clean(root, long_text, jobs=2).start()
        deadline = time.monotonic() + 30
        while not (workers := chaos.workers_of(process.pid)):
            assert process.poll() is None, "ended before a worker started"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.4) * quiet.seconds)
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        run = faults.wait_for(process)
        assert chaos.survivors(process.pid) == []
        if run.code == 0:  # the work was complete before the worker died
            continue
        disturbed.append(run)
        assert json.loads(run.out)["exit_code"] == 71
        assert "error: a worker process was killed" in run.err
        assert faults.published(root) == {}
    assert disturbed
    faults.assert_survived(root, clean(root, long_text, jobs=2).run, expected, disturbed, code=71)


# Case 35: the same bytes in any environment


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of texts in all formats, some of them long enough for two workers."""
    folder = tmp_path_factory.mktemp("sources") / "texts"
    folder.mkdir()
    (folder / "b.txt").write_bytes(BOOK.encode("gb18030") * 60)
    (folder / "a.txt").write_bytes(BOOK.encode("utf-16"))
    lines = [line(f"{text}{index}", title=str(index)) for index, text in enumerate(GOOD * 3000)]
    (folder / "d.jsonl.zst").write_bytes(zstandard.compress(b"\n".join([*lines, b'{"text":""}'])))
    (folder / "c.json").write_text(json.dumps([{"paragraphs": GOOD, "title": "一"}], ensure_ascii=False), "utf-8")
    (folder / "e.jsonl").write_bytes(b"".join(compression.read_blocks(SAMPLE / "sample.jsonl.zst")))
    return folder


_REVERSED_LISTING = """
import os
listdir, scandir = os.listdir, os.scandir

class Reversed(list):
    def __enter__(self):
        return self
    def __exit__(self, *exc):
        pass
    def close(self):
        pass
    def __iter__(self):
        return self
    def __next__(self):
        if self:
            return self.pop()
        raise StopIteration

os.listdir = lambda *args: listdir(*args)[::-1]
os.scandir = lambda *args: Reversed(scandir(*args))
"""


def in_environment(*before: str, **environment: str) -> Callable[[Command], Command]:
    """Return a function that makes a command run after the words `before`, with these environment variables."""
    return lambda command: replace(command, environment=environment, before=before)


ENVIRONMENTS: dict[str, tuple[int, Callable[[Command], Command]]] = {
    "two workers": (2, in_environment()),
    "three workers": (3, in_environment()),
    "hash seed 0": (1, in_environment(PYTHONHASHSEED="0")),
    "hash seed 1, two workers": (2, in_environment(PYTHONHASHSEED="1")),
    "LANG=C": (2, in_environment(LANG="C", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")),
    "another time zone": (1, in_environment(TZ="Asia/Shanghai")),
    "umask 077": (1, in_environment("sh", "-c", 'umask 077; exec "$@"', "sh")),
    "umask 022": (2, in_environment("sh", "-c", 'umask 022; exec "$@"', "sh")),
}


@pytest.fixture(scope="module")
def expected(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("first") / "artifacts"
    run = clean(root, sources).run()
    assert run.code == 0, run.err
    assert ledger(root)["documents"]["dropped"] == {"empty": 1}
    assert current(root).manifest.counts["documents"] > 10_000
    return checksums(root)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_corpus_is_the_same_in_any_environment_with_any_number_of_workers(
    sources: Path, expected: dict[str, str], root: Path, name: str
) -> None:
    jobs, change = ENVIRONMENTS[name]
    run = change(clean(root, sources, jobs=jobs)).run()
    assert run.code == 0, run.err
    assert checksums(root) == expected


def test_order_of_a_folder_listing_does_not_change_the_corpus(
    sources: Path, expected: dict[str, str], root: Path, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_REVERSED_LISTING, encoding="utf-8")
    environment = {"PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{faults.ROOT}"}
    script = "import os, sys; print(*[entry.name for entry in os.scandir(sys.argv[1])], *os.listdir(sys.argv[1]))"
    listed = [
        subprocess.run(
            [sys.executable, "-c", script, str(sources)],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for variables in ({}, environment)
    ]
    assert listed[0][:5] == listed[1][:5][::-1]
    run = in_environment(**environment)(clean(root, sources, jobs=2)).run()
    assert run.code == 0, run.err
    assert checksums(root) == expected


def test_copy_of_the_texts_in_another_folder_gives_the_same_bytes(
    sources: Path, expected: dict[str, str], root: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "far" / "away" / "texts"
    copy.mkdir(parents=True)
    for path in sorted(sources.iterdir(), reverse=True):
        (copy / path.name).write_bytes(path.read_bytes())
    run = clean(root, copy, jobs=2).run()
    assert run.code == 0, run.err
    assert checksums(root) == expected

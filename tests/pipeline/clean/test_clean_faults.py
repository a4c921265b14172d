"""Cleaning under faults: cases 29 to 35 of reference/reliability.md, section 2, by their numbers, by the command line.

What holds after each of them: the published corpus is the old one or the new one, whole to the last byte; a clean run
ends with the bytes of an undisturbed one and leaves nothing behind; no lock is held; nothing goes uncounted.
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
from pipeline.clean.utf16 import Codes, text_of
from pipeline.readers import compression
from pipeline.store import artifact
from tests.support import chaos, faults
from tests.support.faults import Command, Run

SAMPLE = chaos.SAMPLE.parent
BOOK = chaos.SAMPLE.read_text(encoding="utf-8-sig")
GOOD = ["却说林冲别了众人，取路投沧州来。", "话说宋江在酒楼上自饮酒。", "武松提了哨棒，大着步自过景阳冈来。"]

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which processes live")


def clean(root: Path, *inputs: Path, name: str = "some", jobs: int = 1, **options: object) -> Command:
    chosen = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)]
    return Command(root, ("--json", "clean", *inputs, "--name", name, "--jobs", jobs, *chosen))


def done(command: Command) -> Run:
    """The run of a command that has to succeed."""
    run = command.run_forked()
    assert run.code == 0, run.err
    return run


def current(root: Path, name: str = "some") -> artifact.Artifact:
    found = artifact.find(root, "corpora", name)
    assert artifact.problems(found, deep=True) == []
    return found


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in b"".join(compression.blocks(path)).split(b"\n") if line]


def texts(root: Path) -> list[str]:
    return [entry["text"] for entry in entries(current(root).file("documents.jsonl.zst"))]


def rejects(folder: Path) -> list[dict[str, Any]]:
    return entries(folder / "rejects.jsonl.zst")


def ledger(root: Path) -> dict[str, dict[str, Any]]:
    """The ledger of a corpus, which closes."""
    found = current(root).manifest.ledger
    for tally in found.values():
        assert tally["in"] + sum(tally.get("added", {}).values()) == tally["out"] + sum(tally["dropped"].values())
    return found


def line(text: str, **fields: object) -> bytes:
    return json.dumps({"text": text, **fields}, ensure_ascii=False).encode()


def lines_of(path: Path, lines: Sequence[bytes]) -> Path:
    path.write_bytes(b"".join(each + b"\n" for each in lines))
    return path


def sums(root: Path, name: str = "some") -> dict[str, str]:
    """sha256 of every file of a corpus but the one that says when and where it was made."""
    folder = current(root, name).path
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name != "run.json"
    }


# 29: lines without end


def peak_of(command: Command) -> tuple[Run, int]:
    """How a command ended, and how many MiB it held at most."""
    process = command.start()
    assert process.stdout
    assert process.stderr
    out, err = process.stdout.read(), process.stderr.read()
    _, code, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    process.communicate()
    return Run(process.returncode, out, err), used.ru_maxrss >> 10


@linux
def test_case_29_a_line_of_a_gibibyte_is_rejected_and_counted_and_the_rest_is_read(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "long.jsonl"
    with open(path, "wb") as file:
        file.write(line(GOOD[0]) + b'\n{"text":"')
        start = file.tell()
        file.seek((1 << 30) - 1, os.SEEK_CUR)  # a hole, which takes no room on the disk
        file.write(b'"}\n' + line(GOOD[1]) + b"\n")
    run, most = peak_of(clean(root, path, max_bad=0.5))
    assert run.code == 0, run.err
    assert most < 1400, "the cap is 512 MiB, which is held once in parts and once as a whole"
    assert texts(root) == GOOD[:2]
    assert ledger(root)["documents"] == {"in": 3, "out": 2, "dropped": {"bad-too-long": 1}}
    (reject,) = rejects(current(root).path)
    assert (reject["file"], reject["line"], reject["reason"]) == ("long.jsonl", 2, "bad-too-long")
    assert reject["offset"] == start - len(b'{"text":"')
    path.unlink()


@linux
def test_case_29_a_text_of_one_long_line_is_cleaned_in_little_memory_and_nothing_of_it_is_lost(
    tmp_path: Path, root: Path
) -> None:
    whole = BOOK.replace("\n", "").replace("\u3000", "").replace(" ", "").replace("回", "章") * 200
    (tmp_path / "one.txt").write_text(whole, encoding="utf-8")
    (tmp_path / "small.txt").write_text(whole[: len(whole) // 200], encoding="utf-8")
    _, small = peak_of(clean(tmp_path / "small", tmp_path / "small.txt"))
    run, most = peak_of(clean(root, tmp_path / "one.txt"))
    assert run.code == 0, run.err
    assert most < small + 250, "its line is 5 million characters, 16 MB"
    assert ledger(root)["documents"] == {"in": 1, "out": 1, "dropped": {}}
    assert "".join(texts(root)) == whole
    longest = max(current(root).file("sentences.txt").read_bytes().split(b"\n"), key=len)
    assert len(longest) <= 4192


# 30: odd characters and odd bytes

ODD_LINES = {
    "bad UTF-8": b'{"text": "\xff\xe6\xb0"}',
    "a lone surrogate in UTF-8": b'{"text": "\xed\xa0\x80"}',
    "a lone surrogate as an escape": b'{"text": "\\ud800"}',
    "a byte order mark before a line": b'\xef\xbb\xbf{"text": "a"}',
    "a NUL byte": b'{"text": "a\0b"}',
    "a NUL byte after the line": b'{"text": "a"}\0',
    "a control character": b'{"text": "a\x01b"}',
}
MENDED_LINES = {
    "U+2028 and its like": (line("林\u2028冲\u2029上\x85山"), "林\n冲\n上\n山"),
    "CRLF inside": (line("林冲。\r\n宋江。\r武松。"), "林冲。\n宋江。\n武松。"),
    "CRLF at its end": (line("林冲。") + b"\r", "林冲。"),
    "control characters": (line("林\x01冲\x1b上\x7f山\x9f。"), "林冲上山。"),
    "a NUL as an escape": (line("林\0冲。"), "林冲。"),
    "byte order marks inside": (line("\ufeff林\ufeff冲。"), "林冲。"),
    "marks that take no room": (line("林\u200b冲\u200e上\u2060山\u00ad。"), "林冲上山。"),
    "a surrogate pair as escapes": (b'{"text": "\\ud842\\udfb7\xe5\xb1\xb1\xe3\x80\x82"}', "𠮷山。"),
}


def test_case_30_lines_that_are_no_utf_8_or_no_json_are_counted_and_every_line_is_accounted_for(
    tmp_path: Path, root: Path
) -> None:
    written = [line(GOOD[0])]
    for bad in ODD_LINES.values():
        written += [bad, line(GOOD[1])]
    written += [b"", b" \t"]
    path = lines_of(tmp_path / "odd.jsonl", written)
    run = done(clean(root, path, max_bad=1))
    tally = ledger(root)["documents"]
    assert tally["in"] == path.read_bytes().count(b"\n")
    assert tally["dropped"] == {"bad-json": len(ODD_LINES), "blank-line": 2}
    assert texts(root) == [GOOD[0], *[GOOD[1]] * len(ODD_LINES)]
    offsets = [sum(len(each) + 1 for each in written[:number]) for number in range(len(written))]
    found = {(each["line"], each["offset"]): each["reason"] for each in rejects(current(root).path)}
    assert found == {
        (number + 1, offsets[number]): "blank-line" if not each.strip() else "bad-json"
        for number, each in enumerate(written)
        if each not in map(line, GOOD)
    }
    assert "Traceback" not in run.err


def test_case_30_characters_that_no_text_needs_are_mended_and_counted_by_what_they_are(
    tmp_path: Path, root: Path
) -> None:
    path = lines_of(tmp_path / "odd.jsonl", [each for each, _ in MENDED_LINES.values()])
    done(clean(root, path, profile="plain"))
    assert texts(root) == [text for _, text in MENDED_LINES.values()]
    tally = ledger(root)
    assert tally["documents"] == {"in": len(MENDED_LINES), "out": len(MENDED_LINES), "dropped": {}}
    before = "".join(json.loads(each)["text"] for each, _ in MENDED_LINES.values())
    controls = sum(map(before.count, "\x01\x1b\x7f\x9f\0\ufeff\u200b\u200e\u2060\u00ad"))
    assert tally["characters"]["in"] == len(before)
    assert tally["characters"]["dropped"] == {"controls": controls, "newlines": before.count("\r\n")}


@pytest.mark.parametrize("name", ["book.jsonl", "book.txt"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_case_30_a_file_with_a_mark_and_any_line_ends_is_the_same_corpus(
    tmp_path: Path, root: Path, name: str, ending: str
) -> None:
    text = "\n".join(GOOD) + "\n"
    data = line(text) + b"\n" if name.endswith(".jsonl") else text.encode()
    (tmp_path / name).write_bytes(data)
    done(clean(tmp_path / "plain", tmp_path / name))
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + data.replace(b"\n", ending.encode()))
    done(clean(root, tmp_path / name))
    assert texts(root) == texts(tmp_path / "plain")
    assert ledger(root)["characters"]["out"] == ledger(tmp_path / "plain")["characters"]["out"]


BYTES = BOOK.encode()
BROKEN_TEXTS: dict[str, tuple[bytes, str]] = {
    "bad byte": (b"abc\n" * 7500 + b"\xff" + BYTES, "byte 0xff at offset 30,000"),
    "surrogate": (("林冲。" * 50 + "\ud800").encode("utf-8", "surrogatepass") + BYTES, "byte 0xed at offset 450"),
    "zeros": (BYTES + bytes(4096), "and binary data after it"),
    "word": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(5000), "an old Word file, not text"),
    "empty": (b"", "the file is empty"),
    "blank": ("\n　\n".encode() * 10, "only white space"),
    "japanese": (("吾輩は猫である。名前はまだ無い。" * 5).encode("shift_jis"), "Japanese or Korean in shift_jis"),
}


@pytest.mark.parametrize("kind", BROKEN_TEXTS)
def test_case_30_a_text_that_cannot_be_trusted_ends_the_command_and_the_old_corpus_stays(
    tmp_path: Path, root: Path, kind: str
) -> None:
    data, said = BROKEN_TEXTS[kind]
    path = tmp_path / "book.txt"
    path.write_text(GOOD[0], encoding="utf-8")
    done(clean(root, path))
    old = faults.published(root)
    path.write_bytes(data)
    broken = clean(root, path).run_forked()
    assert said in broken.err
    path.write_text("".join(GOOD), encoding="utf-8")
    done(clean(tmp_path / "quiet", path))
    expected = faults.published(tmp_path / "quiet")
    again = clean(root, path).run_forked
    faults.assert_survived(root, again, expected, [broken], code=65, names=["book.txt"], old=old)


def test_case_30_a_last_character_that_is_cut_is_reported_and_the_rest_is_kept(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "cut.txt"
    for encoding, lost in (("utf-8", 1), ("utf-8", 2), ("gb18030", 1), ("utf-16-le", 1)):
        data = ("".join(GOOD) * 3).encode(encoding)
        path.write_bytes(data[:-lost])
        done(clean(root, path))
        assert texts(root) == [("".join(GOOD) * 3)[:-1]]
        assert ledger(root)["documents"] == {"in": 2, "out": 1, "dropped": {"truncated-end": 1}}
        (reject,) = rejects(current(root).path)
        kept = len(("".join(GOOD) * 3)[:-1].encode(encoding))
        assert (reject["file"], reject["reason"], reject["offset"]) == ("cut.txt", "truncated-end", kept)
        assert bytes.fromhex(reject["excerpt"]) == data[kept:-lost]


# 31: lines that are no documents

DEEP = b"[" * 100_000 + b"]" * 100_000
NO_DOCUMENTS: dict[str, tuple[bytes, str]] = {
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
    "a number beyond all bounds": ('{"text": "武松。", "meta": 1e999}'.encode(), "武松。"),
    "a title that is none": ('{"text": "史进。", "title": [7], "other": {"a": []}}'.encode(), "史进。"),
}


def test_case_31_lines_that_are_no_documents_are_counted_by_reason_and_never_fatal(tmp_path: Path, root: Path) -> None:
    written = [line(GOOD[0])]
    for bad, _ in NO_DOCUMENTS.values():
        written += [bad, line(GOOD[2])]
    written += [each for each, _ in DOCUMENTS.values()]
    run = done(clean(root, lines_of(tmp_path / "odd.jsonl", written), max_bad=1))
    reasons = [reason for _, reason in NO_DOCUMENTS.values()]
    tally = ledger(root)["documents"]
    assert tally["in"] == len(written)
    assert tally["dropped"] == {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    assert texts(root) == [GOOD[0], *[GOOD[2]] * len(NO_DOCUMENTS), *(text for _, text in DOCUMENTS.values())]
    found = rejects(current(root).path)
    assert [(each["line"], each["reason"]) for each in found] == [(2 * n + 2, each) for n, each in enumerate(reasons)]
    assert "Traceback" not in run.err


def test_case_31_such_lines_change_nothing_about_the_others(tmp_path: Path, root: Path) -> None:
    draw = random.Random(31)
    good = [line(f"{text}第{number}次。") for number, text in enumerate(GOOD * 40)]
    mixed = [*good]
    for bad, _ in NO_DOCUMENTS.values():
        mixed.insert(draw.randrange(len(mixed)), bad)
    path = tmp_path / "some.jsonl"
    lines_of(path, good)
    done(clean(tmp_path / "quiet", path))
    lines_of(path, mixed)
    done(clean(root, path, max_bad=1))
    for name in ("documents.jsonl.zst", "sentences.txt"):
        one, other = (current(each).file(name) for each in (root, tmp_path / "quiet"))
        assert b"".join(compression.blocks(one)) == b"".join(compression.blocks(other))


# 32: too many of them


def test_case_32_a_rejected_share_over_the_budget_publishes_nothing_and_keeps_the_list(
    tmp_path: Path, root: Path
) -> None:
    path = tmp_path / "some.jsonl"
    good = [line(f"{text}第{number}次。") for number, text in enumerate(GOOD * 500)]
    lines_of(path, good)
    done(clean(root, path))
    old = faults.published(root)
    lines_of(path, [*good, b"no JSON", b'{"text": 7}'])
    over = clean(root, path).run_forked()
    kept = sorted((root / "corpora" / "some").glob(".draft-*/rejects.jsonl.zst"))
    assert len(kept) == 1
    assert str(kept[0].parent) in over.err, "it says where they are"
    assert [(each["line"], each["reason"]) for each in rejects(kept[0].parent)] == [
        (1501, "bad-json"),
        (1502, "bad-record"),
    ]
    assert "2 of 1,502 documents are bad (1 bad-json, 1 bad-record)" in over.err
    done(clean(tmp_path / "quiet", path, max_bad=0.01))
    again = clean(root, path, max_bad=0.01).run_forked
    expected = faults.published(tmp_path / "quiet")
    faults.assert_survived(root, again, expected, [over], code=11, names=["--max-bad 0.001"], old=old)


def test_case_32_what_is_at_the_budget_passes_and_one_more_does_not(tmp_path: Path, root: Path) -> None:
    good = [line(f"{text}第{number}次。") for number, text in enumerate(GOOD * 333)]
    path = lines_of(tmp_path / "some.jsonl", [*good, b"no JSON"])
    assert clean(root, path).run_forked().code == 0, "1 of 1,000"
    lines_of(path, [*good[1:], b"no JSON"])
    assert clean(root, path).run_forked().code == 11, "1 of 999"


# 33: a rule that crashes


def crash_at(patch: pytest.MonkeyPatch, *marks: str) -> None:
    """Let cleaning raise what nobody foresaw, on every text that has one of `marks`."""
    original = Cleaner.clean_page

    def crashing(self: Cleaner, page: Codes, *counts: int) -> Any:
        if any(mark in text_of(page) for mark in marks):
            raise ZeroDivisionError("a bug of a rule")
        return original(self, page, *counts)

    patch.setattr(Cleaner, "clean_page", crashing)


def test_case_33_a_document_at_which_a_rule_crashes_is_set_aside_with_its_place_and_its_hash(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = [line(f"{text}第{number}次。") for number, text in enumerate(GOOD * 10)]
    fatal = "此处有炸药，规则到此便坏。"
    written[7:7] = [line(fatal)]
    path = lines_of(tmp_path / "some.jsonl", written)
    with monkeypatch.context() as patch:
        crash_at(patch, "炸")
        strict = clean(root, path).run_forked()
        run = done(clean(root, path, max_bad=0.1))
    faults.assert_one_error(strict, 11, ["1 of 31 documents are bad"])
    assert "Traceback" not in run.err
    assert len(texts(root)) == 30
    assert not any("炸" in text for text in texts(root))
    tally = ledger(root)
    ((reason, count),) = tally["documents"]["dropped"].items()
    assert count == 1
    assert reason.startswith("bad-"), "it falls under --max-bad"
    assert tally["documents"] == {"in": 31, "out": 30, "dropped": {reason: 1}}
    assert tally["characters"]["dropped"][reason] == len(fatal)
    (reject,) = rejects(current(root).path)
    assert (reject["file"], reject["line"], reject["reason"]) == ("some.jsonl", 8, reason)
    assert reject["offset"] == sum(len(each) + 1 for each in written[:7])
    assert hashlib.sha256(fatal.encode()).hexdigest()[:16] in json.dumps(reject), "which text it was, to the last byte"


def test_case_33_the_others_come_out_as_without_it(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = [line(f"{text}第{number}次。") for number, text in enumerate(GOOD * 10)]
    done(clean(tmp_path / "quiet", lines_of(tmp_path / "some.jsonl", written)))
    written[0:0], written[20:20] = [line("炸一。")], [line("炸二。")]
    path = lines_of(tmp_path / "some.jsonl", [*written, line("炸三。")])
    crash_at(monkeypatch, "炸")
    done(clean(root, path, max_bad=0.2))
    for name in ("documents.jsonl.zst", "sentences.txt"):
        one, other = (current(each).file(name) for each in (root, tmp_path / "quiet"))
        assert b"".join(compression.blocks(one)) == b"".join(compression.blocks(other))


# 34: workers that are killed


@pytest.fixture(scope="module")
def long_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text that takes seconds, in many pieces."""
    path = tmp_path_factory.mktemp("long") / "long.txt"
    with open(path, "w", encoding="utf-8") as out:
        for number in range(250):
            out.write(BOOK.replace("砚", f"砚{number}"))
    os.utime(path, (1e9, 1e9))
    return path


@linux
def test_case_34_a_killed_worker_ends_the_command_with_71_and_the_next_one_is_as_if_nothing_was(
    long_text: Path, tmp_path: Path, root: Path
) -> None:
    quiet = clean(tmp_path / "quiet", long_text, jobs=2).run()
    assert quiet.code == 0, quiet.err
    expected, disturbed = faults.published(tmp_path / "quiet"), []
    draw = random.Random(34)
    for _ in range(2):
        process = clean(root, long_text, jobs=2).start()
        deadline = time.monotonic() + 30
        while not (workers := chaos.workers_of(process.pid)):
            assert process.poll() is None, "it was over before a worker began"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.4) * quiet.seconds)
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        run = faults.ended(process)
        assert chaos.survivors(process.pid) == []
        if run.code == 0:  # it was done with its work before the worker died
            continue
        disturbed.append(run)
        assert json.loads(run.out)["exit_code"] == 71
        assert "error: a worker process was killed" in run.err
        assert faults.published(root) == {}
    assert disturbed
    faults.assert_survived(root, clean(root, long_text, jobs=2).run, expected, disturbed, code=71)


# 35: the same bytes wherever, however and by however many


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of texts of all kinds, some of them long enough for two workers."""
    folder = tmp_path_factory.mktemp("sources") / "texts"
    folder.mkdir()
    (folder / "b.txt").write_bytes(BOOK.encode("gb18030") * 60)
    (folder / "a.txt").write_bytes(BOOK.encode("utf-16"))
    lines = [line(f"{text}{number}", title=str(number)) for number, text in enumerate(GOOD * 3000)]
    (folder / "d.jsonl.zst").write_bytes(zstandard.compress(b"\n".join([*lines, b'{"text":""}'])))
    (folder / "c.json").write_text(json.dumps([{"paragraphs": GOOD, "title": "一"}], ensure_ascii=False), "utf-8")
    (folder / "e.jsonl").write_bytes(b"".join(compression.blocks(SAMPLE / "sample.jsonl.zst")))
    return folder


_SHUFFLED = """
import os
listed, scanned = os.listdir, os.scandir

class Backwards(list):
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

os.listdir = lambda *given: listed(*given)[::-1]
os.scandir = lambda *given: Backwards(scanned(*given))
"""


def elsewhere(*before: str, **environment: str) -> Callable[[Command], Command]:
    return lambda command: replace(command, environment=environment, before=before)


WAYS: dict[str, tuple[int, Callable[[Command], Command]]] = {
    "two workers": (2, elsewhere()),
    "three workers": (3, elsewhere()),
    "hash seed 0": (1, elsewhere(PYTHONHASHSEED="0")),
    "hash seed 1, two workers": (2, elsewhere(PYTHONHASHSEED="1")),
    "LANG=C": (2, elsewhere(LANG="C", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")),
    "another time zone": (1, elsewhere(TZ="Asia/Shanghai")),
    "umask 077": (1, elsewhere("sh", "-c", 'umask 077; exec "$@"', "sh")),
    "umask 022": (2, elsewhere("sh", "-c", 'umask 022; exec "$@"', "sh")),
}


@pytest.fixture(scope="module")
def expected(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("first") / "artifacts"
    run = clean(root, sources).run()
    assert run.code == 0, run.err
    assert ledger(root)["documents"]["dropped"] == {"empty": 1}
    assert current(root).manifest.counts["documents"] > 10_000
    return sums(root)


@pytest.mark.parametrize("way", WAYS)
def test_case_35_the_same_input_gives_the_same_bytes_in_any_environment_by_any_number_of_workers(
    sources: Path, expected: dict[str, str], root: Path, way: str
) -> None:
    jobs, arranged = WAYS[way]
    run = arranged(clean(root, sources, jobs=jobs)).run()
    assert run.code == 0, run.err
    assert sums(root) == expected


def test_case_35_the_order_in_which_a_folder_lists_its_files_changes_nothing(
    sources: Path, expected: dict[str, str], root: Path, tmp_path: Path
) -> None:
    (tmp_path / "shuffled").mkdir()
    (tmp_path / "shuffled" / "sitecustomize.py").write_text(_SHUFFLED, encoding="utf-8")
    environment = {"PYTHONPATH": f"{tmp_path / 'shuffled'}{os.pathsep}{faults.ROOT}"}
    script = "import os, sys; print(*[entry.name for entry in os.scandir(sys.argv[1])], *os.listdir(sys.argv[1]))"
    listed = [
        subprocess.run(
            [sys.executable, "-c", script, str(sources)],
            env={**os.environ, **each},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for each in ({}, environment)
    ]
    assert listed[0][:5] == listed[1][:5][::-1], "the folder is listed backwards there"
    run = elsewhere(**environment)(clean(root, sources, jobs=2)).run()
    assert run.code == 0, run.err
    assert sums(root) == expected


def test_case_35_another_copy_of_the_texts_in_another_place_gives_the_same_bytes(
    sources: Path, expected: dict[str, str], root: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "far" / "away" / "texts"
    copy.mkdir(parents=True)
    for path in sorted(sources.iterdir(), reverse=True):
        (copy / path.name).write_bytes(path.read_bytes())
    run = clean(root, copy, jobs=2).run()
    assert run.code == 0, run.err
    assert sums(root) == expected

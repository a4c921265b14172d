"""Reuse of units of unchanged files: the bytes equal those of a fresh build."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import TryAgain
from pipeline.runtime import workers
from pipeline.runtime.progress import Progress
from pipeline.store import artifact, files
from pipeline.store.artifact import Artifact
from pipeline.store.manifest import FileRecord
from pipeline.tokens import chunks, reuse
from pipeline.tokens import stage as tokens_stage
from pipeline.tokens.options import TokenizeOptions
from pipeline.tokens.resume import UNITS
from pipeline.tokens.stage import TokenizeInputs
from tests.pipeline.store.test_artifact import in_child
from tests.support import chaos
from tests.support.tokenizing import LETTERS, checksums, input_file, rejects
from tests.support.tokenizing import run as run_tokenize
from tests.support.upstream import leftovers, stamps

Content = dict[str, list[str]]  # documents by the name of their file; one that begins with "{" is a broken line


def texts(name: str, count: int = 12) -> list[str]:
    return [f"{name}, document {number}" for number in range(count)]


FIVE: Content = {f"{name}.jsonl": texts(name) for name in "abcde"}


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make three units per file of twelve documents, and skip processes and fsync to save time."""
    monkeypatch.setattr(chunks, "UNIT_BYTES", 110)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 55)
    monkeypatch.setattr(workers, "run_isolated", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def sources(folder: Path, content: Content, order: list[str] | None = None, val: str = "") -> TokenizeInputs:
    """Write the files of `content`; a file that already has these bytes keeps its time."""
    folder.mkdir(exist_ok=True)
    for name, documents in content.items():
        lines = [text if text.startswith("{") else json.dumps({"text": text}) for text in documents]
        data = "".join(f"{line}\n" for line in lines).encode()
        path = folder / name
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)
    entries = tuple(input_file(folder / name) for name in order or sorted(content))
    return TokenizeInputs(
        tuple(file for file in entries if file.name != val), tuple(file for file in entries if file.name == val)
    )


def build(root: Path, inputs: TokenizeInputs, **options: Any) -> Artifact:
    settings = {"max_bad": 1.0, **options}
    return run_tokenize(root, inputs, **settings).artifact


def assert_same(one: Artifact, other: Artifact) -> None:
    """Compare byte for byte, the manifest included."""
    assert checksums(one) == checksums(other)
    assert one.digest == other.digest
    assert artifact.find_problems(one, deep=True) == []


def reused(made: Artifact, before: Artifact) -> set[str]:
    """Return the .bin files that are hard links to those of an earlier generation."""
    inodes = {stamp for name, stamp in stamps(before.path).items() if name.endswith(".bin")}
    return {name for name, stamp in stamps(made.path).items() if stamp in inodes}


CHANGES: dict[str, tuple[Content, set[str]]] = {
    "nothing": (FIVE, set("abcde")),
    "a file is added at the end": ({**FIVE, "f.jsonl": texts("f")}, set("abcde")),
    "a file is added at the beginning": ({**FIVE, "0.jsonl": texts("0")}, set("abcde")),
    "a file is removed": ({name: FIVE[name] for name in FIVE if name != "b.jsonl"}, set("acde")),
    "a file is changed": ({**FIVE, "c.jsonl": texts("new")}, set("abde")),
    "a file grew": ({**FIVE, "c.jsonl": [*texts("c"), "one more"]}, set("abde")),
    "a file is another name": (
        {"z.jsonl" if name == "b.jsonl" else name: documents for name, documents in FIVE.items()},
        set("acde"),
    ),
    "two files change their contents": ({**FIVE, "a.jsonl": FIVE["b.jsonl"], "b.jsonl": FIVE["a.jsonl"]}, set("cde")),
    "everything is another": ({name: texts(f"new {name}") for name in FIVE}, set()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_bytes_equal_a_fresh_build_after_any_source_change(root: Path, tmp_path: Path, change: str) -> None:
    content, finished = CHANGES[change]
    before = build(root, sources(tmp_path / "in", FIVE))
    inputs = sources(tmp_path / "in", content)
    tokens = build(root, inputs)
    assert_same(tokens, build(tmp_path / "fresh", inputs))
    letters = sorted(name[0] for name in content)
    assert {letters[int(name.split("-")[1])] for name in reused(tokens, before)} == finished
    assert leftovers(root) == []
    assert artifact.find_problems(before, deep=True) == []


def test_reordered_files_are_reused_under_new_numbers(root: Path, tmp_path: Path) -> None:
    before = build(root, sources(tmp_path / "in", FIVE))
    inputs = sources(tmp_path / "in", FIVE, order=[f"{name}.jsonl" for name in "ecabd"])
    tokens = build(root, inputs)
    assert_same(tokens, build(tmp_path / "fresh", inputs))
    assert len(reused(tokens, before)) == len(list(before.path.glob("*.bin")))


def test_file_that_changes_its_role_is_not_reused(root: Path, tmp_path: Path) -> None:
    before = build(root, sources(tmp_path / "in", FIVE, val="a.jsonl"))
    inputs = sources(tmp_path / "in", FIVE, val="b.jsonl")
    tokens = build(root, inputs)
    assert_same(tokens, build(tmp_path / "fresh", inputs))
    assert reused(tokens, before) == set(), "the overlap with other validation files is not known"
    more = sources(tmp_path / "in", {**FIVE, "f.jsonl": texts("f")}, val="b.jsonl")
    assert len(reused(build(root, more), tokens)) == len(list(tokens.path.glob("*.bin")))
    divided = sources(tmp_path / "in", FIVE)
    assert reused(build(root, divided), tokens) == set(), "without validation files, every file is divided"


def test_rejects_of_reused_files_are_kept(root: Path, tmp_path: Path) -> None:
    bad = {**FIVE, "b.jsonl": ["{broken", *texts("b"), "{}"], "d.jsonl": [*texts("d"), "{again"]}
    before = build(root, sources(tmp_path / "in", bad))
    inputs = sources(tmp_path / "in", {**bad, "a.jsonl": texts("new")})
    tokens = build(root, inputs)
    assert_same(tokens, build(tmp_path / "fresh", inputs))
    assert {name.split("-")[1] for name in reused(tokens, before)} == {"00001", "00002", "00003", "00004"}
    assert [(file, line) for file, line, _, _ in rejects(tokens)] == [("b.jsonl", 1), ("b.jsonl", 14), ("d.jsonl", 13)]
    assert tokens.manifest.ledger["documents"] == before.manifest.ledger["documents"]
    fewer = sources(tmp_path / "in", {name: bad[name] for name in bad if name != "b.jsonl"})
    (tmp_path / "in" / "b.jsonl").unlink()
    rebuilt = build(root, fewer)
    assert_same(rebuilt, build(tmp_path / "fewer", fewer))
    assert [(file, line) for file, line, _, _ in rejects(rebuilt)] == [("d.jsonl", 13)]


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "index", "rejects", "units", "no units", "count of units"])
def test_damaged_units_are_encoded_again(root: Path, tmp_path: Path, damage: str) -> None:
    content = {**FIVE, "b.jsonl": ["{broken", *texts("b")]}
    before = build(root, sources(tmp_path / "in", content))
    name = {"index": "train-00001-0000.idx", "rejects": "rejects.jsonl.zst"}.get(damage, "train-00001-0000.bin")
    victim = before.file(UNITS if "units" in damage else name)
    data = victim.read_bytes()
    if damage in ("gone", "no units"):
        victim.unlink()
    elif damage in ("cut", "units"):
        victim.write_bytes(data[: len(data) // 2])
    elif damage == "count of units":  # still valid JSON
        victim.write_bytes(re.sub(rb'"longest":\d+', b'"longest":7777', data))
    else:
        victim.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
        os.utime(victim, (1e9, 1e9))  # as after bit rot
    inputs = sources(tmp_path / "in", {**content, "e.jsonl": texts("new")})
    tokens = build(root, inputs)
    assert_same(tokens, build(tmp_path / "fresh", inputs))
    files_taken = {name.split("-")[1] for name in reused(tokens, before)}
    assert files_taken == (set() if "units" in damage else {"00000", "00002", "00003"})


def test_units_in_the_format_of_another_version_are_not_reused(root: Path, tmp_path: Path) -> None:
    tokens = build(root, sources(tmp_path / "in", FIVE))
    assert reuse.ReusableGeneration(tokens.path, tokens.manifest).units()
    data = b'{"file":"0"}\n'
    tokens.file(UNITS).write_bytes(data)
    record = FileRecord(UNITS, len(data), hashlib.sha256(data).hexdigest())
    published = tuple(record if file.name == UNITS else file for file in tokens.manifest.files)
    manifest = msgspec.structs.replace(tokens.manifest, files=published)
    assert reuse.ReusableGeneration(tokens.path, manifest).units() == {}


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"min_chars": 3}),
        ({}, {"val_fraction": 0.2}),
        ({}, {"dedup": "exact"}),
        ({"dedup": "exact"}, {"dedup": "exact"}),
        ({}, {"max_documents": 50}),
        ({"max_documents": 50}, {"max_documents": 50}),
        ({}, {"format": "both"}),
        ({"exclude_sets": ("a",)}, {}),
    ],
)
def test_nothing_is_reused_with_other_options_or_dedup(
    root: Path, tmp_path: Path, first: dict[str, Any], then: dict[str, Any]
) -> None:
    before = build(root, sources(tmp_path / "in", FIVE), **first)
    inputs = sources(tmp_path / "in", {**FIVE, "e.jsonl": texts("new")})
    tokens = build(root, inputs, **then)
    assert reused(tokens, before) == set()
    assert_same(tokens, build(tmp_path / "fresh", inputs, **then))


def test_nothing_is_reused_with_another_tokenizer(root: Path, tmp_path: Path) -> None:
    from pipeline.tokenizers import Characters

    inputs = sources(tmp_path / "in", FIVE)
    before = build(root, inputs)
    reordered = Characters("".join(map(chr, range(126, 31, -1))) + "\n", "letters")
    tokens = build(root, inputs, tokenizer=reordered)
    assert tokens.manifest.tokenizer != LETTERS.fingerprint
    assert reused(tokens, before) == set()


def test_ids_are_reused_with_format_both_but_not_hdf5(root: Path, tmp_path: Path) -> None:
    for layout in ("hdf5", "both"):
        before = build(root / layout, sources(tmp_path / "in", FIVE), format=layout)
        inputs = sources(tmp_path / "in", {**FIVE, "e.jsonl": texts(f"new {layout}")})
        tokens = build(root / layout, inputs, format=layout)
        assert_same(tokens, build(tmp_path / "fresh", inputs, format=layout))
        assert bool(reused(tokens, before)) == (layout == "both")


def test_files_are_copied_without_hard_links(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Linkless(files.Disk):
        def link(self, old: Path, new: Path) -> None:
            raise PermissionError(1, "no links here", str(new))

    monkeypatch.setattr(files, "disk", Linkless())
    before = build(root, sources(tmp_path / "in", FIVE))
    inputs = sources(tmp_path / "in", {**FIVE, "e.jsonl": texts("new")})
    tokens = build(root, inputs)
    assert reused(tokens, before) == set()
    assert_same(tokens, build(tmp_path / "fresh", inputs))


class Counting(Progress):
    """Records the note on reused units, and may stop the run after a number of units."""

    def __init__(self, stop_after: int = 0) -> None:
        super().__init__()
        self.reused, self._left = "", stop_after

    def note(self, text: str) -> None:
        self.reused = text if "reusing" in text else self.reused

    def safe_point(self, saved: str) -> None:
        self._left -= 1
        if not self._left:
            raise TryAgain(saved)


def build_with(root: Path, inputs: TokenizeInputs, progress: Counting) -> Artifact:
    options = TokenizeOptions(val_fraction=0.1, val_split="document", max_bad=1.0)
    return tokens_stage.tokenize(root, "some", inputs, LETTERS, None, options, progress, jobs=1).artifact


def test_note_counts_reused_units_and_plan_counts_the_others(root: Path, tmp_path: Path) -> None:
    build(root, sources(tmp_path / "in", FIVE))
    inputs = sources(tmp_path / "in", {**FIVE, "e.jsonl": texts("new")})
    options = TokenizeOptions(val_fraction=0.1, val_split="document")
    identity = tokens_stage.identify("some", inputs, LETTERS, None, options)
    assert reuse.remaining_fraction(root, identity) == 1 / 5
    for changed in (TokenizeOptions(val_fraction=0.1, dedup="exact"), TokenizeOptions(val_fraction=0.2)):
        assert reuse.remaining_fraction(root, tokens_stage.identify("some", inputs, LETTERS, None, changed)) == 1
    progress = Counting()
    build_with(root, inputs, progress)
    assert progress.reused == "reusing 12 units of 4 unchanged files"
    assert reuse.remaining_fraction(root, identity) == 0


def test_run_stopped_after_reuse_resumes(root: Path, tmp_path: Path) -> None:
    build(root, sources(tmp_path / "in", FIVE))
    inputs = sources(tmp_path / "in", {**FIVE, "a.jsonl": texts("new"), "e.jsonl": texts("newer")})
    fresh = build_with(tmp_path / "fresh", inputs, Counting())
    for _ in range(3):
        with pytest.raises(TryAgain):
            build_with(root, inputs, Counting(stop_after=1))
    finished = chaos.left_behind(root).finished
    assert len(finished) > 12
    tokens = build_with(root, inputs, Counting())
    assert finished.items() <= stamps(tokens.path).items()
    assert_same(tokens, fresh)


class Dies(files.Disk):
    """A disk that kills the process at its n-th hard link."""

    def __init__(self, at: int) -> None:
        self._left = at

    def link(self, old: Path, new: Path) -> None:
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)
        super().link(old, new)


def test_run_killed_at_any_link_resumes_to_the_same_bytes(root: Path, tmp_path: Path) -> None:
    before = build(root, sources(tmp_path / "in", FIVE))
    inputs = sources(tmp_path / "in", {**FIVE, "c.jsonl": texts("new")})
    fresh = build(tmp_path / "fresh", inputs)

    def disturbed(at: int) -> None:
        files.disk = Dies(at)
        build(root, inputs)

    number = 0
    while (code := in_child(partial(disturbed, number + 1))) != 0:
        number += 1
        assert code == -signal.SIGKILL
        if number % 3 == 0:  # otherwise the next run resumes from all the leftovers so far
            assert_same(build(root, inputs), fresh)
            files.remove_tree(fresh_path(root, fresh))
            files.point_symlink(root / "tokens" / "some" / "current", before.manifest.key)
    assert number >= 15
    assert_same(build(root, inputs), fresh)
    assert artifact.find_problems(before, deep=True) == []
    assert leftovers(root) == []


def fresh_path(root: Path, made: Artifact) -> Path:
    return root / made.ref


def test_reused_generation_is_never_written(root: Path, tmp_path: Path) -> None:
    before = build(root, sources(tmp_path / "in", FIVE))
    stamp = {name: file_stamp for name, file_stamp in stamps(before.path).items() if name != "run.json"}
    for edition in range(3):
        build(root, sources(tmp_path / "in", {**FIVE, "c.jsonl": texts(f"new {edition}")}))
        victim = next((root / "tokens" / "some" / "current").glob("train-00002-*.bin"))
        victim.unlink()  # and it is repaired, in a draft that holds links
        build(root, sources(tmp_path / "in", {**FIVE, "c.jsonl": texts(f"new {edition}")}))
    assert {name: stamps(before.path)[name] for name in stamp} == stamp
    assert artifact.find_problems(before, deep=True) == []


DOCUMENTS = st.lists(st.sampled_from(["a", "some more words " * 4, "{broken", "石"]), max_size=5)
STATES = st.lists(st.dictionaries(st.sampled_from("abcd"), DOCUMENTS, min_size=1, max_size=4), min_size=2, max_size=4)


@pytest.fixture
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    return iter(lambda: tmp_path_factory.mktemp("states"), None)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(states=STATES)
def test_any_sequence_of_changes_equals_a_fresh_build(folders: Iterator[Path], states: list[Any]) -> None:
    folder = next(folders)
    for number, state in enumerate(states):
        content = {"always.jsonl": texts("always")} | {f"{name}.jsonl": [name, *rest] for name, rest in state.items()}
        inputs = sources(folder / "in", content)
        tokens = build(folder / "store", inputs, val_fraction=0.5)
        assert_same(tokens, build(folder / f"fresh-{number}", inputs, val_fraction=0.5))
        for path in artifact.generations(folder / "store"):
            assert artifact.find_problems(artifact.read(path), deep=True) == []

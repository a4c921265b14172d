"""Source code in keys: nothing while it is as released, the digest of each file that was edited, added or deleted."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

from pipeline.clean import stage as clean_stage
from pipeline.store import code
from pipeline.store.code import Code
from pipeline.store.manifest import Identity
from tests.support.digests import STAGES
from tests.support.editing import edit, reread, sources

__all__ = ["sources"]

HEADINGS = "pipeline/clean/rules/headings.py"
CLEAN = clean_stage.CODE


def key_of(declared: Code) -> str:
    return Identity("corpora", "book", {}, (), code=code.state_of(declared)).key


@pytest.mark.parametrize("stage", STAGES)
def test_released_code_adds_nothing_to_a_key(sources: Path, stage: str) -> None:
    state = code.state_of(STAGES[stage][1])
    assert state.edited == {}
    assert len(state.digest) == 64
    assert key_of(STAGES[stage][1]) == Identity("corpora", "book", {}, ()).key


def test_an_edited_file_is_named_with_its_digest_and_changes_the_key(sources: Path) -> None:
    released, digest = key_of(CLEAN), code.state_of(CLEAN).digest
    edit(sources / HEADINGS)
    expected = hashlib.sha256((sources / HEADINGS).read_bytes()).hexdigest()
    assert code.state_of(CLEAN).edited == {HEADINGS: expected}
    assert code.state_of(CLEAN).digest != digest
    edited = key_of(CLEAN)
    edit(sources / HEADINGS)
    assert len({released, edited, key_of(CLEAN)}) == 3


def test_an_edit_that_is_taken_back_gives_the_released_key(sources: Path) -> None:
    original = (sources / HEADINGS).read_bytes()
    released = key_of(CLEAN)
    edit(sources / HEADINGS)
    assert key_of(CLEAN) != released
    (sources / HEADINGS).write_bytes(original)
    reread()
    assert key_of(CLEAN) == released


@pytest.mark.parametrize(
    ("stage", "path"),
    [
        ("clean", "pipeline/clean/rules/mine.py"),
        ("clean", "pipeline/readers/mine.py"),
        ("clean", "pipeline/runtime/mine.py"),
        ("train-tokenizer", "pipeline/tokenizers/mine.py"),
        ("tokenize", "pipeline/tokens/new/mine.py"),
        ("train", "model/network/mine.py"),
        ("train", "model/mine.py"),
    ],
)
def test_an_added_file_counts_as_edited(sources: Path, stage: str, path: str) -> None:
    (sources / path).parent.mkdir(exist_ok=True)
    edit(sources / path)
    assert [*code.state_of(STAGES[stage][1]).edited] == [path]


@pytest.mark.parametrize(
    "path", ["pipeline/store/mine.py", "pipeline/sources/mine.py", "pipeline/clean/rules/.#mine.py", "model/mine.py"]
)
def test_an_added_file_that_no_rule_can_read_does_not_count(sources: Path, path: str) -> None:
    edit(sources / path)
    assert code.state_of(CLEAN).edited == {}


def test_a_deleted_file_counts_as_edited(sources: Path) -> None:
    (sources / HEADINGS).unlink()
    reread()
    assert code.state_of(CLEAN).edited == {HEADINGS: ""}


@pytest.mark.parametrize(
    ("path", "stages"),
    [
        ("pipeline/clean/worker.py", {"clean"}),
        ("pipeline/readers/csv_table.py", {"clean", "tokenize"}),
        ("pipeline/readers/compression.py", {"clean", "train-tokenizer", "tokenize"}),
        ("pipeline/tokenizers/characters.py", {"train-tokenizer", "tokenize"}),
        ("pipeline/tokenizers/byte_level.py", {"train-tokenizer"}),
        ("pipeline/tokenizers/sentencepiece_training.py", {"train-tokenizer"}),
        ("pipeline/tokenizers/stage.py", {"train-tokenizer"}),
        ("pipeline/tokenizers/training_text.py", {"train-tokenizer"}),
        ("pipeline/tokens/writer.py", {"tokenize"}),
        ("pipeline/tokens/counting.py", {"tokenize (counting)"}),
        ("pipeline/tokens/locate.py", set()),
        ("pipeline/tokens/store.py", {"train"}),
        ("pipeline/tokenizers/ranks.py", set()),
        ("pipeline/runtime/workers.py", {"clean", "tokenize"}),
        ("pipeline/runtime/ledger.py", {"clean", "train-tokenizer", "tokenize"}),
        ("pipeline/tokens/segments.py", {"tokenize", "tokenize (counting)", "train"}),
        ("model/network/gpt.py", {"train", "import-model"}),
        ("model/training/optim.py", {"train"}),
        ("model/training/progress.py", set()),
        ("pipeline/clean/report/render.py", set()),
        ("pipeline/commands/clean.py", set()),
        ("pipeline/errors.py", set()),
        ("pipeline/store/files.py", set()),
        ("model/presets.py", set()),
    ],
)
def test_an_edited_file_concerns_the_stages_that_it_decides(sources: Path, path: str, stages: set[str]) -> None:
    edit(sources / path)
    assert {stage for stage, (_, declared) in STAGES.items() if code.state_of(declared).edited} == stages


@pytest.mark.parametrize("stage", STAGES)
def test_hashing_the_files_of_a_stage_takes_less_than_30_milliseconds(sources: Path, stage: str) -> None:
    def seconds() -> float:
        reread()
        start = time.process_time()
        code.state_of(STAGES[stage][1])
        return time.process_time() - start

    assert min(seconds() for _ in range(5)) < 0.03


def test_changed_files_of_two_tables() -> None:
    assert code.changed_files({"a": "1", "b": "2"}, {"b": "3", "c": "4", "a": "1"}) == ["b", "c"]
    assert code.changed_files({"a": "1"}, {}) == ["a"]


def test_built_with() -> None:
    assert code.built_with({}) == ""
    assert code.built_with({"b.py": "1", "a.py": ""}) == "built with your a.py, b.py"

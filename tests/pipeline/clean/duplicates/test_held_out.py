"""Decontamination: documents that share passages with held-out text are dropped, and others stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean import stage
from pipeline.clean.duplicates import held_out
from pipeline.clean.duplicates.held_out import MIN_SHARED, NGRAM, HeldOutCounts, HeldOutIndex, open_index, write_index
from pipeline.clean.options import CleanOptions
from pipeline.clean.utf16 import HAN, join_documents
from pipeline.errors import BadConfig, InputMissing
from pipeline.runtime.progress import SilentProgress
from pipeline.sources.inputs import resolve_inputs
from pipeline.store.artifact import Artifact
from tests.pipeline.clean.test_stage import entries, rejects

HAN_LETTERS = [chr(0x4E00 + number) for number in range(400)]
WORDS = [f"word{number}" for number in range(400)]


def index_of(folder: Path, *texts: str) -> HeldOutIndex:
    folder.mkdir(exist_ok=True, parents=True)
    write_index(texts, folder)
    open_index.cache_clear()
    return open_index(folder)


def reference_tokens(text: str) -> list[str]:
    """Return the tokens of a text by the definition."""
    tokens, is_word = [], False
    for character in text:
        if character != "〇" and not character.isalnum() and character not in "□\ue000":
            is_word = False
        elif "一" <= character <= "鿿" or ord(character) >= 0x20000 or character == "〇":
            tokens.append(character)
            is_word = False
        elif is_word:
            tokens[-1] += character.lower()
        else:
            tokens.append(character.lower())
            is_word = True
    return tokens


TEXT = st.text(st.sampled_from("甲乙𤣥〇aBé1□\ue000，。 \n"), max_size=40)


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_tokens_are_han_characters_and_words(texts: list[str]) -> None:
    page_tokens = held_out.tokens(join_documents(texts))
    expected = [(token, number) for number, text in enumerate(texts) for token in reference_tokens(text)]
    assert page_tokens.documents.tolist() == [number for _, number in expected]
    hashes: dict[str, int] = {}
    for (token, _), value in zip(expected, page_tokens.hashes.tolist(), strict=True):
        assert hashes.setdefault(token, value) == value
    assert len({*hashes.values()}) == len(hashes)


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_sequences_lie_within_a_document(texts: list[str]) -> None:
    page = join_documents(texts)
    hashes, _ = held_out.ngrams(held_out.tokens(page))
    sequences = [
        tuple(tokens[start : start + NGRAM])
        for tokens in map(reference_tokens, texts)
        for start in range(len(tokens) - NGRAM + 1)
    ]
    assert len(hashes) == len(sequences)
    assert len({*hashes.tolist()}) == len({*sequences})


@pytest.mark.parametrize(("letters", "joint"), [(HAN_LETTERS, ""), (WORDS, " ")])
def test_shared_passage_of_20_tokens_is_contamination_and_one_of_19_is_not(
    tmp_path: Path, letters: list[str], joint: str
) -> None:
    index = index_of(tmp_path, joint.join(letters[:200]))
    own = [f"own{number}" for number in range(50)]
    contaminated, clean = (" ".join([*own, joint.join(letters[30 : 30 + size]), *own]) for size in (20, 19))
    found = index.find(join_documents([clean, contaminated]))
    assert [*found] == [1]
    assert found[1].shared == MIN_SHARED
    assert found[1].passage.startswith(joint.join(letters[30:38]))


def test_two_short_passages_add_up(tmp_path: Path) -> None:
    index = index_of(tmp_path, "".join(HAN_LETTERS[:200]))
    passages = ["".join(HAN_LETTERS[start : start + 16]) for start in (10, 90)]
    assert [*index.find(join_documents(["。甲。".join(passages), passages[0] * 9]))] == [0]


def test_case_punctuation_and_spaces_do_not_hide_a_passage(tmp_path: Path) -> None:
    index = index_of(tmp_path, " ".join(WORDS[:40]), "".join(HAN_LETTERS[:40]))
    hidden = [", ".join(WORDS[:40]).upper(), "，\n".join(HAN_LETTERS[:40])]
    assert [*index.find(join_documents(hidden))] == [0, 1]


def test_short_document_is_contamination_only_if_it_is_equal(tmp_path: Path) -> None:
    index = index_of(tmp_path, "Who wrote it?", "床前明月光。")
    found = index.find(join_documents(["床前明月光", "床前明月光，疑是地上霜。", "who wrote it", "", "。"]))
    assert found == {0: (0, "床前明月光"), 2: (0, "who wrote it")}


def test_index_is_the_same_for_any_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["".join(HAN_LETTERS[start : start + 50]) for start in range(0, 300, 10)]
    one = index_of(tmp_path / "one", *texts)
    monkeypatch.setattr(held_out, "_PAGE_CHARACTERS", 64)
    other = index_of(tmp_path / "other", *texts)
    assert np.array_equal(one.ngrams, other.ngrams)
    assert np.array_equal(one.fingerprints, other.fingerprints)
    assert write_index(texts, tmp_path) == HeldOutCounts(30, 0, 340 - NGRAM + 1)


def test_too_many_sequences_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "MAX_NGRAMS", 20)
    with pytest.raises(BadConfig, match="at most 20 different sequences"):
        write_index(["".join(HAN_LETTERS[:40])], tmp_path)


def test_empty_held_out_text_drops_nothing(tmp_path: Path) -> None:
    assert index_of(tmp_path, "").find(join_documents(["甲" * 50, "abc"])) == {}


# The stage

STORY = "林冲走了一回又走了一回宋江问道你是何人林冲答道我是林冲"


def write_lines(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def clean(root: Path, path: Path, name: str, *, jobs: int = 1, **options: Any) -> Artifact:
    chosen = CleanOptions(**options)
    inputs = resolve_inputs(root, str(path), corpora=False)
    files = stage.held_out_files(root, chosen)
    return stage.clean(root, name, inputs, chosen, SilentProgress(), jobs=jobs, held_out=files).artifact


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "train.jsonl", "白日依山尽。", f"却说{STORY}。众人大笑。", "Lin Chong left.")


def test_contaminated_documents_are_rejected_counted_and_shown(tmp_path: Path, train: Path) -> None:
    root = tmp_path / "artifacts"
    held = write_lines(tmp_path / "val.jsonl", f"且看{STORY}，", "Lin Chong left", "短")
    val = clean(root, held, "val")
    corpus = clean(root, train, "train", decontaminate=("val",))
    assert [entry["text"] for entry in entries(corpus)] == ["白日依山尽。"]
    assert corpus.manifest.ledger["documents"] == {"in": 3, "out": 1, "dropped": {"contaminated": 2}}
    assert [(reject["line"], reject["reason"]) for reject in rejects(corpus.path)] == [
        (2, "contaminated"),
        (3, "contaminated"),
    ]
    report = json.loads(corpus.file("report.json").read_bytes())
    assert report["held_out"] == {"documents": 3, "short": 2, "ngrams": len(STORY) + 2 - NGRAM + 1}
    shared = len(STORY) - NGRAM + 1
    assert report["examples"] == {
        "contaminated": [
            {"source": "train.jsonl", "line": 2, "shared": shared, "passage": f"{STORY}。众人大笑。"},
            {"source": "train.jsonl", "line": 3, "shared": 0, "passage": "Lin Chong left."},
        ]
    }
    assert [(entry.role, entry.name) for entry in corpus.manifest.inputs] == [
        ("raw", "train.jsonl"),
        ("held-out", val.ref),
    ]


def test_key_depends_on_the_held_out_text_and_not_on_its_path(tmp_path: Path, train: Path) -> None:
    held = write_lines(tmp_path / "val.jsonl", STORY)
    (tmp_path / "moved").mkdir()
    moved = write_lines(tmp_path / "moved/val.jsonl", STORY)
    keys = [
        clean(tmp_path / "artifacts", train, "train", decontaminate=held_out_names).manifest.key
        for held_out_names in ((str(held),), (str(moved),), ())
    ]
    assert keys[0] == keys[1] != keys[2]
    write_lines(held, STORY + "。又来。")
    assert clean(tmp_path / "artifacts", train, "train", decontaminate=(str(held),)).manifest.key not in keys


@pytest.mark.parametrize("dedup", ["no", "exact", "near"])
def test_number_of_jobs_does_not_change_a_decontaminated_corpus(tmp_path: Path, dedup: str) -> None:
    if dedup == "near":
        pytest.importorskip("rensa")
    texts = ["".join(HAN_LETTERS[start : start + 60]) for start in range(0, 300, 4)]
    train = write_lines(tmp_path / "train.jsonl", *texts, *texts[:9], "Lin Chong left.")
    held = write_lines(tmp_path / "val.jsonl", texts[30])
    options: dict[str, Any] = {"dedup": dedup, "decontaminate": (str(held),)}
    one, two = (clean(tmp_path / str(jobs), train, "train", jobs=jobs, **options) for jobs in (1, 2))
    assert one.digest == two.digest
    assert one.manifest.ledger["documents"]["dropped"]["contaminated"] == 21


def test_text_longer_than_a_task_is_compared_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.clean.tasks.TASK_CHARACTERS", 50)
    book = tmp_path / "book.txt"
    book.write_text("\n".join(["甲乙丙丁。" * 9] * 9 + [STORY + "。"]), encoding="utf-8")
    held = write_lines(tmp_path / "val.jsonl", STORY)
    other = write_lines(tmp_path / "other.jsonl", "白日依山尽。")
    inputs = [file for path in (book, other) for file in resolve_inputs(tmp_path, str(path), corpora=False)]
    options = CleanOptions(decontaminate=(str(held),))
    report = stage.build_report(
        inputs, options, SilentProgress(), held_out=stage.held_out_files(tmp_path / "artifacts", options)
    )
    assert (report.documents, report.dropped["contaminated"].documents) == (1, 1)


def test_unknown_held_out_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="nosuch"):
        stage.held_out_files(tmp_path, CleanOptions(decontaminate=("nosuch",)))


def test_every_han_character_of_the_rules_is_a_token() -> None:
    first = HAN.index("\u3400")
    assert len(held_out.tokens(join_documents([HAN[first] + "\u4dbf\uf900\U00020000〇"])).hashes) == 5

"""`clean --profile chat`: conversations of every form become documents with messages."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pipeline.clean import stage
from pipeline.clean.options import CleanOptions
from pipeline.errors import BadConfig, BadData, TooManyRejects
from pipeline.runtime.progress import SilentProgress
from pipeline.sources.inputs import resolve_inputs
from pipeline.store.artifact import Artifact
from tests.pipeline.clean.test_stage import entries, rejects
from tests.support.conversations import FORMS, conversations_for

ROUND = [{"role": "user", "content": "谁磨墨？"}, {"role": "assistant", "content": "阿渊。"}]


def clean(root: Path, *paths: Path, jobs: int = 1, name: str = "chat", **options: Any) -> Artifact:
    inputs = [file for path in paths for file in resolve_inputs(root, str(path), corpora=False)]
    settings = CleanOptions(**{"profile": "chat", **options})
    return stage.clean(root, name, inputs, settings, SilentProgress(), jobs=jobs).artifact


def write(path: Path, records: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def normal(content: str) -> str:
    return content.replace("\r\n", "\n").replace("\r", "\n")


def normalised(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    return [turn | {"content": normal(turn["content"])} for turn in messages]


@pytest.mark.parametrize("form", FORMS)
def test_conversations_of_every_form_keep_their_turns(tmp_path: Path, form: str) -> None:
    many = conversations_for(form, 1000)
    corpus = clean(tmp_path, write(tmp_path / "chat.jsonl", map(FORMS[form], many)))
    expected = [normalised(messages) for messages in many]
    if form == "pair":
        assert corpus.manifest.options["format"] == "preferences"
        assert [entry["chosen"] for entry in entries(corpus)] == expected
        rejected = [[*turns[:-1], turns[-1] | {"content": turns[-1]["content"] + " no"}] for turns in expected]
        assert [entry["rejected"] for entry in entries(corpus)] == rejected
    else:
        assert corpus.manifest.options["format"] == "chat"
        assert [entry["messages"] for entry in entries(corpus)] == expected
        assert [entry["text"] for entry in entries(corpus)] == [
            "\n\n".join(turn["content"] for turn in messages) for messages in expected
        ]


def test_ledger_counts_white_space_at_the_ends_of_turns(tmp_path: Path) -> None:
    padded = [turn | {"content": f" {turn['content']}\n"} for turn in ROUND]
    ledger = clean(tmp_path, write(tmp_path / "a.jsonl", [{"messages": padded}])).manifest.ledger["characters"]
    content = sum(len(turn["content"]) for turn in ROUND)
    assert ledger == {"in": content + 4, "out": content + 2, "dropped": {"turns": 4}, "added": {"turns": 2}}


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("dedup", ["no", "exact"])
def test_bytes_do_not_depend_on_the_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, dedup: str
) -> None:
    monkeypatch.setattr("pipeline.clean.tasks.TASK_CHARACTERS", 500)
    many = conversations_for("openai", 300)
    path = write(tmp_path / "chat.jsonl", ({"messages": turns} for turns in [*many, *many[:20]]))
    first = clean(tmp_path / "a", path, dedup=dedup)
    second = clean(tmp_path / "b", path, dedup=dedup, jobs=jobs)
    assert [file.sha256 for file in first.manifest.files] == [file.sha256 for file in second.manifest.files]
    assert first.manifest.counts["documents"] == (320 if dedup == "no" else len(_distinct(many)))


def _distinct(many: list[list[dict[str, str]]]) -> set[str]:
    return {"\n\n".join(turn["content"] for turn in turns) for turns in many}


WRONG = [
    ({"messages": ROUND[:1]}, "no-answer"),
    ({"messages": [*ROUND, ROUND[1]]}, "roles-do-not-alternate"),
    ({"messages": ROUND[1:]}, "roles-do-not-alternate"),
    ({"messages": [ROUND[0], {"role": "system", "content": "x"}, ROUND[1]]}, "roles-do-not-alternate"),
    ({"messages": [ROUND[0], {"role": "assistant", "content": " \n"}]}, "empty-turn"),
    ({"messages": [ROUND[0], {"role": "tool", "content": "x"}]}, "unknown-role"),
    ({"messages": [ROUND[0], {"content": "x"}]}, "unknown-role"),
    ({"messages": [ROUND[0], {"role": "assistant", "content": None}]}, "no-text"),
    ({"messages": [ROUND[0], {"role": "assistant", "content": [{"type": "image_url"}]}]}, "no-text"),
    ({"instruction": "x", "input": ["y"], "output": "z"}, "no-text"),
    ({"prompt": "x", "completion": "z", "system": 5}, "no-text"),
    ({"messages": ["hello"]}, "no-message"),
    ({"text": "a text"}, "bad-record"),
    ({"instruction": "x", "input": "y", "output": ""}, "empty-turn"),
    ({"prompt": "", "completion": "z"}, "empty-turn"),
    ({"question": "x", "answer": None}, "empty-turn"),
    ({"messages": []}, "no-answer"),
]


@pytest.mark.parametrize(("record", "reason"), WRONG)
def test_wrong_conversation_is_a_counted_reject(tmp_path: Path, record: object, reason: str) -> None:
    path = write(tmp_path / "chat.jsonl", [{"messages": ROUND}, record, {"messages": [*ROUND, *ROUND]}])
    corpus = clean(tmp_path, path, max_bad=1.0)
    assert [len(entry["messages"]) for entry in entries(corpus)] == [2, 4]
    assert corpus.manifest.ledger["documents"] == {"in": 3, "out": 2, "dropped": {reason: 1}}
    assert [(reject["reason"], reject["line"]) for reject in rejects(corpus.path)] == [(reason, 2)]


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("yes", "yes", "equal-answers"),
        ("yes", " ", "empty-turn"),
        ("yes", "", "empty-turn"),
        ("yes", None, "empty-turn"),
        ([*ROUND], [ROUND[1], ROUND[1]], "prompts-differ"),
        ([*ROUND], [ROUND[0], ROUND[0]], "no-answer"),
    ],
)
def test_wrong_pair_is_a_counted_reject(tmp_path: Path, chosen: object, rejected: object, reason: str) -> None:
    good = {"prompt": "谁？", "chosen": "阿渊。", "rejected": "不知道。"}
    wrong = {"chosen": chosen, "rejected": rejected} | ({"prompt": "x"} if isinstance(chosen, str) else {})
    corpus = clean(tmp_path, write(tmp_path / "pairs.jsonl", [good, wrong]))
    assert [entry["chosen"][-1]["content"] for entry in entries(corpus)] == ["阿渊。"]
    assert corpus.manifest.ledger["documents"]["dropped"] == {reason: 1}


def test_record_of_no_known_form_counts_as_bad(tmp_path: Path) -> None:
    path = write(tmp_path / "chat.jsonl", [{"messages": ROUND}, {"text": "plain"}])
    with pytest.raises(TooManyRejects, match="1 bad-record") as error:
        clean(tmp_path, path)
    assert error.value.message.startswith("chat.jsonl, line 2: bad-record; 1 of 2 documents are bad")


def test_empty_answers_do_not_end_the_command(tmp_path: Path) -> None:
    records = [{"instruction": "x", "input": "", "output": "" if number in (4, 7) else "y"} for number in range(20)]
    (tmp_path / "alpaca.json").write_text(json.dumps(records), encoding="utf-8")
    corpus = clean(tmp_path, tmp_path / "alpaca.json")
    assert corpus.manifest.ledger["documents"] == {"in": 20, "out": 18, "dropped": {"empty-turn": 2}}
    assert [(reject["reason"], reject["line"]) for reject in rejects(corpus.path)] == [
        ("empty-turn", 5), ("empty-turn", 8),
    ]  # fmt: skip


def test_files_without_conversations_are_refused(tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text("却说", encoding="utf-8")
    with pytest.raises(BadData, match=r"novel.txt: no conversations"):
        clean(tmp_path, tmp_path / "novel.txt")


def test_pairs_among_conversations_are_an_error(tmp_path: Path) -> None:
    pair = {"prompt": "x", "chosen": "y", "rejected": "z"}
    path = write(tmp_path / "mixed.jsonl", [{"messages": ROUND}, pair])
    with pytest.raises(BadData, match=r"record 2: a preference pair, but the first record is a conversation") as error:
        clean(tmp_path, path)
    assert "two corpora" in error.value.hint


@pytest.mark.parametrize("options", [{"text_fields": ("a",)}, {"unit": "sentence"}])
def test_options_for_plain_text_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadConfig, match="exclude each other"):
        CleanOptions(profile="chat", **options)


def test_without_the_profile_messages_stay_plain_turns(tmp_path: Path) -> None:
    corpus = clean(tmp_path, write(tmp_path / "chat.jsonl", [{"messages": ROUND}] * 2), profile="auto")
    assert "messages" not in entries(corpus)[0]
    assert "format" not in corpus.manifest.options


def test_parquet_and_json_lists_hold_conversations_too(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    many = conversations_for("openai", 20)
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": turns} for turns in many]), tmp_path / "a.parquet")
    (tmp_path / "b.json").write_text(json.dumps([{"conversations": turns} for turns in many]), encoding="utf-8")
    corpora = [clean(tmp_path, tmp_path / name, name=name[0]) for name in ("a.parquet", "b.json")]
    for corpus in corpora:
        assert [entry["messages"] for entry in entries(corpus)] == [normalised(turns) for turns in many]


def test_members_of_an_archive_are_conversations_of_their_own(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "chats.zip", "w") as archive:
        for name in ("a", "b"):
            archive.writestr(f"{name}.jsonl", json.dumps({"messages": ROUND}) + "\n")
    assert len(entries(clean(tmp_path, tmp_path / "chats.zip"))) == 2

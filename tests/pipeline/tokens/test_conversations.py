"""Tokens of conversations: ids and a mask, for every form, tokenizer and layout."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import tokenizers
from pipeline.errors import BadConfig, InputMissing
from pipeline.store import artifact
from pipeline.store.artifact import Artifact, StageOutput
from pipeline.store.manifest import Identity
from pipeline.tokenizers import Characters, ChatTokenizer, FastTokenizer, SentencePiece, Tiktoken, Tokenizer
from pipeline.tokens import locate
from pipeline.tokens import stage as tokens_stage
from pipeline.tokens.split import digest_of, draw_of, rule_of, summary
from pipeline.tokens.stage import TokenizeInputs
from pipeline.tokens.store import TokenStore, open_store
from pipeline.tokens.tasks import TokenizeTask
from pipeline.tokens.worker import Encoded
from pipeline.tokens.writer import TokenWriter
from tests.pipeline.clean.chat.test_chat import clean, normalised, write
from tests.pipeline.tokenizers.shapes import minimind, qwen
from tests.pipeline.tokenizers.test_tokenizers import AS_EVER, BOOK, model_of
from tests.support import tokenizing
from tests.support.conversations import FORMS, conversations_for, slow_ids
from tests.support.engines import Threads, opening
from tests.support.tokenizing import LETTERS, lines, shrink_chunks

COUNT = 1000


@functools.cache
def tokenizer_of(kind: str) -> Tokenizer:
    match kind:
        case "characters":
            return Characters("".join(sorted({*BOOK})), kind)
        case "sentencepiece":
            return SentencePiece(model_of(BOOK, 2600, **AS_EVER), kind)
        case "qwen":
            return FastTokenizer(qwen([BOOK]).encode(), kind, 900)
        case "minimind":
            return FastTokenizer(minimind([BOOK]).encode(), kind, 0)
        case _:
            return Tiktoken.named(kind)


def corpus_of(root: Path, form: str, many: Sequence[list[dict[str, str]]], name: str = "chat") -> Artifact:
    return clean(root, write(root / f"{name}.jsonl", map(FORMS[form], many)), name=name)


def inputs_of(root: Path, *names: str) -> TokenizeInputs:
    return tokens_stage.gather_inputs(root, names, ())


run = functools.partial(tokenizing.run, allow_unknown=True)


def rows(store: TokenStore, split: str) -> list[tuple[list[int], list[bool]]]:
    """Return the ids and the mask of each document of a split, end-of-text included."""
    ids, mask = {"train": (store.train, store.train_mask), "val": (store.val, store.val_mask)}[split]
    assert mask is not None
    ends = np.cumsum(store.document_lengths(split))[:-1]
    return [
        (row.tolist(), flags.astype(bool).tolist())
        for row, flags in zip(
            np.split(ids.read(0, len(ids)), ends), np.split(mask.read(0, len(mask)), ends), strict=True
        )
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["characters", "sentencepiece", "qwen", "minimind", "r50k_base"])
def test_ids_and_mask_of_every_form_equal_the_slow_definition(
    tmp_path: Path, form: str, kind: str, request: pytest.FixtureRequest
) -> None:
    if kind == "r50k_base":
        request.getfixturevalue("shared")
    many = conversations_for(form, COUNT)
    corpus_of(tmp_path, form, many)
    built = run(tmp_path, inputs_of(tmp_path, "chat"), tokenizer=tokenizer_of(kind))
    store = open_store(built.artifact)
    chat = store.tokenizer
    assert isinstance(chat, ChatTokenizer)
    rule = rule_of(built.artifact.manifest.options)
    assert rule
    expected: dict[str, list[tuple[list[int], list[bool]]]] = {"train": [], "val": []}
    for turns in map(normalised, many):
        conversations = [turns]
        texts = [turn["content"] for turn in turns]
        if form == "pair":
            rejected = texts[-1] + " no"
            conversations.append([*turns[:-1], {"role": "assistant", "content": rejected}])
            texts.append(rejected)
        split = rule.split_of(draw_of(digest_of("\n\n".join(texts))))
        for messages in conversations:
            ids, mask = slow_ids(chat, messages)
            expected[split].append(([*ids, chat.end_of_text], [*mask, False]))
    assert store.chat == ("preferences" if form == "pair" else "chat")
    assert {split: rows(store, split) for split in expected} == expected
    counts = built.artifact.manifest.counts
    assert counts["documents"] == len(many)
    assert counts["train_loss_tokens"] == sum(sum(mask) for _, mask in expected["train"])


def test_bytes_do_not_depend_on_workers_units_or_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = conversations_for("pair", 400)
    corpus_of(tmp_path, "pair", many)
    inputs = inputs_of(tmp_path, "chat")
    whole = open_store(run(tmp_path / "a", inputs, tokenizer=tokenizer_of("characters")).artifact)
    hdf5 = run(tmp_path / "b", inputs, tokenizer=tokenizer_of("characters"), format="hdf5").artifact
    assert {record.name for record in hdf5.manifest.files} >= {"train.h5", "val.h5"}
    assert not [record.name for record in hdf5.manifest.files if record.name.endswith((".bin", ".mask"))]
    shrink_chunks(monkeypatch, unit=60_000, chunk=10_000)
    units = run(tmp_path / "c", inputs, tokenizer=tokenizer_of("characters"), jobs=3).artifact
    assert units.manifest.counts["units"] > 3
    for other in (open_store(hdf5), open_store(units)):
        assert {split: rows(other, split) for split in ("train", "val")} == {
            split: rows(whole, split) for split in ("train", "val")
        }


def test_masks_are_in_the_manifest_with_their_hash(tmp_path: Path) -> None:
    corpus_of(tmp_path, "openai", conversations_for("openai", 100))
    tokens = run(tmp_path, inputs_of(tmp_path, "chat")).artifact
    masks = [record for record in tokens.manifest.files if record.name.endswith(".mask")]
    assert {record.name for record in masks} == {"train-00000-0000.mask", "val-00000-0000.mask"}
    path = tokens.file(masks[0].name)
    path.write_bytes(bytes(path.stat().st_size))
    assert any(masks[0].name in problem for problem in artifact.find_problems(tokens, deep=True))


def test_more_conversations_move_none_between_the_splits(tmp_path: Path) -> None:
    many = conversations_for("openai", 300)
    corpus_of(tmp_path, "openai", many[:200])
    first = open_store(run(tmp_path, inputs_of(tmp_path, "chat")).artifact)
    corpus_of(tmp_path, "openai", many)
    second = open_store(run(tmp_path, inputs_of(tmp_path, "chat")).artifact)
    for split in ("train", "val"):
        assert rows(second, split)[: len(rows(first, split))] == rows(first, split)


def test_no_split_without_validation(tmp_path: Path) -> None:
    corpus_of(tmp_path, "openai", conversations_for("openai", 20))
    for layout in ("memmap", "hdf5"):
        store = open_store(run(tmp_path, inputs_of(tmp_path, "chat"), val_fraction=0.0, format=layout).artifact)
        assert store.val_mask is not None
        assert (len(store.val), len(store.val_mask)) == (0, 0)


def test_duplicates_and_limits_drop_whole_pairs(tmp_path: Path) -> None:
    many = conversations_for("pair", 50)
    corpus_of(tmp_path, "pair", [*many, *many])
    options: dict[str, Any] = {"val_fraction": 0.0}
    for settings in ({"dedup": "exact"}, {"max_documents": 30}):
        store = open_store(run(tmp_path, inputs_of(tmp_path, "chat"), **options, **settings).artifact)
        expected = len({str(turns) for turns in many}) if "dedup" in settings else 30
        assert len(store.document_lengths("train")) == 2 * expected
        assert len(rows(store, "train")) == 2 * expected


def test_kinds_together_and_stretches_are_refused(tmp_path: Path) -> None:
    corpus_of(tmp_path, "openai", conversations_for("openai", 20), "talk")
    corpus_of(tmp_path, "pair", conversations_for("pair", 20), "pairs")
    with pytest.raises(BadConfig, match=r"chat \(.*talk.*\) and preferences \(.*pairs.*\) together"):
        run(tmp_path, inputs_of(tmp_path, "talk", "pairs"))
    with pytest.raises(BadConfig, match="would divide conversations"):
        run(tmp_path, inputs_of(tmp_path, "talk"), val_split="stretch")


def test_plain_text_stays_plain_with_a_chat_tokenizer(tmp_path: Path) -> None:
    chat = ChatTokenizer(LETTERS)
    inputs = TokenizeInputs((lines(tmp_path / "a.jsonl", ["one <|im_end|>", "two"]),), ())
    store = open_store(run(tmp_path, inputs, tokenizer=chat, val_fraction=0.0).artifact)
    assert (store.chat, store.train_mask) == ("", None)
    assert store.train.read(0, len(store.train)).tolist() == [
        *LETTERS.encode("one <|im_end|>"),
        0,
        *LETTERS.encode("two"),
        0,
    ]


def test_token_of_the_rejected_answer_is_located(tmp_path: Path) -> None:
    corpus_of(tmp_path, "pair", conversations_for("pair", 10))
    tokens = run(tmp_path, inputs_of(tmp_path, "chat"), val_fraction=0.0).artifact
    first, second = open_store(tokens).document_lengths("train")[:2].tolist()
    assert locate.locate(tokens, first + second - 1).document == 1


def test_reused_units_have_their_masks(tmp_path: Path) -> None:
    many = conversations_for("openai", 60)
    corpus_of(tmp_path, "openai", many[:30], "a")
    corpus_of(tmp_path, "openai", many[30:], "b")
    run(tmp_path, inputs_of(tmp_path, "a"), val_fraction=0.0)
    reused = open_store(run(tmp_path, inputs_of(tmp_path, "a", "b"), val_fraction=0.0).artifact)
    fresh = open_store(run(tmp_path / "other", inputs_of(tmp_path, "a", "b"), val_fraction=0.0).artifact)
    assert rows(reused, "train") == rows(fresh, "train")


def test_tokenizer_of_a_run_is_found_by_the_name_of_the_run(tmp_path: Path) -> None:
    def write_run(draft: Path) -> StageOutput:
        ChatTokenizer(LETTERS).save(draft)
        return StageOutput({})

    artifact.build(tmp_path, Identity("runs", "novel", {}, ()), write_run)
    for reference in ("novel", "runs/novel"):
        tokenizer, trained = tokenizers.find(tmp_path, reference)
        assert (tokenizer.fingerprint, trained) == (ChatTokenizer(LETTERS).fingerprint, None)
    with pytest.raises(InputMissing, match="no 'other' among the tokenizers"):
        tokenizers.find(tmp_path, "other")


def test_marked_conversations_are_held_out_and_no_others(tmp_path: Path) -> None:
    many = conversations_for("pair", 60)
    records = [
        FORMS["pair"](turns) | ({"held_out": True} if not number % 4 else {}) for number, turns in enumerate(many)
    ]
    clean(tmp_path, write(tmp_path / "chat.jsonl", records))
    built = tokenizing.run(
        tmp_path, inputs_of(tmp_path, "chat"), val_fraction=None, val_split="auto", allow_unknown=True
    )
    store, chat = open_store(built.artifact), ChatTokenizer(LETTERS)
    chosen = [slow_ids(chat, normalised(turns))[0] for turns in many]
    assert [ids[:-1] for ids, _ in rows(store, "val")[::2]] == chosen[::4]
    assert len(rows(store, "train")) == 2 * 45
    options, counts = built.artifact.manifest.options, built.artifact.manifest.counts
    assert summary(options, counts).startswith("held out 15 preference pairs")
    assert summary(options, counts).endswith("as marked")
    by_hash = run(tmp_path, inputs_of(tmp_path, "chat"), val_fraction=0.5).artifact
    assert rule_of(by_hash.manifest.options) != rule_of(options)


def test_nodes_and_resumed_runs_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = conversations_for("pair", 200)
    for name, part in (("a", many[:100]), ("b", many[100:])):
        corpus_of(tmp_path, "pair", part, name)
    shrink_chunks(monkeypatch, unit=40_000, chunk=10_000)
    inputs = inputs_of(tmp_path, "a", "b")
    whole = run(tmp_path / "one", inputs).artifact
    spread = run(tmp_path / "nodes", inputs, open_engine=opening(Threads(2))).artifact
    complete, add = [], TokenWriter.add

    def add_until_killed(writer: TokenWriter, task: TokenizeTask, encoded: Encoded) -> bool:
        complete.append(add(writer, task, encoded))
        if sum(complete) == 2:
            raise KeyboardInterrupt
        return complete[-1]

    with monkeypatch.context() as patch:
        patch.setattr(TokenWriter, "add", add_until_killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", inputs)
    resumed = run(tmp_path / "killed", inputs).artifact
    assert len([record for record in whole.manifest.files if record.name.endswith(".mask")]) > 4
    assert spread.manifest.files == resumed.manifest.files == whole.manifest.files

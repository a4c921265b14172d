"""The split: borders and sides of stretches, the choice of a rule, and what becomes of it when text is added."""

from __future__ import annotations

import itertools
import random
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import BadConfig, BadData
from pipeline.readers import jsonl
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Tokenizer
from pipeline.tokens import locate, split, survey, worker
from pipeline.tokens import stage as tokens_stage
from pipeline.tokens.options import TokenizeOptions
from pipeline.tokens.split import SplitRule, digest_of, draw_of, find_border, pieces, threshold_of
from pipeline.tokens.stage import TokenizeInputs
from pipeline.tokens.store import open_store
from pipeline.tokens.tasks import TokenizeTask
from pipeline.tokens.totals import warnings_of
from pipeline.tokens.units import make
from pipeline.tokens.worker import Encoded
from tests.support import chaos
from tests.support.tokenizing import (
    LETTERS,
    TEXTS,
    dropped,
    is_held_out,
    lines,
    nothing_published,
    rows,
    run,
    shrink_chunks,
    some,
    texts_of,
    train_inputs,
)

HALF = SplitRule("stretch", 64, threshold_of(0.5), 0.5)


def prose(seed: int, size: int, paragraph: str = "\n\n") -> str:
    """Return `size` characters of words in sentences and paragraphs."""
    dice = random.Random(seed)
    text = ""
    while len(text) < size:
        words = ("".join(dice.choices("abcdefghij", k=dice.randint(1, 9))) for _ in range(dice.randint(3, 12)))
        text += " ".join(words) + dice.choice([". ", ". ", ".\n", f".{paragraph}"])
    return text[:size]


def file_of(path: Path, *texts: str) -> TokenizeInputs:
    return TokenizeInputs((lines(path, texts),), ())


def auto(root: Path, inputs: TokenizeInputs, **options: Any) -> Artifact:
    """Tokenize as a user does who sets nothing."""
    return run(root, inputs, **{"val_split": "auto", "val_fraction": None, **options}).artifact


# Borders and sides

TEXT = st.lists(
    st.sampled_from(["a", "word ", "\n", "\n\n", "\r\n\r\n", "。", "砚山", "é", " ", "x" * 70, "line\n" * 9]),
    max_size=60,
).map("".join)


@given(TEXT, st.lists(st.integers(1, 90), max_size=30))
@settings(max_examples=300)
def test_stretches_do_not_depend_on_how_the_text_arrives(text: str, sizes: list[int]) -> None:
    whole = list(split.stretches([text], 64))
    assert b"".join(whole).decode() == text
    assert all(64 <= len(stretch) <= 256 for stretch in whole[:-1])
    blocks, start = [], 0
    for size in sizes:
        blocks.append(text[start : start + size])
        start += size
    assert list(split.stretches([*blocks, text[start:]], 64)) == whole


@given(TEXT, TEXT)
@settings(max_examples=300)
def test_appended_text_moves_no_border_and_no_side(text: str, more: str) -> None:
    before = list(split.drawn_stretches([text], HALF))
    after = list(split.drawn_stretches([text + more], HALF))
    assert after[: max(0, len(before) - 1)] == before[:-1]
    if len(text.encode()) >= 64:  # the last stretch grows, and stays on its side
        assert after[len(before) - 1][:2] == before[-1][:2]
        assert after[len(before) - 1][2].startswith(before[-1][2])


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("a" * 63 + "\n" + "b" * 90, "a\n"),  # no empty line before: a line is a paragraph
        ("a\n\n" + "a" * 70 + "\nb\n\nc" + "d" * 90, "b\n\n"),
        ("a\r\n\r\n" + "a" * 70 + "\r\nb\r\n\r\nc" + "d" * 90, "b\r\n\r\n"),
        ("a\n\n" + "a" * 130 + "\nb" * 99, "a\n"),  # no empty line in time: a line
        ("a" * 200 + " b" * 70, "a "),
        ("山" * 70 + "。山" + "山" * 90, "。"),
        ("é" * 300, "é"),
        ("xé" * 300, "x"),
    ],
)
def test_stretch_ends_with_the_first_paragraph_line_or_word(text: str, end: str) -> None:
    first = next(split.stretches([text], 64)).decode()
    assert first.endswith(end)
    assert text.startswith(first)
    assert len(first) < len(text)


def test_border_is_unknown_until_the_text_reaches_it() -> None:
    data = ("a" * 100 + "\n" + "b" * 100).encode()
    assert [find_border(data[:length], 0, 64) for length in (0, 64, 100, 101, 201)] == [0, 0, 0, 101, 101]


def test_pieces_join_stretches_of_one_side() -> None:
    text = prose(1, 20_000)
    divided = pieces(text, HALF)
    assert "".join(piece.text for piece in divided) == text
    assert all(one.split != other.split for one, other in itertools.pairwise(divided))
    assert sum(piece.stretches for piece in divided) == len(list(split.stretches([text], 64)))


# The choice of a rule


def rule_for(folder: Path, texts: Sequence[str], mode: str = "auto", fraction: float = 0.05) -> SplitRule:
    options = TokenizeOptions(val_split=mode, val_fraction=fraction)
    rule = tokens_stage.split_rule(None, "some", file_of(folder / "in.jsonl", *texts), options)
    assert rule
    return rule


def test_few_documents_or_a_large_one_are_divided_into_stretches(tmp_path: Path) -> None:
    short = [f"document {number}" for number in range(50)]
    assert rule_for(tmp_path, short) == SplitRule("document", 0, threshold_of(0.05), 0.05)
    assert rule_for(tmp_path, short[:49]).mode == "stretch"
    assert rule_for(tmp_path, [*short, "long " * 200]).mode == "stretch"
    assert rule_for(tmp_path, short[:49], "document").mode == "document"
    assert rule_for(tmp_path, short, "stretch").mode == "stretch"


@pytest.mark.parametrize(
    ("characters", "size"),
    [(40_000, 1 << 10), (120_000, 4 << 10), (4_000_000, 8 << 10), (7_000_000, 16 << 10), (27_000_000, 64 << 10)],
)
def test_size_of_a_stretch_gdividedwith_the_text(tmp_path: Path, characters: int, size: int) -> None:
    rule = rule_for(tmp_path, [prose(2, 40_000) * (characters // 40_000)])
    assert (rule.mode, rule.size) == ("stretch", size)


def test_threshold_moves_until_both_splits_have_text(tmp_path: Path) -> None:
    texts = [f"chapter {number}" for number in range(12)]
    draws = sorted(draw_of(digest_of(text)) for text in texts)
    assert rule_for(tmp_path, texts, "document", 1e-9).threshold == draws[0] + 1
    assert rule_for(tmp_path, texts, "document", 0.9999).threshold == draws[-1]
    assert rule_for(tmp_path, texts, "document", 0.5).threshold == threshold_of(0.5)
    assert rule_for(tmp_path, [*texts * 9], "document", 1e-9).threshold == draws[0] + 1
    tokens = run(tmp_path / "store", file_of(tmp_path / "in.jsonl", *texts), val_fraction=1e-9).artifact
    (val,) = texts_of(tokens, "val")
    assert draw_of(digest_of(val)) == draws[0]
    assert tokens.manifest.options["split"]["threshold"] == draws[0] + 1


def test_filters_and_max_documents_decide_which_documents_count(tmp_path: Path) -> None:
    inputs = file_of(tmp_path / "in.jsonl", *TEXTS, *["x"] * 100)
    for option, mode in ((TokenizeOptions(max_documents=49), "stretch"), (TokenizeOptions(min_chars=5), "document")):
        rule = tokens_stage.split_rule(None, "some", inputs, option)
        assert rule
        assert rule.mode == mode
    assert len(list(survey.Documents(inputs.train, TokenizeOptions(min_chars=5).document_filter))) == len(TEXTS)


def test_text_that_is_too_short_is_refused_with_its_size(tmp_path: Path, root: Path) -> None:
    with pytest.raises(BadData, match="1 document of 50 characters: too short") as caught:
        auto(root, file_of(tmp_path / "a.jsonl", "x" * 50))
    assert [survey.is_divisible(text, 0.05) for text in ("x" * 50, prose(3, 500), "")] == [False, True, True]
    assert "--val-fraction 0" in caught.value.hint
    with pytest.raises(BadData, match="cannot be divided by documents") as caught:
        run(root, file_of(tmp_path / "a.jsonl", prose(3, 5000)))
    assert "--val-fraction 0 (in a recipe `val_fraction = 0`)" in caught.value.hint
    assert nothing_published(root)


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(BadConfig, match="--val-split must be one of auto, document, stretch, got 'line'"):
        TokenizeOptions(val_split="line")


# Tokens of stretches


@pytest.mark.parametrize("size", [300, 40_000])
def test_one_short_text_gives_a_train_and_a_val_part(tmp_path: Path, root: Path, size: int) -> None:
    text = prose(4, size)
    tokens = auto(root, file_of(tmp_path / "a.jsonl", text))
    counts = tokens.manifest.counts
    assert counts["documents"] == 1
    assert counts["train_characters"] + counts["val_characters"] == size
    assert counts["val_stretches"] >= 1
    assert dropped(tokens) == {}
    assert sum(map(len, texts_of(tokens, "train"))) == counts["train_characters"]


def expected_rows(texts: Sequence[str], rule: SplitRule, side: str) -> list[list[int]]:
    """Return the ids by definition: divide each complete text, encode each piece, add end-of-text."""
    parts = [piece.text for text in texts for piece in pieces(text, rule) if piece.split == side]
    return [[*LETTERS.encode(part), LETTERS.end_of_text] for part in parts]


@pytest.mark.parametrize("long_line", [1 << 30, 3000])
@pytest.mark.parametrize("jobs", [1, 2])
def test_tokens_equal_the_slow_reference_also_of_long_documents(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, long_line: int, jobs: int
) -> None:
    shrink_chunks(monkeypatch, 30_000, 8000, long_line)
    texts = [prose(number, 400 + 3000 * number) for number in range(12)]
    tokens = auto(root, file_of(tmp_path / "in.jsonl", *texts, texts[5]), val_fraction=0.2, dedup="exact", jobs=jobs)
    rule = split.rule_of(tokens.manifest.options)
    assert rule
    assert rule.mode == "stretch"
    for side in ("train", "val"):
        assert rows(tokens, side) == expected_rows(texts, rule, side)
        parts = [piece for text in texts for piece in pieces(text, rule) if piece.split == side]
        assert tokens.manifest.counts[f"{side}_stretches"] == sum(piece.stretches for piece in parts)
        assert tokens.manifest.counts[f"{side}_documents"] == len(parts)
    assert dropped(tokens) == {"duplicate": 1}
    assert tokens.manifest.counts["documents"] == 12
    assert not set(texts_of(tokens, "train")) & set(texts_of(tokens, "val"))


def test_token_of_a_stretch_is_located_in_its_document(tmp_path: Path, root: Path) -> None:
    texts = [prose(5, 30_000), prose(6, 9000)]
    tokens = auto(root, file_of(tmp_path / "in.jsonl", *texts), val_fraction=0.3)
    for side in ("train", "val"):
        index = 0
        for row, text in zip(rows(tokens, side), texts_of(tokens, side), strict=True):
            location = locate.locate(tokens, index + 3, side)
            assert texts[location.line - 1][location.skipped :].startswith(text)
            assert location.after.startswith(text[3:20])
            index += len(row)
    assert index == len(open_store(tokens).val)
    (tmp_path / "in.jsonl").write_bytes(b"".join(jsonl.encode_line(text.upper(), "", "", None) for text in texts))
    with pytest.raises(BadData, match="differs from what was tokenized"):
        locate.locate(tokens, 0)


# The next generation


def sides(tokens: Artifact) -> dict[str, str]:
    """Return the side of each paragraph of the tokens; none is on both."""
    by_side = {side: "".join(texts_of(tokens, side)).split("\n\n") for side in ("train", "val")}
    long = {side: {part for part in parts if len(part) > 60} for side, parts in by_side.items()}
    assert not long["train"] & long["val"]
    return {part: side for side, parts in long.items() for part in parts}


def test_no_stretch_changes_sides_while_text_is_added(tmp_path: Path, root: Path) -> None:
    texts, before, rule = [prose(100, 40_000)], dict[str, str](), None
    for step in range(21):
        tokens = auto(root, file_of(tmp_path / "in.jsonl", *texts))
        stored = split.rule_of(tokens.manifest.options)
        assert rule in (None, stored)
        rule, now = stored, sides(tokens)
        assert {part: now[part] for part in before if part in now} == {
            part: side for part, side in before.items() if part in now
        }
        assert len(before.keys() - now.keys()) <= len(texts), "only the last paragraph of a document grows"
        assert "val" in now.values()
        before = now
        texts[0] += prose(200 + step, 3000)
        texts += [prose(1000 + step * 4 + number, 2500) for number in range(4)]
    assert tokens.manifest.counts["documents"] > survey.FEW_DOCUMENTS
    assert rule == SplitRule("stretch", 1 << 10, threshold_of(0.05), 0.05)


def test_rule_of_documents_stays_when_one_gdividedlarge(tmp_path: Path, root: Path) -> None:
    first = auto(root, some(tmp_path))
    second = auto(root, some(tmp_path, [*TEXTS, "long " * 9000]))
    assert second.manifest.options["split"] == first.manifest.options["split"]
    assert set(texts_of(first, "val")) == {text for text in texts_of(second, "val") if text in TEXTS}
    assert auto(root, some(tmp_path, TEXTS[:30])).manifest.options["split"]["mode"] == "document"


def test_explicit_split_and_fraction_replace_the_stored_rule(tmp_path: Path, root: Path) -> None:
    inputs = some(tmp_path)
    first = auto(root, inputs, val_fraction=0.1)
    assert auto(root, inputs).digest == first.digest
    assert auto(root, inputs, val_fraction=0.1, val_split="document").digest == first.digest
    stretch = auto(root, inputs, val_split="stretch").manifest.options["split"]
    assert (stretch["mode"], stretch["fraction"]) == ("stretch", 0.1)
    other = auto(root, inputs, val_fraction=0.2).manifest.options["split"]
    assert (other["mode"], other["size"]) == ("stretch", stretch["size"])
    assert other["threshold"] == threshold_of(0.2)
    assert auto(root, inputs, val_split="document", val_fraction=0.1).digest == first.digest


def test_identity_with_the_root_is_that_of_the_next_generation(tmp_path: Path, root: Path) -> None:
    auto(root, some(tmp_path), val_fraction=0.1, val_split="stretch")
    inputs, options = some(tmp_path, [*TEXTS, "one more"]), TokenizeOptions()
    identity = tokens_stage.identify("some", inputs, LETTERS, None, options, root=root)
    assert auto(root, inputs).manifest.key == identity.key
    assert tokens_stage.identify("some", inputs, LETTERS, None, options).key != identity.key


def test_damaged_manifest_does_not_change_the_rule(tmp_path: Path, root: Path) -> None:
    first = auto(root, file_of(tmp_path / "a.jsonl", prose(7, 30_000)))
    second = auto(root, file_of(tmp_path / "a.jsonl", prose(7, 200_000)))
    assert second.manifest.options["split"] == first.manifest.options["split"]
    second.file("manifest.json").write_text("{")
    again = auto(root, file_of(tmp_path / "a.jsonl", prose(7, 200_000)))
    assert again.digest == second.digest


def test_rule_of_earlier_versions_is_that_of_their_fraction() -> None:
    rule = split.rule_of({"val_fraction": 0.1})
    assert rule
    assert [rule.split_of(draw_of(digest_of(text))) == "val" for text in TEXTS] == [is_held_out(t, 0.1) for t in TEXTS]
    assert split.rule_of({"val_fraction": 0.0}) is split.rule_of({"stage": 2}) is None


def test_units_of_stretches_are_reused(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = [lines(tmp_path / f"{name}.jsonl", [prose(ord(name), 9000)]) for name in "abc"]
    auto(root, TokenizeInputs(tuple(first), ()))
    more = lines(tmp_path / "d.jsonl", [prose(8, 5000)])
    encoded: list[str] = []

    def encode_and_record(tokenizer: Tokenizer, task: TokenizeTask, **options: Any) -> Encoded:
        encoded.append(task.spec.file)
        return worker.encode(tokenizer, task, **options)

    monkeypatch.setattr(make, "encode", encode_and_record)
    second = auto(root, TokenizeInputs((*first, more), ()))
    assert encoded == ["d.jsonl"]
    assert second.manifest.counts["documents"] == 4
    fresh = msgspec.convert(second.manifest.options["split"], SplitRule)
    assert rows(second, "train") == expected_rows(
        [prose(ord(n), 9000) for n in "abc"] + [prose(8, 5000)], fresh, "train"
    )


def test_summary_names_what_is_held_out(tmp_path: Path, root: Path) -> None:
    def phrase(tokens: Artifact) -> str:
        return split.summary(tokens.manifest.options, tokens.manifest.counts)

    assert phrase(run(root, some(tmp_path)).artifact).startswith("held out 14 documents (7.0 %)")
    stretches = auto(tmp_path / "b", file_of(tmp_path / "a.jsonl", prose(9, 200_000)))
    count = stretches.manifest.counts["val_stretches"]
    assert phrase(stretches).startswith(f"held out {count} stretches of 4 KiB (")
    assert phrase(stretches).endswith(" %), chosen by hash")
    with_val = run(root, train_inputs(tmp_path, *TEXTS)).artifact
    assert phrase(with_val) == "held out 1 document of the validation text (0.2 %)"
    assert (
        phrase(run(root, some(tmp_path), val_fraction=0.0).artifact) == "held out nothing: there is no validation part"
    )


def test_little_held_out_text_of_a_long_one_is_warned_of_and_has_its_true_size(tmp_path: Path) -> None:
    texts = [prose(number, 10_000) for number in range(5)]
    footers = (f"footer {number}" for number in range(10_000))
    footer = next(text for text in footers if draw_of(digest_of(text)) < threshold_of(0.001))
    held_out = auto(tmp_path, file_of(tmp_path / "a.jsonl", *texts, footer), val_fraction=0.001)
    counts = held_out.manifest.counts
    assert counts["val_characters"] == len(footer)
    assert split.summary(held_out.manifest.options, counts) == (
        f"held out 1 stretch, {len(footer)} characters (0.0 %), chosen by hash"
    )
    rule = split.rule_of(held_out.manifest.options)
    (warning,) = warnings_of(counts, rule)
    assert warning.startswith(f"warning: only {len(footer)} of {sum(map(len, texts)) + len(footer):,} characters are ")
    assert "--val-fraction 0.1 (in a recipe `val_fraction` in [tokenize]) holds out more" in warning
    assert warnings_of({**counts, "val_characters": 1000}, rule) == []
    assert warnings_of({**counts, "train_characters": 20_000}, rule) == []
    assert warnings_of({**counts, "val_characters": 0}, None) == []


def test_command_says_what_is_held_out_and_what_comes_next(tmp_path: Path, root: Path) -> None:
    (tmp_path / "novel.txt").write_text(prose(10, 50_000))
    arguments = ("--artifacts", root, "tokenize", tmp_path / "novel.txt", "--tokenizer", "r50k_base")
    process = subprocess.run(chaos.command(*arguments), capture_output=True, text=True, check=True)
    *_, held_out, following = process.stdout.splitlines()
    assert re.fullmatch(r"held out \d stretch(es)? of 2 KiB \([\d.]+ %\), chosen by hash", held_out)
    assert following == "next: inkstone train --tokens novel"

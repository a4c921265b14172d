"""Duplicates: the first stays, equal means equal letters, near means most runs of letters, the same in every run."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean import dedup as duplicates
from pipeline.clean.dedup import Exact, Match, Near, bands, fingerprint, fingerprints, sketch
from pipeline.clean.utf16 import join
from pipeline.errors import BadConfig


@pytest.fixture(scope="module")
def bodies(shared: Path) -> list[str]:
    """The poems without their titles."""
    with zstandard.open(shared / "data/tang_poems.jsonl.zst", "rb") as packed:
        return [json.loads(line)["text"].split("\n", 1)[-1] for line in io.TextIOWrapper(packed, encoding="utf-8")]


@pytest.mark.parametrize(
    "like",
    ["床前明月光，疑是地上霜。", "床前明月光疑是地上霜", "床前明月光\n  疑是、地上霜！", "「床前明月光」…疑是地上霜"],
)
def test_punctuation_spaces_and_lines_make_no_difference(like: str) -> None:
    assert fingerprint(like) == fingerprint("床前明月光，疑是地上霜。")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("床前明月光", "牀前明月光"),
        ("肐\ue10e地", "肐地"),
        ("肐\ue10e地", "肐\ue10f地"),
        ("肐□地", "肐地"),
        ("𤣥德", "𠮷德"),
        ("第1回", "第2回"),
        ("……", "。"),
        ("", "。"),
        ("甲", "甲甲"),
    ],
)
def test_other_letters_digits_gaiji_and_lacunae_do(one: str, other: str) -> None:
    assert fingerprint(one) != fingerprint(other)


def test_case_makes_no_difference() -> None:
    assert fingerprint("Hello, WORLD! Ωé") == fingerprint("hello world ωÉ")


TEXT = st.text(st.sampled_from("甲乙𤣥𠮷aB1，。 \n\ue000□"), max_size=8)


@given(st.lists(TEXT, min_size=1, max_size=6))
def test_the_fingerprints_of_a_page_are_those_of_its_documents(texts: list[str]) -> None:
    assert fingerprints(join(texts)) == [fingerprint(text) for text in texts]


@given(TEXT, TEXT)
def test_two_texts_have_one_fingerprint_if_their_letters_are_the_same_and_only_then(one: str, other: str) -> None:
    def letters(text: str) -> str:
        return "".join(c for c in text.lower() if c not in "，。 \n") or f"no letters: {text}"

    assert (fingerprint(one) == fingerprint(other)) == (letters(one) == letters(other))


def test_the_second_of_two_equal_documents_is_the_duplicate() -> None:
    known = Exact()
    assert [known.has(fingerprint(text)) for text in ["甲。", "乙。", "甲，", "丙", "乙"]] == [
        False,
        False,
        True,
        False,
        True,
    ]
    assert len(known) == 3


def test_the_duplicates_among_the_poems_are_found(bodies: list[str]) -> None:
    known = Exact()
    again = [known.has(digest) for digest in fingerprints(join(bodies))]
    assert len(bodies) == 57_603
    assert len(bodies) - len(set(bodies)) == 952  # to the byte
    assert sum(again) == 997


# Near duplicates.

rensa = pytest.importorskip("rensa")


def grams(text: str) -> set[str]:
    letters = "".join(c for c in text if c.isalnum() or c == "□")
    return {letters[at : at + 5] for at in range(max(1, len(letters) - 4))}


def jaccard(one: str, other: str) -> float:
    first, second = grams(one), grams(other)
    return len(first & second) / len(first | second)


@pytest.fixture(scope="module")
def long_poem(bodies: list[str]) -> str:
    return next(body for body in bodies if 250 < len(body) < 400)


def test_a_poem_with_two_other_characters_is_near_and_the_pair_is_told(long_poem: str) -> None:
    changed = long_poem[:40] + "甲" + long_poem[41:150] + "乙" + long_poem[151:]
    near = Near()
    assert near.has(sketch(long_poem), 7) is None
    match = near.has(sketch(changed), 9)
    assert match is not None
    assert match[:2] == (7, 9)
    assert match.similarity == pytest.approx(jaccard(long_poem, changed), abs=0.1)
    assert len(near) == 1


def test_a_poem_with_other_punctuation_is_wholly_like(long_poem: str) -> None:
    near = Near()
    near.has(sketch(long_poem), 0)
    assert near.has(sketch(long_poem.replace("，", "、").replace("\n", "")), 1) == Match(0, 1, 1.0)


def test_what_a_poem_is_near_to_is_the_nearest_and_of_equals_the_first(long_poem: str) -> None:
    near = Near(threshold=0.5)
    half = len(long_poem) // 2
    other = long_poem[:half] + "".join(reversed(long_poem[half:]))
    assert near.has(sketch(other), 0) is None
    assert near.has(sketch(long_poem), 1) is None
    match = near.has(sketch(long_poem[:-12]), 2)
    assert match is not None
    assert match.kept == 1


def test_a_dropped_document_draws_no_others_after_it(long_poem: str) -> None:
    # Each is near the one before it, and far from the first: what is near to a dropped one only is kept.
    steps = [long_poem]
    for start in range(0, 200, 12):
        steps.append(steps[-1][:start] + "甲乙丙丁戊己庚辛壬癸子丑"[:12] + steps[-1][start + 12 :])
    near = Near()
    matches = [near.has(sketch(text), number) for number, text in enumerate(steps)]
    kept = [number for number, match in enumerate(matches) if match is None]
    assert kept[0] == 0
    assert 1 < len(kept) < len(steps)
    assert all(match.kept in kept for match in matches if match)


def test_of_the_poems_those_that_are_near_match_and_those_that_are_not_do_not(bodies: list[str]) -> None:
    near = Near()
    matches = [match for at, body in enumerate(bodies[:12_000]) if (match := near.has(sketch(body), at))]
    again = {match.dropped for match in matches}
    assert len(near) == 12_000 - len(again)
    for match in matches:
        assert match.kept < match.dropped
        assert match.kept not in again
        assert jaccard(bodies[match.kept], bodies[match.dropped]) > 0.65
        assert match.similarity == pytest.approx(jaccard(bodies[match.kept], bodies[match.dropped]), abs=0.15)
    known = Exact()
    equal = {at for at, body in enumerate(bodies[:12_000]) if known.has(fingerprint(body))}
    assert equal < again
    assert len(again) - len(equal) > 50


def test_a_document_of_few_letters_or_none_is_compared_whole() -> None:
    near = Near()
    texts = ["", "。", "甲", "乙", "甲。", "甲乙丙丁", "甲乙丙", "。"]
    matches = [near.has(sketch(text), number) for number, text in enumerate(texts)]
    assert [match and match.kept for match in matches] == [None, None, None, None, 2, None, None, 1]


def test_a_long_document_is_sketched_as_a_whole(monkeypatch: pytest.MonkeyPatch, bodies: list[str]) -> None:
    text = "".join(bodies[:200])
    whole = sketch(text)
    monkeypatch.setattr(duplicates, "_AT_ONCE", 777)
    assert sketch(text).digest() == whole.digest()


def test_a_sketch_is_the_same_in_another_process_and_can_be_sent_to_it(long_poem: str) -> None:
    program = (
        "import sys, pickle; from pipeline.clean.dedup import fingerprint, sketch\n"
        "text = sys.stdin.buffer.read().decode()\n"
        "sys.stdout.buffer.write(pickle.dumps((fingerprint(text), sketch(text))))"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(
            [sys.executable, "-c", program], input=long_poem.encode(), capture_output=True, check=True, env=environment
        )
        digest, made = pickle.loads(done.stdout)
        assert digest == fingerprint(long_poem)
        assert made.digest() == sketch(long_poem).digest()
        near = Near()
        near.has(sketch(long_poem), 0)
        assert near.has(made, 1) == Match(0, 1, 1.0)


def test_a_pair_at_the_threshold_is_found_99_times_of_100() -> None:
    for threshold in (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0):
        rows = 128 // bands(threshold)
        assert 1 - (1 - threshold**rows) ** bands(threshold) >= 0.99 or rows == 1
    assert (bands(0.8), bands(0.9), bands(1.0)) == (32, 16, 1)
    assert all(one >= two for one, two in pairwise(bands(share / 100) for share in range(1, 101)))


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.1])
def test_a_threshold_that_is_no_share_is_refused(threshold: float) -> None:
    with pytest.raises(BadConfig, match="threshold"):
        Near(threshold)


def test_without_rensa_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(BadConfig) as failed:
        Near()
    assert failed.value.hint == "pip install 'inkstone[dedup]'"

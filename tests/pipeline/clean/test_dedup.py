"""Duplicates: exact ones have equal letters, near ones share most shingles, and the first of them is kept."""

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

from pipeline.clean import dedup
from pipeline.clean.dedup import ExactIndex, Match, NearIndex, bands, fingerprints, sketch
from pipeline.clean.utf16 import join_documents
from pipeline.errors import BadConfig


@pytest.fixture(scope="module")
def bodies(shared: Path) -> list[str]:
    """Poems without their titles."""
    with zstandard.open(shared / "data/tang_poems.jsonl.zst", "rb") as file:
        return [json.loads(line)["text"].split("\n", 1)[-1] for line in io.TextIOWrapper(file, encoding="utf-8")]


def fingerprint(text: str) -> bytes:
    [digest] = fingerprints(join_documents([text]))
    return digest


@pytest.mark.parametrize(
    "variant",
    ["床前明月光，疑是地上霜。", "床前明月光疑是地上霜", "床前明月光\n  疑是、地上霜！", "「床前明月光」…疑是地上霜"],
)
def test_fingerprint_ignores_punctuation_spaces_and_line_ends(variant: str) -> None:
    assert fingerprint(variant) == fingerprint("床前明月光，疑是地上霜。")


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
def test_fingerprint_depends_on_letters_digits_gaiji_and_lacunae(one: str, other: str) -> None:
    assert fingerprint(one) != fingerprint(other)


def test_fingerprint_ignores_case() -> None:
    assert fingerprint("Hello, WORLD! Ωé") == fingerprint("hello world ωÉ")


TEXT = st.text(st.sampled_from("甲乙𤣥𠮷aB1，。 \n\ue000□"), max_size=8)


@given(st.lists(TEXT, min_size=1, max_size=6))
def test_fingerprints_of_a_page_are_those_of_its_documents(texts: list[str]) -> None:
    assert fingerprints(join_documents(texts)) == [fingerprint(text) for text in texts]


@given(TEXT, TEXT)
def test_fingerprints_are_equal_exactly_if_the_letters_are(one: str, other: str) -> None:
    def letters(text: str) -> str:
        return "".join(c for c in text.lower() if c not in "，。 \n") or f"no letters: {text}"

    assert (fingerprint(one) == fingerprint(other)) == (letters(one) == letters(other))


def test_second_of_two_equal_documents_is_the_duplicate() -> None:
    index = ExactIndex()
    results = [index.add(fingerprint(text)) for text in ["甲。", "乙。", "甲，", "丙", "乙"]]
    assert results == [False, False, True, False, True]
    assert len(index) == 3


def test_exact_duplicates_among_the_poems_are_found(bodies: list[str]) -> None:
    index = ExactIndex()
    assert len(bodies) == 57_603
    assert len(bodies) - len(set(bodies)) == 952  # equal byte for byte
    assert sum(index.add(digest) for digest in fingerprints(join_documents(bodies))) == 997


# Near duplicates

rensa = pytest.importorskip("rensa")


def shingles(text: str) -> set[str]:
    letters = "".join(c for c in text if c.isalnum() or c == "□")
    return {letters[start : start + 5] for start in range(max(1, len(letters) - 4))}


def jaccard(one: str, other: str) -> float:
    first, second = shingles(one), shingles(other)
    return len(first & second) / len(first | second)


@pytest.fixture(scope="module")
def long_poem(bodies: list[str]) -> str:
    return next(body for body in bodies if 250 < len(body) < 400)


def test_poem_with_two_changed_characters_is_a_near_duplicate(long_poem: str) -> None:
    changed = long_poem[:40] + "甲" + long_poem[41:150] + "乙" + long_poem[151:]
    near = NearIndex()
    assert near.add(sketch(long_poem), 7) is None
    match = near.add(sketch(changed), 9)
    assert match is not None
    assert match[:2] == (7, 9)
    assert match.similarity == pytest.approx(jaccard(long_poem, changed), abs=0.1)
    assert len(near) == 1


def test_poem_with_other_punctuation_has_similarity_1(long_poem: str) -> None:
    near = NearIndex()
    near.add(sketch(long_poem), 0)
    assert near.add(sketch(long_poem.replace("，", "、").replace("\n", "")), 1) == Match(0, 1, 1.0)


def test_match_is_the_most_similar_document(long_poem: str) -> None:
    near = NearIndex(threshold=0.5)
    half = len(long_poem) // 2
    other = long_poem[:half] + "".join(reversed(long_poem[half:]))
    assert near.add(sketch(other), 0) is None
    assert near.add(sketch(long_poem), 1) is None
    match = near.add(sketch(long_poem[:-12]), 2)
    assert match is not None
    assert match.original == 1


def test_document_similar_only_to_a_duplicate_is_kept(long_poem: str) -> None:
    # Each is similar to the one before it, and not to the first.
    steps = [long_poem]
    for start in range(0, 200, 12):
        steps.append(steps[-1][:start] + "甲乙丙丁戊己庚辛壬癸子丑"[:12] + steps[-1][start + 12 :])
    near = NearIndex()
    matches = [near.add(sketch(text), index) for index, text in enumerate(steps)]
    originals = [index for index, match in enumerate(matches) if match is None]
    assert originals[0] == 0
    assert 1 < len(originals) < len(steps)
    assert all(match.original in originals for match in matches if match)


def test_near_duplicates_among_the_poems_are_similar_and_include_all_exact_ones(bodies: list[str]) -> None:
    near = NearIndex()
    matches = [match for index, body in enumerate(bodies[:12_000]) if (match := near.add(sketch(body), index))]
    duplicates = {match.duplicate for match in matches}
    assert len(near) == 12_000 - len(duplicates)
    for match in matches:
        assert match.original < match.duplicate
        assert match.original not in duplicates
        similarity = jaccard(bodies[match.original], bodies[match.duplicate])
        assert similarity > 0.65
        assert match.similarity == pytest.approx(similarity, abs=0.15)
    exact = ExactIndex()
    exact_duplicates = {index for index, body in enumerate(bodies[:12_000]) if exact.add(fingerprint(body))}
    assert exact_duplicates < duplicates
    assert len(duplicates) - len(exact_duplicates) > 50


def test_document_shorter_than_a_shingle_is_compared_as_one_shingle() -> None:
    near = NearIndex()
    texts = ["", "。", "甲", "乙", "甲。", "甲乙丙丁", "甲乙丙", "。"]
    matches = [near.add(sketch(text), index) for index, text in enumerate(texts)]
    assert [match and match.original for match in matches] == [None, None, None, None, 2, None, None, 1]


def test_sketch_does_not_depend_on_the_batch_size_of_shingles(
    monkeypatch: pytest.MonkeyPatch, bodies: list[str]
) -> None:
    text = "".join(bodies[:200])
    expected = sketch(text)
    monkeypatch.setattr(dedup, "_SHINGLES_AT_ONCE", 777)
    assert sketch(text).digest() == expected.digest()


def test_sketch_is_picklable_and_equal_in_another_process(long_poem: str) -> None:
    program = (
        "import sys, pickle; from pipeline.clean.dedup import fingerprints, sketch\n"
        "from pipeline.clean.utf16 import join_documents\n"
        "text = sys.stdin.buffer.read().decode()\n"
        "sys.stdout.buffer.write(pickle.dumps((fingerprints(join_documents([text]))[0], sketch(text))))"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.run(
            [sys.executable, "-c", program], input=long_poem.encode(), capture_output=True, check=True, env=environment
        )
        digest, minhash = pickle.loads(process.stdout)
        assert digest == fingerprint(long_poem)
        assert minhash.digest() == sketch(long_poem).digest()
        near = NearIndex()
        near.add(sketch(long_poem), 0)
        assert near.add(minhash, 1) == Match(0, 1, 1.0)


def test_pair_at_the_threshold_is_a_candidate_in_99_of_100_cases() -> None:
    for threshold in (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0):
        rows = 128 // bands(threshold)
        assert 1 - (1 - threshold**rows) ** bands(threshold) >= 0.99 or rows == 1
    assert (bands(0.8), bands(0.9), bands(1.0)) == (32, 16, 1)
    assert all(one >= two for one, two in pairwise(bands(percent / 100) for percent in range(1, 101)))


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.1])
def test_threshold_outside_0_to_1_raises_bad_config(threshold: float) -> None:
    with pytest.raises(BadConfig, match="threshold"):
        NearIndex(threshold)


def test_missing_rensa_raises_bad_config_with_the_command_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(BadConfig) as caught:
        NearIndex()
    assert caught.value.hint == "pip install -e '.[dedup]'"

"""Near duplicates: a document is dropped if an earlier kept one is similar, as the streaming index decides."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.clean.duplicates import near, signatures
from pipeline.clean.duplicates.fingerprints import fingerprints
from pipeline.clean.duplicates.near import Duplicates, Match, find_duplicates
from pipeline.clean.utf16 import join_documents
from pipeline.errors import BadConfig

pytest.importorskip("rensa")

from tests.pipeline.clean.duplicates.streaming import sketch, stream  # needs rensa


def find(folder: Path, texts: list[str], *, files: int = 1, jobs: int = 1) -> Duplicates:
    """Return the duplicates among texts whose signatures are in several files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, part in enumerate(np.array_split(np.arange(len(texts)), files)):
        page_texts = [texts[index] for index in part]
        paths.append((folder / f"fingerprints-{number}", folder / f"signatures-{number}"))
        page = join_documents(page_texts)
        paths[-1][0].write_bytes(b"".join(fingerprints(page)) if page_texts else b"")
        paths[-1][1].write_bytes(signatures.signatures(page).tobytes() if page_texts else b"")
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    return find_duplicates([one for one, _ in paths], [other for _, other in paths], scratch, jobs=jobs)


def numbers(mask: np.ndarray) -> set[int]:
    return {*np.flatnonzero(mask).tolist()}


def generated(seed: int, count: int) -> list[str]:
    """Return texts with long chains of versions, equal texts, and texts that share half of their letters."""
    draw = random.Random(seed)
    letters = "".join(chr(0x4E00 + number) for number in range(2000))
    common = "".join(draw.choices(letters, k=60))
    texts: list[str] = []
    for _ in range(count):
        kind = draw.random()
        if texts and kind < 0.15:
            texts.append(draw.choice(texts) + draw.choice(["", "。"]))
        elif texts and kind < 0.65:
            text = list(draw.choice(texts[-40:]))
            for _ in range(draw.choice([1, 1, 2, 3, 5])):
                text[draw.randrange(len(text))] = draw.choice(letters)
            texts.append("".join(text))
        else:
            own = "".join(draw.choices(letters, k=draw.choice([1, 4, 60, 120])))
            texts.append(draw.choice(["", common]) + own)
    return texts


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(1, 200))
def test_same_documents_are_dropped_as_by_the_streaming_index(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int
) -> None:
    texts = generated(seed, count)
    exact, matches = stream(texts)
    result = find(tmp_path_factory.mktemp("near"), texts, files=seed % 4 + 1)
    assert numbers(result.exact) == exact
    assert numbers(result.near) == {match.duplicate for match in matches}
    assert result.examples == matches[: len(result.examples)]
    assert len(result.examples) == min(len(matches), 5)


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_any_number_of_jobs_and_files_gives_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    monkeypatch.setattr(near, "_SPREAD_FROM", 1)
    monkeypatch.setattr(near, "_BLOCK", 100)
    texts = generated(5, 700)
    exact, matches = stream(texts)
    result = find(tmp_path, texts, files=jobs, jobs=jobs)
    assert (numbers(result.exact), numbers(result.near)) == (exact, {match.duplicate for match in matches})
    assert len(exact) > 30
    assert len(matches) > 100


def test_poems_lose_the_same_documents_as_by_the_streaming_index(tmp_path: Path, bodies: list[str]) -> None:
    texts = bodies[:6000]
    exact, matches = stream(texts)
    result = find(tmp_path, texts)
    assert (numbers(result.exact), numbers(result.near)) == (exact, {match.duplicate for match in matches})
    assert len(matches) > 20


def test_document_similar_only_to_a_dropped_one_is_kept(tmp_path: Path) -> None:
    letters = [chr(0x4E00 + number) for number in range(300)]
    steps = [letters]
    for start in range(0, 200, 10):
        steps.append(
            [*steps[-1][:start], *(chr(0x6000 + start + number) for number in range(10)), *letters[start + 10 :]]
        )
    result = find(tmp_path, ["".join(step) for step in steps])
    kept = [number for number in range(len(steps)) if number not in numbers(result.near)]
    assert kept[0] == 0
    assert 1 < len(kept) < len(steps)
    assert all(original in kept for original, _, _ in result.examples)


def test_text_with_the_same_shingles_has_similarity_1(tmp_path: Path) -> None:
    text = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"
    assert find(tmp_path, [text * 2, "甲", text.replace("，", "、") * 3]).examples == [Match(0, 2, 1.0)]


def test_no_document_and_one_document_have_no_duplicates(tmp_path: Path) -> None:
    assert not len(find(tmp_path / "none", []).near)
    assert not find(tmp_path / "one", ["甲"]).near.any()


def test_pairs_are_counted(tmp_path: Path) -> None:
    text = "".join(chr(0x4E00 + number) for number in range(200))
    result = find(tmp_path, [text, text + "甲", "乙" * 90, text + "丙"])
    assert (result.compared, result.similar, result.uncompared) == (2, 2, 0)


def test_comparisons_within_a_large_group_are_limited_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near, "MAX_COMPARED", 3)
    draw = random.Random(1)
    common = "".join(chr(0x4E00 + number) for number in range(80))
    texts = [common + "".join(chr(draw.randrange(0x5000, 0x9000)) for _ in range(60)) for _ in range(60)]
    result = find(tmp_path, [*texts, texts[0] + "甲"])
    assert result.uncompared > 0
    assert numbers(result.near) >= {60}  # its original is among the earliest


# Signatures


def test_signatures_are_those_of_the_reference_for_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["", "。", "甲", "床前明月光，疑是地上霜。" * 9, "𤣥德" * 40, "Hello, WORLD! " * 30, "ab" * 500]
    expected = [sketch(text).digest() for text in texts]
    assert signatures.signatures(join_documents(texts)).tolist() == expected
    monkeypatch.setattr(signatures, "_SHINGLES_AT_ONCE", 77)
    assert signatures.signatures(join_documents(texts)).tolist() == expected


def test_signature_is_equal_in_another_process() -> None:
    program = (
        "from pipeline.clean.duplicates.signatures import signatures\n"
        "from pipeline.clean.utf16 import join_documents\n"
        "print(signatures(join_documents(['Lin Chong left the mountain.'])).tolist())"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout
    assert output.strip() == str(signatures.signatures(join_documents(["Lin Chong left the mountain."])).tolist())


def test_every_pair_at_the_threshold_agrees_in_a_band() -> None:
    assert near.MIN_EQUAL / signatures.VALUES >= near.THRESHOLD > (near.MIN_EQUAL - 1) / signatures.VALUES
    assert near.BANDS > signatures.VALUES - near.MIN_EQUAL
    assert near.BANDS * near.ROWS <= signatures.VALUES


def test_missing_rensa_raises_bad_config_with_the_command_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(BadConfig) as caught:
        signatures.load_rensa()
    assert caught.value.hint == "pip install -e '.[dedup]'"

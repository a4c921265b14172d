"""The numbers of a tokens report equal the manifest and an independent count of the ids on disk."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline import tokenizers
from pipeline.report import tokens
from pipeline.report.tokens import TokenNumbers
from tests.pipeline.report.conftest import read, run


def ids_on_disk(root: Path, name: str, split: str) -> list[int]:
    paths = sorted(read(root, "tokens", name).path.glob(f"{split}-*.bin"))
    return [number for path in paths for number in np.fromfile(path, "<u2").tolist()]


@pytest.fixture(scope="module")
def numbers(store: Path) -> TokenNumbers:
    return tokens.collect(read(store, "tokens", "novel"))


def test_numbers_equal_the_manifest_and_a_count_of_the_ids(store: Path, numbers: TokenNumbers) -> None:
    counts = read(store, "tokens", "novel").manifest.counts
    for split in ("train", "val"):
        ids = ids_on_disk(store, "novel", split)
        occurrences = Counter(ids)
        assert numbers.frequencies[split].tolist() == [occurrences[token] for token in range(counts["vocab_size"])]
        assert int(numbers.frequencies[split].sum()) == counts[f"{split}_tokens"] == len(ids)
        lengths = numbers.lengths[split]
        assert lengths
        assert lengths.total == counts[f"{split}_documents"] == ids.count(counts["end_of_text"])


def test_fertility_counts_the_tokens_of_the_same_text(numbers: TokenNumbers, shared: Path) -> None:
    characters, size = numbers.sample
    by_name = {entry.name: entry for entry in numbers.fertility}
    assert by_name["characters"].tokens == characters
    assert characters < size
    assert {"r50k_base", "cl100k_base", "o200k_base"} < set(by_name)
    assert numbers.fertility[0].is_own
    assert numbers.fertility[0].tokens < by_name["r50k_base"].tokens  # it was trained on this text


def test_encodings_whose_ranks_are_not_here_are_left_out(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    numbers = tokens.collect(read(store, "tokens", "novel"))
    assert [entry.name for entry in numbers.fertility[1:]] == ["characters"]


def test_tokens_of_the_page_are_its_text(store: Path, numbers: TokenNumbers) -> None:
    tokenizer = tokenizers.open_folder(read(store, "tokens", "novel").path)
    ids = [number for token in numbers.page for number in token.ids]
    assert "".join(token.text for token in numbers.page) == tokenizer.decode(ids)
    text = " ".join(map(str, ids_on_disk(store, "novel", numbers.page_split)))
    assert " ".join(map(str, ids)) in text


def test_parts_of_characters_are_the_ids_that_do_not_decode_alone(numbers: TokenNumbers) -> None:
    texts = [
        numbers.tokenizer.token_bytes(token, token).decode(errors="replace") for token in range(len(numbers.partial))
    ]
    assert numbers.partial.tolist() == ["\ufffd" in text for text in texts]
    assert numbers.partial.any()


def test_divergence_is_that_of_its_definition() -> None:
    first, second = np.array([3, 1, 0]), np.array([1, 1, 2])
    p, q = [0.75, 0.25, 0.0], [0.25, 0.25, 0.5]
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    expected = sum(a * math.log2(a / m) / 2 for side in (p, q) for a, m in zip(side, middle, strict=True) if a)
    assert tokens.jensen_shannon(first, second) == pytest.approx(expected)
    assert tokens.jensen_shannon(first, first) == 0
    assert tokens.jensen_shannon(np.array([5, 0]), np.array([0, 5])) == 1


def test_repeated_passages_equal_a_slow_search(tmp_path: Path) -> None:
    copied = [f"The {word} fox jumps over the lazy dog, and then it sleeps until noon." for word in ("quick", "red")]
    own = [f"Line {number} of a text that is not repeated: {number * 7919 % 1000}." for number in range(200)]
    train, val = tmp_path / "train.txt", tmp_path / "val.txt"
    train.write_text("\n".join([*own[:150], *copied]) + "\n", encoding="utf-8")
    val.write_text("\n".join([*own[150:], *copied]) + "\n", encoding="utf-8")
    root = tmp_path / "artifacts"
    run(root, "clean", train, val, "--name", "both", "--unit", "paragraph")
    run(root, "train-tokenizer", "both", "--kind", "char")
    run(root, "tokenize", train, "--val", val, "--tokenizer", "both", "--name", "both", "--jobs", 1)
    shift = tokens.collect(read(root, "tokens", "both")).shift
    assert shift
    train_ids, val_ids = ids_on_disk(root, "both", "train"), ids_on_disk(root, "both", "val")
    windows = {tuple(train_ids[at : at + tokens.PASSAGE]) for at in range(len(train_ids) - tokens.PASSAGE + 1)}
    starts = range(len(val_ids) - tokens.PASSAGE + 1)
    sampled = random.Random(tokens.SEED).sample(starts, min(len(starts), 2_000))
    expected = sum(tuple(val_ids[at : at + tokens.PASSAGE]) in windows for at in sampled)
    assert (shift.repeated, shift.passages) == (expected, len(sampled))
    assert 0 < expected < len(sampled)

"""The tokenize stage: documents to token arrays, with the same bytes on every path."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import sentencepiece
import tiktoken
import zstandard

from pipeline import tokenizers
from pipeline.clean import stage as clean_stage
from pipeline.clean.options import CleanOptions
from pipeline.errors import BadConfig, BadData, TooManyRejects
from pipeline.readers import compression
from pipeline.runtime.progress import Progress, SilentProgress
from pipeline.sources import cache
from pipeline.sources import inputs as source_inputs
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Characters, SentencePiece, Tiktoken
from pipeline.tokenizers import stage as tokenizers_stage
from pipeline.tokens import chunks, locate
from pipeline.tokens import segments as tokens_segments
from pipeline.tokens import stage as tokens_stage
from pipeline.tokens.options import TokenizeOptions
from pipeline.tokens.stage import TokenizeInputs, assign_splits
from pipeline.tokens.store import open_store
from tests.support import chaos
from tests.support.tokenizing import (
    LETTERS,
    TEXTS,
    checksums,
    content_inputs,
    dropped,
    ids_of,
    input_file,
    is_held_out,
    lines,
    no_draft,
    nothing_published,
    rejects,
    rows,
    run,
    shrink_chunks,
    some,
    texts_in,
    texts_of,
    train_inputs,
)

ROOT = Path(__file__).resolve().parents[3]
SAMPLE = Path(__file__).resolve().parents[3] / "pipeline" / "sample"
ENDS = {"r50k_base": 50256, "cl100k_base": 100257, "o200k_base": 199999}
Inkstone = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    """A root with the corpus of the embedded sample and a small SentencePiece tokenizer trained on it."""
    root = tmp_path_factory.mktemp("artifacts")
    files = source_inputs.resolve_inputs(root, str(SAMPLE), corpora=False, exclude=("*.jsonl",))
    clean_stage.clean(root, "sample", files, CleanOptions(), SilentProgress())
    texts = tokenizers_stage.find_sentences(root, ["sample"])
    return root, tokenizers_stage.train(root, "sample", texts, "bpe", 3000).artifact


def test_sample_corpus_reads_back_from_its_tokens(book: tuple[Path, Artifact]) -> None:
    root, trained = book
    tokenizer, _ = tokenizers.find(root, "sample")
    inputs = tokens_stage.gather_inputs(root, ["sample"], [])
    tokens = run(root, inputs, tokenizer=tokenizer, trained=trained).artifact
    texts = texts_in(inputs.train[0].path)
    assert texts_of(tokens, "train", tokenizer) == [text for text in texts if not is_held_out(text, 0.1)]
    assert texts_of(tokens, "val", tokenizer) == [text for text in texts if is_held_out(text, 0.1)]
    counts = tokens.manifest.counts
    assert counts["documents"] == counts["train_documents"] + counts["val_documents"] == len(texts) == 111
    assert counts["tokens"] == counts["train_tokens"] + counts["val_tokens"]
    assert counts["train_characters"] + counts["val_characters"] == sum(map(len, texts))
    assert counts["input_bytes"] == sum(map(len, compression.read_blocks(inputs.train[0].path)))
    assert (counts["dtype"], counts["vocab_size"]) == ("<u2", 3000)
    assert tokens.manifest.tokenizer == open_store(tokens).tokenizer.fingerprint == tokenizer.fingerprint


def test_manifest_names_corpus_and_tokenizer_as_inputs(book: tuple[Path, Artifact]) -> None:
    root, trained = book
    tokenizer, _ = tokenizers.find(root, "sample")
    tokens = run(root, tokens_stage.gather_inputs(root, ["sample"], []), tokenizer=tokenizer, trained=trained).artifact
    corpus_artifact = artifact.find(root, "corpora", "sample")
    assert {(entry.role, entry.digest) for entry in tokens.manifest.inputs} == {
        ("train", corpus_artifact.digest),
        ("tokenizer", trained.digest),
    }


PILE = ("pile_train_00.jsonl.zst", "pile_train_01.jsonl.zst")
CHINESE = ("tang_poems.jsonl.zst", "song_ci.txt", "shuihu_raw.txt", "chinese-poetry")


@pytest.mark.parametrize(
    ("encoding", "names"),
    [
        ("r50k_base", (*PILE, *CHINESE)),
        ("cl100k_base", (PILE[0], *CHINESE[1:])),  # all files would take tiktoken a minute
        ("o200k_base", (PILE[1], CHINESE[0])),
    ],
)
def test_ids_of_all_shared_text_equal_tiktoken(
    shared: Path, root: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, names: Sequence[str]
) -> None:
    shrink_chunks(monkeypatch, 4 << 20, 1 << 20)
    data = shared / "data"
    inputs = tokens_stage.gather_inputs(root, [str(data / name) for name in names], [str(data / "pile_val.jsonl.zst")])
    tokens = run(root, inputs, tokenizer=Tiktoken.named(encoding), jobs=2).artifact
    assert tokens.manifest.counts["units"] > len(names)
    for files, split in ((inputs.train, "train"), (inputs.val, "val")):
        expected, lengths = reference(encoding, [text for file in files for text in texts_in(file.path)])
        assert np.array_equal(tokens_segments.document_lengths(tokens, split), lengths)
        assert np.array_equal(ids_of(tokens, split), expected)


def reference(encoding: str, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return flat ids and lengths by definition: `encode_ordinary` of each document, then end-of-text."""
    library, flat, lengths = tiktoken.get_encoding(encoding), [], []
    for start in range(0, len(texts), 1000):  # converted in batches: as lists the ids take a gigabyte
        for ids in library.encode_ordinary_batch(list(texts[start : start + 1000]), num_threads=2):
            flat.append(np.array([*ids, ENDS[encoding]], np.uint32))
            lengths.append(len(ids) + 1)
    return np.concatenate(flat), np.array(lengths)


@pytest.mark.parametrize("layout", tokens_segments.FORMATS)
def test_any_number_of_workers_writes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    shrink_chunks(monkeypatch, 1000, 200)
    one, *others = (
        run(tmp_path / str(jobs), some(tmp_path), format=layout, dedup="exact", jobs=jobs).artifact
        for jobs in (1, 2, 4)[: 3 if layout == "both" else 2]
    )
    assert one.manifest.counts["units"] >= 9
    for second in others:
        assert (second.manifest, second.digest) == (one.manifest, one.digest)


@pytest.mark.parametrize("unit", [64, 500, 1000])
def test_many_units_hold_the_same_tokens_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: int) -> None:
    inputs = some(tmp_path)
    one = run(tmp_path / "one", inputs).artifact
    shrink_chunks(monkeypatch, unit, unit // 2)
    many = run(tmp_path / "many", inputs).artifact
    assert many.manifest.counts["units"] > one.manifest.counts["units"] == 3
    for split in tokens_segments.SPLITS:
        assert np.array_equal(ids_of(many, split), ids_of(one, split))
        assert np.array_equal(
            tokens_segments.document_lengths(many, split), tokens_segments.document_lengths(one, split)
        )
        assert source_offsets(many, split) == source_offsets(one, split)
    same = ("tokens", "documents", "input_bytes", "longest_document", "sets", "train_tokens", "val_characters")
    assert [many.manifest.counts[name] for name in same] == [one.manifest.counts[name] for name in same]
    assert many.manifest.ledger == one.manifest.ledger


def source_offsets(made: Artifact, split: str) -> list[tuple[str, int]]:
    """Return the input file's number and the byte offset of every document of a split."""
    segments = [
        name.removesuffix(".bin") for name in checksums(made) if name.startswith(split) and name.endswith(".bin")
    ]
    return [(name.split("-")[1], int(at)) for name in segments for at in tokens_segments.source_offsets(made, name)]


def test_bytes_do_not_depend_on_hash_seed_locale_or_time_zone(shared: Path, tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", texts_in(shared / "data" / "pile_val.jsonl.zst") * 2, "Pile-CC").path
    changes = (
        {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"},
        {"PYTHONHASHSEED": "1", "LANG": "C", "LC_ALL": "C", "TZ": "Asia/Shanghai"},
    )
    results = []
    for number, change in enumerate(changes):
        options = ("--artifacts", tmp_path / str(number), "-q", "--tokenizer", "r50k_base", "--dedup", "exact")
        command = chaos.command("tokenize", file, *options, "--jobs", 2 - number, "--name", "some")
        subprocess.run(command, cwd=ROOT, env={**os.environ, **change}, check=True)
        tokens = artifact.current(tmp_path / str(number), "tokens", "some")
        assert tokens
        results.append((tokens.digest, checksums(tokens)))
    assert results[0] == results[1]


def test_memmap_and_hdf5_and_both_hold_the_same_tokens(tmp_path: Path, root: Path) -> None:
    inputs = some(tmp_path)
    by_layout = {layout: run(root, inputs, format=layout).artifact for layout in tokens_segments.FORMATS}
    stores = {layout: open_store(tokens) for layout, tokens in by_layout.items()}
    for split in tokens_segments.SPLITS:
        arrays = [getattr(store, split) for store in stores.values()]
        first, *others = [array.read(0, len(array)).tolist() for array in arrays]
        assert others == [first, first]
        with h5py.File(by_layout["both"].file(f"{split}.h5")) as file:
            assert file["tokens"][:].tolist() == first
            assert file["tokens"].attrs["end_of_text"] == LETTERS.end_of_text
            assert file["tokens"].attrs["tokenizer"] == LETTERS.fingerprint
            assert file["tokens"].attrs["documents"] == by_layout["both"].manifest.counts[f"{split}_documents"]
    assert len({store.key for store in stores.values()}) == 1, "and so they are trained on in the same order"
    suffixes = {layout: {Path(name).suffix for name in checksums(tokens)} for layout, tokens in by_layout.items()}
    assert ".h5" not in suffixes["memmap"]
    assert ".bin" not in suffixes["hdf5"]
    assert {".h5", ".bin"} <= suffixes["both"]
    assert by_layout["both"].manifest.ledger == by_layout["memmap"].manifest.ledger == by_layout["hdf5"].manifest.ledger


def test_only_listed_files_are_published(tmp_path: Path, root: Path) -> None:
    tokens = run(root, some(tmp_path, files=2)).artifact
    stems = [f"{split}-0000{n}-0000" for split in tokens_segments.SPLITS for n in (0, 1)]
    segments = [f"{stem}{suffix}" for stem in stems for suffix in (".bin", ".idx", ".src")]
    others = ["rejects.jsonl.zst", "units.jsonl", "tokenizer.json", "characters.txt"]
    assert sorted(checksums(tokens)) == sorted([*segments, *others])
    assert {path.name for path in tokens.path.iterdir()} == {*checksums(tokens), "manifest.json", "run.json"}
    assert no_draft(root)


def test_about_the_requested_fraction_is_held_out() -> None:
    texts = [f"a document numbered {number}" for number in range(5000)]
    for fraction in (0.01, 0.05, 0.5):
        share = sum(is_held_out(text, fraction) for text in texts) / len(texts)
        assert share == pytest.approx(fraction, rel=0.2)
    assert not any(is_held_out(text, 0.0) for text in texts)


def test_adding_documents_never_moves_others_between_splits(tmp_path: Path) -> None:
    few = run(tmp_path / "few", some(tmp_path, TEXTS[:150], files=1)).artifact
    many = run(tmp_path / "many", some(tmp_path, TEXTS[::-1], files=4)).artifact
    for split in tokens_segments.SPLITS:
        assert set(texts_of(few, split)) <= set(texts_of(many, split))
    assert not set(texts_of(many, "train")) & set(texts_of(many, "val"))
    assert set(texts_of(many, "train")) | set(texts_of(many, "val")) == set(TEXTS)


def test_larger_fraction_only_adds_held_out_documents() -> None:
    small = {text for text in TEXTS if is_held_out(text, 0.05)}
    assert small < {text for text in TEXTS if is_held_out(text, 0.2)}


def test_validation_file_is_held_out_completely_and_alone(tmp_path: Path, root: Path) -> None:
    train, val = lines(tmp_path / "train.jsonl", TEXTS), lines(tmp_path / "val.jsonl", ["held out", "and this"])
    tokens = run(root, tokens_stage.gather_inputs(root, [str(train.path)], [str(val.path)])).artifact
    assert texts_of(tokens, "train") == TEXTS
    assert texts_of(tokens, "val") == ["held out", "and this"]


def pinned(root: Path, source: str, **splits: tuple[str, Sequence[str]]) -> None:
    """Write a raw source whose lock marks files for training, validation and test."""
    pins = {}
    for name, (split, texts) in splits.items():
        folder = cache.source_folder(root, source)
        folder.mkdir(parents=True, exist_ok=True)
        file = lines(folder / f"{name}.jsonl", texts)
        stat = file.path.stat()
        pins[file.path.name] = cache.RawFile(stat.st_size, file.digest, stat.st_mtime_ns, "https://x.test", split)
    cache.write_lock_file(root, source, pins)


def test_files_marked_val_validate_and_test_is_left_out(root: Path) -> None:
    pinned(root, "pile", a=("train", ["one", "two"]), b=("val", ["three"]), c=("test", ["four"]), d=("", ["five"]))
    tokens = run(root, tokens_stage.gather_inputs(root, ["pile"], [])).artifact
    assert texts_of(tokens, "train") == ["one", "two", "five"]
    assert texts_of(tokens, "val") == ["three"]


def test_named_validation_corpus_replaces_marked_files(tmp_path: Path, root: Path) -> None:
    pinned(root, "pile", a=("train", ["one", "two"]), b=("val", ["three"]))
    val = lines(tmp_path / "other.jsonl", ["six"])
    tokens = run(root, tokens_stage.gather_inputs(root, ["pile"], [str(val.path)])).artifact
    assert texts_of(tokens, "train") == ["one", "two"]
    assert texts_of(tokens, "val") == ["six"]


def test_source_of_only_validation_files_is_divided_by_hash(root: Path) -> None:
    pinned(root, "pile", a=("val", TEXTS))
    tokens = run(root, tokens_stage.gather_inputs(root, ["pile"], [])).artifact
    assert sorted(texts_of(tokens, "train") + texts_of(tokens, "val")) == sorted(TEXTS)


def test_empty_validation_split_publishes_nothing(tmp_path: Path, root: Path) -> None:
    (tmp_path / "val.jsonl").write_bytes(b'{"text":""}\n')
    with pytest.raises(BadData, match="the val split is empty") as caught:
        run(root, TokenizeInputs((lines(tmp_path / "a.jsonl", TEXTS),), (input_file(tmp_path / "val.jsonl"),)))
    assert caught.value.exit_code == 65
    assert nothing_published(root)
    assert no_draft(root)


@pytest.mark.parametrize("layout", tokens_segments.FORMATS)
def test_val_fraction_0_publishes_tokens_without_a_validation_part(tmp_path: Path, root: Path, layout: str) -> None:
    tokens = run(root, some(tmp_path), val_fraction=0.0, format=layout).artifact
    counts = tokens.manifest.counts
    assert (counts["val_tokens"], counts["val_documents"], counts["train_documents"]) == (0, 0, len(TEXTS))
    assert tokens.manifest.options["split"] is None
    store = open_store(tokens)
    assert len(store.val) == len(store.val.read(0, 0)) == 0
    assert store.val.dtype == store.train.dtype
    assert locate.summarize(tokens).segments["val"] == 0


def test_empty_training_split_raises_bad_data(tmp_path: Path, root: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text":""}\n')
    inputs = tokens_stage.gather_inputs(
        root, [str(tmp_path / "a.jsonl")], [str(lines(tmp_path / "b.jsonl", ["val"]).path)]
    )
    with pytest.raises(BadData, match="the train split is empty"):
        run(root, inputs)


def test_file_in_both_splits_is_refused(tmp_path: Path) -> None:
    train, copy = lines(tmp_path / "a.jsonl", TEXTS), lines(tmp_path / "copy.jsonl", TEXTS)
    with pytest.raises(BadConfig, match=r"a\.jsonl is both trained on and validated on"):
        assign_splits([train], [copy])


def test_second_run_is_unchanged(tmp_path: Path, root: Path) -> None:
    first, second = (run(root, some(tmp_path)) for _ in range(2))
    assert (first.result, second.result) == ("built", "unchanged")
    assert first.artifact == second.artifact


def test_options_that_decide_bytes_decide_the_key(tmp_path: Path) -> None:
    inputs = some(tmp_path)
    options = (
        TokenizeOptions(),
        TokenizeOptions("hdf5"),
        TokenizeOptions(val_fraction=0.5),
        TokenizeOptions(include_sets=("a",)),
        TokenizeOptions(exclude_sets=("a",)),
        TokenizeOptions(min_chars=1),
        TokenizeOptions(max_documents=100),
        TokenizeOptions(dedup="exact"),
        TokenizeOptions(val_split="stretch"),
    )
    keys = [tokens_stage.identify("some", inputs, LETTERS, None, variant).key for variant in options]
    keys += [tokens_stage.identify("some", TokenizeInputs(inputs.train[::-1], ()), LETTERS, None, options[0]).key]
    keys += [
        tokens_stage.identify("some", TokenizeInputs(inputs.train[:2], inputs.train[2:]), LETTERS, None, options[0]).key
    ]
    keys += [tokens_stage.identify("some", inputs, Characters("ab", "letters"), None, options[0]).key]
    assert len(set(keys)) == len(keys)
    assert tokens_stage.identify("other", inputs, LETTERS, None, TokenizeOptions(max_bad=0.5)).key == keys[0]
    orders = [TokenizeOptions(include_sets=names) for names in (("a", "b"), ("b", "a"))]
    assert len({tokens_stage.identify("some", inputs, LETTERS, None, variant).key for variant in orders}) == 1


@pytest.mark.parametrize("at", [0, 2, 7])
def test_one_id_that_differs_from_tiktoken_publishes_nothing(
    shared: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    right = Tiktoken.encode_batch

    def wrong(self: Tiktoken, texts: Sequence[str]) -> tokenizers.FlatIds:
        ids, lengths = right(self, texts)
        ids = ids.copy()
        ids[lengths[: at + 1].sum() - 1] += 1  # the last id of the document
        return ids, lengths

    monkeypatch.setattr(Tiktoken, "encode_batch", wrong)
    inputs = train_inputs(tmp_path, *TEXTS)
    offset = inputs.train[0].path.read_bytes().index(TEXTS[at].encode()) - len('{"text":"')
    with pytest.raises(BadData, match=rf"train\.jsonl: the document at byte {offset:,} .* gigatoken and by tiktoken"):
        run(root, inputs, tokenizer=Tiktoken.named("r50k_base"))
    assert nothing_published(root)
    assert no_draft(root)


def test_documents_are_compared_with_the_reference_and_counted(tmp_path: Path, root: Path) -> None:
    tokens = run(
        root, TokenizeInputs((lines(tmp_path / "a.jsonl", ["x"] * 20_000),), train_inputs(tmp_path, "y").val)
    ).artifact
    first, drawn, val = 8, tokens.manifest.counts["compared"] - 9, 1
    assert first + val == 9
    assert 10 <= drawn <= 30  # about one in 1,000


def broken(tmp_path: Path) -> TokenizeInputs:
    """One file with two valid lines, a truncated one, a blank one and an empty document."""
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b'{"text":"one"}\n{"text":"cut\n\n{"text":""}\n{"text":"two"}\n')
    return TokenizeInputs((input_file(path),), (lines(tmp_path / "val.jsonl", ["val"]),))


def test_broken_lines_are_counted_and_rejected(tmp_path: Path, root: Path) -> None:
    tokens = run(root, broken(tmp_path), max_bad=0.5).artifact
    assert texts_of(tokens, "train") == ["one", "two"]
    ledger = tokens.manifest.ledger
    assert ledger["documents"] == {"in": 6, "out": 3, "dropped": {"bad-json": 1, "blank-line": 1, "empty": 1}}
    assert ledger["characters"] == {"in": 21, "out": 9, "dropped": {"bad-json": 12}}
    assert rejects(tokens) == [
        ("broken.jsonl", 2, 15, "bad-json"),
        ("broken.jsonl", 3, 28, "blank-line"),
        ("broken.jsonl", 4, 29, "empty"),
    ]


def test_too_many_broken_lines_publish_nothing(tmp_path: Path, root: Path) -> None:
    with pytest.raises(TooManyRejects, match=r"/broken\.jsonl: 1 of 5 documents are bad") as caught:
        run(root, broken(tmp_path))
    assert caught.value.exit_code == 11
    assert nothing_published(root)
    assert list(root.glob("tokens/some/.draft-*/rejects.jsonl.zst"))


def test_raising_max_bad_publishes_the_complete_units(tmp_path: Path, root: Path) -> None:
    inputs = broken(tmp_path)
    with pytest.raises(TooManyRejects):
        run(root, inputs)
    fresh = run(tmp_path / "fresh", inputs, max_bad=0.5).artifact
    assert run(root, inputs, max_bad=0.5).artifact.digest == fresh.digest


def test_a_plain_text_file_is_one_document(tmp_path: Path, root: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"砚山\n{name}", encoding="utf-8")
    tokens = run(root, tokens_stage.gather_inputs(root, [str(tmp_path / "a.txt")], [str(tmp_path / "b.txt")])).artifact
    assert (texts_of(tokens, "train"), texts_of(tokens, "val")) == (["砚山\na.txt"], ["砚山\nb.txt"])


def test_invalid_options_raise_bad_config() -> None:
    with pytest.raises(BadConfig, match="parquet"):
        TokenizeOptions("parquet")
    for fraction in (-0.1, 1.0, 1.5, float("nan")):
        with pytest.raises(BadConfig, match="val-fraction"):
            TokenizeOptions(val_fraction=fraction)


def test_copied_store_opens_without_its_root(tmp_path: Path, root: Path) -> None:
    tokens = run(root, some(tmp_path)).artifact
    copied = Path(shutil.copytree(tokens.path, tmp_path / "copied"))
    shutil.rmtree(root)
    assert texts_of(artifact.read(copied), "val")


def long_texts(shared: Path) -> list[str]:
    """Return documents of several kinds, most of them above 2,000 bytes."""
    pile = texts_in(shared / "data" / "pile_val.jsonl.zst")[:40]
    ci = texts_in(shared / "data" / "song_ci.txt")[0]
    spaced = "one two  three\n\n\n four\t" * 400
    return [*pile, ci[:30_000], "short", "\n".join(f"{n}  {{{n}}}" for n in range(3000)), spaced, "😀 été\u2028" * 900]


@pytest.mark.parametrize("encoding", ENDS)
@pytest.mark.parametrize("ascii_only", [False, True])
def test_document_encoded_in_parts_keeps_its_ids(
    shared: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, ascii_only: bool
) -> None:
    shrink_chunks(monkeypatch, 100_000, 20_000, long_line=2000)
    texts = long_texts(shared)
    packed = [json.dumps({"text": text, "meta": {"a": 1}}, ensure_ascii=ascii_only) for text in texts]
    inputs = content_inputs(tmp_path / "train.jsonl", "\n".join(packed))
    tokens = run(root, inputs, tokenizer=Tiktoken.named(encoding), min_chars=1, dedup="exact").artifact
    expected, lengths = reference(encoding, texts)
    assert np.array_equal(ids_of(tokens, "train"), expected)
    assert np.array_equal(tokens_segments.document_lengths(tokens, "train"), lengths)
    assert tokens.manifest.counts["input_bytes"] == sum(
        file.path.stat().st_size for file in (*inputs.train, *inputs.val)
    )


def test_long_documents_are_filtered_divided_and_deduplicated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text {n} " * (1 + 200 * (n % 3 == 0)) for n in (*range(60), *range(0, 60, 6))]
    files = [lines(tmp_path / "a.jsonl", texts, "kept"), lines(tmp_path / "b.jsonl", ["long " * 500], "other")]
    options: dict[str, Any] = {"include_sets": ("kept",), "dedup": "exact", "min_chars": 8, "val_fraction": 0.3}
    results = []
    for name, long_line in (("whole", 1 << 20), ("parts", 300)):
        shrink_chunks(monkeypatch, 4000, 1000, long_line)
        tokens = run(tmp_path / name, TokenizeInputs(tuple(files), ()), **options).artifact
        counted = ("train_documents", "val_documents", "sets", "longest_document", "train_characters", "input_bytes")
        results.append(
            (
                [texts_of(tokens, split) for split in tokens_segments.SPLITS],
                rejects(tokens),
                tokens.manifest.ledger,
                [tokens.manifest.counts[count] for count in counted],
            )
        )
        assert dropped(tokens) == {"duplicate": 10, "set-not-included": 1, "too-short": 6}
    assert results[0] == results[1]


def test_long_document_without_a_boundary_is_rejected(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink_chunks(monkeypatch, 4000, 1000, long_line=1000)
    monkeypatch.setattr(chunks, "MAX_UNBROKEN", 4000)
    inputs = train_inputs(tmp_path, "before", "x" * 9000, "after")
    tokens = run(root, inputs, tokenizer=Tiktoken.named("r50k_base"), max_bad=0.5).artifact
    assert texts_of(tokens, "train", Tiktoken.named("r50k_base")) == ["before", "after"]
    assert dropped(tokens) == {"bad-unbroken": 1}
    assert rejects(tokens) == [("train.jsonl", 2, inputs.train[0].path.read_bytes().index(b"\n") + 1, "bad-unbroken")]


@pytest.mark.parametrize("ending", ["\n", ""])
def test_overlong_line_is_rejected_and_the_next_is_read(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    shrink_chunks(monkeypatch, 4000, 1000, long_line=2000)
    monkeypatch.setattr(chunks, "MAX_LINE_BYTES", 10_000)
    long = '{"text":"' + "too long " * 300_000 + '"}'
    content = f'{{"text":"before"}}\n{long}\n{{"text":"between"}}\n{long}{ending}'
    tokens = run(root, content_inputs(tmp_path / "train.jsonl", content), max_bad=0.9).artifact
    assert texts_of(tokens, "train") == ["before", "between"]
    assert dropped(tokens) == {"bad-too-long": 2}
    assert [(line, reason) for _, line, _, reason in rejects(tokens)] == [(2, "bad-too-long"), (4, "bad-too-long")]
    assert [offset for _, _, offset, _ in rejects(tokens)] == [18, 18 + len(long) + 1 + 19]


INVALID_LONG_LINES = {
    '{"text":"' + "a b " * 900: "bad-json",
    '{"text":"' + "a b " * 900 + '\\ud800 "}': "bad-json",
    '{"text":[' + "1," * 2000 + "1]}": "bad-record",
    '{"title":"' + "a b " * 900 + '"}': "bad-record",
    '{"text":"","meta":"' + "a b " * 900 + '"}': "empty",
    " " * 3000: "blank-line",
}


def test_overlong_text_file_is_refused_by_name(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "MAX_LINE_BYTES", 3 << 20)
    shrink_chunks(monkeypatch, 4000, 1000, long_line=2000)
    with pytest.raises(BadData, match=r"book\.txt: a text file is one document") as caught:
        run(root, content_inputs(tmp_path / "book.txt", "too long " * 500_000))
    assert "split it" in caught.value.hint
    assert nothing_published(root)


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("limit", [0, 5])
def test_input_changed_while_read_publishes_nothing(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, limit: int
) -> None:
    shrink_chunks(monkeypatch, 4000, 1000)
    inputs = train_inputs(tmp_path, *TEXTS)
    lines(inputs.train[0].path, [*TEXTS, "one more"])
    with pytest.raises(BadData, match=r"train\.jsonl: the file changed while it was read"):
        run(root, inputs, jobs=jobs, max_documents=limit)
    assert nothing_published(root)
    assert no_draft(root)


def test_invalid_long_lines_are_counted_by_reason(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_chunks(monkeypatch, 4000, 1000, long_line=2000)
    content = "\n".join([*INVALID_LONG_LINES, '{"text":"good"}'])
    tokens = run(root, content_inputs(tmp_path / "train.jsonl", content), max_bad=0.9).artifact
    assert texts_of(tokens, "train") == ["good"]
    assert [reason for *_, reason in rejects(tokens)] == list(INVALID_LONG_LINES.values())


_MEASURED = """
import json, resource, sys, cli
code = cli.main(sys.argv[1:])
own = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([int(own.split()[1]) >> 10, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10]))
sys.exit(code)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_document_of_120_mb_needs_little_memory(shared: Path, tmp_path: Path) -> None:
    texts = texts_in(shared / "data" / "pile_train_00.jsonl.zst")
    text = "\n".join(texts * 8)[:120_000_000]
    file, val = lines(tmp_path / "long.jsonl", ["before", text, "after"]), lines(tmp_path / "val.jsonl", ["held out"])
    del text
    results = []
    for jobs in (1, 2):
        root = tmp_path / f"artifacts-{jobs}"
        arguments = ("--artifacts", root, "-q", "tokenize", file.path, "--val", val.path, "--tokenizer", "r50k_base")
        command = [sys.executable, "-c", _MEASURED, *map(str, arguments), "--jobs", str(jobs)]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr
        reader, workers = json.loads(process.stdout)  # MiB
        assert reader < 600
        assert workers < 1024
        tokens = artifact.current(root, "tokens", "long")
        assert tokens
        results.append(checksums(tokens))
        assert tokens.manifest.counts["train_characters"] == 120_000_011
    assert results[0] == results[1]


WITHOUT_GIGATOKEN = "import sys; sys.modules['gigatoken'] = None; import cli; sys.exit(cli.main(sys.argv[1:]))"


def test_tiktoken_gives_the_bytes_of_gigatoken_with_a_note(inkstone: Inkstone, shared: Path, root: Path) -> None:
    arguments = ("tokenize", shared / "data" / "pile_val.jsonl.zst", "--tokenizer", "r50k_base", "--jobs", "2")
    fast = inkstone(*arguments, "--name", "fast")
    slow = inkstone(*arguments, "--name", "slow", "--encoder", "tiktoken")
    command = [sys.executable, "-c", WITHOUT_GIGATOKEN, "--artifacts", str(root), "--json", *map(str, arguments)]
    process = subprocess.run([*command, "--name", "without"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "gigatoken is not installed: using tiktoken" in process.stderr
    without = json.loads(process.stdout)
    assert [outcome["encoder"] for outcome in (fast, slow, without)] == ["gigatoken", "tiktoken", "tiktoken"]
    assert "gigatoken" not in slow["stderr"]
    first, *others = (checksums(artifact.read(Path(outcome["path"]))) for outcome in (fast, slow, without))
    assert others == [first, first]
    refused = subprocess.run(
        [*command, "--encoder", "gigatoken"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 78
    assert "--encoder gigatoken: it is not installed" in refused.stderr


def test_unsupported_encoder_is_refused(inkstone: Inkstone, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", TEXTS).path
    for arguments, message in (
        (("p50k_base", "--encoder", "gigatoken"), "--encoder gigatoken: it does not support this encoding"),
        (("r50k_base", "--encoder", "fast"), "unknown encoder 'fast'"),
        (("trained", "--encoder", "tiktoken"), "trained is not one of tiktoken's encodings"),
    ):
        assert message in inkstone("tokenize", path, "--tokenizer", *arguments, code=78)["error"]


def test_tiktoken_encodes_unsupported_encodings(inkstone: Inkstone, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", TEXTS).path
    outcome = inkstone("tokenize", path, "--tokenizer", "p50k_base")
    assert outcome["encoder"] == "tiktoken"
    assert "gigatoken does not support this encoding: using tiktoken" in outcome["stderr"]


def test_other_bytes_of_the_same_size_and_time_are_noticed(inkstone: Inkstone, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", TEXTS).path
    os.utime(path, (1e9, 1e9))
    arguments = ("tokenize", path, "--tokenizer", "r50k_base")
    first = inkstone(*arguments)
    path.write_bytes(path.read_bytes().replace(b"document", b"Document"))
    os.utime(path, (1e9, 1e9))
    second = inkstone(*arguments)
    assert (first["result"], second["result"]) == ("built", "built")
    assert second["artifact"] != first["artifact"]


def test_parts_keep_their_ids_with_a_model_without_spaces(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = SentencePiece(without_spaces(), "unspaced")
    text = "ab abq zab ab " * 300
    shrink_chunks(monkeypatch, 4000, 1000, long_line=400)
    tokens = run(root, train_inputs(tmp_path, text), tokenizer=tokenizer, allow_unknown=True).artifact
    assert rows(tokens, "train") == [[*tokenizer.encode(text), tokenizer.end_of_text]]


def without_spaces() -> bytes:
    """Train a model on text without spaces, and without byte fallback."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["abab", "ba", "abba"] * 20),
        model_writer=out,
        model_type="bpe",
        vocab_size=6,
        add_dummy_prefix=False,
        normalization_rule_name="identity",
        bos_id=-1,
        minloglevel=2,
    )
    return out.getvalue()


# Documents that are trained on and validated on


@pytest.mark.parametrize("container", ["jsonl", "jsonl.zst", "txt", "json"])
def test_validation_documents_that_are_trained_on_are_refused(tmp_path: Path, root: Path, container: str) -> None:
    train, val = lines(tmp_path / "a.jsonl", TEXTS[:60]), tmp_path / f"b.{container}"
    if container == "txt":
        val.write_text(TEXTS[3])
    elif container == "json":
        poems = [{"title": "t", "author": "a", "paragraphs": TEXTS[:2]}]
        val.write_text(json.dumps(poems))
        train = lines(tmp_path / "a.jsonl", [*TEXTS, *texts_in(val)])
    else:
        data = lines(tmp_path / "b.jsonl", TEXTS[59::-1]).path.read_bytes()
        val.write_bytes(zstandard.compress(data) if container.endswith("zst") else data)
    inputs = TokenizeInputs((train,), (input_file(val),))
    with pytest.raises(BadData, match=r"more than half of the \d+ validation documents are in the training") as caught:
        run(root, inputs)
    assert "--allow-overlap" in caught.value.hint
    assert nothing_published(root)
    counts = run(root, inputs, allow_overlap=True).artifact.manifest.counts
    assert counts["overlap_documents"] == counts["val_documents"]


@pytest.mark.parametrize("long_line", [1 << 30, 40])
@pytest.mark.parametrize("jobs", [1, 2])
def test_validation_documents_that_are_trained_on_are_counted_with_a_warning(
    tmp_path: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    long_line: int,
    jobs: int,
) -> None:
    shrink_chunks(monkeypatch, 2000, 500, long_line)
    val = [*TEXTS[:4], TEXTS[0], TEXTS[0], *(f"held out {number}" for number in range(7))]
    inputs = TokenizeInputs(
        (lines(tmp_path / "a.jsonl", [*TEXTS[1:], *TEXTS[:3]]),), (lines(tmp_path / "b.jsonl", val),)
    )
    options = TokenizeOptions(val_fraction=None)
    with caplog.at_level("WARNING"):
        tokens = tokens_stage.tokenize(root, "some", inputs, LETTERS, None, options, Progress(), jobs=jobs).artifact
    assert tokens.manifest.counts["overlap_documents"] == 6
    assert "6 of 13 validation documents are in the training text too" in caplog.text
    none = run(root, inputs, dedup="exact").artifact
    assert "overlap_documents" not in none.manifest.counts
    assert none.manifest.counts["val_documents"] == 7


def test_overlap_of_reused_and_resumed_units_is_counted(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink_chunks(monkeypatch, 600, 150)
    val = lines(tmp_path / "val.jsonl", ["one", "two", TEXTS[2], TEXTS[70]])
    first, second = lines(tmp_path / "a.jsonl", TEXTS[:50]), lines(tmp_path / "b.jsonl", TEXTS[50:])
    assert run(root, TokenizeInputs((first,), (val,))).artifact.manifest.counts["overlap_documents"] == 1
    inputs = TokenizeInputs((first, second), (val,))
    assert run(root, inputs).artifact.manifest.counts["overlap_documents"] == 2
    assert run(root, inputs).artifact.digest == run(tmp_path / "fresh", inputs).artifact.digest
    other = TokenizeInputs((first, second), (lines(tmp_path / "other.jsonl", ["one", TEXTS[5], "two"]),))
    assert run(root, other).artifact.manifest.counts["overlap_documents"] == 1


def test_same_file_twice_counts_once_with_a_note(tmp_path: Path, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, copy = (str(lines(tmp_path / name, TEXTS).path) for name in ("a.jsonl", "copy.jsonl"))
    with caplog.at_level("INFO"):
        inputs = tokens_stage.gather_inputs(root, [path, path, copy], [])
    assert [file.name for file in inputs.train] == ["a.jsonl"]
    assert "left out 2 of 3 files: 2 same as a.jsonl" in caplog.text
    options = TokenizeOptions(val_fraction=0.1)
    tokens = tokens_stage.tokenize(root, "some", inputs, LETTERS, None, options, Progress(), jobs=1).artifact
    assert tokens.manifest.counts["documents"] == len(TEXTS)


def test_allow_overlap_accepts_the_same_file_to_train_and_to_validate(tmp_path: Path, root: Path) -> None:
    path = str(lines(tmp_path / "a.jsonl", TEXTS[:60]).path)
    with pytest.raises(BadConfig, match="both trained on and validated on"):
        tokens_stage.gather_inputs(root, [path], [path])
    inputs = tokens_stage.gather_inputs(root, [path], [path], allow_overlap=True)
    tokens = run(root, inputs, allow_overlap=True).artifact
    assert texts_of(tokens, "train") == texts_of(tokens, "val") == TEXTS[:60]

"""The tokenize stage: documents become token arrays, the same bytes by whatever way they were made."""

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

from pipeline import tokenizers
from pipeline.clean import stage as corpus
from pipeline.errors import BadConfig, BadData, TooManyRejects
from pipeline.readers import compression
from pipeline.runtime.progress import Silent
from pipeline.sources import cache
from pipeline.sources import inputs as raw
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Characters, SentencePiece, Tiktoken
from pipeline.tokenizers import stage as train_tokenizer
from pipeline.tokens import chunks as pieces
from pipeline.tokens import segments as tokens_segments
from pipeline.tokens import stage as tokenize
from pipeline.tokens.stage import Inputs, TokenizeOptions, divide
from pipeline.tokens.store import open_store
from pipeline.tokens.tasks import digest_of, is_validation
from tests.support import chaos
from tests.support.tokenizing import (
    LETTERS,
    TEXTS,
    all_train,
    dropped,
    given,
    ids_of,
    lines,
    no_draft,
    nothing_published,
    rejects,
    rows,
    run,
    small_pieces,
    some,
    sums,
    texts_in,
    texts_of,
    written,
)

ROOT = Path(__file__).resolve().parents[3]
SAMPLE = Path(__file__).resolve().parents[3] / "pipeline" / "sample"
ENDS = {"r50k_base": 50256, "cl100k_base": 100257, "o200k_base": 199999}
Inkstone = Callable[..., dict[str, Any]]


def held_out(text: str, fraction: float) -> bool:
    return is_validation(digest_of(text), fraction)


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    """A root with the corpus of the embedded sample and a small SentencePiece tokenizer trained on it."""
    root = tmp_path_factory.mktemp("artifacts")
    corpus.clean(root, "sample", raw.inputs(root, str(SAMPLE), corpora=False), corpus.CleanOptions(), Silent())
    sentences, made_from = train_tokenizer.sentences_of(root, "sample")
    return root, train_tokenizer.train(root, "sample", sentences, made_from, "bpe", 3000).artifact


def test_the_sample_corpus_reads_back_from_its_tokens(book: tuple[Path, Artifact]) -> None:
    root, trained = book
    tokenizer, _ = tokenizers.find(root, "sample")
    inputs = tokenize.gather(root, ["sample"], [])
    made = run(root, inputs, tokenizer=tokenizer, trained=trained).artifact
    texts = texts_in(inputs.train[0].path)
    assert texts_of(made, "train", tokenizer) == [text for text in texts if not held_out(text, 0.1)]
    assert texts_of(made, "val", tokenizer) == [text for text in texts if held_out(text, 0.1)]
    counts = made.manifest.counts
    assert counts["documents"] == counts["train_documents"] + counts["val_documents"] == len(texts) == 111
    assert counts["tokens"] == counts["train_tokens"] + counts["val_tokens"]
    assert counts["train_characters"] + counts["val_characters"] == sum(map(len, texts))
    assert counts["input_bytes"] == sum(map(len, compression.blocks(inputs.train[0].path)))
    assert (counts["dtype"], counts["vocab_size"]) == ("<u2", 3000)
    assert made.manifest.tokenizer == open_store(made).tokenizer.fingerprint == tokenizer.fingerprint


def test_a_corpus_names_its_own_digest_and_the_tokenizers_as_inputs(book: tuple[Path, Artifact]) -> None:
    root, trained = book
    tokenizer, _ = tokenizers.find(root, "sample")
    made = run(root, tokenize.gather(root, ["sample"], []), tokenizer=tokenizer, trained=trained).artifact
    found = artifact.find(root, "corpora", "sample")
    assert {(entry.role, entry.digest) for entry in made.manifest.inputs} == {
        ("train", found.digest),
        ("tokenizer", trained.digest),
    }


PILE = ("pile_train_00.jsonl.zst", "pile_train_01.jsonl.zst")
CHINESE = ("tang_poems.jsonl.zst", "song_ci.txt", "shuihu_raw.txt", "chinese-poetry")


@pytest.mark.parametrize(
    ("encoding", "names"),
    [
        ("r50k_base", (*PILE, *CHINESE)),
        ("cl100k_base", (PILE[0], *CHINESE[1:])),  # and the rest with the next: all of it takes tiktoken a minute
        ("o200k_base", (PILE[1], CHINESE[0])),
    ],
)
def test_the_ids_of_all_shared_text_are_those_of_tiktoken(
    shared: Path, root: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, names: Sequence[str]
) -> None:
    small_pieces(monkeypatch, 4 << 20, 1 << 20)
    data = shared / "data"
    inputs = tokenize.gather(root, [str(data / name) for name in names], [str(data / "pile_val.jsonl.zst")])
    made = run(root, inputs, tokenizer=Tiktoken.named(encoding), jobs=2).artifact
    assert made.manifest.counts["units"] > len(names)
    for files, split in ((inputs.train, "train"), (inputs.val, "val")):
        expected, lengths = reference(encoding, [text for file in files for text in texts_in(file.path)])
        assert np.array_equal(tokens_segments.document_lengths(made, split), lengths)
        assert np.array_equal(ids_of(made, split), expected)


def reference(encoding: str, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Flat ids and lengths by definition: every document by `encode_ordinary`, and the end-of-text id."""
    known, found, lengths = tiktoken.get_encoding(encoding), [], []
    for start in range(0, len(texts), 1000):  # arrays at once: as lists of numbers the ids take a gigabyte
        for ids in known.encode_ordinary_batch(list(texts[start : start + 1000]), num_threads=2):
            found.append(np.array([*ids, ENDS[encoding]], np.uint32))
            lengths.append(len(ids) + 1)
    return np.concatenate(found), np.array(lengths)


@pytest.mark.parametrize("layout", tokens_segments.FORMATS)
def test_one_worker_two_and_four_write_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    small_pieces(monkeypatch, 1000, 200)
    one, *others = (
        run(tmp_path / str(jobs), some(tmp_path), format=layout, dedup="exact", jobs=jobs).artifact
        for jobs in (1, 2, 4)[: 3 if layout == "both" else 2]
    )
    assert one.manifest.counts["units"] >= 9
    for other in others:
        assert (other.manifest, other.digest) == (one.manifest, one.digest)


@pytest.mark.parametrize("unit", [64, 500, 1000])
def test_many_units_hold_the_tokens_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: int) -> None:
    inputs = some(tmp_path)
    one = run(tmp_path / "one", inputs).artifact
    small_pieces(monkeypatch, unit, unit // 2)
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
    """The input file's number and the byte offset of every document of a split."""
    segments = [name.removesuffix(".bin") for name in sums(made) if name.startswith(split) and name.endswith(".bin")]
    return [(name.split("-")[1], int(at)) for name in segments for at in tokens_segments.source_offsets(made, name)]


def test_hash_seeds_locales_and_time_zones_do_not_show_in_the_bytes(shared: Path, tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", texts_in(shared / "data" / "pile_val.jsonl.zst") * 2, "Pile-CC").path
    changes = (
        {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"},
        {"PYTHONHASHSEED": "1", "LANG": "C", "LC_ALL": "C", "TZ": "Asia/Shanghai"},
    )
    found = []
    for number, change in enumerate(changes):
        options = ("--artifacts", tmp_path / str(number), "-q", "--tokenizer", "r50k_base", "--dedup", "exact")
        command = chaos.command("tokenize", file, *options, "--jobs", 2 - number, "--name", "some")
        subprocess.run(command, cwd=ROOT, env={**os.environ, **change}, check=True)
        made = artifact.current(tmp_path / str(number), "tokens", "some")
        assert made
        found.append((made.digest, sums(made)))
    assert found[0] == found[1]


def test_memmap_and_hdf5_and_both_hold_the_same_tokens(tmp_path: Path, root: Path) -> None:
    inputs = some(tmp_path)
    made = {layout: run(root, inputs, format=layout).artifact for layout in tokens_segments.FORMATS}
    stores = {layout: open_store(each) for layout, each in made.items()}
    for split in tokens_segments.SPLITS:
        arrays = [getattr(store, split) for store in stores.values()]
        first, *others = [array.read(0, len(array)).tolist() for array in arrays]
        assert others == [first, first]
        with h5py.File(made["both"].file(f"{split}.h5")) as file:
            assert file["tokens"][:].tolist() == first
            assert file["tokens"].attrs["end_of_text"] == LETTERS.end_of_text
            assert file["tokens"].attrs["tokenizer"] == LETTERS.fingerprint
            assert file["tokens"].attrs["documents"] == made["both"].manifest.counts[f"{split}_documents"]
    assert len({store.key for store in stores.values()}) == 1, "and so they are trained on in the same order"
    suffixes = {layout: {Path(name).suffix for name in sums(each)} for layout, each in made.items()}
    assert ".h5" not in suffixes["memmap"]
    assert ".bin" not in suffixes["hdf5"]
    assert {".h5", ".bin"} <= suffixes["both"]
    assert made["both"].manifest.ledger == made["memmap"].manifest.ledger == made["hdf5"].manifest.ledger


def test_nothing_but_its_own_files_is_published(tmp_path: Path, root: Path) -> None:
    made = run(root, some(tmp_path, files=2)).artifact
    stems = [f"{split}-0000{n}-0000" for split in tokens_segments.SPLITS for n in (0, 1)]
    segments = [f"{stem}{suffix}" for stem in stems for suffix in (".bin", ".idx", ".src")]
    others = ["rejects.jsonl.zst", "units.jsonl", "tokenizer.json", "characters.txt"]
    assert sorted(sums(made)) == sorted([*segments, *others])
    assert {path.name for path in made.path.iterdir()} == {*sums(made), "manifest.json", "run.json"}
    assert no_draft(root)


def test_about_the_share_that_was_asked_for_is_held_out() -> None:
    texts = [f"a document numbered {number}" for number in range(5000)]
    for fraction in (0.01, 0.05, 0.5):
        share = sum(held_out(text, fraction) for text in texts) / len(texts)
        assert share == pytest.approx(fraction, rel=0.2)
    assert not any(held_out(text, 0.0) for text in texts)


def test_adding_documents_or_files_never_moves_one_between_the_splits(tmp_path: Path) -> None:
    few = run(tmp_path / "few", some(tmp_path, TEXTS[:150], files=1)).artifact
    many = run(tmp_path / "many", some(tmp_path, TEXTS[::-1], files=4)).artifact
    for split in tokens_segments.SPLITS:
        assert set(texts_of(few, split)) <= set(texts_of(many, split))
    assert not set(texts_of(many, "train")) & set(texts_of(many, "val"))
    assert set(texts_of(many, "train")) | set(texts_of(many, "val")) == set(TEXTS)


def test_a_larger_share_only_adds_to_what_is_held_out() -> None:
    small = {text for text in TEXTS if held_out(text, 0.05)}
    assert small < {text for text in TEXTS if held_out(text, 0.2)}


def test_a_named_validation_file_holds_out_the_whole_of_it_and_nothing_else(tmp_path: Path, root: Path) -> None:
    train, val = lines(tmp_path / "train.jsonl", TEXTS), lines(tmp_path / "val.jsonl", ["held out", "and this"])
    made = run(root, tokenize.gather(root, [str(train.path)], [str(val.path)])).artifact
    assert texts_of(made, "train") == TEXTS
    assert texts_of(made, "val") == ["held out", "and this"]


def pinned(root: Path, source: str, **splits: tuple[str, Sequence[str]]) -> None:
    """A raw source whose lock says which of its files train, validate and test."""
    pins = {}
    for name, (split, texts) in splits.items():
        folder = cache.folder(root, source)
        folder.mkdir(parents=True, exist_ok=True)
        made = lines(folder / f"{name}.jsonl", texts)
        stat = made.path.stat()
        pins[made.path.name] = cache.RawFile(stat.st_size, made.digest, stat.st_mtime_ns, "https://x.test", split)
    cache.write_lock(root, source, pins)


def test_a_file_that_its_source_marks_as_val_validates_and_one_marked_test_stays_out(root: Path) -> None:
    pinned(root, "pile", a=("train", ["one", "two"]), b=("val", ["three"]), c=("test", ["four"]), d=("", ["five"]))
    made = run(root, tokenize.gather(root, ["pile"], [])).artifact
    assert texts_of(made, "train") == ["one", "two", "five"]
    assert texts_of(made, "val") == ["three"]


def test_a_validation_corpus_that_is_named_replaces_what_the_source_marks(tmp_path: Path, root: Path) -> None:
    pinned(root, "pile", a=("train", ["one", "two"]), b=("val", ["three"]))
    other = lines(tmp_path / "other.jsonl", ["six"])
    made = run(root, tokenize.gather(root, ["pile"], [str(other.path)])).artifact
    assert texts_of(made, "train") == ["one", "two"]
    assert texts_of(made, "val") == ["six"]


def test_a_source_of_validation_files_alone_is_divided_by_hash(root: Path) -> None:
    pinned(root, "pile", a=("val", TEXTS))
    made = run(root, tokenize.gather(root, ["pile"], [])).artifact
    assert sorted(texts_of(made, "train") + texts_of(made, "val")) == sorted(TEXTS)


def test_an_empty_validation_split_is_bad_data_and_publishes_nothing(tmp_path: Path, root: Path) -> None:
    with pytest.raises(BadData, match="the val split is empty") as caught:
        run(root, some(tmp_path), val_fraction=0.0)
    assert caught.value.exit_code == 65
    assert "--val" in caught.value.hint
    assert nothing_published(root)
    assert no_draft(root)


def test_an_empty_training_split_is_bad_data(tmp_path: Path, root: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text":""}\n')
    inputs = tokenize.gather(root, [str(tmp_path / "a.jsonl")], [str(lines(tmp_path / "b.jsonl", ["val"]).path)])
    with pytest.raises(BadData, match="the train split is empty"):
        run(root, inputs)


def test_training_and_validating_on_the_same_text_is_refused(tmp_path: Path) -> None:
    train, copy = lines(tmp_path / "a.jsonl", TEXTS), lines(tmp_path / "copy.jsonl", TEXTS)
    with pytest.raises(BadConfig, match=r"a\.jsonl is both trained on and validated on"):
        divide([train], [copy])


def test_a_second_run_is_unchanged(tmp_path: Path, root: Path) -> None:
    first, second = (run(root, some(tmp_path)) for _ in range(2))
    assert (first.result, second.result) == ("built", "unchanged")
    assert first.artifact == second.artifact


def test_what_decides_the_bytes_decides_the_key(tmp_path: Path) -> None:
    inputs = some(tmp_path)
    options = (
        TokenizeOptions(),
        TokenizeOptions("hdf5"),
        TokenizeOptions(val_fraction=0.5),
        TokenizeOptions(include_sets=("a",)),
        TokenizeOptions(exclude_sets=("a",)),
        TokenizeOptions(min_chars=1),
        TokenizeOptions(max_documents=1),
        TokenizeOptions(dedup="exact"),
    )
    keys = [tokenize.identify("some", inputs, LETTERS, None, each).key for each in options]
    keys += [tokenize.identify("some", Inputs(inputs.train[::-1], ()), LETTERS, None, options[0]).key]
    keys += [tokenize.identify("some", Inputs(inputs.train[:2], inputs.train[2:]), LETTERS, None, options[0]).key]
    keys += [tokenize.identify("some", inputs, Characters("ab", "letters"), None, options[0]).key]
    assert len(set(keys)) == len(keys)
    assert tokenize.identify("other", inputs, LETTERS, None, TokenizeOptions(max_bad=0.5)).key == keys[0]
    both = [TokenizeOptions(include_sets=names) for names in (("a", "b"), ("b", "a"))]
    assert len({tokenize.identify("some", inputs, LETTERS, None, each).key for each in both}) == 1


@pytest.mark.parametrize("at", [0, 2, 7])
def test_one_other_id_than_tiktokens_in_a_document_that_is_compared_stops_everything(
    shared: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    right = Tiktoken.encode_batch

    def wrong(self: Tiktoken, texts: Sequence[str]) -> tokenizers.FlatIds:
        ids, lengths = right(self, texts)
        ids = ids.copy()
        ids[lengths[: at + 1].sum() - 1] += 1  # the last id of the document
        return ids, lengths

    monkeypatch.setattr(Tiktoken, "encode_batch", wrong)
    inputs = all_train(tmp_path, *TEXTS)
    offset = inputs.train[0].path.read_bytes().index(TEXTS[at].encode()) - len('{"text":"')
    with pytest.raises(BadData, match=rf"train\.jsonl: the document at byte {offset:,} .* gigatoken and by tiktoken"):
        run(root, inputs, tokenizer=Tiktoken.named("r50k_base"))
    assert nothing_published(root)
    assert no_draft(root)


def test_documents_are_compared_with_the_reference_and_counted(tmp_path: Path, root: Path) -> None:
    made = run(root, Inputs((lines(tmp_path / "a.jsonl", ["x"] * 20_000),), all_train(tmp_path, "y").val)).artifact
    first, drawn, val = 8, made.manifest.counts["compared"] - 9, 1
    assert first + val == 9
    assert 10 <= drawn <= 30  # about one in 1,000


def broken(tmp_path: Path) -> Inputs:
    """One file of two good lines, one that is cut, one that is blank and one that holds nothing."""
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b'{"text":"one"}\n{"text":"cut\n\n{"text":""}\n{"text":"two"}\n')
    return Inputs((given(path),), (lines(tmp_path / "val.jsonl", ["val"]),))


def test_broken_lines_are_counted_and_set_aside(tmp_path: Path, root: Path) -> None:
    made = run(root, broken(tmp_path), max_bad=0.5).artifact
    assert texts_of(made, "train") == ["one", "two"]
    ledger = made.manifest.ledger
    assert ledger["documents"] == {"in": 6, "out": 3, "dropped": {"bad-json": 1, "blank-line": 1, "empty": 1}}
    assert ledger["characters"] == {"in": 21, "out": 9, "dropped": {"bad-json": 12}}
    assert rejects(made) == [
        ("broken.jsonl", 2, 15, "bad-json"),
        ("broken.jsonl", 3, 28, "blank-line"),
        ("broken.jsonl", 4, 29, "empty"),
    ]


def test_too_many_broken_lines_publish_nothing(tmp_path: Path, root: Path) -> None:
    with pytest.raises(TooManyRejects, match="1 of 6 documents are bad") as caught:
        run(root, broken(tmp_path))
    assert caught.value.exit_code == 11
    assert nothing_published(root)
    assert list(root.glob("tokens/some/.draft-*/rejects.jsonl.zst"))


def test_raising_max_bad_afterwards_publishes_what_was_done(tmp_path: Path, root: Path) -> None:
    inputs = broken(tmp_path)
    with pytest.raises(TooManyRejects):
        run(root, inputs)
    fresh = run(tmp_path / "fresh", inputs, max_bad=0.5).artifact
    assert run(root, inputs, max_bad=0.5).artifact.digest == fresh.digest


def test_a_plain_text_file_is_one_document(tmp_path: Path, root: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"砚山\n{name}", encoding="utf-8")
    made = run(root, tokenize.gather(root, [str(tmp_path / "a.txt")], [str(tmp_path / "b.txt")])).artifact
    assert (texts_of(made, "train"), texts_of(made, "val")) == (["砚山\na.txt"], ["砚山\nb.txt"])


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(BadConfig, match="parquet"):
        TokenizeOptions("parquet")
    for fraction in (-0.1, 1.0, 1.5, float("nan")):
        with pytest.raises(BadConfig, match="val-fraction"):
            TokenizeOptions(val_fraction=fraction)


def test_a_store_that_was_copied_elsewhere_is_all_that_is_needed(tmp_path: Path, root: Path) -> None:
    made = run(root, some(tmp_path)).artifact
    copied = Path(shutil.copytree(made.path, tmp_path / "copied"))
    shutil.rmtree(root)
    assert texts_of(artifact.read(copied), "val")


def long_texts(shared: Path) -> list[str]:
    """Documents of several kinds, most of them long where 2,000 bytes are."""
    pile = texts_in(shared / "data" / "pile_val.jsonl.zst")[:40]
    ci = texts_in(shared / "data" / "song_ci.txt")[0]
    spaced = "one two  three\n\n\n four\t" * 400
    return [*pile, ci[:30_000], "short", "\n".join(f"{n}  {{{n}}}" for n in range(3000)), spaced, "😀 été\u2028" * 900]


@pytest.mark.parametrize("encoding", ENDS)
@pytest.mark.parametrize("ascii_only", [False, True])
def test_the_ids_of_a_document_that_is_encoded_in_parts_are_those_of_the_whole(
    shared: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, ascii_only: bool
) -> None:
    small_pieces(monkeypatch, 100_000, 20_000, long_line=2000)
    texts = long_texts(shared)
    packed = [json.dumps({"text": text, "meta": {"a": 1}}, ensure_ascii=ascii_only) for text in texts]
    inputs = written(tmp_path / "train.jsonl", "\n".join(packed))
    made = run(root, inputs, tokenizer=Tiktoken.named(encoding), min_chars=1, dedup="exact").artifact
    expected, lengths = reference(encoding, texts)
    assert np.array_equal(ids_of(made, "train"), expected)
    assert np.array_equal(tokens_segments.document_lengths(made, "train"), lengths)
    assert made.manifest.counts["input_bytes"] == sum(file.path.stat().st_size for file in (*inputs.train, *inputs.val))


def test_long_documents_are_chosen_divided_and_known_again_like_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"text {n} " * (1 + 200 * (n % 3 == 0)) for n in (*range(60), *range(0, 60, 6))]
    files = [lines(tmp_path / "a.jsonl", texts, "kept"), lines(tmp_path / "b.jsonl", ["long " * 500], "other")]
    options: dict[str, Any] = {"include_sets": ("kept",), "dedup": "exact", "min_chars": 8, "val_fraction": 0.3}
    found = []
    for name, long_line in (("whole", 1 << 20), ("parts", 300)):
        small_pieces(monkeypatch, 4000, 1000, long_line)
        made = run(tmp_path / name, Inputs(tuple(files), ()), **options).artifact
        told = ("train_documents", "val_documents", "sets", "longest_document", "train_characters", "input_bytes")
        found.append(
            (
                [texts_of(made, split) for split in tokens_segments.SPLITS],
                rejects(made),
                made.manifest.ledger,
                [made.manifest.counts[each] for each in told],
            )
        )
        assert dropped(made) == {"duplicate": 10, "set-not-included": 1, "too-short": 6}
    assert found[0] == found[1]


def test_a_long_document_without_a_place_to_cut_is_set_aside_and_the_rest_is_read(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pieces(monkeypatch, 4000, 1000, long_line=1000)
    monkeypatch.setattr(pieces, "MAX_UNBROKEN", 4000)
    inputs = all_train(tmp_path, "before", "x" * 9000, "after")
    made = run(root, inputs, tokenizer=Tiktoken.named("r50k_base"), max_bad=0.5).artifact
    assert texts_of(made, "train", Tiktoken.named("r50k_base")) == ["before", "after"]
    assert dropped(made) == {"bad-unbroken": 1}
    assert rejects(made) == [("train.jsonl", 2, inputs.train[0].path.read_bytes().index(b"\n") + 1, "bad-unbroken")]


@pytest.mark.parametrize("ending", ["\n", ""])
def test_a_line_that_is_too_long_is_counted_and_the_rest_is_read(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    small_pieces(monkeypatch, 4000, 1000, long_line=2000)
    monkeypatch.setattr(pieces, "MAX_LINE", 10_000)
    long = '{"text":"' + "too long " * 300_000 + '"}'
    content = f'{{"text":"before"}}\n{long}\n{{"text":"between"}}\n{long}{ending}'
    made = run(root, written(tmp_path / "train.jsonl", content), max_bad=0.9).artifact
    assert texts_of(made, "train") == ["before", "between"]
    assert dropped(made) == {"bad-too-long": 2}
    assert [(line, reason) for _, line, _, reason in rejects(made)] == [(2, "bad-too-long"), (4, "bad-too-long")]
    assert [offset for _, _, offset, _ in rejects(made)] == [18, 18 + len(long) + 1 + 19]


LONG_LINES_THAT_ARE_NO_DOCUMENT = {
    '{"text":"' + "a b " * 900: "bad-json",
    '{"text":"' + "a b " * 900 + '\\ud800 "}': "bad-json",
    '{"text":[' + "1," * 2000 + "1]}": "bad-record",
    '{"title":"' + "a b " * 900 + '"}': "bad-record",
    '{"text":"","meta":"' + "a b " * 900 + '"}': "empty",
    " " * 3000: "blank-line",
}


def test_a_text_file_that_is_too_long_is_refused_by_name(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "MAX_LINE", 3 << 20)
    small_pieces(monkeypatch, 4000, 1000, long_line=2000)
    with pytest.raises(BadData, match=r"book\.txt: a text file is one document") as caught:
        run(root, written(tmp_path / "book.txt", "too long " * 500_000))
    assert "split it" in caught.value.hint
    assert nothing_published(root)


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("most", [0, 5])
def test_an_input_that_changes_while_it_is_read_is_not_published_as_what_it_was(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, most: int
) -> None:
    small_pieces(monkeypatch, 4000, 1000)
    inputs = all_train(tmp_path, *TEXTS)
    lines(inputs.train[0].path, [*TEXTS, "one more"])
    with pytest.raises(BadData, match=r"train\.jsonl: it changed while it was read"):
        run(root, inputs, jobs=jobs, max_documents=most)
    assert nothing_published(root)
    assert no_draft(root)


def test_a_long_line_that_is_no_document_is_counted_by_reason(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pieces(monkeypatch, 4000, 1000, long_line=2000)
    content = "\n".join([*LONG_LINES_THAT_ARE_NO_DOCUMENT, '{"text":"good"}'])
    made = run(root, written(tmp_path / "train.jsonl", content), max_bad=0.9).artifact
    assert texts_of(made, "train") == ["good"]
    assert [reason for *_, reason in rejects(made)] == list(LONG_LINES_THAT_ARE_NO_DOCUMENT.values())


_MEASURED = """
import json, resource, sys, cli
code = cli.main(sys.argv[1:])
own = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([int(own.split()[1]) >> 10, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10]))
sys.exit(code)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_document_of_120_mb_needs_little_memory(shared: Path, tmp_path: Path) -> None:
    texts = texts_in(shared / "data" / "pile_train_00.jsonl.zst")
    whole = "\n".join(texts * 8)[:120_000_000]
    file, val = lines(tmp_path / "long.jsonl", ["before", whole, "after"]), lines(tmp_path / "val.jsonl", ["held out"])
    del whole
    found = []
    for jobs in (1, 2):
        root = tmp_path / f"artifacts-{jobs}"
        asked = ("--artifacts", root, "-q", "tokenize", file.path, "--val", val.path, "--tokenizer", "r50k_base")
        command = [sys.executable, "-c", _MEASURED, *map(str, asked), "--jobs", str(jobs)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        own, workers = json.loads(done.stdout)  # MiB
        assert own < 600
        assert workers < 1024
        made = artifact.current(root, "tokens", "long")
        assert made
        found.append(sums(made))
        assert made.manifest.counts["train_characters"] == 120_000_011
    assert found[0] == found[1]


WITHOUT_GIGATOKEN = "import sys; sys.modules['gigatoken'] = None; import cli; sys.exit(cli.main(sys.argv[1:]))"


def test_without_gigatoken_tiktoken_gives_the_same_bytes_and_a_note_says_so(
    inkstone: Inkstone, shared: Path, root: Path
) -> None:
    asked = ("tokenize", shared / "data" / "pile_val.jsonl.zst", "--tokenizer", "r50k_base", "--jobs", "2")
    fast = inkstone(*asked, "--name", "fast")
    slow = inkstone(*asked, "--name", "slow", "--encoder", "tiktoken")
    command = [sys.executable, "-c", WITHOUT_GIGATOKEN, "--artifacts", str(root), "--json", *map(str, asked)]
    done = subprocess.run([*command, "--name", "without"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "gigatoken is not installed: tiktoken encodes" in done.stderr
    without = json.loads(done.stdout)
    assert [each["encoder"] for each in (fast, slow, without)] == ["gigatoken", "tiktoken", "tiktoken"]
    assert "gigatoken" not in slow["stderr"]
    first, *others = (sums(artifact.read(Path(each["path"]))) for each in (fast, slow, without))
    assert others == [first, first]
    refused = subprocess.run(
        [*command, "--encoder", "gigatoken"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 78
    assert "--encoder gigatoken: it is not installed" in refused.stderr


def test_an_encoder_that_cannot_is_refused(inkstone: Inkstone, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", TEXTS).path
    for arguments, message in (
        (("p50k_base", "--encoder", "gigatoken"), "--encoder gigatoken: it does not know this encoding"),
        (("r50k_base", "--encoder", "fast"), "no encoder 'fast'"),
        (("trained", "--encoder", "tiktoken"), "trained is none of tiktoken's encodings"),
    ):
        assert message in inkstone("tokenize", path, "--tokenizer", *arguments, code=78)["error"]


def test_tiktoken_encodes_what_gigatoken_does_not_know(inkstone: Inkstone, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", TEXTS).path
    said = inkstone("tokenize", path, "--tokenizer", "p50k_base")
    assert said["encoder"] == "tiktoken"
    assert "gigatoken does not know this encoding: tiktoken encodes" in said["stderr"]


def test_an_unchanged_input_is_known_by_its_size_and_time_and_not_read(inkstone: Inkstone, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", TEXTS).path
    os.utime(path, (1e9, 1e9))
    asked = ("tokenize", path, "--tokenizer", "r50k_base")
    first = inkstone(*asked)
    path.write_bytes(path.read_bytes().replace(b"document", b"Document"))
    os.utime(path, (1e9, 1e9))
    second = inkstone(*asked)
    assert (first["result"], second["result"]) == ("built", "unchanged")
    assert second["artifact"] == first["artifact"]
    assert second["seconds"] < 2
    deep = inkstone(*asked, "--deep")
    assert deep["result"] == "built"
    assert deep["artifact"] != first["artifact"]


def test_parts_of_a_long_document_have_the_ids_of_the_whole_by_a_model_that_does_not_know_the_space(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = SentencePiece(without_spaces(), "unspaced")
    text = "ab abq zab ab " * 300
    small_pieces(monkeypatch, 4000, 1000, long_line=400)
    made = run(root, all_train(tmp_path, text), tokenizer=tokenizer).artifact
    assert rows(made, "train") == [[*tokenizer.encode(text), tokenizer.end_of_text]]


def without_spaces() -> bytes:
    """A model that was trained on text without spaces, and without the bytes that would stand for them."""
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

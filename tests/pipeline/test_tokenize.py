"""The tokenize stage: documents become token arrays, the same bytes by whatever way they were made."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest
import tiktoken

from pipeline import artifact, corpus, documents, raw, tokenize, tokenizers, tokens, train_tokenizer
from pipeline.artifact import Artifact, Built
from pipeline.errors import BadConfig, BadData, TooManyRejects
from pipeline.ledger import Ledger
from pipeline.progress import Silent
from pipeline.tokenize import Inputs, TokenizeOptions, Unit, divide, is_validation
from pipeline.tokenizers import Characters, Tiktoken, Tokenizer
from pipeline.tokens import open_store, read_index

SAMPLE = Path(tokenize.__file__).parent / "sample"
LETTERS = Characters("".join(map(chr, range(32, 127))) + "\n砚山石水", "letters")
TEXTS = [f"document {number} of some" for number in range(200)]


def lines(path: Path, texts: Sequence[str]) -> raw.InputFile:
    """A file of JSON lines, as an input."""
    path.write_bytes(b"".join(documents.json_line(text, "", "", None) for text in texts))
    (found,) = raw.inputs(path.parent, str(path), corpora=False)
    return found


def run(
    root: Path,
    inputs: Inputs,
    *,
    tokenizer: Tokenizer = LETTERS,
    trained: Artifact | None = None,
    layout: str = "memmap",
    val_fraction: float = 0.1,
    max_bad: float = 0.001,
    jobs: int = 1,
) -> Built:
    options = TokenizeOptions(layout, 0.0 if inputs.val else val_fraction, max_bad)
    return tokenize.tokenize(root, "some", inputs, tokenizer, trained, options, Silent(), jobs=jobs)


def some(tmp_path: Path, texts: Sequence[str] = TEXTS, files: int = 3) -> Inputs:
    """`texts` dealt out to a few files, to be divided by hash."""
    return Inputs(tuple(lines(tmp_path / f"{n}.jsonl", texts[n::files]) for n in range(files)), ())


def rows(made: Artifact, split: str) -> list[list[int]]:
    """The documents of a split, each with its end-of-text id."""
    store = open_store(made)
    array = {"train": store.train, "val": store.val}[split]
    lengths = np.concatenate([read_index(path) for path in sorted(made.path.glob(f"{split}-*.idx"))])
    return [part.tolist() for part in np.split(array.read(0, len(array)), np.cumsum(lengths)[:-1])]


def texts_of(made: Artifact, split: str, tokenizer: Tokenizer = LETTERS) -> list[str]:
    found = rows(made, split)
    assert all(row[-1] == tokenizer.end_of_text for row in found)
    return [tokenizer.decode(row[:-1]) for row in found]


def sums(made: Artifact) -> dict[str, str]:
    return {record.name: record.sha256 for record in made.manifest.files}


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
    texts = [each.text for each in documents.read(inputs.train[0].path, Ledger(), print)]
    assert texts_of(made, "train", tokenizer) == [text for text in texts if not is_validation(text, 0.1)]
    assert texts_of(made, "val", tokenizer) == [text for text in texts if is_validation(text, 0.1)]
    counts = made.manifest.counts
    assert counts["documents"] == counts["train_documents"] + counts["val_documents"] == len(texts) == 111
    assert counts["tokens"] == counts["train_tokens"] + counts["val_tokens"]
    assert counts["train_characters"] + counts["val_characters"] == sum(map(len, texts))
    assert counts["input_bytes"] == sum(len(text.encode()) for text in texts)
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


def test_the_ids_of_the_pile_are_those_of_tiktoken(shared: Path, root: Path) -> None:
    train, val = (shared / "data" / name for name in ("pile_train_00.jsonl.zst", "pile_val.jsonl.zst"))
    inputs = tokenize.gather(root, [str(train)], [str(val)])
    made = run(root, inputs, tokenizer=Tiktoken.named("r50k_base"), jobs=2).artifact
    reference = tiktoken.get_encoding("r50k_base")
    for path, split in ((train, "train"), (val, "val")):
        texts = [each.text for each in documents.read(path, Ledger(), print)]
        wanted = [[*ids, 50256] for ids in reference.encode_ordinary_batch(texts, num_threads=2)]
        array = getattr(open_store(made), split)
        assert np.array_equal(array.read(0, len(array)), np.concatenate(wanted))
        (index,) = made.path.glob(f"{split}-*.idx")
        assert read_index(index).tolist() == list(map(len, wanted))


def test_text_that_spells_the_end_of_text_ends_no_document(shared: Path, tmp_path: Path, root: Path) -> None:
    texts = ["one<|endoftext|>two", "<|endoftext|>", "three"]
    inputs = Inputs((lines(tmp_path / "a.jsonl", texts),), (lines(tmp_path / "b.jsonl", ["four"]),))
    made = run(root, inputs, tokenizer=Tiktoken.named("r50k_base")).artifact
    assert [row.count(50256) for row in rows(made, "train")] == [1, 1, 1]
    assert texts_of(made, "train", Tiktoken.named("r50k_base")) == texts


@pytest.mark.parametrize("layout", tokens.FORMATS)
def test_one_worker_and_two_write_the_same_bytes(tmp_path: Path, layout: str) -> None:
    inputs = some(tmp_path)
    one = run(tmp_path / "one", inputs, layout=layout, jobs=1).artifact
    two = run(tmp_path / "two", inputs, layout=layout, jobs=2).artifact
    assert one.manifest == two.manifest
    assert one.digest == two.digest


def test_memmap_and_hdf5_and_both_hold_the_same_tokens(tmp_path: Path, root: Path) -> None:
    inputs = some(tmp_path)
    made = {layout: run(root, inputs, layout=layout).artifact for layout in tokens.FORMATS}
    stores = {layout: open_store(each) for layout, each in made.items()}
    for split in tokens.SPLITS:
        arrays = [getattr(store, split) for store in stores.values()]
        first, *others = [array.read(0, len(array)).tolist() for array in arrays]
        assert others == [first, first]
        with h5py.File(made["both"].file(f"{split}.h5")) as file:
            assert file["tokens"][:].tolist() == first
            assert file["tokens"].attrs["end_of_text"] == LETTERS.end_of_text
            assert file["tokens"].attrs["tokenizer"] == LETTERS.fingerprint
            assert file["tokens"].attrs["documents"] == made["both"].manifest.counts[f"{split}_documents"]
    suffixes = {layout: {Path(name).suffix for name in sums(each)} for layout, each in made.items()}
    assert ".h5" not in suffixes["memmap"]
    assert ".bin" not in suffixes["hdf5"]
    assert {".h5", ".bin"} <= suffixes["both"]
    assert made["both"].manifest.ledger == made["memmap"].manifest.ledger == made["hdf5"].manifest.ledger


def test_nothing_but_its_own_files_is_published(tmp_path: Path, root: Path) -> None:
    made = run(root, some(tmp_path, files=2)).artifact
    segments = [f"{split}-0000{n}{suffix}" for split in tokens.SPLITS for n in (0, 1) for suffix in (".bin", ".idx")]
    others = ["rejects-00000.jsonl.zst", "rejects-00001.jsonl.zst", "tokenizer.json", "characters.txt"]
    assert sorted(sums(made)) == sorted([*segments, *others])
    assert not list(root.glob("tokens/some/.draft-*"))


def test_about_the_share_that_was_asked_for_is_held_out() -> None:
    texts = [f"a document numbered {number}" for number in range(5000)]
    for fraction in (0.01, 0.05, 0.5):
        held_out = sum(is_validation(text, fraction) for text in texts) / len(texts)
        assert held_out == pytest.approx(fraction, rel=0.2)
    assert not any(is_validation(text, 0.0) for text in texts)


def test_adding_documents_or_files_never_moves_one_between_the_splits(tmp_path: Path) -> None:
    few = run(tmp_path / "few", some(tmp_path, TEXTS[:150], files=1)).artifact
    many = run(tmp_path / "many", some(tmp_path, TEXTS[::-1], files=4)).artifact
    for split in tokens.SPLITS:
        assert set(texts_of(few, split)) <= set(texts_of(many, split))
    assert not set(texts_of(many, "train")) & set(texts_of(many, "val"))
    assert set(texts_of(many, "train")) | set(texts_of(many, "val")) == set(TEXTS)


def test_a_larger_share_only_adds_to_what_is_held_out() -> None:
    small = {text for text in TEXTS if is_validation(text, 0.05)}
    assert small < {text for text in TEXTS if is_validation(text, 0.2)}


def test_a_named_validation_file_holds_out_the_whole_of_it_and_nothing_else(tmp_path: Path, root: Path) -> None:
    train, val = lines(tmp_path / "train.jsonl", TEXTS), lines(tmp_path / "val.jsonl", ["held out", "and this"])
    made = run(root, tokenize.gather(root, [str(train.path)], [str(val.path)])).artifact
    assert texts_of(made, "train") == TEXTS
    assert texts_of(made, "val") == ["held out", "and this"]


def pinned(root: Path, source: str, **splits: tuple[str, Sequence[str]]) -> None:
    """A raw source whose lock says which of its files train, validate and test."""
    pins = {}
    for name, (split, texts) in splits.items():
        folder = raw.folder(root, source)
        folder.mkdir(parents=True, exist_ok=True)
        made = lines(folder / f"{name}.jsonl", texts)
        stat = made.path.stat()
        pins[made.path.name] = raw.RawFile(stat.st_size, made.digest, stat.st_mtime_ns, "https://x.test", split)
    raw.write_lock(root, source, pins)


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
    assert not list(root.glob("tokens/some/[!.]*"))
    assert not list(root.glob("tokens/some/.draft-*"))


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
    options = (TokenizeOptions(), TokenizeOptions("hdf5"), TokenizeOptions(val_fraction=0.5))
    keys = [tokenize.identify("some", inputs, LETTERS, None, each).key for each in options]
    keys += [tokenize.identify("some", Inputs(inputs.train[::-1], ()), LETTERS, None, options[0]).key]
    keys += [tokenize.identify("some", Inputs(inputs.train[:2], inputs.train[2:]), LETTERS, None, options[0]).key]
    keys += [tokenize.identify("some", inputs, Characters("ab", "letters"), None, options[0]).key]
    assert len(set(keys)) == len(keys)
    assert tokenize.identify("other", inputs, LETTERS, None, TokenizeOptions(max_bad=0.5)).key == keys[0]


def draft_of(root: Path, inputs: Inputs) -> Path:
    """The folder in which a run of `inputs` would go on, as a run that was killed leaves it."""
    identity = tokenize.identify("some", inputs, LETTERS, None, TokenizeOptions("memmap", 0.1))
    draft = artifact.draft_path(root, identity)
    draft.mkdir(parents=True)
    LETTERS.save(draft)
    return draft


def unit_of(inputs: Inputs, number: int, draft: Path) -> Unit:
    return Unit(inputs.train[number].path, number, "", 0.1, draft, "<u2")


def test_a_killed_run_goes_on_with_the_units_that_it_had_finished(tmp_path: Path) -> None:
    inputs = some(tmp_path)
    whole = run(tmp_path / "whole", inputs).artifact
    draft = draft_of(tmp_path / "killed", inputs)
    tokenize.encode(unit_of(inputs, 1, draft))
    (draft / "train-00002.bin").write_bytes(b"the unit it was in the middle of")
    done = (draft / "train-00001.bin").stat()
    resumed = run(tmp_path / "killed", inputs).artifact
    again = resumed.file("train-00001.bin").stat()
    assert (again.st_ino, again.st_mtime_ns) == (done.st_ino, done.st_mtime_ns)
    assert resumed.manifest == whole.manifest
    assert resumed.digest == whole.digest


def test_a_finished_unit_whose_file_is_of_another_size_is_done_again(tmp_path: Path) -> None:
    inputs = some(tmp_path)
    whole = run(tmp_path / "whole", inputs).artifact
    draft = draft_of(tmp_path / "killed", inputs)
    tokenize.encode(unit_of(inputs, 1, draft))
    (draft / "train-00001.bin").write_bytes(b"cut")
    assert run(tmp_path / "killed", inputs).artifact.digest == whole.digest


def test_a_finished_unit_whose_file_is_gone_is_done_again(tmp_path: Path) -> None:
    inputs = some(tmp_path)
    whole = run(tmp_path / "whole", inputs).artifact
    draft = draft_of(tmp_path / "killed", inputs)
    tokenize.encode(unit_of(inputs, 1, draft))
    (draft / "train-00001.bin").unlink()
    assert run(tmp_path / "killed", inputs).artifact.digest == whole.digest


def test_a_run_killed_while_it_wrote_a_record_leaves_no_trace_in_the_bytes(tmp_path: Path) -> None:
    inputs = some(tmp_path)
    whole = run(tmp_path / "whole", inputs).artifact
    draft = draft_of(tmp_path / "killed", inputs)
    (draft / ".tmp.unit-00001.json.0a1b2c3d").write_bytes(b'{"number":')
    assert run(tmp_path / "killed", inputs).artifact.digest == whole.digest


def test_a_fast_path_that_gives_one_other_id_is_caught(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Characters.encode_batch

    def wrong(self: Characters, texts: Sequence[str]) -> tokenizers.Encoded:
        ids, lengths = right(self, texts)
        ids[int(lengths[0]) + 2] += 1  # the third id of the second document
        return ids, lengths

    monkeypatch.setattr(Characters, "encode_batch", wrong)
    with pytest.raises(BadData, match=r"0\.jsonl: document 1 is encoded differently") as caught:
        run(root, some(tmp_path))
    assert caught.value.exit_code == 65
    assert not list(root.glob("tokens/some/[!.]*"))


def test_documents_are_compared_with_the_reference_and_counted(tmp_path: Path, root: Path) -> None:
    inputs = Inputs((lines(tmp_path / "a.jsonl", ["x"] * 2500),), (lines(tmp_path / "b.jsonl", ["y"] * 3),))
    assert run(root, inputs).artifact.manifest.counts["compared"] == (8 + 2) + 3


def broken(tmp_path: Path) -> Inputs:
    """One file of two good lines, one that is cut, one that is blank and one that holds nothing."""
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b'{"text":"one"}\n{"text":"cut\n\n{"text":""}\n{"text":"two"}\n')
    (found,) = raw.inputs(tmp_path, str(path), corpora=False)
    return Inputs((found,), (lines(tmp_path / "val.jsonl", ["val"]),))


def test_broken_lines_are_counted_and_set_aside(tmp_path: Path, root: Path) -> None:
    made = run(root, broken(tmp_path), max_bad=0.5).artifact
    assert texts_of(made, "train") == ["one", "two"]
    ledger = made.manifest.ledger
    assert ledger["documents"] == {"in": 6, "out": 3, "dropped": {"bad-json": 1, "blank-line": 1, "empty": 1}}
    assert ledger["characters"] == {"in": 21, "out": 9, "dropped": {"bad-json": 12}}
    entries = b"".join(compression.blocks(made.file("rejects-00000.jsonl.zst"))).splitlines()
    found: list[dict[str, Any]] = [msgspec.json.decode(entry) for entry in entries]
    assert [(each["file"], each["line"], each["offset"], each["reason"]) for each in found] == [
        ("broken.jsonl", 2, 15, "bad-json"),
        ("broken.jsonl", 3, 28, "blank-line"),
        ("broken.jsonl", 4, 29, "empty"),
    ]


def test_too_many_broken_lines_publish_nothing(tmp_path: Path, root: Path) -> None:
    with pytest.raises(TooManyRejects, match="1 of 6 documents are bad") as caught:
        run(root, broken(tmp_path))
    assert caught.value.exit_code == 11
    assert not list(root.glob("tokens/some/[!.]*"))
    assert list(root.glob("tokens/some/.draft-*/rejects-00000.jsonl.zst"))


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


def test_a_document_larger_than_a_batch_is_whole(tmp_path: Path, root: Path) -> None:
    texts = ["ab" * 2_200_000, "after", "ab" * 2_200_000 + "c"]
    inputs = Inputs((lines(tmp_path / "a.jsonl", texts),), (lines(tmp_path / "b.jsonl", ["val"]),))
    assert texts_of(run(root, inputs).artifact, "train") == texts


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(BadConfig, match="parquet"):
        TokenizeOptions("parquet")
    for fraction in (-0.1, 1.0, 1.5, float("nan")):
        with pytest.raises(BadConfig, match="val-fraction"):
            TokenizeOptions(val_fraction=fraction)


def test_a_wide_vocabulary_takes_four_bytes(tmp_path: Path, root: Path) -> None:
    wide = Characters("".join(map(chr, (*range(0x4E00, 0xA000), *range(0x20000, 0x2B000)))), "wide")
    assert wide.vocab_size > 65_536
    inputs = Inputs((lines(tmp_path / "a.jsonl", ["丁\U0002afff"]),), (lines(tmp_path / "b.jsonl", ["丁"]),))
    made = run(root, inputs, tokenizer=wide).artifact
    assert made.manifest.counts["dtype"] == "<u4"
    assert rows(made, "train") == [[wide.encode("丁")[0], wide.vocab_size - 1, 0]]


def test_a_store_that_was_copied_elsewhere_is_all_that_is_needed(tmp_path: Path, root: Path) -> None:
    made = run(root, some(tmp_path)).artifact
    copied = Path(shutil.copytree(made.path, tmp_path / "copied"))
    shutil.rmtree(root)
    assert texts_of(artifact.read(copied), "val")

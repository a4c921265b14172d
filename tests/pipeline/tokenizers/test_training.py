"""Training: the default vocabulary, samples of large texts, several corpora, byte-level BPE."""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path

import pytest

from pipeline import tokenizers
from pipeline.clean import stage as clean_stage
from pipeline.clean.options import CleanOptions
from pipeline.errors import BadConfig, BadData, TryAgain
from pipeline.readers import readers
from pipeline.runtime.ledger import Ledger
from pipeline.runtime.progress import Progress, SilentProgress
from pipeline.sources import inputs as source_inputs
from pipeline.store.artifact import BuildResult
from pipeline.store.manifest import Input
from pipeline.tokenizers import Characters, FastTokenizer, open_folder, training_text
from pipeline.tokenizers import stage as tokenizers_stage
from pipeline.tokenizers.training_text import Sentences
from tests.pipeline.tokenizers.shapes import library
from tests.pipeline.tokenizers.test_fast_tokenizer import ENGLISH, random_texts
from tests.pipeline.tokenizers.test_huggingface import NOVELS, PILE, POEMS, texts
from tests.pipeline.tokenizers.test_tokenizers import BOOK, SAMPLE, TRICKY, rows
from tests.support.notes import Notes


def write(folder: Path, text: str, name: str = "text.txt") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="\n")
    return str(path)


def train(
    folder: Path, text: str, kind: str, vocab_size: int | str | None = None, progress: Progress | None = None
) -> BuildResult:
    sentences = tokenizers_stage.find_sentences(folder, [write(folder, text)])
    return tokenizers_stage.train(folder / "artifacts", "text", sentences, kind, vocab_size, progress=progress)


MIXED = "".join(
    f"{english}\n{chinese}\n" for english, chinese in zip(ENGLISH.split("."), BOOK.split("。"), strict=False)
)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "bbpe"])
@pytest.mark.parametrize("length", [1, 300, 5_000])
@pytest.mark.parametrize("text", [ENGLISH * 30, BOOK, MIXED, "ab" * 3_000], ids=["english", "chinese", "mixed", "ab"])
def test_default_vocabulary_can_be_trained_on_any_text(tmp_path: Path, kind: str, length: int, text: str) -> None:
    progress = Notes()
    tokenizer = open_folder(train(tmp_path, text[:length], kind, progress=progress).artifact.path)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(progress.lines) == 1
    assert progress.lines[0].startswith(f"vocabulary {tokenizer.vocab_size:,} (")


def test_default_vocabulary_is_the_advice_for_the_text(tmp_path: Path) -> None:
    progress = Notes()
    built = train(tmp_path, BOOK * 12, "bpe", "auto", progress)
    assert built.artifact.manifest.counts["vocab_size"] == 4_000
    characters = 12 * (len(BOOK) - BOOK.count("\n"))
    assert progress.lines == [f"vocabulary 4,000 (advised for {characters:,} characters)"]
    assert train(tmp_path, BOOK * 12, "bpe").artifact == built.artifact


@pytest.mark.parametrize("kind", ["bpe", "unigram", "bbpe"])
def test_size_that_is_too_large_names_the_possible_one(tmp_path: Path, kind: str) -> None:
    with pytest.raises(BadData, match=f"{kind} vocabulary of 90,000") as caught:
        train(tmp_path, BOOK[:4000], kind, 90_000)
    size = re.search(r"--vocab-size (\d+), or --vocab-size auto", caught.value.hint)
    assert size
    assert train(tmp_path, BOOK[:4000], kind, size[1]).artifact.manifest.counts["vocab_size"] == int(size[1])


def test_all_characters_are_the_default_of_char(tmp_path: Path) -> None:
    built = train(tmp_path, "山水", "char", "auto")
    assert built.artifact.manifest.counts["vocab_size"] == 4
    assert built.artifact.manifest.options["vocab_size"] == 0


@pytest.mark.parametrize("vocab_size", ["many", "-3", "1.5"])
def test_size_that_is_no_number_raises_bad_config(tmp_path: Path, vocab_size: str) -> None:
    with pytest.raises(BadConfig, match="must be a number or auto"):
        train(tmp_path, "山水", "bpe", vocab_size)


# Text


def test_sample_is_spread_evenly_and_within_the_limit() -> None:
    items = [b"%05d" % number for number in range(10_000)]
    chosen = list(training_text.sample(items, 50_000, 10_000))
    assert sum(map(len, chosen)) == 10_000
    numbers = [int(item) for item in chosen]
    assert {after - before for before, after in itertools.pairwise(numbers)} == {5}
    assert list(training_text.sample(items, 50_000, 50_000)) == list(training_text.sample(items, 50_000, 0)) == items


def test_large_text_is_sampled_and_its_key_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = tokenizers_stage.find_sentences(tmp_path, [write(tmp_path, BOOK)])
    complete = tokenizers_stage.identify("text", sentences, "bpe", 2000)
    assert "sample_bytes" not in complete.options
    monkeypatch.setitem(tokenizers_stage._SAMPLE_BYTES, "bpe", 30_000)
    sampled = tokenizers_stage.identify("text", sentences, "bpe", 2000)
    assert sampled.options["sample_bytes"] == 30_000
    assert sampled.key != complete.key


def test_several_texts_are_one_training_text(tmp_path: Path) -> None:
    references = [write(tmp_path, ENGLISH, "one.txt"), write(tmp_path, BOOK, "two.txt")]
    both = tokenizers_stage.find_sentences(tmp_path, [*references, write(tmp_path, ENGLISH, "again.txt")])
    assert [sentences.made_from.name for sentences in both] == ["one.txt", "two.txt"]
    joined = train(tmp_path / "joined", ENGLISH + BOOK, "bpe", 2600).artifact
    apart = tokenizers_stage.train(tmp_path / "artifacts", "text", both, "bpe", 2600).artifact
    assert apart.file("tokenizer.model").read_bytes() == joined.file("tokenizer.model").read_bytes()
    assert [entry.name for entry in apart.manifest.inputs] == ["one.txt", "two.txt"]


def test_settings_of_several_corpora_fit_all_of_them(tmp_path: Path) -> None:
    corpora = []
    for name, size, settings in [
        ("small", 10, '{"max_sentence_length": 9000, "vocab_size": 16000, "character_coverage": 0.5}'),
        ("large", 20, '{"max_sentence_length": 5000, "vocab_size": 8000, "character_coverage": 0.7}'),
    ]:
        write(tmp_path / name, f'{{"tokenizer": {settings}, "characters": {{"out": {size}}}}}', "report.json")
        corpora.append(
            Sentences((Path(write(tmp_path / name, "x" * size)),), Input("corpus", f"corpora/{name}/1", name))
        )
    flags = tokenizers_stage.flags_of(corpora)
    assert (flags.max_sentence_length, flags.vocab_size, flags.character_coverage) == (9000, 16_000, 0.7)
    assert training_text.advice_for(corpora) == (16_000, 30)


# Byte-level BPE


@pytest.fixture(scope="module")
def bbpe(tmp_path_factory: pytest.TempPathFactory) -> FastTokenizer:
    tokenizer = open_folder(train(tmp_path_factory.mktemp("bbpe"), BOOK + ENGLISH, "bbpe", 1500).artifact.path)
    assert isinstance(tokenizer, FastTokenizer)
    return tokenizer


def test_byte_level_bytes_do_not_depend_on_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[bytes] = []
    for parallelism in ("true", "false", "true"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallelism)
        folder = tmp_path / str(len(files))
        files.append(train(folder, BOOK * 3 + ENGLISH, "bbpe").artifact.file("huggingface.json").read_bytes())
    assert files[0] == files[1] == files[2]


def test_byte_level_is_in_the_form_of_qwen(bbpe: FastTokenizer) -> None:
    assert (bbpe.vocab_size, bbpe.end_of_text, bbpe.unknown_id) == (1500, 0, None)
    assert bbpe.boundary is not None
    assert bbpe.decode(bbpe.encode(BOOK)) == BOOK
    assert [bbpe.token_bytes(token) for token in bbpe.encode("1234")] == [b"1", b"2", b"3", b"4"]
    ends = [token for token in bbpe.encode("道。\n") if b"\n" in bbpe.token_bytes(token)]
    assert bbpe.token_bytes(ends[0]) == "。\n".encode()  # learnt from documents, which have line ends


@functools.cache
def transformers_tokenizer(data: bytes) -> object:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=library(data), clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("name", [*PILE, *NOVELS, *POEMS])
def test_byte_level_ids_are_equal_in_tokenizers_and_transformers(bbpe: FastTokenizer, shared: Path, name: str) -> None:
    theirs, hugging = library(bbpe.data), transformers_tokenizer(bbpe.data)
    documents = [*texts(shared / "data" / name), *TRICKY, *random_texts(20)]
    ours = rows(bbpe.encode_batch(documents))
    assert [encoding.ids for encoding in theirs.encode_batch(documents, add_special_tokens=False)] == ours
    assert hugging(documents, add_special_tokens=False, split_special_tokens=True)["input_ids"] == ours  # type: ignore[operator]


def test_paragraphs_of_a_corpus_have_its_line_ends(root: Path) -> None:
    inputs = source_inputs.resolve_inputs(root, str(SAMPLE / "yanshan.txt"), corpora=False)
    corpus = clean_stage.clean(root, "book", inputs, CleanOptions(), SilentProgress()).artifact
    (sentences,) = tokenizers_stage.find_sentences(root, ["book"])
    paragraphs = list(training_text.paragraphs_of([sentences], 0))
    documents = [
        document.text for document in readers.read_documents(corpus.file("documents.jsonl.zst"), Ledger(), print)
    ]
    assert "".join(paragraphs) == "".join(documents)
    assert all("\n" not in paragraph.strip() for paragraph in paragraphs)
    assert sum(paragraph.endswith("\n") for paragraph in paragraphs) > 50


def test_converted_encoding_gives_the_ids_of_tiktoken(shared: Path, tmp_path: Path) -> None:
    reference = tokenizers.Tiktoken.named("r50k_base")
    (tmp_path / "tokenizer.json").write_bytes(tokenizers.tokenizer_json(reference, ()))
    converted, _ = tokenizers.find(tmp_path, str(tmp_path))
    documents = [*texts(shared / "data" / "pile_val.jsonl.zst"), *TRICKY, BOOK]
    assert rows(converted.encode_batch(documents)) == [reference.encode(text) for text in documents]
    assert (converted.end_of_text, converted.vocab_size) == (reference.end_of_text, reference.vocab_size)
    assert converted.boundary is not None


@pytest.mark.parametrize("kind", ["bpe", "unigram", "bbpe"])
def test_stop_ends_a_training_and_publishes_nothing(kind: str, tmp_path: Path) -> None:
    progress = SilentProgress()
    progress.stop.set()
    with pytest.raises(TryAgain, match="stopped by a signal; nothing was published"):
        train(tmp_path, BOOK, kind, 3000, progress)
    assert not (tmp_path / "artifacts" / "tokenizers" / "text" / "current").exists()


@pytest.mark.parametrize(
    "data", ["\ufeff山水。\r\n石\r\n", "\ufeff山水。\r石\r", "\ufeff山水。\n\ufeff石\n", "山水。\r\r\n石\r\n"]
)
@pytest.mark.parametrize("kind", ["char", "bbpe", "bpe"])
def test_byte_order_marks_and_carriage_returns_are_not_trained_on(tmp_path: Path, kind: str, data: str) -> None:
    (tmp_path / "windows.txt").write_bytes(data.encode())
    sentences = tokenizers_stage.find_sentences(tmp_path, [str(tmp_path / "windows.txt")])
    assert [line for line in training_text.lines_of(sentences) if line] == ["山水。", "石"]
    assert set("".join(training_text.paragraphs_of(sentences, 1 << 20))) == {*"山水。石\n"}
    plain = tokenizers_stage.find_sentences(tmp_path, [write(tmp_path, "山水。\n石\n")])
    assert tokenizers_stage.identify("a", sentences, kind).options["line_ends"] == "\n"
    assert "line_ends" not in tokenizers_stage.identify("a", plain, kind).options
    if kind == "char":
        tokenizer = open_folder(tokenizers_stage.train(tmp_path, "a", sentences, kind).artifact.path)
        assert isinstance(tokenizer, Characters)
        assert set(tokenizer.characters) == {*"山水。石\n"}

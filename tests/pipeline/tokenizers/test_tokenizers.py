"""Tokenizers of every kind: text to ids and back, saving, training, loading."""

from __future__ import annotations

import functools
import io
import pickle
import random
import re
import shutil
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceNormalizer, SentencePieceTrainer

from pipeline import tokenizers
from pipeline.clean import stage as clean_stage
from pipeline.clean.options import CleanOptions
from pipeline.errors import BadConfig, BadData, InputMissing
from pipeline.readers import readers
from pipeline.runtime.ledger import Ledger
from pipeline.runtime.progress import SilentProgress
from pipeline.sources import inputs as source_inputs
from pipeline.store import artifact
from pipeline.store.artifact import Artifact, BuildResult, StageOutput
from pipeline.store.manifest import Identity, Input
from pipeline.tokenizers import (
    END_OF_TEXT,
    Characters,
    Integers,
    SentencePiece,
    Tiktoken,
    Tokenizer,
    Unencodable,
    open_folder,
)
from pipeline.tokenizers import stage as tokenizers_stage
from pipeline.tokenizers.training_text import Sentences

SAMPLE = Path(__file__).resolve().parents[3] / "pipeline" / "sample"
BOOK = (SAMPLE / "yanshan.txt").read_text(encoding="utf-8-sig")
TRICKY = [
    "",
    " ",
    "  double  spaces  ",
    "line\nline\r\n\ttab\n\n",
    "说：“走！”，。！？；（）",
    "𠮷𤣥㸌𢎞𧍪",
    "\ue10e\U000f0001",
    "🙂 café °",
    END_OF_TEXT,
    f"before{END_OF_TEXT}after {END_OF_TEXT}",
    "<|endofprompt|><|fim_prefix|><s></s><unk><0x0A>",
    "ＡＢＣ１２３ⅷ①豈",
    "\u200b\u00a0\u3000",
]
ENCODINGS_HERE = ["r50k_base", "p50k_base", "cl100k_base", "o200k_base"]


def train(root: Path, text: str, kind: str, vocab_size: int, name: str = "small") -> BuildResult:
    root.mkdir(parents=True, exist_ok=True)
    sentences = root / "sentences.txt"
    sentences.write_text(text, encoding="utf-8", newline="\n")
    return tokenizers_stage.train(root, name, tokenizers_stage.find_sentences(root, [str(sentences)]), kind, vocab_size)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    """Return a small tokenizer of a kind, trained once on the sample novel."""
    root = tmp_path_factory.mktemp("tokenizers")
    sizes = {"bpe": 2600, "unigram": 2600, "char": 0}
    artifacts: dict[str, Artifact] = {}

    def get(kind: str) -> Artifact:
        if kind not in artifacts:
            artifacts[kind] = train(root / kind, BOOK, kind, sizes[kind]).artifact
        return artifacts[kind]

    return get


@pytest.fixture(params=["bpe", "unigram"])
def sentencepiece(request: pytest.FixtureRequest, trained: Callable[[str], Artifact]) -> Tokenizer:
    return open_folder(trained(request.param).path)


@pytest.fixture(params=["r50k_base", "bpe", "unigram", "char"])
def tokenizer(request: pytest.FixtureRequest, trained: Callable[[str], Artifact]) -> Tokenizer:
    """Every kind that reads text."""
    if request.param == "r50k_base":
        request.getfixturevalue("shared")
        return Tiktoken.named("r50k_base")
    return open_folder(trained(request.param).path)


def rows(encoded: tuple[np.ndarray, np.ndarray]) -> list[list[int]]:
    flat, lengths = encoded
    assert (flat.dtype, lengths.dtype) == (np.uint32, np.int64)
    assert lengths.sum() == len(flat)
    return [part.tolist() for part in np.split(flat, np.cumsum(lengths))[:-1]]


def shown(tokenizer: Tokenizer, text: str) -> str:
    """Return the text with □ for each unknown character."""
    unknown = tokenizer.unknown_characters(text)
    return "".join("□" if character in unknown else character for character in text)


@pytest.mark.parametrize("text", [*TRICKY, BOOK], ids=range(len(TRICKY) + 1))
def test_decode_inverts_encode(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == shown(tokenizer, text)


def test_only_the_character_tokenizer_has_unknown_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.unknown_characters("砚𠮷") == ""
    assert tokenizer.unknown_characters("龘q龘𪛖") == ("龘q𪛖" if tokenizer.kind == "char" else "")


def test_batch_encoding_equals_single_encoding(tokenizer: Tokenizer) -> None:
    texts = [*TRICKY, *BOOK.split("\n")[:60], BOOK]
    assert rows(tokenizer.encode_batch(texts)) == [tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize("texts", [[], [""], ["", ""], ["", "砚", ""]])
def test_empty_batches_and_texts_have_no_ids(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert rows(tokenizer.encode_batch(texts)) == [tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize("text", [text for text in TRICKY if "<" in text])
def test_text_never_encodes_to_the_end_of_text_id(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.end_of_text not in tokenizer.encode(text)
    assert tokenizer.end_of_text not in tokenizer.encode_batch([text, text])[0]


def test_every_id_is_below_the_vocabulary_size(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("".join(TRICKY) + BOOK)
    assert 0 <= min(ids) <= max(ids) < tokenizer.vocab_size
    assert 0 <= tokenizer.end_of_text < tokenizer.vocab_size


def test_every_id_of_the_vocabulary_decodes(tokenizer: Tokenizer) -> None:
    assert all(isinstance(tokenizer.decode([token]), str) for token in range(tokenizer.vocab_size))


def test_end_of_text_decodes_to_nothing(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("砚山")
    assert tokenizer.decode([*ids, tokenizer.end_of_text, *ids]) == "砚山砚山"
    assert tokenizer.decode(np.array([*ids, tokenizer.end_of_text])) == "砚山"


def test_saved_tokenizer_opens_unchanged(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    opened = open_folder(tmp_path)
    for field in ("kind", "name", "vocab_size", "end_of_text", "fingerprint"):
        assert getattr(opened, field) == getattr(tokenizer, field)
    assert opened.encode(BOOK[:2000]) == tokenizer.encode(BOOK[:2000])


def test_card_with_a_wrong_fingerprint_raises_bad_data(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    change_card(tmp_path, fingerprint="other:0123456789abcdef")
    with pytest.raises(BadData, match=r"other:0123456789abcdef|does not match its card"):
        open_folder(tmp_path)


def change_card(folder: Path, **fields: Any) -> None:
    card = folder / "tokenizer.json"
    card.write_bytes(msgspec.json.encode(msgspec.json.decode(card.read_bytes()) | fields))


def test_mixed_files_of_two_tokenizers_raise_bad_data(tmp_path: Path) -> None:
    Characters("山水", "one").save(tmp_path)
    (tmp_path / "characters.txt").write_text("水山", encoding="utf-8")
    with pytest.raises(BadData, match="mixed"):
        open_folder(tmp_path)


def test_unknown_kind_on_the_card_raises_bad_data(tmp_path: Path) -> None:
    Integers(10).save(tmp_path)
    change_card(tmp_path, kind="wordpiece")
    with pytest.raises(BadData, match="wordpiece"):
        open_folder(tmp_path)


def test_card_with_a_wrong_split_pattern_raises_bad_data(shared: Path, tmp_path: Path) -> None:
    Tiktoken.named("r50k_base").save(tmp_path)
    change_card(tmp_path, pattern=".")
    with pytest.raises(BadData):
        open_folder(tmp_path)


def test_characters_that_are_not_utf_8_raise_bad_data(tmp_path: Path) -> None:
    Characters("山水", "one").save(tmp_path)
    (tmp_path / "characters.txt").write_bytes(b"\xff\xff\xff")
    with pytest.raises(BadData):
        open_folder(tmp_path)


@pytest.mark.parametrize("ranks", [b"not ranks", b"IQ== zero\n"])
def test_damaged_ranks_raise_bad_data(shared: Path, tmp_path: Path, ranks: bytes) -> None:
    Tiktoken.named("r50k_base").save(tmp_path)
    (tmp_path / "ranks.tiktoken").write_bytes(ranks)
    with pytest.raises(BadData):
        open_folder(tmp_path)


def test_a_saved_encoding_needs_neither_cache_nor_network(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Tiktoken.named("r50k_base")
    expected.save(tmp_path)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "nothing"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert open_folder(tmp_path).encode(BOOK[:2000]) == expected.encode(BOOK[:2000])


def test_missing_card_or_model_raises_input_missing(tmp_path: Path, trained: Callable[[str], Artifact]) -> None:
    with pytest.raises(InputMissing, match=r"tokenizer\.json"):
        open_folder(tmp_path)
    shutil.copy(trained("bpe").file("tokenizer.json"), tmp_path)
    with pytest.raises(InputMissing, match=r"tokenizer\.model"):
        open_folder(tmp_path)


@pytest.mark.parametrize("card", [b"", b"{", b"[]", b'{"kind":"char"}'])
def test_card_that_does_not_parse_raises_bad_data(tmp_path: Path, card: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(card)
    with pytest.raises(BadData, match=r"tokenizer\.json"):
        open_folder(tmp_path)


# Boundaries: positions where a long document can be cut and encoded in parts


@pytest.fixture(scope="session")
def opened(trained: Callable[[str], Artifact]) -> Callable[[str], Tokenizer]:
    """Return a tokenizer by the name of an encoding, or by the kind of a trained one."""

    @functools.cache
    def get(name: str) -> Tokenizer:
        return Tiktoken.named(name) if name in tokenizers.ENCODINGS else open_folder(trained(name).path)

    return get


CUT = pytest.mark.parametrize("name", ["r50k_base", "cl100k_base", "o200k_base", "bpe", "char"])

FRAGMENTS = [
    *("a", "the", " the", " word", " ab cd", "Word", " Word", "İß", "ﬁ", "é", "ſ", "ⅷ", "ª"),
    *(" ", "  ", "   ", "\t", "\u3000", "\u00a0", "\u200b", "\u2028", "\x85", "\x1c", "\x1f"),
    *("\n", "\n\n", "\r\n", "\r", " \n", "\n ", ".\n", "a\n", "山\n", "\na", "\n山", "\n/"),
    *("山", "石水", "传", "龘", "𠮷", "鿿", "한국어", "नमस्ते", "ไทย"),
    *("。", "，", "！", "、", "”", ".", ",", "/", "//", "_", "-", "<|endoftext|>", "▁", "▁ab"),
    *("0", "12", "1234", "'", "'s", "'S", "'ll", "n't", "’s", "a's", "'re"),
    *("🙂", "👨‍👩‍👧", "🇨🇳", "❤️", "\u0301", "e\u0301", "\u20dd", "\ufe0f", "\u200d", "\0", "\x7f", "\ue10e", "\ufffd"),
]


@CUT
@given(text=st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=2), max_size=16).map("".join))
@settings(max_examples=500, derandomize=True)
@example(text="it's a 'd\n'll go\nre's\n山。石，a b")
@example(text="a\n\nb\r\nc \nd. \ne\t\nf/\ng")
def test_text_cut_at_any_boundary_keeps_its_ids(
    shared: Path, opened: Callable[[str], Tokenizer], name: str, text: str
) -> None:
    tokenizer = opened(name)
    expected, ends = tokenizer.encode(text), boundaries(tokenizer, text)
    cuts = [[text[:end], text[end:]] for end in ends]
    cuts.append([text[start:end] for start, end in pairwise([0, *ends, len(text)])])
    assert all([token for part in parts for token in tokenizer.encode(part)] == expected for parts in cuts)
    flat, _ = tokenizer.encode_batch([part for parts in cuts for part in parts])
    assert flat.tolist() == expected * len(cuts)


def boundaries(tokenizer: Tokenizer, text: str) -> list[int]:
    assert tokenizer.boundary
    return [match.start() for match in tokenizer.boundary.finditer(text) if 0 < match.start() < len(text)]


@pytest.mark.parametrize("text", ["ab cd", "a b", "x\ncd", ".\ncd", "山\n石", "山。", "石，水"])
def test_words_lines_and_phrases_are_boundaries(shared: Path, opened: Callable[[str], Tokenizer], text: str) -> None:
    for name in ("r50k_base", "cl100k_base", "o200k_base"):
        assert len(boundaries(opened(name), text)) == 1


def test_trained_model_has_boundaries_between_words_and_lines(opened: Callable[[str], Tokenizer]) -> None:
    assert boundaries(opened("bpe"), "砚山 ab cd\n山\n\n石\n砚") == [5, 9, 14]


@CUT
@pytest.mark.parametrize("data", ["shuihu_raw.txt", "pile_val.jsonl.zst"])
def test_real_texts_cut_at_boundaries_keep_their_ids(
    shared: Path, opened: Callable[[str], Tokenizer], name: str, data: str
) -> None:
    tokenizer, text = opened(name), joined(shared / "data" / data)[:1_500_000]
    expected, ends = tokenizer.encode_batch([text])[0], boundaries(tokenizer, text)
    for count in (1, 10, 3000):
        cuts = sorted(random.Random(count).sample(ends, min(count, len(ends))))
        parts = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
        assert np.array_equal(tokenizer.encode_batch(parts)[0], expected)


def joined(path: Path) -> str:
    """Join all documents of a file."""
    return "\n".join(document.text for document in readers.read_documents(path, Ledger(), print))


def test_unigram_model_has_no_boundary(opened: Callable[[str], Tokenizer]) -> None:
    assert opened("unigram").boundary is None  # scores are added in 32 bits, so the preceding text decides ties


def test_model_without_byte_fallback_has_boundaries_only_at_known_characters(tmp_path: Path) -> None:
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([*BOOK.split("\n"), *["abcd ab cd dcba"] * 100]),
        model_writer=model,
        vocab_size=2600,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    tokenizer, text = SentencePiece(model.getvalue(), "foreign"), "砚\n龘"
    assert tokenizer.boundary is None or not boundaries(tokenizer, text)


# SentencePiece


def test_sentencepiece_keeps_chinese_punctuation(sentencepiece: Tokenizer) -> None:
    for mark in "，。！？：；（）…“”‘’、《》—":
        assert sentencepiece.decode(sentencepiece.encode(f"砚{mark}山")) == f"砚{mark}山"
    assert sentencepiece.encode("，") != sentencepiece.encode(",")


def test_sentencepiece_adds_no_space_before_a_text(sentencepiece: Tokenizer) -> None:
    (piece,) = sentencepiece.encode("砚")
    assert sentencepiece.encode(" 砚") != [piece]
    assert sentencepiece.decode([piece, piece]) == "砚砚"


def test_sentencepiece_encodes_unseen_characters_as_bytes(sentencepiece: Tokenizer) -> None:
    assert "龘" not in BOOK
    assert len(sentencepiece.encode("龘")) == 3
    assert len(sentencepiece.encode("𪛖")) == 4


ALPHABET = "砚山石𠮷𪛖龘，。！？“”… \t\n\u3000\u00a0ab<|endoftext|>0x_\ue10e\u200b\x00\x1b"


@given(text=st.text(st.sampled_from(ALPHABET), max_size=30))
@example(text=" a  b ")
@example(text="\n\n\t")
def test_sentencepiece_round_trips_any_text(trained: Callable[[str], Artifact], text: str) -> None:
    for kind in ("bpe", "unigram"):
        opened = open_folder(trained(kind).path)
        ids = opened.encode(text)
        assert opened.decode(ids) == text
        assert opened.end_of_text not in ids


def test_sentencepiece_reports_the_lower_block_as_unknown(sentencepiece: Tokenizer) -> None:
    assert sentencepiece.decode(sentencepiece.encode("a▁b")) == "a b"
    assert sentencepiece.unknown_characters("a▁b") == "▁"


@pytest.mark.parametrize("kind", ["bpe", "unigram", "char"])
def test_training_twice_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    built = [train(tmp_path / folder, BOOK[:12_000], kind, 1700) for folder in ("one", "other")]
    first, second = (build.artifact for build in built)
    assert [build.result for build in built] == ["built", "built"]
    assert first.manifest == second.manifest
    assert first.digest == second.digest


def test_repeated_training_is_unchanged(root: Path) -> None:
    results = [train(root, BOOK[:3000], "char", 0).result for _ in range(2)]
    assert results == ["built", "unchanged"]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_too_large_a_vocabulary_names_the_largest_possible_size(root: Path, kind: str) -> None:
    with pytest.raises(BadData, match="50,000") as caught:
        train(root, BOOK[:3000], kind, 50_000)
    possible = int(re.findall(r"[\d,]+ at most", caught.value.message)[-1].split()[0].replace(",", ""))
    assert train(root, BOOK[:3000], kind, possible).artifact.manifest.counts["vocab_size"] == possible


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("vocab_size", [1, 100, 300])
def test_too_small_a_vocabulary_raises_bad_data(root: Path, kind: str, vocab_size: int) -> None:
    with pytest.raises(BadData, match=f"{kind} vocabulary of {vocab_size}"):
        train(root, BOOK, kind, vocab_size)
    assert not list(root.glob("tokenizers/small/*/manifest.json"))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_empty_text_trains_no_sentencepiece_model(root: Path, kind: str) -> None:
    with pytest.raises(BadData):
        train(root, "", kind, 300)


def test_text_that_is_not_utf_8_trains_nothing(root: Path) -> None:
    root.mkdir()
    path = root / "sentences.txt"
    path.write_bytes("砚山".encode("gb18030"))
    for kind in tokenizers_stage.KINDS:
        with pytest.raises(BadData, match="not UTF-8"):
            tokenizers_stage.train(root, "small", tokenizers_stage.find_sentences(root, [str(path)]), kind, 500)


def test_unknown_kind_raises_bad_config(root: Path) -> None:
    with pytest.raises(BadConfig, match="wordpiece") as caught:
        train(root, "砚山", "wordpiece", 100)
    assert all(kind in caught.value.hint for kind in tokenizers_stage.KINDS)


@pytest.mark.parametrize("data", [b"", b"not a model"])
def test_invalid_model_file_raises_bad_data_without_library_output(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], data: bytes
) -> None:
    (tmp_path / "odd.model").write_bytes(data)
    with pytest.raises(BadData, match="not a SentencePiece model"):
        tokenizers.find(tmp_path, str(tmp_path / "odd.model"))
    assert capfd.readouterr().err == ""


def foreign(path: Path, normalizer: SentencePieceNormalizer) -> Path:
    """Write a model file whose normaliser is not the identity, unlike those trained here."""
    with open(path, "wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter(BOOK.split("\n")[:40]),
            model_writer=file,
            vocab_size=2000,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalizer=normalizer,
            minloglevel=2,
        )
    return path


LONG = {
    "one character": ("☃", "b" * 65),
    "several characters": ("zq", "b" * 65),
    "many ids of few characters": ("☀", "𪛖" * 20),  # each is four bytes, which the model has no piece for
}


@pytest.mark.parametrize("case", LONG)
def test_untrusted_model_that_expands_text_is_refused(tmp_path: Path, case: str) -> None:
    rule, path = LONG[case], tmp_path / "odd.model"
    foreign(path, SentencePieceNormalizer(norm_map=[rule, ("a", "A")]))
    with pytest.raises(BadData, match=f"odd.model: this model turns '{rule[0]}' into more than 64 characters or ids"):
        tokenizers.find(tmp_path, str(path))


def test_untrusted_model_may_normalise(tmp_path: Path) -> None:
    for name, normalizer in {
        "unicode": SentencePieceNormalizer(rule_name="nmt_nfkc_cf"),
        "longest": SentencePieceNormalizer(norm_map=[("☃", "b" * 63), ("zq", "b" * 64)]),  # and a blank in front
    }.items():
        path = foreign(tmp_path / f"{name}.model", normalizer)
        assert isinstance(tokenizers.find(tmp_path, str(path))[0], SentencePiece)


def test_expanding_rule_for_part_of_a_character_is_refused(tmp_path: Path, trained: Callable[[str], Artifact]) -> None:
    # Rules for the first bytes of U+2000 to U+2FFF and of U+3000 to U+3FFF. Decoded as text both keys are �, so
    # the second rule, which is short, hides the first.
    charsmap = trie({0xE2: 2, 0xE3: 0}) + b"x\0" + b"b" * 65 + b"\0"
    spec = b"\x12" + length(charsmap) + charsmap  # of sentencepiece_model.proto: NormalizerSpec.precompiled_charsmap
    path = tmp_path / "odd.model"
    path.write_bytes(trained("bpe").file("tokenizer.model").read_bytes() + b"\x1a" + length(spec) + spec)
    assert SentencePieceNormalizer(model_file=str(path)).decompile() == [("�", "x")]
    with pytest.raises(BadData, match=r"turns '\\u2000' into more than 64 characters or ids"):
        tokenizers.find(tmp_path, str(path))


def trie(values: dict[int, int]) -> bytes:
    """Build a double array (Darts-clone) from one-byte keys to the offsets of their replacements, with its size."""
    units = [1 << 31] * 512  # of labels that no byte has
    units[0] = 256 << 10
    for leaf, (key, value) in enumerate(values.items(), start=1):
        node = 256 ^ key
        units[node] = (node ^ leaf) << 10 | 1 << 8 | key
        units[leaf] = 1 << 31 | value
    return struct.pack("<513I", 4 * len(units), *units)


def length(data: bytes) -> bytes:
    """Return the size of a protobuf field, between 128 and 16,383, as a varint."""
    return bytes([len(data) & 0x7F | 0x80, len(data) >> 7])


# Characters


def test_characters_are_ordered_by_frequency(root: Path) -> None:
    tokenizer = open_folder(train(root, "山山山水水石\n", "char", 0).artifact.path)
    assert tokenizer.encode("山水石") == [2, 3, 5]  # the newline and 石 occur once each, and the newline sorts first
    assert tokenizer.encode("\n") == [4]
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (6, 0)


def test_character_limit_keeps_the_most_frequent_and_names_the_unknown(root: Path) -> None:
    tokenizer = open_folder(train(root, "山山山水水石\n", "char", 4).artifact.path)
    assert tokenizer.vocab_size == 4
    assert tokenizer.encode("山水石𠮷") == [2, 3, 1, 1]
    assert tokenizer.decode([2, 3, 1, 1]) == "山水□□"
    assert tokenizer.unknown_characters("山石水𠮷石") == "石𠮷"


def test_character_vocabulary_of_one_raises_bad_config(root: Path) -> None:
    try:
        tokenizer_artifact = train(root, "山山山水水石\n", "char", 1).artifact
    except (BadConfig, BadData):
        return
    assert tokenizer_artifact.manifest.counts["vocab_size"] <= 2


# Integers


def test_integers_are_their_own_ids() -> None:
    numbers = Integers(100)
    assert numbers.encode("1,2 3, 99") == [1, 2, 3, 99]
    assert numbers.decode([1, 2, 0, 99]) == "1 2 99"
    assert rows(numbers.encode_batch(["1,2", "", "3"])) == [[1, 2], [], [3]]
    assert numbers.unknown_characters("1") == ""


@pytest.mark.parametrize("text", ["one", "100", "-1", END_OF_TEXT, "1.5"])
def test_invalid_or_out_of_range_integers_raise_bad_data(text: str) -> None:
    with pytest.raises(BadData):
        Integers(100).encode(text)


def test_saved_integers_open_again(tmp_path: Path) -> None:
    Integers(100).save(tmp_path)
    opened = open_folder(tmp_path)
    assert (opened.kind, opened.vocab_size, opened.fingerprint) == ("integers", 100, "integers:100")


# Finding a tokenizer


def test_find_accepts_an_encoding_a_trained_name_or_a_model_file(
    shared: Path, trained: Callable[[str], Artifact]
) -> None:
    trained_bpe = trained("bpe")
    root = trained_bpe.path.parents[2]
    assert tokenizers.find(root, "r50k_base")[0].fingerprint.startswith("tiktoken:r50k_base:")
    for reference in ("small", trained_bpe.ref, f"small/{trained_bpe.manifest.key}", str(trained_bpe.path)):
        tokenizer, made_by = tokenizers.find(root, reference)
        assert made_by == trained_bpe
        assert tokenizer.fingerprint == open_folder(trained_bpe.path).fingerprint
    tokenizer, made_by = tokenizers.find(root, str(trained_bpe.file("tokenizer.model")))
    assert made_by is None
    assert tokenizer.fingerprint == open_folder(trained_bpe.path).fingerprint


def test_missing_tokenizer_error_lists_the_available_ones(root: Path) -> None:
    train(root, "山水", "char", 0)
    with pytest.raises(InputMissing, match="nothing-here") as caught:
        tokenizers.find(root, "nothing-here")
    assert "small" in caught.value.hint
    assert all(name in caught.value.hint for name in tokenizers.ENCODINGS)


def test_damaged_tokenizer_raises_bad_data(root: Path) -> None:
    tokenizer_artifact = train(root, "山水", "char", 0).artifact
    tokenizer_artifact.file("characters.txt").write_bytes(b"")
    with pytest.raises(BadData, match=r"characters\.txt"):
        tokenizers.find(root, "small")


def test_corpus_provides_sentences_to_train_on(root: Path) -> None:
    inputs = source_inputs.resolve_inputs(root, str(SAMPLE / "yanshan.txt"), corpora=False)
    corpus_artifact = clean_stage.clean(root, "book", inputs, CleanOptions(), SilentProgress()).artifact
    [sentences] = tokenizers_stage.find_sentences(root, ["book"])
    assert sentences.paths == (corpus_artifact.file("sentences.txt"),)
    assert sentences.made_from.digest == corpus_artifact.digest


# Settings from a corpus's report


def corpus_of(root: Path, sentences: str, report: dict[str, Any] | None) -> Artifact:
    """Publish a corpus of these sentences; without a report, one in the old format."""

    def write(draft: Path) -> StageOutput:
        (draft / "sentences.txt").write_text(sentences, encoding="utf-8", newline="\n")
        if report is not None:
            (draft / "report.json").write_bytes(msgspec.json.encode(report))
        return StageOutput({})

    return artifact.build(root, Identity("corpora", "book", {"report": report}, ()), write).artifact


def train_on(root: Path, kind: str, vocab_size: int) -> Artifact:
    return tokenizers_stage.train(
        root, "book", tokenizers_stage.find_sentences(root, ["book"]), kind, vocab_size
    ).artifact


def run_of(tokenizer_artifact: Artifact) -> dict[str, Any]:
    trained_bpe = msgspec.json.decode(tokenizer_artifact.file("run.json").read_bytes())
    assert isinstance(trained_bpe, dict)
    return trained_bpe


def model_of(sentences: str, vocab_size: int, **told: Any) -> bytes:
    """Train SentencePiece directly on these lines with these settings."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences.removesuffix("\n").split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        num_threads=1,
        unk_id=0,
        eos_id=1,
        eos_piece=END_OF_TEXT,
        bos_id=-1,
        pad_id=-1,
        minloglevel=2,
        required_chars="▁",
        **told,
    )
    return model.getvalue()


AS_EVER = {
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "byte_fallback": True,
    "character_coverage": 0.9999,
    "max_sentence_length": 1 << 20,
}


def test_training_uses_the_settings_of_the_corpus_report(root: Path) -> None:
    inputs = source_inputs.resolve_inputs(root, str(SAMPLE / "yanshan.txt"), corpora=False)
    book = clean_stage.clean(root, "book", inputs, CleanOptions(), SilentProgress()).artifact
    settings = msgspec.json.decode(book.file("report.json").read_bytes())["tokenizer"]
    longest = max(map(len, book.file("sentences.txt").read_bytes().split(b"\n")))
    assert settings["max_sentence_length"] == max(longest, 4192)
    assert settings.pop("vocab_size") != 2600
    tokenizer_artifact = train_on(root, "bpe", 2600)  # the user sets the size, the report sets everything else
    assert run_of(tokenizer_artifact)["flags"] == settings
    sentences = book.file("sentences.txt").read_text(encoding="utf-8")
    assert tokenizer_artifact.file("tokenizer.model").read_bytes() == model_of(sentences, 2600, **settings)
    tokenizer = open_folder(tokenizer_artifact.path)
    assert tokenizer.decode(tokenizer.encode(BOOK)) == BOOK


def test_every_setting_of_a_report_reaches_the_trainer(root: Path) -> None:
    settings = {
        "normalization_rule_name": "nmt_nfkc",
        "add_dummy_prefix": True,
        "remove_extra_whitespaces": True,
        "byte_fallback": False,
        "character_coverage": 0.98,
        "max_sentence_length": 600,
    }
    corpus_of(root, BOOK, {"tokenizer": settings, "rules": []})
    model = train_on(root, "bpe", 2000).file("tokenizer.model").read_bytes()
    assert model == model_of(BOOK, 2000, **settings)
    for name, usual in AS_EVER.items():
        assert model != model_of(BOOK, 2000, **settings | {name: usual})


def test_corpora_without_settings_and_plain_files_use_the_defaults(root: Path, tmp_path: Path) -> None:
    corpus_of(root, BOOK, None)
    plain = tmp_path / "sentences.txt"
    plain.write_text(BOOK, encoding="utf-8", newline="\n")
    (tmp_path / "report.json").write_text('{"tokenizer":{"character_coverage":0.98}}')  # has no effect on a plain file
    models = [
        train_on(root, "bpe", 2600),
        tokenizers_stage.train(
            root, "plain", tokenizers_stage.find_sentences(root, [str(plain)]), "bpe", 2600
        ).artifact,
    ]
    for tokenizer_artifact in models:
        assert tokenizer_artifact.manifest.options == {"stage": 2, "kind": "bpe", "vocab_size": 2600}
        assert tokenizer_artifact.file("tokenizer.model").read_bytes() == model_of(BOOK, 2600, **AS_EVER)


def test_report_decides_the_key(root: Path) -> None:
    keys = []
    for coverage in (0.98, 0.99, 0.98):
        corpus_of(root, BOOK, {"tokenizer": {"character_coverage": coverage}})
        keys.append(train_on(root, "bpe", 2600).manifest.key)
    assert keys[0] == keys[2] != keys[1]


def test_too_small_a_size_error_suggests_the_report_size(root: Path) -> None:
    corpus_of(root, BOOK, {"tokenizer": {"vocab_size": 4000}})
    with pytest.raises(BadData, match="cannot train a bpe vocabulary of 300") as caught:
        train_on(root, "bpe", 300)
    assert caught.value.hint == "the report of this corpus suggests --vocab-size 4000"


def test_suggested_size_that_cannot_be_trained_is_not_named(root: Path) -> None:
    corpus_of(root, BOOK[:3000], {"tokenizer": {"vocab_size": 32_000}})
    with pytest.raises(BadData, match="it has text for") as caught:
        train_on(root, "bpe", 50_000)
    assert "32000" not in caught.value.hint
    possible = int(re.search(r"--vocab-size (\d+)", caught.value.hint)[1])  # type: ignore[index]
    assert train_on(root, "bpe", possible).manifest.counts["vocab_size"] == possible


def test_size_far_from_the_suggestion_gives_a_warning(root: Path) -> None:
    corpus_of(root, BOOK, {"tokenizer": {"vocab_size": 8000}})
    texts = tokenizers_stage.find_sentences(root, ["book"])
    warning = tokenizers_stage.size_warning(texts, "bpe", 2600)
    assert "--vocab-size 8000" in warning
    assert "2,600" in warning
    assert train_on(root, "bpe", 2600).manifest.counts["vocab_size"] == 2600
    assert tokenizers_stage.size_warning(texts, "bpe", 6000) == ""
    assert tokenizers_stage.size_warning(texts, "char", 0) == ""


@pytest.mark.parametrize("content", [b"", b"{", b'{"tokenizer":{"byte_fallback":"yes"}}', b"\xff"])
def test_report_that_does_not_parse_raises_bad_data(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(BadData, match=r"report\.json: not a report"):
        tokenizers_stage.flags_of([Sentences((tmp_path / "sentences.txt",), Input("corpus", "corpora/book/1", "0"))])


# tiktoken


@pytest.fixture(params=[*ENCODINGS_HERE])
def encoding(request: pytest.FixtureRequest, shared: Path) -> Tiktoken:
    """Every encoding whose ranks are available."""
    return Tiktoken.named(request.param)


def test_gpt2_is_r50k_base_without_further_files(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("requests.get", None)  # the ranks of r50k_base are in the cache, GPT-2's own files are not
    gpt2, r50k = Tiktoken.named("gpt2"), tiktoken.get_encoding("r50k_base")
    assert gpt2.encode("Hello, world!") == [15496, 11, 995, 0]
    assert gpt2.decode([15496, 11, 314, 716]) == "Hello, I am"
    assert (gpt2.name, gpt2.vocab_size, gpt2.end_of_text) == ("gpt2", 50257, 50256)
    english = (shared / "data" / "bench" / "english_val.txt").read_text()
    texts = [*TRICKY, BOOK[:5000], *english.split("\n\n")]
    assert rows(gpt2.encode_batch(texts)) == [r50k.encode_ordinary(text) for text in texts]


@pytest.mark.parametrize("name", ["pile_val.jsonl.zst", "shuihu_raw.txt"])
def test_gigatoken_gives_the_ids_of_tiktoken(encoding: Tiktoken, shared: Path, name: str) -> None:
    texts = [document.text for document in readers.read_documents(shared / "data" / name, Ledger(), print)]
    texts = [line for text in texts for line in text.split("\n")] if name.endswith(".txt") else texts
    fast = rows(encoding.encode_batch(texts))
    slow = tiktoken.get_encoding(encoding.name).encode_ordinary_batch(texts, num_threads=2)
    differing = [number for number, (ours, theirs) in enumerate(zip(fast, slow, strict=True)) if ours != theirs]
    assert not differing


def test_gigatoken_agrees_with_tiktoken_on_hard_texts(encoding: Tiktoken) -> None:
    dice = random.Random(1)
    parts = [*TRICKY, "'s", "'LL", "12345", " \n ", "\r\n\r\n", "İß", "e\u0301", "한국어", "नमस्ते", "\u2028", "x" * 50]
    texts = ["".join(dice.choices(parts, k=dice.randint(1, 12))) for _ in range(500)]
    assert rows(encoding.encode_batch(texts)) == [encoding.encode(text) for text in texts]


SURROGATES = ["\ud800", "a\ud800b", "\udc00 山", "\ud83d\ude00", "\ude00\ud83d", f"\udfff{END_OF_TEXT}"]
ALL_SPECIAL = "".join(f"<|{name}|> " for name in ("endoftext", "fim_prefix", "fim_middle", "fim_suffix", "endofprompt"))


@pytest.mark.parametrize("name", ENCODINGS_HERE)
def test_tiktoken_as_the_encoder_gives_the_ids_of_encode_ordinary(shared: Path, name: str) -> None:
    encoding, reference = Tiktoken.named(name, "tiktoken"), tiktoken.get_encoding(name)
    dice = random.Random(2)
    texts = ["".join(dice.choices(FRAGMENTS, k=dice.randint(0, 12))) for _ in range(500)]
    texts += [*TRICKY, *SURROGATES, ALL_SPECIAL, ALL_SPECIAL * 100, BOOK]
    assert encoding.encoder == "tiktoken"
    ordinary = [reference.encode_ordinary(text) for text in texts]
    assert rows(encoding.encode_batch(texts)) == ordinary
    assert [encoding.encode(text) for text in texts] == ordinary


def test_unencodable_text_prints_nothing(shared: Path, capfd: pytest.CaptureFixture[str]) -> None:
    encoding = Tiktoken.named("o200k_base", "tiktoken")
    for encode in (lambda text: encoding.encode(text), lambda text: encoding.encode_batch(["before", text])):
        with pytest.raises(Unencodable):
            encode(" " * 1_000_000)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("encoder", ["gigatoken", "tiktoken"])
def test_encoding_pickles_with_its_encoder(shared: Path, encoder: str) -> None:
    encoding = Tiktoken.named("r50k_base", encoder)
    encoding.encode_batch(TRICKY)
    unpickled = pickle.loads(pickle.dumps(encoding))
    assert (unpickled.encoder, unpickled.fingerprint) == (encoder, encoding.fingerprint)
    assert rows(unpickled.encode_batch(TRICKY)) == rows(encoding.encode_batch(TRICKY))


def test_texts_of_any_length_encode_equally_in_a_batch(shared: Path) -> None:
    encoding = Tiktoken.named("r50k_base", "gigatoken")
    long, short = [BOOK, "", *TRICKY, BOOK * 3], ["", *TRICKY, BOOK[:200]]
    for texts in (long * 2, short, [], [""]):
        assert rows(encoding.encode_batch(texts)) == [encoding.encode(text) for text in texts]


@pytest.mark.parametrize("name", ENCODINGS_HERE)
def test_tiktoken_encoding_round_trips_and_has_end_of_text(shared: Path, name: str) -> None:
    opened = Tiktoken.named(name)
    reference = tiktoken.get_encoding(name)
    assert (opened.vocab_size, opened.end_of_text) == (reference.n_vocab, reference.eot_token)
    for text in TRICKY:
        ids = opened.encode(text)
        assert ids == reference.encode_ordinary(text)
        assert opened.decode(ids) == text
        assert opened.end_of_text not in ids


@pytest.mark.parametrize("name", ["r50k_base", "p50k_base", "cl100k_base", "o200k_base"])
def test_every_id_that_a_model_can_sample_decodes(shared: Path, name: str) -> None:
    opened = Tiktoken.named(name)
    assert all(isinstance(opened.decode([token]), str) for token in range(50_250, opened.vocab_size))


def test_two_encodings_have_two_fingerprints(shared: Path) -> None:
    prints = [Tiktoken.named(name).fingerprint for name in ENCODINGS_HERE]
    assert len(set(prints)) == len(prints)
    assert Tiktoken.named("r50k_base").fingerprint == prints[0]


def test_missing_ranks_without_a_network_raise_try_again(
    inkstone: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "no-ranks"
    empty.mkdir()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(empty))
    monkeypatch.setenv("XDG_CACHE_HOME", str(empty))
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    failed = inkstone("tokenize", SAMPLE, "--tokenizer", "r50k_base", code=75)
    assert failed["result"] == "failed"
    assert "r50k_base" in failed["error"]
    assert "TIKTOKEN_CACHE_DIR" in failed["hint"]
    assert not artifact.list_names(tmp_path / "artifacts", "tokens")

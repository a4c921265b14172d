"""Bits per character and per byte are over the text itself, whatever the tokenizer makes of it."""

from __future__ import annotations

import functools
import io
import math
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from model.config import GPTConfig
from model.network.gpt import GPT
from model.training.evaluate import encode_again, evaluate, validation_set
from pipeline.errors import BadData
from pipeline.maintenance.status import status
from pipeline.tokenizers import Characters, FastTokenizer, SentencePiece, Tokenizer
from pipeline.tokens.originals import has_originals
from pipeline.tokens.stage import TokenizeInputs
from pipeline.tokens.store import TokenStore, open_store
from pipeline.tokens.totals import script_of, warnings_of
from tests.pipeline.tokenizers.shapes import END_OF_TEXT_OF, SHAPES
from tests.support.tokenizing import lines, run, shrink_chunks

CODE_POINT_BITS = math.log2(1_112_064)
LEARNED = ["却说阿渊携砚来到江边,见一老渔翁坐在船头饮酒。", "the quick brown fox jumps over the lazy dog. "] * 40
TEXTS = [
    "却说阿渊，携砚来到江边。龍龜𠀀江边",
    "the quick  brown fox. ▁fox □ dog\r\n",
    " 见一老渔翁\n\n坐在船头，饮酒",
    "㈱Ａe\u0301 dog\u200b江边龘靐",
    "龍",
]


def sentencepiece_of(**settings: Any) -> SentencePiece:
    model = io.BytesIO()
    settings = {"vocab_size": 120, "hard_vocab_limit": False, "minloglevel": 2} | settings
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LEARNED), model_writer=model, **settings)
    return SentencePiece(model.getvalue(), "user")


def known_pieces(tokenizer: SentencePiece) -> set[str]:
    return set("".join(tokenizer.pieces())) | {" "}


def shape(name: str) -> FastTokenizer:
    data = SHAPES[name](LEARNED).encode()
    return FastTokenizer(data, name, _id_of(data, END_OF_TEXT_OF[name]))


def _id_of(data: bytes, token: str) -> int:
    import tokenizers

    number = tokenizers.Tokenizer.from_str(data.decode()).token_to_id(token)
    assert number is not None
    return number


IDENTITY = {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False}
CASES: dict[str, Callable[[], Tokenizer]] = {
    "sentencepiece-defaults": lambda: sentencepiece_of(model_type="bpe"),
    "sentencepiece-unigram": lambda: sentencepiece_of(model_type="unigram"),
    "sentencepiece-identity": lambda: sentencepiece_of(model_type="bpe", **IDENTITY),
    "sentencepiece-bytes": lambda: sentencepiece_of(model_type="bpe", byte_fallback=True, vocab_size=400, **IDENTITY),
    "char": lambda: Characters("却说阿渊thequick \n", "char"),
    **{name: functools.partial(shape, name) for name in SHAPES},
}


def nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def count_unknown(name: str, tokenizer: Tokenizer, text: str) -> int:
    """Count the unknown characters from the text and the vocabulary alone."""
    if isinstance(tokenizer, SentencePiece):
        if name.endswith("bytes"):
            return 0
        known = known_pieces(tokenizer) | {"▁"}
        if name.endswith("identity"):
            return sum(character not in known for character in text)
        ignored = {"\u200b", "\n", "\r"}  # NFKC of SentencePiece makes spaces of them
        return sum(not set(nfkc(character)) <= known for character in text if character not in ignored)
    if isinstance(tokenizer, Characters):
        return sum(character not in tokenizer.characters for character in text)
    assert isinstance(tokenizer, FastTokenizer)
    words = {*tokenizer.tokens.values()}
    if name == "wordlevel":
        return sum(len(word) for word in text.split() if word not in words)
    if name == "unigram":
        letters = {letter for token_id, word in tokenizer.tokens.items() if token_id > 2 for letter in word} | {" "}
        return sum(not set(nfkc(character)) <= letters for character in text)
    return 0


def tokens_of(root: Path, folder: Path, tokenizer: Tokenizer, val: list[str] = TEXTS) -> TokenStore:
    train = lines(folder / "train.jsonl", LEARNED[:2])
    inputs = TokenizeInputs((train,), (lines(folder / "val.jsonl", val),))
    return open_store(run(root, inputs, tokenizer=tokenizer, allow_unknown=True).artifact)


def network(tokenizer: Tokenizer) -> GPT:
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, block_size=16, layers=1, heads=1, width=8))
    model.init_weights(1)
    return model.eval()


@pytest.mark.parametrize("name", CASES)
def test_bits_are_over_the_text_itself(name: str, root: Path, tmp_path: Path) -> None:
    tokenizer = CASES[name]()
    store = tokens_of(root, tmp_path, tokenizer)
    validation = validation_set(store)
    text = "".join(TEXTS)
    assert (validation.characters, validation.bytes) == (len(text), len(text.encode()))
    if name != "wordpiece":  # its words have a test of their own
        assert validation.unknown == sum(count_unknown(name, tokenizer, text) for text in TEXTS)
    counts = store.artifact.manifest.counts
    if tokenizer.unknown_id is not None:
        learned = sum(count_unknown(name, tokenizer, text) for text in LEARNED[:2]) if name != "wordpiece" else 0
        assert counts["unknown_characters"] == validation.unknown + learned

    evaluation = evaluate(network(tokenizer), validation, torch.device("cpu"))
    assert evaluation
    nats = evaluation.loss * (len(validation.ids) - 1)
    bits = nats / math.log(2) + validation.unknown * CODE_POINT_BITS
    assert evaluation.bits_per_char == pytest.approx(bits / len(text))
    assert evaluation.bits_per_byte == pytest.approx(bits / len(text.encode()))


@pytest.mark.parametrize("name", ["sentencepiece-defaults", "char", "qwen"])
def test_a_limit_cuts_the_text_itself(name: str, root: Path, tmp_path: Path) -> None:
    tokenizer = CASES[name]()
    store = tokens_of(root, tmp_path, tokenizer)
    text = "".join(TEXTS)
    assert has_originals(store)
    for limit in (1, 50, 53, 54, 90, len(text.encode()) - 1):
        validation = validation_set(store, limit)
        expected = text.encode()[:limit].decode(errors="ignore") or text[0]
        assert "".join(validation.documents) == expected
        assert (validation.characters, validation.bytes) == (len(expected), len(expected.encode()))


def test_another_tokenizer_scores_the_original_text(root: Path, tmp_path: Path) -> None:
    lossy, exact = CASES["sentencepiece-defaults"](), CASES["minimind"]()
    validation = validation_set(tokens_of(root, tmp_path, lossy))
    again = encode_again(lossy, validation, exact)
    assert again.unknown == 0
    assert (again.characters, again.bytes) == (validation.characters, validation.bytes)
    assert exact.decode(again.ids.tolist()) == "".join(TEXTS)
    back = encode_again(exact, validation_set(tokens_of(root / "exact", tmp_path, exact)), lossy)
    assert back.unknown == validation.unknown


def test_texts_that_decode_to_themselves_are_not_kept(root: Path, tmp_path: Path) -> None:
    for name in ("minimind", "deepseek"):
        store = tokens_of(root / name, tmp_path, CASES[name]())
        assert not has_originals(store)
        assert "unknown_characters" not in store.artifact.manifest.counts


def test_parts_of_long_documents_keep_their_text(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_chunks(monkeypatch, unit=4 << 10, chunk=1 << 10, long_line=200)
    tokenizer = CASES["sentencepiece-bytes"]()
    texts = ["the quick brown fox jumps\nover the lazy dog " * 20 + "▁" + " the fox\nthe dog" * 30, *TEXTS] * 3
    validation = validation_set(tokens_of(root, tmp_path, tokenizer, texts))
    assert "".join(validation.documents) == "".join(texts)


def test_a_word_that_is_unknown_counts_its_characters(root: Path, tmp_path: Path) -> None:
    tokenizer = CASES["wordpiece"]()
    words = {*tokenizer.tokens.values()}  # type: ignore[attr-defined]
    assert "quick" in words
    assert not {"龘", "靐", "##龘", "##靐"} & words
    validation = validation_set(tokens_of(root, tmp_path, tokenizer, ["quick 龘 quick龘龘靐 QUICK", "the fox"]))
    assert validation.unknown == 1 + 3, "a Chinese character is a word"
    dog = validation_set(tokens_of(root / "words", tmp_path, CASES["wordlevel"](), ["the dogs fox"]))
    assert dog.unknown == len("dogs")


def test_text_of_unknown_characters_is_refused(root: Path, tmp_path: Path) -> None:
    inputs = TokenizeInputs((lines(tmp_path / "a.jsonl", ["却说阿渊" * 9, "龍" * 2]),), ())
    tokenizer = Characters("却说阿渊", "four")
    with pytest.raises(BadData, match=r"2 of 38 characters \(5.26 %\) are unknown") as error:
        run(root, inputs, tokenizer=tokenizer, val_fraction=0)
    assert "--allow-unknown" in (error.value.hint or "")
    assert not list((root / "tokens").glob("*/[!.]*"))
    tokens = run(root, inputs, tokenizer=tokenizer, val_fraction=0, allow_unknown=True).artifact
    assert tokens.manifest.counts["unknown_characters"] == 2
    assert tokens.manifest.ledger["characters"]["unknown"] == 2
    (row,) = status(root)
    assert row.summary == "2 documents, 40 tokens, 2 of 38 characters (5.26 %) are unknown"
    assert not [record.name for record in tokens.manifest.files if record.name.endswith(".text.zst")]


def test_commonest_unknown_characters_and_the_script_of_the_vocabulary_are_named(root: Path, tmp_path: Path) -> None:
    simplified = "风来无声时见归人长安诗书"
    texts = [f"{simplified}無無{simplified * 9}", "聲無時" + simplified]
    inputs = TokenizeInputs((lines(tmp_path / "a.jsonl", texts),), ())
    tokens = run(root, inputs, tokenizer=Characters(simplified, "book"), val_fraction=0, allow_unknown=True).artifact
    assert tokens.manifest.counts["commonest_unknown"] == {"無": 3, "時": 1, "聲": 1}
    assert warnings_of(tokens.manifest.counts)[0].endswith("are unknown, such as 無, 時, 聲: they are not in book")
    other = TokenizeInputs((lines(tmp_path / "b.jsonl", ["風來無聲" * 9]),), ())
    with pytest.raises(BadData, match=r"are unknown, such as 來, 無, 聲, 風, more than 5%") as error:
        run(root / "other", other, tokenizer=Characters(simplified, "book"), val_fraction=0)
    assert "its vocabulary is simplified Chinese" in (error.value.hint or "")
    assert "clean --script simplified" in (error.value.hint or "")


@pytest.mark.parametrize(
    ("vocabulary", "script"),
    [
        ("风来无声时见归人长安诗书", "simplified"),
        ("風來無聲時見歸人長安詩書", "traditional"),
        ("风來", ""),
        ("山石", ""),
    ],
)
def test_script_of_a_vocabulary_is_that_of_most_of_its_characters(vocabulary: str, script: str) -> None:
    assert script_of(Characters(vocabulary, "book")) == script


def test_rewrites_are_counted(root: Path, tmp_path: Path) -> None:
    inputs = TokenizeInputs((lines(tmp_path / "a.jsonl", ["却说，阿渊，a  b\n▁"]),), ())
    tokens = run(root, inputs, tokenizer=CASES["sentencepiece-defaults"](), val_fraction=0, allow_unknown=True).artifact
    assert tokens.manifest.counts["rewrites"] == {
        "， → ,": 2,
        "U+000A → U+0020": 1,
        "several spaces → one": 1,
        "▁ → U+0020": 1,
    }
    own = run(root, inputs, tokenizer=CASES["sentencepiece-bytes"](), val_fraction=0).artifact
    assert own.manifest.counts["rewrites"] == {"▁ → U+0020": 1}

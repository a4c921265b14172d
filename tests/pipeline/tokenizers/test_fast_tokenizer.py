"""Hugging Face's tokenizers: their ids unchanged, from a file or a folder, in every shape."""

from __future__ import annotations

import functools
import json
import pickle
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import tokenizers
from pipeline.errors import BadConfig, BadData, InputMissing
from pipeline.runtime import workers
from pipeline.tokenizers import FastTokenizer, IncrementalDetokenizer, Tokenizer, Unencodable, open_folder
from tests.pipeline.tokenizers.shapes import END_OF_TEXT_OF, SHAPES, library
from tests.pipeline.tokenizers.test_tokenizers import BOOK, TRICKY, rows

ENGLISH = (
    "The old man said that he was not in the room, but nobody believed him. It's 12 o'clock; they don't know.\n"
    "“Where have you been?” asked the brothers. He hadn't been anywhere, he answered, and sat down by the fire.\n\n"
)
TEXTS = [BOOK, ENGLISH * 20]
BYTE_LEVEL = ("qwen", "minimind", "deepseek")


@functools.cache
def shape_data(name: str) -> bytes:
    return SHAPES[name](TEXTS).encode()


def opened(name: str) -> FastTokenizer:
    data = shape_data(name)
    return FastTokenizer(data, name, library(data).token_to_id(END_OF_TEXT_OF[name]))


@pytest.fixture(scope="module", params=SHAPES)
def tokenizer(request: pytest.FixtureRequest) -> FastTokenizer:
    return opened(request.param)


def random_texts(count: int) -> list[str]:
    dice = random.Random(5)
    parts = [*(text for text in TRICKY if "<" not in text), *ENGLISH.split(" "), *BOOK[:300], " ", "\n", ".\n", "'LL"]
    return ["".join(dice.choices(parts, k=dice.randint(0, 40))) for _ in range(count)]


def test_ids_are_those_of_the_library(tokenizer: FastTokenizer) -> None:
    theirs = library(tokenizer.data)
    texts = [*random_texts(200), BOOK[:3000], ENGLISH]
    expected = [theirs.encode(text, add_special_tokens=False).ids for text in texts]
    assert [tokenizer.encode(text) for text in texts] == expected
    assert rows(tokenizer.encode_batch(texts)) == expected


def test_text_that_spells_a_special_token_is_ordinary_text(tokenizer: FastTokenizer) -> None:
    content = json.loads(tokenizer.data)
    special = {token["content"]: token["id"] for token in content["added_tokens"] if token["special"]}
    unknown = {tokenizer.unknown_id, special.get("<unk>"), special.get("[UNK]")}
    for token in special:
        for text in (token, f" {token}", f"a {token} b", f"山{token}水", f"{token}\n{token}"):
            ids = {*tokenizer.encode(text), *tokenizer.encode_batch([text])[0].tolist()}
            assert not (ids & {*special.values()}) - unknown, text


def test_decoding_and_token_bytes_agree(tokenizer: FastTokenizer) -> None:
    for text in [
        "the room\nwas 12",
        "山水，the fire",
        "“Where”",
        *([BOOK[:500], "🙂 é 𠮷"] if exact(tokenizer) else []),
    ]:
        ids = tokenizer.encode(text)
        pieces = [tokenizer.token_bytes(token, after) for token, after in zip(ids, [None, *ids], strict=False)]
        assert b"".join(pieces).decode() == tokenizer.decode(ids)
        detokenizer = IncrementalDetokenizer(tokenizer)
        assert "".join(map(detokenizer.add, ids)) == tokenizer.decode(ids)


def exact(tokenizer: FastTokenizer) -> bool:
    return tokenizer.name in (*BYTE_LEVEL, "llama")


@pytest.mark.parametrize("name", [*BYTE_LEVEL, "llama"])
def test_tokenizer_of_bytes_decodes_every_text(name: str) -> None:
    tokenizer = opened(name)
    assert tokenizer.unknown_id is None
    assert tokenizer.unknown_characters("砚𠮷\x00") == ""
    for text in [*(text for text in TRICKY if name != "qwen" or "豈" not in text), BOOK]:  # NFC changes 豈
        if not (name == "llama" and text.startswith(" ")):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_end_of_text_decodes_to_nothing(tokenizer: FastTokenizer) -> None:
    ids = tokenizer.encode("the room")
    assert tokenizer.decode([tokenizer.end_of_text, *ids, tokenizer.end_of_text]) == tokenizer.decode(ids)
    assert tokenizer.token_bytes(tokenizer.end_of_text) == b""
    assert all(isinstance(tokenizer.token_bytes(token, ids[0]), bytes) for token in range(tokenizer.vocab_size + 3))


def test_unknown_characters_are_those_without_a_token() -> None:
    assert opened("unigram").unknown_characters("山𪛖") == "𪛖"
    assert opened("wordpiece").unknown_characters("the𪛖") == "𪛖"


def test_saved_tokenizer_opens_with_its_file_unchanged(tokenizer: FastTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert (tmp_path / "huggingface.json").read_bytes() == tokenizer.data
    again = open_folder(tmp_path)
    for other in (again, pickle.loads(pickle.dumps(tokenizer))):
        for field in ("kind", "name", "vocab_size", "end_of_text", "fingerprint", "encoder"):
            assert getattr(other, field) == getattr(tokenizer, field)
        assert other.encode(BOOK[:500]) == tokenizer.encode(BOOK[:500])
    (tmp_path / "huggingface.json").write_bytes(shape_data("qwen" if tokenizer.name != "qwen" else "llama"))
    with pytest.raises(BadData, match="does not match its card"):
        open_folder(tmp_path)


def test_export_is_the_file_itself(tokenizer: FastTokenizer) -> None:
    assert tokenizers.tokenizer_json(tokenizer, ["the room", BOOK[:500]]) == tokenizer.data


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_byte_level_text_can_be_cut_at_words_lines_and_phrases(name: str) -> None:
    tokenizer = opened(name)
    assert tokenizer.boundary is not None
    cuts = [match.start() for match in tokenizer.boundary.finditer("an old man\nsaid that\n山水，砚石\n砚石")]
    assert cuts == [2, 6, 11, 15, 21, 23, 27]
    for text in [*random_texts(100), BOOK, ENGLISH]:
        parts = tokenizer.boundary.split(text)
        assert [token for part in parts for token in tokenizer.encode(part)] == tokenizer.encode(text)


def test_boundary_is_unknown_where_every_text_gets_a_prefix() -> None:
    assert opened("llama").boundary is None
    unigram = opened("unigram").boundary
    assert unigram is not None  # the prefix is a space, which the part has already
    assert re.escape(" [a-z]").replace("\\", "") in unigram.pattern.replace("\\", "")


def test_added_token_with_spaces_forbids_boundaries() -> None:
    content = json.loads(shape_data("qwen"))
    added = {"id": 999, "content": "old man", "special": False, "normalized": False}
    content["added_tokens"].append({**added, "single_word": False, "lstrip": False, "rstrip": False})
    assert FastTokenizer(json.dumps(content).encode(), "qwen", 900).boundary is None


def test_truncation_padding_and_dropout_of_the_file_have_no_effect() -> None:
    tokenizer = library(shape_data("minimind"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    content = json.loads(tokenizer.to_str())
    content["model"]["dropout"] = 0.5
    ours = FastTokenizer(json.dumps(content).encode(), "minimind", 0)
    assert ours.encode(ENGLISH) == opened("minimind").encode(ENGLISH)
    assert rows(ours.encode_batch(["a", ENGLISH])) == [ours.encode("a"), ours.encode(ENGLISH)]


def test_surrogates_become_replacement_characters() -> None:
    tokenizer = opened("minimind")
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert rows(tokenizer.encode_batch(["x", "a\ud800b"])) == [tokenizer.encode("x"), tokenizer.encode("a\ud800b")]


def test_word_without_token_for_unknown_words_is_unencodable() -> None:
    content = json.loads(shape_data("wordlevel"))
    content["model"]["unk_token"] = "missing"
    tokenizer = FastTokenizer(json.dumps(content).encode(), "words", 1)
    with pytest.raises(Unencodable):
        tokenizer.encode_batch(["the zymurgy"])


def test_workers_encode_with_one_thread_and_no_warnings(capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = opened("qwen")
    texts = [[text] * 20 for text in random_texts(40)]
    results = list(workers.map_ordered(tokenizer.encode_batch, iter(texts), jobs=2))
    for task, (ids, lengths) in results:
        expected = tokenizer.encode_batch(task)
        assert np.array_equal(ids, expected[0])
        assert np.array_equal(lengths, expected[1])
    assert capfd.readouterr() == ("", "")


# Which file, and which token ends a text


def folder_of(tmp_path: Path, name: str, **configs: Any) -> Path:
    folder = tmp_path / f"{name}-model"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(shape_data(name))
    for config, content in configs.items():
        (folder / f"{config}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def find(tmp_path: Path, reference: object, end_of_text: str = "") -> Tokenizer:
    tokenizer, trained = tokenizers.find(tmp_path / "artifacts", str(reference), end_of_text=end_of_text)
    assert trained is None
    return tokenizer


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "wordlevel"])
def test_end_of_text_of_a_file_is_a_usual_special_token(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path, name)
    by_folder, by_file = find(tmp_path, folder), find(tmp_path, folder / "tokenizer.json")
    assert by_folder.fingerprint == by_file.fingerprint == opened(name).fingerprint
    assert by_folder.name == by_file.name == f"{name}-model"


@pytest.mark.parametrize("eos", ["<|im_end|>", {"content": "<|im_end|>", "lstrip": False}])
@pytest.mark.parametrize("config", ["tokenizer_config", "special_tokens_map"])
def test_end_of_text_is_the_eos_token_of_the_configuration(tmp_path: Path, config: str, eos: object) -> None:
    folder = folder_of(tmp_path, "qwen", **{config: {"eos_token": eos}})
    im_end = library(shape_data("qwen")).token_to_id("<|im_end|>")
    assert find(tmp_path, folder).end_of_text == im_end
    assert find(tmp_path, folder, "<|im_start|>").end_of_text == im_end - 1
    assert find(tmp_path, folder).fingerprint != find(tmp_path, folder, "<|im_start|>").fingerprint


def test_end_of_text_without_a_usual_name_is_asked_for(tmp_path: Path) -> None:
    text = shape_data("wordlevel").decode().replace("<eos>", "<stop>")
    path = tmp_path / "words.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadConfig, match="special tokens: <unk>, <stop>") as caught:
        find(tmp_path, path)
    assert "--end-of-text" in caught.value.hint
    assert find(tmp_path, path, "<stop>").end_of_text == 1
    with pytest.raises(BadConfig, match="no such token") as caught:
        find(tmp_path, path, "<end>")
    assert "<stop>" in caught.value.hint


def test_end_of_text_that_ordinary_text_contains_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="would become the end of a text"):
        find(tmp_path, folder_of(tmp_path, "minimind"), "a")


def test_end_of_text_option_is_only_for_files(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="--end-of-text"):
        find(tmp_path, "r50k_base", "<|endoftext|>")


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"model": {"vocab": 3}}', '{"model": {"type": "BPE"}}', "\ud7ff{"])
def test_file_that_is_no_tokenizer_raises_bad_data(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(BadData, match=r"not a tokenizer\.json"):
        find(tmp_path, path)


def test_file_that_the_library_refuses_raises_bad_data(tmp_path: Path) -> None:
    content = json.loads(shape_data("minimind"))
    content["pre_tokenizer"] = {"type": "Telepathy"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(BadData, match="cannot open it"):
        find(tmp_path, path)


def test_folder_with_another_form_of_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "vocab.json").write_text("{}")
    with pytest.raises(InputMissing, match=r"no tokenizer\.json") as caught:
        find(tmp_path, tmp_path / "old")
    assert "save_pretrained" in caught.value.hint
    (tmp_path / "old" / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(InputMissing) as caught:
        find(tmp_path, tmp_path / "old")
    assert "tokenizer.model" in caught.value.hint

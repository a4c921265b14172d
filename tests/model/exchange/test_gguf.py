"""GGUF files, read back by the package `gguf`.

llama.cpp itself, which is what they are for, runs in no test here; what it made of such files is in
benchmarks/NOTES.md.
"""

from __future__ import annotations

from binascii import b2a_base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.config import GPTConfig
from model.exchange import architectures as families
from model.exchange import convert as exchange
from pipeline.errors import BadConfig
from pipeline.tokenizers import SentencePiece, Tiktoken, Tokenizer, open_folder
from tests.pipeline.tokenizers.test_tokenizers import trained
from tests.support.exchanging import CONFIGS, GPT2, LETTERS, QWEN3, alone, exported, network, published

__all__ = ["alone", "trained"]  # fixtures


@pytest.fixture
def bpe(request: pytest.FixtureRequest) -> Tokenizer:
    return open_folder(request.getfixturevalue("trained")("bpe").path)


def opened(root: Path, config: GPTConfig, tokenizer: Tokenizer) -> Any:
    from gguf import GGUFReader

    folder = exported(published(root, config, tokenizer), "gguf")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "small.gguf"]
    return GGUFReader(folder / "small.gguf")


def fields(reader: Any) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize(
    "name", ["gpt2", "gpt2 without biases, untied, padded", "qwen3 untied, padded, with all heads"]
)
def test_every_tensor_reads_back_as_it_is(root: Path, bpe: Tokenizer, name: str) -> None:
    config = replace(CONFIGS[name], vocab_size=bpe.vocab_size + 5)
    expected = exchange.for_gguf(config, dict(network(config).named_parameters()))
    found = {tensor.name: tensor for tensor in opened(root, config, bpe).tensors}
    assert found.keys() == expected.keys()
    for each, tensor in expected.items():
        shape = tuple(reversed(found[each].shape.tolist()))
        assert shape == tuple(tensor.shape)
        assert np.array_equal(found[each].data.reshape(shape), tensor.numpy()), each


def test_the_names_are_those_that_the_package_has_for_each_architecture() -> None:
    from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES

    for config in CONFIGS.values():
        architecture = next(each for each in MODEL_ARCH if MODEL_ARCH_NAMES[each] == config.family)
        known = {TENSOR_NAMES[tensor] for tensor in MODEL_TENSORS[architecture]}
        for place in families.places(config):
            stem = place.gguf.rpartition(".")[0]
            assert stem in known or stem.replace("blk.0.", "blk.{bid}.").replace("blk.1.", "blk.{bid}.") in known


def test_gpt2_has_the_numbers_that_llama_cpp_asks_for(root: Path, bpe: Tokenizer) -> None:
    found = fields(opened(root, replace(GPT2, vocab_size=bpe.vocab_size), bpe))
    assert found["general.architecture"] == "gpt2"
    expected = {"context_length": 96, "embedding_length": 32, "block_count": 2, "feed_forward_length": 128}
    for name, value in {**expected, "attention.head_count": 4}.items():
        assert found[f"gpt2.{name}"] == value
    assert found["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)


def test_qwen3_has_the_numbers_that_llama_cpp_asks_for(root: Path, bpe: Tokenizer) -> None:
    found = fields(opened(root, replace(QWEN3, vocab_size=bpe.vocab_size), bpe))
    expected = {"attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 8}
    for name, value in {**expected, "attention.value_length": 8, "rope.freq_base": 10_000.0}.items():
        assert found[f"qwen3.{name}"] == value
    assert found["qwen3.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)


def test_sentencepiece_keeps_its_pieces_scores_and_kinds(root: Path, bpe: Tokenizer) -> None:
    assert isinstance(bpe, SentencePiece)
    config = replace(GPT2, vocab_size=bpe.vocab_size + 3)
    found = fields(opened(root, config, bpe))
    assert found["tokenizer.ggml.model"] == "llama"
    assert found["tokenizer.ggml.tokens"][: bpe.vocab_size] == bpe.pieces()
    assert len(found["tokenizer.ggml.tokens"]) == config.vocab_size
    scores = [bpe.processor.get_score(number) for number in range(bpe.vocab_size)]
    assert found["tokenizer.ggml.scores"][: bpe.vocab_size] == scores
    kinds = found["tokenizer.ggml.token_type"]
    assert kinds[:2] == [2, 3], "unknown, end of text"
    byte = bpe.pieces().index("<0x0A>")
    assert (kinds[byte], kinds[bpe.vocab_size - 1], kinds[-1]) == (6, 1, 5)
    assert found["tokenizer.ggml.add_space_prefix"] is False
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert found["tokenizer.ggml.eos_token_id"] == bpe.end_of_text


def encoding(name: str) -> Tiktoken:
    """One by that name which has few pieces, and ids without any."""
    pieces = [*(bytes([byte]) for byte in range(256)), b" t", b"th", b" th", b"the", b" the"]
    ranks = b"".join(b"%b %d\n" % (b2a_base64(piece, newline=False), rank) for rank, piece in enumerate(pieces))
    return Tiktoken(name, ranks, r"\s?\S+|\s", 270, 265, "tiktoken")


@pytest.mark.parametrize(("name", "split"), [("gpt2", "gpt-2"), ("p50k_base", "gpt-2"), ("cl100k_base", "dbrx")])
def test_encodings_are_its_tokenizer_of_gpt2(root: Path, name: str, split: str) -> None:
    found = fields(opened(root, replace(GPT2, vocab_size=272), encoding(name)))
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", split)
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert (tokens[260], tokens[265], len(tokens)) == ("Ġthe", "<|endoftext|>", 272)
    merges = ["Ġ t", "t h", "Ġ th", "Ġt h", "th e", "Ġ the", "Ġth e"]
    assert sorted(found["tokenizer.ggml.merges"]) == sorted(merges)
    assert found["tokenizer.ggml.merges"][:2] == merges[:2]
    assert kinds == [1] * 261 + [5] * 4 + [3] + [5] * 6, "the end of text is special, what has no text is not used"


@pytest.mark.parametrize("name", ["o200k_base", "letters"])
def test_a_tokenizer_that_llama_cpp_lacks_is_refused(root: Path, request: pytest.FixtureRequest, name: str) -> None:
    tokenizer: Tokenizer = LETTERS
    if name != "letters":
        request.getfixturevalue("shared")
        tokenizer = Tiktoken.named(name)
    found = published(root, replace(GPT2, vocab_size=tokenizer.vocab_size, width=8), tokenizer)
    with pytest.raises(BadConfig, match=name) as refused:
        exported(found, "gguf")
    assert "--to hf" in refused.value.hint


def test_a_unigram_model_is_refused(root: Path, request: pytest.FixtureRequest) -> None:
    unigram = open_folder(request.getfixturevalue("trained")("unigram").path)
    with pytest.raises(BadConfig, match="unigram"):
        exported(published(root, replace(GPT2, vocab_size=unigram.vocab_size), unigram), "gguf")

"""GGUF files, read back by the package `gguf`.

llama.cpp itself is not tested here; benchmarks/NOTES.md has the results of a manual test.
"""

from __future__ import annotations

from binascii import b2a_base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.config import GPTConfig
from model.exchange import convert, export
from model.exchange.architectures import family_of, tensor_mappings
from pipeline.errors import BadConfig
from pipeline.tokenizers import ChatTokenizer, SentencePiece, Tiktoken, Tokenizer, open_folder
from tests.pipeline.tokenizers.test_tokenizers import AS_EVER, BOOK, model_of, trained
from tests.support.exchanging import (
    CONFIGS,
    GPT2,
    LETTERS,
    LLAMA,
    NEOX,
    QWEN3,
    export_run,
    publish_run,
    random_network,
    single_thread_offline,
)

__all__ = ["single_thread_offline", "trained"]  # fixtures


@pytest.fixture
def bpe(request: pytest.FixtureRequest) -> Tokenizer:
    return open_folder(request.getfixturevalue("trained")("bpe").path)


def export_and_read(root: Path, config: GPTConfig, tokenizer: Tokenizer) -> Any:
    from gguf import GGUFReader

    folder = export_run(publish_run(root, config, tokenizer), "gguf")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "small.gguf"]
    return GGUFReader(folder / "small.gguf")


def fields(reader: Any) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        "gpt2 without biases, untied, padded",
        "gpt_neox",
        "gpt_neox without biases, untied, padded",
        "qwen3 untied, padded, with all heads",
        "llama",
        "qwen2",
    ],
)
def test_every_tensor_reads_back_unchanged(root: Path, bpe: Tokenizer, name: str) -> None:
    config = replace(CONFIGS[name], vocab_size=bpe.vocab_size + 5)
    expected = convert.to_gguf(config, dict(random_network(config).named_parameters()))
    tensors = {tensor.name: tensor for tensor in export_and_read(root, config, bpe).tensors}
    assert tensors.keys() == expected.keys()
    for tensor_name, tensor in expected.items():
        shape = tuple(reversed(tensors[tensor_name].shape.tolist()))
        assert shape == tuple(tensor.shape)
        assert np.array_equal(tensors[tensor_name].data.reshape(shape), tensor.numpy()), tensor_name


@pytest.mark.parametrize("config", [GPT2, QWEN3], ids=["gpt2", "qwen3"])
def test_quantised_matrices_are_close_and_vectors_and_positions_are_equal(
    root: Path, bpe: Tokenizer, config: GPTConfig
) -> None:
    from gguf import GGMLQuantizationType, GGUFReader, dequantize

    config = replace(config, vocab_size=bpe.vocab_size)
    out = root / "exports" / "book.gguf"
    exported = export.export(publish_run(root, config, bpe), "gguf", out, quantize="q8_0", verify=True)
    assert (exported.files, exported.bytes) == (("book.gguf",), out.stat().st_size)
    reader, expected = GGUFReader(out), convert.to_gguf(config, dict(random_network(config).named_parameters()))
    assert fields(reader)["general.file_type"] == 7
    for tensor in reader.tensors:
        weight = expected[tensor.name].numpy()
        is_matrix = weight.ndim == 2 and tensor.name != "position_embd.weight"
        assert tensor.tensor_type == (GGMLQuantizationType.Q8_0 if is_matrix else GGMLQuantizationType.F32)
        values = dequantize(tensor.data, tensor.tensor_type).reshape(weight.shape)
        # the scale of 32 weights is their largest divided by 127, and is itself rounded to half precision
        assert np.abs(values - weight).max() <= is_matrix * np.abs(weight).max() * (0.5 / 127 + 2**-10), tensor.name


def test_file_and_card_are_named_after_the_type(root: Path, bpe: Tokenizer) -> None:
    run_artifact = publish_run(root, replace(GPT2, vocab_size=bpe.vocab_size), bpe)
    quantised = export.export(run_artifact, "gguf", root / "exports" / "q8", quantize="q8_0")
    assert quantised.files == ("README.md", "small-q8_0.gguf")
    card = (quantised.path / "README.md").read_text()
    assert "llama-completion --model small-q8_0.gguf" in card
    assert "llama-quantize" not in card
    assert (
        "llama-quantize small.gguf small-q4_k_m.gguf Q4_K_M"
        in (export_run(run_artifact, "gguf") / "README.md").read_text()
    )


def test_rows_that_are_not_whole_blocks_are_not_quantised(root: Path, bpe: Tokenizer) -> None:
    run_artifact = publish_run(root, replace(GPT2, vocab_size=bpe.vocab_size, width=40), bpe)
    with pytest.raises(BadConfig, match=r"multiple of 32 weights, token_embd\.weight has 40"):
        export.export(run_artifact, "gguf", root / "exports" / "q8", quantize="q8_0")
    assert not (root / "exports" / "q8").exists()


@pytest.mark.parametrize(("to", "quantize"), [("hf", "q8_0"), ("gguf", "q4_k_m")])
def test_unknown_type_of_matrices_raises(root: Path, bpe: Tokenizer, to: str, quantize: str) -> None:
    run_artifact = publish_run(root, replace(GPT2, vocab_size=bpe.vocab_size), bpe)
    with pytest.raises(BadConfig, match=f"no type '{quantize}'"):
        export.export(run_artifact, to, root / "exports" / "out", quantize=quantize)


def test_tensor_names_are_those_of_the_package_for_the_architecture() -> None:
    from gguf.constants import MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES

    for config in CONFIGS.values():
        architecture = next(key for key, name in MODEL_ARCH_NAMES.items() if name == family_of(config).gguf)
        names = {TENSOR_NAMES[tensor] for tensor in MODEL_TENSORS[architecture]}
        for mapping in tensor_mappings(config):
            name = mapping.gguf.rpartition(".")[0]
            assert name in names or name.replace("blk.0.", "blk.{bid}.").replace("blk.1.", "blk.{bid}.") in names


def test_gpt2_has_the_fields_that_llama_cpp_requires(root: Path, bpe: Tokenizer) -> None:
    metadata = fields(export_and_read(root, replace(GPT2, vocab_size=bpe.vocab_size), bpe))
    assert metadata["general.architecture"] == "gpt2"
    expected = {"context_length": 96, "embedding_length": 32, "block_count": 2, "feed_forward_length": 128}
    for name, value in {**expected, "attention.head_count": 4}.items():
        assert metadata[f"gpt2.{name}"] == value
    assert metadata["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)


def test_gpt_neox_has_the_fields_that_llama_cpp_requires(root: Path, bpe: Tokenizer) -> None:
    reader = export_and_read(root, replace(NEOX, vocab_size=bpe.vocab_size), bpe)
    metadata, tensors = fields(reader), {tensor.name: tensor.data for tensor in reader.tensors}
    assert metadata["general.architecture"] == "gptneox"
    expected = {"use_parallel_residual": False, "rope.dimension_count": 8, "rope.freq_base": 10_000.0}
    for name, value in {**expected, "attention.head_count": 4, "feed_forward_length": 128}.items():
        assert metadata[f"gptneox.{name}"] == value
    assert metadata["gptneox.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    assert np.array_equal(tensors["output.weight"], tensors["token_embd.weight"]), "a tied head is written too"


def test_qwen3_has_the_fields_that_llama_cpp_requires(root: Path, bpe: Tokenizer) -> None:
    metadata = fields(export_and_read(root, replace(QWEN3, vocab_size=bpe.vocab_size), bpe))
    expected = {"attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 8}
    for name, value in {**expected, "attention.value_length": 8, "rope.freq_base": 10_000.0}.items():
        assert metadata[f"qwen3.{name}"] == value
    assert metadata["qwen3.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)


def test_llama_has_heads_in_the_order_of_llama_cpp(root: Path, bpe: Tokenizer) -> None:
    config = replace(LLAMA, vocab_size=bpe.vocab_size, norm_epsilon=1e-5)
    reader = export_and_read(root, config, bpe)
    metadata, tensors = fields(reader), {tensor.name: tensor.data for tensor in reader.tensors}
    assert metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert metadata["llama.rope.dimension_count"] == 8
    weights = dict(random_network(config).named_parameters())
    for name, theirs in (("q", "attn_q"), ("k", "attn_k")):
        weight = weights[f"blocks.0.attention.{name}.weight"].detach().numpy()
        rows = [head * 8 + pair + half * 4 for head in range(len(weight) // 8) for pair in range(4) for half in (0, 1)]
        assert np.array_equal(tensors[f"blk.0.{theirs}.weight"], weight[rows])


@pytest.mark.parametrize("activation", ["gelu_erf", "relu"])
def test_an_activation_without_llama_cpp_counterpart_raises(root: Path, bpe: Tokenizer, activation: str) -> None:
    run_artifact = publish_run(root, replace(GPT2, vocab_size=bpe.vocab_size, activation=activation), bpe)
    with pytest.raises(BadConfig, match=f"activation={activation}"):
        export_run(run_artifact, "gguf")


def test_sentencepiece_keeps_its_pieces_scores_and_types(root: Path, bpe: Tokenizer) -> None:
    assert isinstance(bpe, SentencePiece)
    config = replace(GPT2, vocab_size=bpe.vocab_size + 3)
    metadata = fields(export_and_read(root, config, bpe))
    assert metadata["tokenizer.ggml.model"] == "llama"
    assert metadata["tokenizer.ggml.tokens"][: bpe.vocab_size] == bpe.pieces()
    assert len(metadata["tokenizer.ggml.tokens"]) == config.vocab_size
    scores = [bpe.processor.get_score(piece_id) for piece_id in range(bpe.vocab_size)]
    assert metadata["tokenizer.ggml.scores"][: bpe.vocab_size] == scores
    types = metadata["tokenizer.ggml.token_type"]
    assert types[:2] == [2, 3], "unknown, end of text"
    byte = bpe.pieces().index("<0x0A>")
    assert (types[byte], types[bpe.vocab_size - 1], types[-1]) == (6, 1, 5)
    assert metadata["tokenizer.ggml.add_space_prefix"] is False
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    assert metadata["tokenizer.ggml.eos_token_id"] == bpe.end_of_text


def test_a_dummy_prefix_is_added_by_llama_cpp_too(root: Path) -> None:
    tokenizer = SentencePiece(model_of(BOOK, 2600, **{**AS_EVER, "add_dummy_prefix": True}), "foreign")
    metadata = fields(export_and_read(root, replace(GPT2, vocab_size=tokenizer.vocab_size), tokenizer))
    assert metadata["tokenizer.ggml.add_space_prefix"] is True


def small_encoding(name: str) -> Tiktoken:
    """An encoding of that name with few pieces; some ids have no piece."""
    pieces = [*(bytes([byte]) for byte in range(256)), b" t", b"th", b" th", b"the", b" the"]
    ranks = b"".join(b"%b %d\n" % (b2a_base64(piece, newline=False), rank) for rank, piece in enumerate(pieces))
    return Tiktoken(name, ranks, r"\s?\S+|\s", 270, 265, "tiktoken")


@pytest.mark.parametrize(("name", "split"), [("gpt2", "gpt-2"), ("p50k_base", "gpt-2"), ("cl100k_base", "dbrx")])
def test_tiktoken_encodings_become_the_gpt2_tokenizer(root: Path, name: str, split: str) -> None:
    metadata = fields(export_and_read(root, replace(GPT2, vocab_size=272), small_encoding(name)))
    assert (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]) == ("gpt2", split)
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert (tokens[260], tokens[265], len(tokens)) == ("Ġthe", "<|endoftext|>", 272)
    merges = ["Ġ t", "t h", "Ġ th", "Ġt h", "th e", "Ġ the", "Ġth e"]
    assert sorted(metadata["tokenizer.ggml.merges"]) == sorted(merges)
    assert metadata["tokenizer.ggml.merges"][:2] == merges[:2]
    assert types == [1] * 261 + [5] * 4 + [3] + [5] * 6, "normal, unused, end of text, unused"


@pytest.mark.parametrize("name", ["o200k_base", "letters"])
def test_a_tokenizer_without_llama_cpp_counterpart_raises(
    root: Path, request: pytest.FixtureRequest, name: str
) -> None:
    tokenizer: Tokenizer = LETTERS
    if name != "letters":
        request.getfixturevalue("shared")
        tokenizer = Tiktoken.named(name)
    run_artifact = publish_run(root, replace(GPT2, vocab_size=tokenizer.vocab_size, width=8), tokenizer)
    with pytest.raises(BadConfig, match=name) as caught:
        export_run(run_artifact, "gguf")
    assert "--to hf" in caught.value.hint


def test_a_unigram_model_raises(root: Path, request: pytest.FixtureRequest) -> None:
    unigram = open_folder(request.getfixturevalue("trained")("unigram").path)
    with pytest.raises(BadConfig, match="unigram"):
        export_run(publish_run(root, replace(GPT2, vocab_size=unigram.vocab_size), unigram), "gguf")


def test_chat_template_and_its_tokens_are_in_the_file(root: Path, bpe: Tokenizer) -> None:
    chat = ChatTokenizer(bpe)
    exported = fields(export_and_read(root, replace(LLAMA, vocab_size=chat.vocab_size + 6), chat))
    special = [exported["tokenizer.ggml.tokens"][token] for token in chat.special.values()]
    assert special == ["<|im_start|>", "<|im_end|>"]
    control = [exported["tokenizer.ggml.token_type"][token] for token in chat.special.values()]
    assert control == [exported["tokenizer.ggml.token_type"][chat.end_of_text]] * 2
    assert exported["tokenizer.ggml.eot_token_id"] == chat.end_of_turn
    assert "generation %}" not in exported["tokenizer.chat_template"]
    assert {len(exported[f"tokenizer.ggml.{name}"]) for name in ("tokens", "scores", "token_type")} == {
        chat.vocab_size + 6
    }

"""Exported runs: a complete folder or none, with a tokenizer that transformers opens and a model card."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from model.config import GPTConfig
from model.exchange import export, huggingface
from model.exchange.export_source import ExportSource
from pipeline import tokenizers
from pipeline.errors import BadConfig, BadData, CannotCreate, StorageFailed
from pipeline.store import files
from pipeline.tokenizers import (
    ChatTokenizer,
    FastTokenizer,
    Integers,
    SentencePiece,
    Tiktoken,
    Tokenizer,
    open_folder,
    tokenizer_json,
)
from tests.pipeline.tokenizers.shapes import END_OF_TEXT_OF, SHAPES, library
from tests.pipeline.tokenizers.test_tokenizers import BOOK, trained
from tests.support.conversations import conversations_for
from tests.support.exchanging import (
    CONFIGS,
    GPT2,
    LETTERS,
    LLAMA,
    QWEN3,
    export_run,
    publish_run,
    single_thread_offline,
)

__all__ = ["single_thread_offline", "trained"]  # fixtures

FILES = ["README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]


def test_export_writes_the_files_that_transformers_reads(root: Path) -> None:
    exported = export.export(publish_run(root, GPT2), "hf", root / "exports" / "small")
    assert list(exported.files) == [*FILES, "tokenizer_config.json"]
    assert (exported.parameters, exported.step) == (GPT2.parameters, 7)
    assert exported.bytes == sum((exported.path / name).stat().st_size for name in exported.files)
    modes = {(exported.path / name).stat().st_mode for name in exported.files}
    assert len(modes) == 1, "all files have the same permissions"


def test_two_exports_have_the_same_bytes(root: Path, tmp_path: Path) -> None:
    run_artifact = publish_run(root, QWEN3)
    first, second = (export.export(run_artifact, "hf", tmp_path / name).path for name in ("first", "second"))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_gpt2_has_the_field_that_llama_cpp_converts(root: Path) -> None:
    assert json.loads((export_run(publish_run(root, GPT2)) / "config.json").read_text())["n_ctx"] == GPT2.block_size


@pytest.mark.parametrize(("config", "is_written"), [(LLAMA, True), (QWEN3, False)], ids=["llama", "qwen3"])
def test_sentencepiece_model_lies_beside_networks_that_llama_cpp_converts_with_equal_ids(
    root: Path, request: pytest.FixtureRequest, config: GPTConfig, is_written: bool
) -> None:
    tokenizer = load_tokenizer("bpe", request)
    assert isinstance(tokenizer, SentencePiece)
    out = export_run(publish_run(root, replace(config, vocab_size=tokenizer.vocab_size), tokenizer))
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["add_bos_token"] is False
    assert settings.get("add_prefix_space") == (False if is_written else None)
    path = out / "tokenizer.model"
    assert path.exists() == is_written
    assert not is_written or path.read_bytes() == tokenizer.processor.serialized_model_proto()


def load_tokenizer(kind: str, request: pytest.FixtureRequest) -> Tokenizer:
    if kind == "letters":
        return LETTERS
    if kind == "bpe":
        return open_folder(request.getfixturevalue("trained")("bpe").path)
    request.getfixturevalue("shared")
    return Tiktoken.named(kind)


@pytest.mark.parametrize("kind", ["letters", "bpe", "r50k_base"])
def test_transformers_tokenizer_gives_our_ids_and_texts(root: Path, request: pytest.FixtureRequest, kind: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = load_tokenizer(kind, request)
    config = replace(GPT2, vocab_size=tokenizer.vocab_size, layers=1, width=8)
    theirs = AutoTokenizer.from_pretrained(export_run(publish_run(root, config, tokenizer)))
    text = "A stone, 12 stones:  don't\n砚山石水" if kind == "letters" else BOOK[:3000] + " It's 12,345.\n"
    ids = theirs(text).input_ids
    assert ids == tokenizer.encode(text)
    assert theirs.decode(ids) == text
    assert (theirs.eos_token_id, theirs.bos_token_id) == (tokenizer.end_of_text,) * 2
    assert theirs.decode([*ids, tokenizer.end_of_text], skip_special_tokens=True) == text
    assert theirs.model_max_length == config.block_size
    assert len(theirs) == tokenizer.vocab_size


@pytest.mark.parametrize("kind", ["letters", "bpe", "r50k_base", "qwen", "minimind", "deepseek"])
def test_transformers_chat_template_gives_our_ids_and_mask(
    root: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    from transformers import AutoTokenizer

    chat = ChatTokenizer(fast_tokenizer(kind) if kind in SHAPES else load_tokenizer(kind, request))
    config = replace(GPT2, vocab_size=chat.vocab_size, layers=1, width=8)
    out = export_run(publish_run(root, config, chat, samples=("once upon a time\n",)))
    theirs = AutoTokenizer.from_pretrained(out)
    assert len(theirs) == chat.vocab_size
    for messages in conversations_for("openai", 200):
        if any(token in turn["content"] for turn in messages for token in theirs.all_special_tokens):
            continue  # in transformers, text that spells a special token becomes it
        ids, mask = chat.encode_conversation(messages)
        encoded = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert encoded["input_ids"] == ids
        assert [bool(flag) for flag in encoded["assistant_masks"]] == mask
        prompt = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
        assert prompt == chat.encode_messages(messages[:-1], add_generation_prompt=True)
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [chat.end_of_turn, chat.end_of_text]


def fast_tokenizer(shape: str) -> FastTokenizer:
    data = SHAPES[shape]([BOOK]).encode()
    return FastTokenizer(data, shape, library(data).token_to_id(END_OF_TEXT_OF[shape]))


def test_the_tokenizers_are_compared_on_training_samples_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def recording(tokenizer: Tokenizer, texts: Iterable[str]) -> bytes:
        compared.extend(texts)
        return tokenizer_json(tokenizer, texts)

    monkeypatch.setattr(huggingface, "tokenizer_json", recording)
    export_run(publish_run(root, GPT2, samples=("once upon", "砚山 said")))
    assert {"once upon", "砚山 said"} <= set(compared)


def test_a_tokenizer_with_other_ids_exports_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_artifact = publish_run(root, GPT2, samples=("once upon",))
    encode = type(LETTERS).encode
    monkeypatch.setattr(
        type(LETTERS), "encode", lambda self, text: encode(self, text)[: 8 if text[:4] == "once" else None]
    )
    with pytest.raises(BadData, match=r"'once upon.*' is encoded differently"):
        export.export(run_artifact, "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(f"{files.TEMPORARY}*"))


def test_padding_ids_are_suppressed_in_the_generation_config(root: Path) -> None:
    out = export_run(publish_run(root, CONFIGS["qwen3 untied, padded, with all heads"]))
    generation_config = json.loads((out / "generation_config.json").read_text())
    assert generation_config["suppress_tokens"] == list(range(LETTERS.vocab_size, 128))
    assert generation_config["eos_token_id"] == LETTERS.end_of_text


def test_a_tokenizer_of_integers_is_exported(root: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(export_run(publish_run(root, GPT2, Integers(GPT2.vocab_size))))
    assert theirs("1 2 3").input_ids == [1, 2, 3]


def test_the_model_card_lists_run_losses_and_configuration(root: Path) -> None:
    run_artifact = publish_run(root, GPT2)
    card = (export_run(run_artifact) / "README.md").read_text()
    for text in (
        *(run_artifact.ref, run_artifact.digest[:16], f"{GPT2.parameters:,} parameters", "step 7 of 7", "700 tokens"),
        *("3.250 bits per character", "2.500 nats per token", "letters", LETTERS.fingerprint, "| width | 32 |"),
        "learning_rate",
    ):
        assert text in card
    assert card.startswith("---\nlibrary_name: transformers\n")


# --- errors ---


@pytest.mark.parametrize("format_name", ["onnx", ""])
def test_an_unknown_format_raises_with_the_known_ones(root: Path, tmp_path: Path, format_name: str) -> None:
    with pytest.raises(BadConfig) as caught:
        export.export(publish_run(root, GPT2), format_name, tmp_path / "out")
    assert caught.value.hint == "use one of: hf, gguf"


@pytest.mark.parametrize("format_name", ["hf", "gguf"])
@pytest.mark.parametrize("config", [GPT2, QWEN3], ids=["gpt2", "qwen3"])
def test_verify_refuses_weights_that_differ_when_read_back(
    root: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    format_name: str,
    config: GPTConfig,
) -> None:
    tokenizer = load_tokenizer("bpe", request)
    run_artifact = publish_run(root, replace(config, vocab_size=tokenizer.vocab_size), tokenizer)
    assert export.export(run_artifact, format_name, tmp_path / "intact", verify=True).verified
    write = export.FORMATS[format_name].write

    def write_damaged(source: ExportSource, folder: Path) -> None:
        write(source, folder)
        (path,) = (*folder.glob("*.safetensors"), *folder.glob("*.gguf"))
        data = bytearray(path.read_bytes())
        data[data.index(source.weights["embedding.weight"].numpy().tobytes())] ^= 1
        path.write_bytes(data)

    monkeypatch.setitem(export.FORMATS, format_name, replace(export.FORMATS[format_name], write=write_damaged))
    with pytest.raises(BadData, match="differs from what was written"):
        export.export(run_artifact, format_name, tmp_path / "damaged", verify=True)
    assert not (tmp_path / "damaged").exists()
    assert not export.export(run_artifact, format_name, tmp_path / "unverified").verified


def test_an_existing_folder_is_not_changed(root: Path, tmp_path: Path) -> None:
    run_artifact = publish_run(root, GPT2)
    (tmp_path / "out").mkdir()
    with pytest.raises(CannotCreate, match="already exists"):
        export.export(run_artifact, "hf", tmp_path / "out")
    with pytest.raises(CannotCreate, match="inside the artifact"):
        export.export(run_artifact, "hf", run_artifact.path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_full_disk_raises_before_anything_is_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_artifact = publish_run(root, GPT2)
    monkeypatch.setattr(files, "free_space", lambda folder: 10)
    with pytest.raises(StorageFailed, match=" needed"):
        export.export(run_artifact, "hf", tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_a_damaged_checkpoint_is_not_exported(root: Path, tmp_path: Path) -> None:
    run_artifact = publish_run(root, GPT2)
    path = next(run_artifact.path.glob("checkpoints/*/model.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(BadData):
        export.export(run_artifact, "hf", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts"]


def test_a_missing_package_raises_with_the_extra_to_install(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: Path
) -> None:
    run_artifact = publish_run(root, GPT2)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(BadConfig, match="gguf") as caught:
        export.export(run_artifact, "gguf", tmp_path / "out")
    assert ".[exchange]" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_of_the_run_is_exported(root: Path) -> None:
    run_artifact = publish_run(root, GPT2)
    vocabulary = json.loads((export_run(run_artifact) / "tokenizer.json").read_text())["model"]["vocab"]
    tokenizers.require_same_ids(open_folder(run_artifact.path), vocabulary, "tokenizer.json")

"""Exported runs: a folder that appears whole or not at all, with a tokenizer that transformers opens and a card."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from model.config import GPTConfig
from model.exchange import export, huggingface
from model.exchange.export_source import Source
from pipeline import tokenizers
from pipeline.errors import BadConfig, BadData, CannotCreate, StorageFailed
from pipeline.store import files
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Integers, Tiktoken, Tokenizer, open_folder
from tests.pipeline.tokenizers.test_tokenizers import BOOK, trained
from tests.support.exchanging import CONFIGS, GPT2, LETTERS, QWEN3, alone, exported, published

__all__ = ["alone", "trained"]  # fixtures

FILES = ["README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]


def test_an_export_is_a_folder_with_all_that_transformers_reads(root: Path) -> None:
    found = published(root, GPT2)
    done = export.export(found, "hf", root / "exports" / "small")
    assert list(done.files) == [*FILES, "tokenizer_config.json"]
    assert (done.parameters, done.step) == (GPT2.parameters, 7)
    assert done.bytes == sum((done.path / name).stat().st_size for name in done.files)
    modes = {(done.path / name).stat().st_mode for name in done.files}
    assert len(modes) == 1, "whoever may read one of them may read all"


def test_an_export_has_the_same_bytes_each_time(root: Path, tmp_path: Path) -> None:
    found = published(root, QWEN3)
    one, other = (export.export(found, "hf", tmp_path / name).path for name in ("one", "other"))
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name


def tokenizer_of(kind: str, request: pytest.FixtureRequest) -> Tokenizer:
    if kind == "letters":
        return LETTERS
    if kind == "bpe":
        return open_folder(request.getfixturevalue("trained")("bpe").path)
    request.getfixturevalue("shared")
    return Tiktoken.named(kind)


@pytest.mark.parametrize("kind", ["letters", "bpe", "r50k_base"])
def test_transformers_opens_the_tokenizer_and_gives_our_ids_and_texts(
    root: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    from transformers import AutoTokenizer

    tokenizer = tokenizer_of(kind, request)
    config = replace(GPT2, vocab_size=tokenizer.vocab_size, layers=1, width=8)
    theirs = AutoTokenizer.from_pretrained(exported(published(root, config, tokenizer)))
    text = "A stone, 12 stones:  don't\n砚山石水" if kind == "letters" else BOOK[:3000] + " It's 12,345.\n"
    ids = theirs(text).input_ids
    assert ids == tokenizer.encode(text)
    assert theirs.decode(ids) == text
    assert (theirs.eos_token_id, theirs.bos_token_id) == (tokenizer.end_of_text,) * 2
    assert theirs.decode([*ids, tokenizer.end_of_text], skip_special_tokens=True) == text
    assert theirs.model_max_length == config.block_size
    assert len(theirs) == tokenizer.vocab_size


def test_what_the_model_wrote_is_compared_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    real = huggingface.tokenizer_json
    monkeypatch.setattr(
        huggingface, "tokenizer_json", lambda tokenizer, texts: (compared.extend(texts), real(tokenizer, texts))[1]
    )
    exported(published(root, GPT2, samples=("once upon", "砚山 said")))
    assert {"once upon", "砚山 said"} <= set(compared)


def test_other_ids_than_ours_publish_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = published(root, GPT2, samples=("once upon",))
    real = type(LETTERS).encode
    monkeypatch.setattr(
        type(LETTERS), "encode", lambda self, text: real(self, text)[: 8 if text[:4] == "once" else None]
    )
    with pytest.raises(BadData, match="other ids of 'once upon'"):
        export.export(found, "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(f"{files.TEMPORARY}*"))


def test_padding_is_said_to_transformers(root: Path) -> None:
    out = exported(published(root, CONFIGS["qwen3 untied, padded, with all heads"]))
    said = json.loads((out / "generation_config.json").read_text())
    assert said["suppress_tokens"] == list(range(LETTERS.vocab_size, 128))
    assert said["eos_token_id"] == LETTERS.end_of_text


def test_a_model_that_counts_has_a_tokenizer_of_numbers(root: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(exported(published(root, GPT2, Integers(GPT2.vocab_size))))
    assert theirs("1 2 3").input_ids == [1, 2, 3]


def test_the_card_says_what_the_model_is_made_of(root: Path) -> None:
    found = published(root, GPT2)
    card = (exported(found) / "README.md").read_text()
    for said in (found.ref, found.digest[:16], f"{GPT2.parameters:,} parameters", "step 7 of 7", "700 tokens"):
        assert said in card
    for said in ("3.250 bits per character", "2.500 nats per token", "letters", LETTERS.fingerprint, "| width | 32 |"):
        assert said in card
    assert "learning_rate" in card
    assert card.startswith("---\nlibrary_name: transformers\n")


# --- what is refused ---


@pytest.mark.parametrize("to", ["onnx", ""])
def test_an_unknown_format_is_refused_with_those_there_are(root: Path, tmp_path: Path, to: str) -> None:
    with pytest.raises(BadConfig) as refused:
        export.export(published(root, GPT2), to, tmp_path / "out")
    assert refused.value.hint == "formats: hf, gguf"


@pytest.mark.parametrize("to", ["hf", "gguf"])
@pytest.mark.parametrize("config", [GPT2, QWEN3], ids=["gpt2", "qwen3"])
def test_what_reads_back_as_something_else_is_not_published(
    root: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    to: str,
    config: GPTConfig,
) -> None:
    tokenizer = tokenizer_of("bpe", request)
    found = published(root, replace(config, vocab_size=tokenizer.vocab_size), tokenizer)
    assert export.export(found, to, tmp_path / "whole", verify=True).verified
    write = export.FORMATS[to].write

    def damaging(source: Source, folder: Path) -> None:
        write(source, folder)
        (path,) = (*folder.glob("*.safetensors"), *folder.glob("*.gguf"))
        data = bytearray(path.read_bytes())
        data[data.index(source.weights["embedding.weight"].numpy().tobytes())] ^= 1
        path.write_bytes(data)

    monkeypatch.setitem(export.FORMATS, to, replace(export.FORMATS[to], write=damaging))
    with pytest.raises(BadData, match="reads back as something else"):
        export.export(found, to, tmp_path / "damaged", verify=True)
    assert not (tmp_path / "damaged").exists()
    assert not export.export(found, to, tmp_path / "unseen").verified


def test_what_stands_already_stays_as_it_is(root: Path, tmp_path: Path) -> None:
    found = published(root, GPT2)
    (tmp_path / "out").mkdir()
    with pytest.raises(CannotCreate, match="already exists"):
        export.export(found, "hf", tmp_path / "out")
    with pytest.raises(CannotCreate, match="inside the artifact"):
        export.export(found, "hf", found.path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_full_disk_is_said_before_anything_is_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = published(root, GPT2)
    monkeypatch.setattr(files, "free_space", lambda folder: 10)
    with pytest.raises(StorageFailed, match="GB needed"):
        export.export(found, "hf", tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_a_damaged_checkpoint_is_not_exported(root: Path, tmp_path: Path) -> None:
    found = published(root, GPT2)
    path = next(found.path.glob("checkpoints/*/model.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(BadData):
        export.export(found, "hf", tmp_path / "out")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["artifacts"]


@pytest.mark.parametrize(("package", "to"), [("tokenizers", "hf"), ("gguf", "gguf")])
def test_without_its_package_there_is_one_line_with_the_extra(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: Path, package: str, to: str
) -> None:
    found: Artifact = published(root, GPT2)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadConfig, match=package) as refused:
        export.export(found, to, tmp_path / "out")
    assert "inkstone[exchange]" in refused.value.hint
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_of_a_run_is_the_one_that_is_exported(root: Path) -> None:
    found = published(root, GPT2)
    vocabulary = json.loads((exported(found) / "tokenizer.json").read_text())["model"]["vocab"]
    tokenizers.require_same_ids(open_folder(found.path), vocabulary, "tokenizer.json")

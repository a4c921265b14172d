"""The tokenizer of an imported network is the folder's own, or one that its files prove to be the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from model.exchange import convert, import_model
from model.exchange.import_tokenizer import find_tokenizer
from model.runs import run
from pipeline.errors import BadConfig, BadData
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import FastTokenizer, SentencePiece, open_folder, token_strings, tokenizer_json
from tests.conftest import Inkstone
from tests.model.exchange.test_import_model import folder, import_folder
from tests.pipeline.tokenizers.shapes import qwen, wordpiece
from tests.pipeline.tokenizers.test_tokenizers import BOOK, train, trained
from tests.support.exchanging import GPT2, random_network, single_thread_offline

__all__ = ["folder", "single_thread_offline", "trained"]  # fixtures


def save_network(folder: Path, vocab_size: int) -> None:
    config = replace(GPT2, vocab_size=vocab_size, width=8)
    folder.mkdir()
    tensors = convert.to_huggingface(config, dict(random_network(config).named_parameters()))
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(convert.config_to_huggingface(config)))


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A folder with a tokenizer.json."""
    path = tmp_path / "ours"
    path.mkdir()
    (path / "tokenizer.json").write_text(qwen([BOOK]), encoding="utf-8")
    return path


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """The folder of a network, without a tokenizer."""
    path = tmp_path / "their folder"
    path.mkdir()
    return path


def check(root: Path, folder: Path, reference: str | Path, vocab_size: int = 100_000) -> Any:
    return find_tokenizer(root, folder, vocab_size, str(reference))


# The folder's own tokenizer


def test_the_tokenizer_json_of_the_folder_is_the_default(root: Path, tmp_path: Path) -> None:
    data = qwen([BOOK])
    size = max(FastTokenizer(data.encode(), "", 0).tokens) + 1
    save_network(tmp_path / "theirs", size)
    (tmp_path / "theirs" / "tokenizer.json").write_text(data, encoding="utf-8")
    (tmp_path / "theirs" / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    # As Qwen's: without the tokens that were added to the model's.
    (tmp_path / "theirs" / "vocab.json").write_text(json.dumps(json.loads(data)["model"]["vocab"]))
    run_artifact = import_model.import_model(root, tmp_path / "theirs", "theirs").artifact
    tokenizer = run.open_tokenizer(run_artifact)
    assert isinstance(tokenizer, FastTokenizer)
    assert tokenizer.tokens[tokenizer.end_of_text] == "<|im_end|>"
    other = find_tokenizer(root, tmp_path / "theirs", size, end_of_text="<|endoftext|>")
    assert token_strings(other)[other.end_of_text] == "<|endoftext|>"


def test_the_sentencepiece_model_of_the_folder_is_the_default(
    root: Path, tmp_path: Path, trained: Callable[[str], Artifact]
) -> None:
    model = trained("bpe").file("tokenizer.model").read_bytes()
    save_network(tmp_path / "theirs", 2600)
    (tmp_path / "theirs" / "tokenizer.model").write_bytes(model)
    run_artifact = import_model.import_model(root, tmp_path / "theirs", "theirs").artifact
    assert isinstance(run.open_tokenizer(run_artifact), SentencePiece)


def test_a_vocabulary_of_unknown_size_without_files_requires_a_tokenizer(root: Path, theirs: Path) -> None:
    with pytest.raises(BadConfig, match="no default tokenizer") as caught:
        check(root, theirs, "")
    assert "--tokenizer" in caught.value.hint


def test_gpt2s_tokenizer_is_the_default_for_its_vocabulary_and_needs_a_proof(
    root: Path, shared: Path, theirs: Path
) -> None:
    with pytest.raises(BadConfig, match="proves r50k_base") as caught:
        find_tokenizer(root, theirs, 50_257)
    assert "--assume-tokenizer" in caught.value.hint
    assert find_tokenizer(root, theirs, 50_257, assumed=True).name == "r50k_base"
    tokens = token_strings(find_tokenizer(root, theirs, 50_257, assumed=True))
    (theirs / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}))
    assert find_tokenizer(root, theirs, 50_257).name == "r50k_base"


# Tokenizers that are not the network's


def swapped(data: str) -> str:
    content = json.loads(data)
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    return json.dumps(content)


def with_lower_case(data: str) -> str:
    return json.dumps(json.loads(data) | {"normalizer": {"type": "Lowercase"}})


def with_fewer_merges(data: str) -> str:
    content = json.loads(data)
    del content["model"]["merges"][50:]
    return json.dumps(content)


def with_another_token(data: str) -> str:
    content = json.loads(data)
    added = {"id": 99_000, "content": "<think>", "single_word": False, "lstrip": False, "rstrip": False}
    content["added_tokens"].append(added | {"normalized": False, "special": False})
    return json.dumps(content)


def without_a_special_token(data: str) -> str:
    content = json.loads(data)
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<|im_start|>"]
    return json.dumps(content)


def with_a_list_as_token(data: str) -> str:
    content = json.loads(data)
    content["added_tokens"].append({"content": [], "id": 3})
    return json.dumps(content)


PLANTED = {
    swapped: "for 'a'",
    with_lower_case: "has other ids",
    with_fewer_merges: "has other ids",
    with_another_token: "'<think>' for id 99000",
    without_a_special_token: "expected id .* for '<|im_start|>'",
    with_a_list_as_token: "expected id 3 ",
}


@pytest.mark.parametrize(("change", "message"), PLANTED.items(), ids=[change.__name__ for change in PLANTED])
def test_a_tokenizer_json_that_differs_is_refused(
    root: Path, ours: Path, theirs: Path, change: Callable[[str], str], message: str
) -> None:
    data = (ours / "tokenizer.json").read_text(encoding="utf-8")
    (theirs / "tokenizer.json").write_text(json.dumps(json.loads(data)), encoding="utf-8")
    check(root, theirs, ours)
    (theirs / "tokenizer.json").write_text(change(data), encoding="utf-8")
    with pytest.raises(BadData, match=message.replace("|", r"\|")) as caught:
        check(root, theirs, ours)
    assert "--tokenizer" in caught.value.hint


def test_a_sentencepiece_model_with_other_pieces_is_refused(
    root: Path, theirs: Path, tmp_path: Path, trained: Callable[[str], Artifact]
) -> None:
    ours = trained("bpe")
    other = train(tmp_path / "other", BOOK[: len(BOOK) // 2] * 2, "bpe", 2600).artifact
    (theirs / "tokenizer.model").write_bytes(other.file("tokenizer.model").read_bytes())
    with pytest.raises(BadData, match=r"tokenizer\.model: expected id \d+ for"):
        check(root, theirs, ours.file("tokenizer.model"))
    (theirs / "tokenizer.model").write_bytes(ours.file("tokenizer.model").read_bytes())
    assert check(root, theirs, ours.file("tokenizer.model")).vocab_size == 2600


def test_the_model_from_which_a_tokenizer_json_was_converted_may_split_spaces_otherwise(
    root: Path, theirs: Path, trained: Callable[[str], Artifact]
) -> None:
    model = trained("bpe").file("tokenizer.model")
    content = json.loads(tokenizer_json(open_folder(trained("bpe").path), ()))
    prepend = {"type": "Prepend", "prepend": "▁"}
    content["normalizer"] = {"type": "Sequence", "normalizers": [prepend, content["normalizer"]]}
    (theirs / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BadData, match="has other ids"):
        check(root, theirs, model)
    (theirs / "tokenizer.model").write_bytes(model.read_bytes())
    assert check(root, theirs, model).kind == "sentencepiece"
    assert check(root, theirs, "").kind == "huggingface"


def test_a_vocab_json_that_differs_is_refused(root: Path, ours: Path, theirs: Path) -> None:
    tokens = token_strings(check(root, ours, ""))
    vocabulary = {token: n for n, token in enumerate(tokens)}
    (theirs / "vocab.json").write_text(json.dumps(vocabulary))
    check(root, theirs, ours)
    problems: dict[str, dict[str, Any]] = {
        "for 'a'": {"a": vocabulary["b"], "b": vocabulary["a"]},
        "'more' for id 99000": {"more": 99_000},
        "have the same id": {"more": vocabulary["a"]},
        "Expected `int`": {"a": "1"},
    }
    for message, changes in problems.items():
        (theirs / "vocab.json").write_text(json.dumps(vocabulary | changes))
        with pytest.raises(BadData, match=message):
            check(root, theirs, ours)


def test_a_vocab_txt_is_compared_line_by_line(root: Path, ours: Path, theirs: Path) -> None:
    (ours / "tokenizer.json").write_text(wordpiece([BOOK]), encoding="utf-8")
    tokens = token_strings(check(root, ours, ""))
    for end in ("\n", "\r\n"):
        (theirs / "vocab.txt").write_bytes("".join(f"{token}{end}" for token in tokens).encode())
        check(root, theirs, ours)
    for lines in ([*tokens[:8], tokens[9], tokens[8], *tokens[10:]], tokens[:-1], [*tokens, "more"]):
        (theirs / "vocab.txt").write_text("".join(f"{token}\n" for token in lines), encoding="utf-8")
        with pytest.raises(BadData, match=r"vocab\.txt"):
            check(root, theirs, ours)


def test_a_kind_of_file_that_proves_nothing_needs_the_option(root: Path, ours: Path, theirs: Path) -> None:
    (theirs / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(BadConfig, match=r"no tokenizer\.json, tokenizer\.model, vocab\.json, vocab\.txt or meta\.pkl"):
        check(root, theirs, ours)
    assert find_tokenizer(root, theirs, 100_000, str(ours), assumed=True).kind == "huggingface"


def test_the_option_does_not_accept_a_tokenizer_that_differs(root: Path, ours: Path, theirs: Path) -> None:
    data = (ours / "tokenizer.json").read_text(encoding="utf-8")
    (theirs / "tokenizer.json").write_text(swapped(data), encoding="utf-8")
    with pytest.raises(BadData, match="for 'a'"):
        find_tokenizer(root, theirs, 100_000, str(ours), assumed=True)


def test_a_tokenizer_with_more_ids_than_the_network_is_refused(root: Path, folder: Path, shared: Path) -> None:
    with pytest.raises(BadConfig, match="50,257 ids"):
        import_folder(root, folder, tokenizer="r50k_base", assumed=True)


def test_the_command_takes_the_tokenizer_of_an_exported_folder(root: Path, folder: Path, inkstone: Inkstone) -> None:
    (folder / "tokenizer.json").rename(folder.parent / "letters.json")
    output = inkstone("import-model", folder, "--name", "b", "--tokenizer", folder.parent / "letters.json", code=78)
    assert "--assume-tokenizer" in output["hint"]
    arguments = ("--tokenizer", folder.parent / "letters.json", "--assume-tokenizer")
    assert inkstone("import-model", folder, "--name", "b", *arguments)["result"] == "built"
    (folder.parent / "letters.json").rename(folder / "tokenizer.json")
    assert inkstone("import-model", folder, "--name", "a")["result"] == "built"
    assert open_folder(next((root / "runs" / "a").glob("[!.]*"))).kind == "huggingface"


def test_damaged_files_are_named(root: Path, ours: Path, theirs: Path) -> None:
    for name, content in {"vocab.json": b"{", "vocab.txt": b"\xff", "tokenizer.json": b"{"}.items():
        (theirs / name).write_bytes(content)
        with pytest.raises(BadData, match=name):
            check(root, theirs, ours)
        (theirs / name).unlink()

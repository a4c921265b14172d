"""Import of nanoGPT's ckpt.pt."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model.exchange import import_model
from model.exchange.import_tokenizer import find_tokenizer
from model.exchange.nanogpt_vocabulary import open_vocabulary
from model.runs import checkpoint, run
from pipeline.errors import BadConfig, BadData, InputMissing
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import END_OF_TEXT, texts_of_ids
from tests.conftest import Inkstone
from tests.model.exchange.test_convert import random_ids, save_with_transformers
from tests.model.training.test_train_faults import saved_by_torch
from tests.support.exchanging import LETTERS, export_run, single_thread_offline
from tests.support.upstream import letters

__all__ = ["single_thread_offline"]  # fixtures

ARGS = {"n_layer": 2, "n_head": 3, "n_embd": 24, "block_size": 48, "vocab_size": LETTERS.vocab_size, "bias": True}
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def save_checkpoint(folder: Path, *, bias: bool = True, prefix: str = "", **changes: Any) -> Any:
    """Save a ckpt.pt as nanoGPT's train.py does; return the network in transformers, whose Conv1D is transposed."""
    theirs = save_with_transformers(folder.parent / "transformers", "gpt2", activation_function="gelu")
    tensors = {}
    with torch.no_grad():
        for name, weight in theirs.state_dict().items():
            if name.endswith(".bias") and not bias:
                weight.zero_()
            else:
                tensors[prefix + name] = weight.t().contiguous() if name.endswith(TRANSPOSED) else weight
    tensors[f"{prefix}transformer.h.0.attn.bias"] = torch.ones(1, 1, 48, 48).tril()  # without flash attention
    content = {
        "model": tensors,
        "optimizer": {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95)}]},
        "model_args": ARGS | {"bias": bias, "dropout": 0.2},
        "iter_num": 5,
        "best_val_loss": torch.tensor(2.5),
        "config": {"dataset": "shakespeare_char", "compile": True},
    }
    folder.mkdir()
    torch.save(content | changes, folder / "ckpt.pt")
    return theirs


def import_checkpoint(root: Path, path: Path, **options: Any) -> Artifact:
    reference = str(letters(root, map(chr, range(32, 127))))
    options = {"tokenizer": reference, "trusted": True, "assumed": True, **options}
    return import_model.import_model(root, path, "theirs", **options).artifact


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_an_imported_checkpoint_keeps_its_logits_and_exports_the_same_bits(
    root: Path, tmp_path: Path, bias: bool, prefix: str
) -> None:
    theirs = save_checkpoint(tmp_path / "out", bias=bias, prefix=prefix)
    run_artifact = import_checkpoint(root, tmp_path / "out")
    ours = checkpoint.load_model(run.checkpoint_path(run_artifact, "best"), torch.device("cpu")).eval()
    assert (ours.config.bias, ours.config.dropout, ours.config.activation) == (bias, 0.2, "gelu_erf")
    ids = random_ids(2, 40) % 90
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)
    exported = load_file(export_run(run_artifact) / "model.safetensors")
    weights = {name: weight for name, weight in theirs.state_dict().items() if name != "lm_head.weight"}
    assert exported.keys() == weights.keys()
    assert all(torch.equal(exported[name], weight) for name, weight in weights.items())


def test_the_file_itself_can_be_named(root: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "out")
    by_folder = import_checkpoint(root, tmp_path / "out")
    assert import_checkpoint(root, tmp_path / "out" / "ckpt.pt").path == by_folder.path
    assert [entry.name for entry in by_folder.manifest.inputs] == ["out/ckpt.pt"]
    with pytest.raises(InputMissing, match=r"other\.pt"):
        import_checkpoint(root, tmp_path / "out" / "other.pt")


def test_a_checkpoint_needs_to_be_trusted_and_its_tokenizer_assumed(
    root: Path, tmp_path: Path, inkstone: Inkstone
) -> None:
    save_checkpoint(tmp_path / "out")
    arguments = [
        "import-model",
        tmp_path / "out",
        "--name",
        "a",
        "--tokenizer",
        letters(root, map(chr, range(32, 127))),
    ]
    assert "--trust-checkpoint" in inkstone(*arguments, code=65)["hint"]
    assert "--assume-tokenizer" in inkstone(*arguments, "--trust-checkpoint", code=78)["hint"]
    assert inkstone(*arguments, "--trust-checkpoint", "--assume-tokenizer")["result"] == "built"


def test_a_malicious_checkpoint_is_refused_and_runs_no_code(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ckpt.pt").write_bytes(saved_by_torch(tmp_path / "sentinel"))
    with pytest.raises(BadData, match=r"ckpt\.pt"):
        import_checkpoint(root, tmp_path / "out")
    assert not (tmp_path / "sentinel").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_args": ARGS | {"n_kv_head": 1}}, BadConfig, "n_kv_head"),
        ({"model_args": ARGS | {"n_layer": "2"}}, BadConfig, "n_layer"),
        ({"model_args": ARGS | {"n_head": 5}}, BadData, "multiple of heads"),
        ({"model_args": ARGS | {"vocab_size": 1 << 40}}, BadConfig, "vocab_size"),
        ({"model_args": ARGS | {"n_layer": 3}}, BadData, r"h\.2\.attn.* is missing"),
        ({"model_args": ARGS | {"bias": False}}, BadData, r"bias is unexpected"),
        ({"model_args": []}, BadConfig, "model_args"),
        ({"model": {"transformer.wte.weight": 5}}, BadData, "not a dict of tensors"),
        ({"model": []}, BadData, "not a dict of tensors"),
    ],
)
def test_checkpoints_of_another_network_are_refused(
    root: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    save_checkpoint(tmp_path / "out", **changes)
    with pytest.raises(error, match=message):
        import_checkpoint(root, tmp_path / "out")


def test_a_pickle_without_model_args_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    torch.save({"weight": torch.ones(3)}, tmp_path / "out" / "ckpt.pt")
    with pytest.raises(BadData, match="no model and model_args"):
        import_checkpoint(root, tmp_path / "out")


# meta.pkl


def save_meta(folder: Path, texts: list[str]) -> Path:
    """Save a meta.pkl as prepare.py of shakespeare_char does."""
    itos, stoi = dict(enumerate(texts)), {text: token for token, text in enumerate(texts)}
    folder.mkdir(exist_ok=True)
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(texts), "itos": itos, "stoi": stoi}))
    return folder / "meta.pkl"


CHARACTERS = [*"\n !$',abc"]


def test_a_network_of_characters_is_imported_with_its_own_meta_file(root: Path, tmp_path: Path) -> None:
    characters = sorted({*map(chr, range(32, 127)), "\n", "砚", "山", "石", "水", "□", "é", "文"})
    assert len(characters) == LETTERS.vocab_size
    save_checkpoint(tmp_path / "out")
    save_meta(tmp_path / "out", characters)
    imported = import_checkpoint(root, tmp_path / "out", tokenizer="", assumed=False, end_of_text="~")
    tokenizer = run.open_tokenizer(imported)
    text = "A text,\nwith $3 and 砚."
    assert tokenizer.encode(text) == [characters.index(character) for character in text]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (len(characters), characters.index("~"))
    assert (export_run(imported) / "tokenizer.json").is_file()


def test_the_meta_file_of_our_tokens_gives_the_same_tokenizer(root: Path, tmp_path: Path) -> None:
    texts = texts_of_ids(LETTERS)
    save_checkpoint(tmp_path / "out")
    save_meta(tmp_path / "out", list(texts.values()))
    imported = import_checkpoint(root, tmp_path / "out", tokenizer="", assumed=False)
    assert run.open_tokenizer(imported).fingerprint == LETTERS.fingerprint


def test_a_meta_file_proves_a_tokenizer_that_is_named(root: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "out")
    save_meta(tmp_path / "out", ["!", *"abc"])
    with pytest.raises(BadData, match=r"meta\.pkl: '!' for id 0, but '<\|endoftext\|>' in"):
        import_checkpoint(root, tmp_path / "out", assumed=False)
    meta = save_meta(tmp_path / "out", CHARACTERS)
    named = find_tokenizer(root, tmp_path / "out", 20, str(meta), end_of_text="$")
    assert find_tokenizer(root, tmp_path / "out", 20, end_of_text="$").fingerprint == named.fingerprint


@pytest.mark.parametrize(
    ("texts", "end_of_text", "error", "message"),
    [
        (CHARACTERS, "", BadConfig, "no id ends a text"),
        (CHARACTERS, "€", BadConfig, "no token '€'"),
        ([END_OF_TEXT, " the", "a"], "", BadConfig, "several characters"),
        (["a", "b", "a"], "a", BadData, "two ids have the same text"),
        (["a", "\ud800"], "a", BadData, r"'\\ud800' is not a character"),
    ],
)
def test_a_meta_file_without_a_tokenizer_is_refused(
    tmp_path: Path, texts: list[str], end_of_text: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        open_vocabulary(save_meta(tmp_path, texts), end_of_text)


@pytest.mark.parametrize(
    "content", [5, {"itos": {}}, {"vocab_size": 2, "itos": {0: "a"}}, {"vocab_size": 1, "itos": [1]}]
)
def test_a_meta_file_without_the_texts_of_all_ids_is_refused(tmp_path: Path, content: object) -> None:
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(BadData, match=r"meta\.pkl: "):
        open_vocabulary(tmp_path / "meta.pkl", "a")

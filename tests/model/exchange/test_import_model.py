"""Networks from elsewhere: what is hostile is refused, what is whole becomes a run like any other."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.exchange import convert as exchange
from model.exchange import import_model as adoption
from model.runs import checkpoint, run
from pipeline.errors import BadConfig, BadData, InputMissing
from pipeline.maintenance import status
from pipeline.store.artifact import Artifact
from tests.conftest import Inkstone
from tests.model.training.test_train_faults import (
    Gadget,
    a_header_of_2_pib,
    a_pickle,
    a_tensor_of_2_pib,
    saved_by_torch,
)
from tests.support.exchanging import GPT2, alone, exported, network, published
from tests.support.upstream import letters

__all__ = ["alone"]  # fixtures


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> Path:
    """A folder of a network as it comes from elsewhere."""
    out = exported(published(root, GPT2))
    return out.rename(tmp_path / "theirs")


def adopted(root: Path, folder: Path, **options: Any) -> Artifact:
    reference = str(letters(root, [*map(chr, range(32, 127)), *"\n砚山石水□"]))
    return adoption.adopt(root, folder, "theirs", **{"tokenizer": reference, **options}).artifact


# 60: checkpoints from elsewhere


def a_storage_of_2_pib(sentinel: Path) -> bytes:
    """What torch.save would write of a tensor of 2 PiB, with 16 bytes of it."""

    class Storage:
        pass

    class Claim:
        def __reduce__(self) -> tuple[Any, ...]:
            rebuild: Any = torch._utils._rebuild_tensor_v2
            return rebuild, (Storage(), 0, (1 << 24, 1 << 25), (1 << 25, 1), False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, each: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", 1 << 49) if isinstance(each, Storage) else None

    data, packed = io.BytesIO(), io.BytesIO()
    Pickler(data, protocol=2).dump({"wte.weight": Claim()})
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in (("data.pkl", data.getvalue()), ("version", b"3\n"), ("data/0", bytes(16))):
            archive.writestr(f"archive/{name}", content)
    return packed.getvalue()


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("make", [a_pickle, saved_by_torch, a_storage_of_2_pib])
def test_case_60_a_hostile_pickle_is_refused_and_nothing_in_it_runs(
    root: Path, tmp_path: Path, folder: Path, make: Callable[[Path], bytes], trusted: bool
) -> None:
    sentinel = tmp_path / "sentinel"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(make(sentinel))
    with pytest.raises(BadData, match=r"pytorch_model\.bin") as refused:
        adopted(root, folder, trusted=trusted)
    assert trusted or "--trust-checkpoint" in refused.value.hint
    assert not sentinel.exists()
    assert not list((root / "runs" / "theirs").glob("[!.]*"))


def test_case_60_the_gadget_is_one(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Gadget(tmp_path / "sentinel")))
    assert (tmp_path / "sentinel").exists()


@pytest.mark.parametrize("make", [a_pickle, saved_by_torch, a_header_of_2_pib, a_tensor_of_2_pib])
def test_case_60_hostile_safetensors_are_refused_and_nothing_in_them_runs(
    root: Path, tmp_path: Path, folder: Path, make: Callable[[Path], bytes]
) -> None:
    sentinel = tmp_path / "sentinel"
    (folder / "model.safetensors").write_bytes(make(sentinel))
    with pytest.raises(BadData, match=r"model\.safetensors"):
        adopted(root, folder)
    assert not sentinel.exists()


def test_case_60_the_command_says_it_in_one_line(root: Path, tmp_path: Path, folder: Path, inkstone: Inkstone) -> None:
    sentinel = tmp_path / "sentinel"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(saved_by_torch(sentinel))
    said = inkstone("import-model", folder, "--name", "theirs", "--tokenizer", "r50k_base", code=65)
    assert said["exit_code"] == 65
    assert "pytorch_model.bin" in said["error"]
    assert not sentinel.exists()


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "model.bin"])
def test_case_60_an_index_names_only_safetensors_beside_it(root: Path, folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte.weight": name}}))
    with pytest.raises(BadData, match="no file beside it"):
        adopted(root, folder)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_tensors_is_read_where_it_is_trusted(root: Path, folder: Path, zipped: bool) -> None:
    expected = checkpoint.read_weights(run.checkpoint_path(adopted(root, folder), "best"))
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    (folder / "model.safetensors").unlink()
    found = checkpoint.read_weights(run.checkpoint_path(adopted(root, folder, trusted=True), "best"))
    assert all(torch.equal(found[name], each) for name, each in expected.items())


# What is missing, or another tokenizer's


def test_what_is_not_there_is_named(root: Path, tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputMissing, match="no such folder"):
        adopted(root, tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputMissing, match=r"model\.safetensors"):
        adopted(root, folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"wte.weight": "model-1.safetensors"}}')
    with pytest.raises(InputMissing, match=r"model-1\.safetensors"):
        adopted(root, folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputMissing, match=r"config\.json"):
        adopted(root, folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00", '{"a": ' + "[" * 100_000])
def test_a_config_that_is_none_is_bad_data(root: Path, folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(BadData, match=r"config\.json"):
        adopted(root, folder)


def test_an_added_token_that_is_no_text_is_passed_over(root: Path, folder: Path) -> None:
    found = json.loads((folder / "tokenizer.json").read_text())
    found["added_tokens"].append({"content": [], "id": 3})
    (folder / "tokenizer.json").write_text(json.dumps(found))
    assert adopted(root, folder).manifest.kind == "runs"


def test_a_folder_among_the_artifacts_becomes_a_run_that_can_be_exported(root: Path, folder: Path) -> None:
    inside = folder.rename(root / "theirs")
    assert exported(adopted(root, inside)).is_dir()


def test_a_vocabulary_says_nothing_of_its_tokenizer_but_that_of_gpt2(root: Path, folder: Path) -> None:
    with pytest.raises(BadConfig, match="which tokenizer") as refused:
        adopted(root, folder, tokenizer="")
    assert "--tokenizer" in refused.value.hint


def test_gpt2_s_vocabulary_is_r50k_base(root: Path, shared: Path, tmp_path: Path) -> None:
    config = replace(GPT2, vocab_size=50_257, width=8)
    out = tmp_path / "gpt2"
    out.mkdir()
    save_file(exchange.for_huggingface(config, dict(network(config).named_parameters())), out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(exchange.config_for_huggingface(config)))
    found = adoption.adopt(root, out, "gpt2").artifact
    assert run.open_tokenizer(found).name == "r50k_base"


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json"])
def test_a_folder_whose_own_tokenizer_has_other_ids_is_refused(root: Path, folder: Path, name: str) -> None:
    theirs = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = theirs["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").unlink()
    (folder / name).write_text(json.dumps(theirs if name == "tokenizer.json" else vocabulary))
    with pytest.raises(BadData, match="'a' is") as refused:
        adopted(root, folder)
    assert "--tokenizer" in refused.value.hint


def test_a_tokenizer_with_more_ids_than_the_network_is_refused(root: Path, folder: Path, shared: Path) -> None:
    with pytest.raises(BadConfig, match="50,257 ids"):
        adopted(root, folder, tokenizer="r50k_base")


# The run that it becomes


def test_it_is_sampled_verified_listed_and_exported_like_any_run(root: Path, folder: Path, inkstone: Inkstone) -> None:
    reference = letters(root, [*map(chr, range(32, 127)), *"\n砚山石水□"])
    built = inkstone("import-model", folder, "--name", "theirs", "--tokenizer", reference)
    assert built["result"] == "built"
    assert built["counts"] == {
        "steps": 0,
        "tokens": 0,
        "parameters": replace(GPT2, qkv_bias=True).parameters,  # GPT-2 has biases there, here of zero
    }
    again = inkstone("import-model", folder, "--name", "theirs", "--tokenizer", reference)
    assert again["result"] == "unchanged"
    said = inkstone("sample", "theirs", "--prompt", "a stone", "--greedy", "--max-tokens", "5")
    assert len(said["samples"][0]["token_ids"]) == 5
    assert inkstone("verify", "theirs", "--deep")["result"] == "unchanged"
    assert status.status(root)[-1].state == "current"
    out = inkstone("export", "model", "theirs", "--to", "hf")
    assert Path(out["path"]) == root / "exports" / "theirs-hf"
    for name in ("model.safetensors", "tokenizer.json"):
        assert (Path(out["path"]) / name).read_bytes() == (folder / name).read_bytes()
    card = (Path(out["path"]) / "README.md").read_text()
    assert "not evaluated" in card

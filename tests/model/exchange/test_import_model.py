"""Import of Hugging Face folders: malicious files are refused, valid ones become ordinary runs.

Case 60 is that of docs/design/reliability.md.
"""

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

from model.exchange import convert, import_model
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
from tests.support.exchanging import GPT2, export_run, publish_run, random_network, single_thread_offline
from tests.support.upstream import letters

__all__ = ["single_thread_offline"]  # fixtures


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> Path:
    """A Hugging Face folder to import."""
    return export_run(publish_run(root, GPT2)).rename(tmp_path / "theirs")


def import_folder(root: Path, folder: Path, **options: Any) -> Artifact:
    reference = str(letters(root, [*map(chr, range(32, 127)), *"\n砚山石水□"]))
    return import_model.import_model(root, folder, "theirs", **{"tokenizer": reference, **options}).artifact


def read_weights(run_artifact: Artifact) -> dict[str, torch.Tensor]:
    return checkpoint.read_weights(run.checkpoint_path(run_artifact, "best"))


# Case 60: malicious checkpoints


def a_storage_of_2_pib(sentinel: Path) -> bytes:
    """The file that torch.save would write for a tensor of 2 PiB, cut to 16 bytes of data."""

    class Storage:
        pass

    class FakeTensor:
        def __reduce__(self) -> tuple[Any, ...]:
            rebuild: Any = torch._utils._rebuild_tensor_v2
            return rebuild, (Storage(), 0, (1 << 24, 1 << 25), (1 << 25, 1), False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", 1 << 49) if isinstance(value, Storage) else None

    data, archive_bytes = io.BytesIO(), io.BytesIO()
    Pickler(data, protocol=2).dump({"wte.weight": FakeTensor()})
    with zipfile.ZipFile(archive_bytes, "w") as archive:
        for name, content in (("data.pkl", data.getvalue()), ("version", b"3\n"), ("data/0", bytes(16))):
            archive.writestr(f"archive/{name}", content)
    return archive_bytes.getvalue()


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("make", [a_pickle, saved_by_torch, a_storage_of_2_pib])
def test_a_malicious_pickle_is_refused_and_runs_no_code(
    root: Path, tmp_path: Path, folder: Path, make: Callable[[Path], bytes], trusted: bool
) -> None:
    """Case 60."""
    sentinel = tmp_path / "sentinel"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(make(sentinel))
    with pytest.raises(BadData, match=r"pytorch_model\.bin") as caught:
        import_folder(root, folder, trusted=trusted)
    assert trusted or "--trust-checkpoint" in caught.value.hint
    assert not sentinel.exists()
    assert not list((root / "runs" / "theirs").glob("[!.]*"))


def test_the_malicious_pickle_runs_code_when_unpickled(tmp_path: Path) -> None:
    """Case 60."""
    pickle.loads(pickle.dumps(Gadget(tmp_path / "sentinel")))
    assert (tmp_path / "sentinel").exists()


@pytest.mark.parametrize("make", [a_pickle, saved_by_torch, a_header_of_2_pib, a_tensor_of_2_pib])
def test_malicious_safetensors_are_refused_and_run_no_code(
    root: Path, tmp_path: Path, folder: Path, make: Callable[[Path], bytes]
) -> None:
    """Case 60."""
    sentinel = tmp_path / "sentinel"
    (folder / "model.safetensors").write_bytes(make(sentinel))
    with pytest.raises(BadData, match=r"model\.safetensors"):
        import_folder(root, folder)
    assert not sentinel.exists()


def test_the_command_reports_a_pickle_as_one_error(
    root: Path, tmp_path: Path, folder: Path, inkstone: Inkstone
) -> None:
    """Case 60."""
    sentinel = tmp_path / "sentinel"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(saved_by_torch(sentinel))
    output = inkstone("import-model", folder, "--name", "theirs", "--tokenizer", "r50k_base", code=65)
    assert output["exit_code"] == 65
    assert "pytorch_model.bin" in output["error"]
    assert not sentinel.exists()


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "model.bin"])
def test_an_index_may_only_name_safetensors_of_its_folder(root: Path, folder: Path, name: str) -> None:
    """Case 60."""
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte.weight": name}}))
    with pytest.raises(BadData, match=r"not a \.safetensors file in the same folder"):
        import_folder(root, folder)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_trusted_pickle_of_tensors_is_imported(root: Path, folder: Path, zipped: bool) -> None:
    expected = read_weights(import_folder(root, folder))
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    (folder / "model.safetensors").unlink()
    weights = read_weights(import_folder(root, folder, trusted=True))
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


# Missing files and wrong tokenizers


def test_missing_files_are_named(root: Path, tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputMissing, match="no such folder"):
        import_folder(root, tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputMissing, match=r"model\.safetensors"):
        import_folder(root, folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"wte.weight": "model-1.safetensors"}}')
    with pytest.raises(InputMissing, match=r"model-1\.safetensors"):
        import_folder(root, folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputMissing, match=r"config\.json"):
        import_folder(root, folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00", '{"a": ' + "[" * 100_000])
def test_an_invalid_config_raises_bad_data(root: Path, folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(BadData, match=r"config\.json"):
        import_folder(root, folder)


def test_an_added_token_that_is_not_a_string_is_ignored(root: Path, folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({"content": [], "id": 3})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert import_folder(root, folder).manifest.kind == "runs"


def test_a_folder_inside_the_artifacts_folder_can_be_imported_and_exported(root: Path, folder: Path) -> None:
    inside = folder.rename(root / "theirs")
    assert export_run(import_folder(root, inside)).is_dir()


def test_an_unknown_vocabulary_size_requires_a_tokenizer(root: Path, folder: Path) -> None:
    with pytest.raises(BadConfig, match="no default tokenizer") as caught:
        import_folder(root, folder, tokenizer="")
    assert "--tokenizer" in caught.value.hint


def test_the_default_tokenizer_of_gpt2s_vocabulary_is_r50k_base(root: Path, shared: Path, tmp_path: Path) -> None:
    config = replace(GPT2, vocab_size=50_257, width=8)
    out = tmp_path / "gpt2"
    out.mkdir()
    save_file(
        convert.to_huggingface(config, dict(random_network(config).named_parameters())), out / "model.safetensors"
    )
    (out / "config.json").write_text(json.dumps(convert.config_to_huggingface(config)))
    run_artifact = import_model.import_model(root, out, "gpt2").artifact
    assert run.open_tokenizer(run_artifact).name == "r50k_base"


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json"])
def test_a_tokenizer_with_other_ids_than_the_folders_raises(root: Path, folder: Path, name: str) -> None:
    theirs = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = theirs["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").unlink()
    (folder / name).write_text(json.dumps(theirs if name == "tokenizer.json" else vocabulary))
    with pytest.raises(BadData, match="for 'a'") as caught:
        import_folder(root, folder)
    assert "--tokenizer" in caught.value.hint


def test_a_tokenizer_with_more_ids_than_the_network_raises(root: Path, folder: Path, shared: Path) -> None:
    with pytest.raises(BadConfig, match="50,257 ids"):
        import_folder(root, folder, tokenizer="r50k_base")


# The imported run


def test_an_imported_run_is_sampled_verified_listed_and_exported(root: Path, folder: Path, inkstone: Inkstone) -> None:
    reference = letters(root, [*map(chr, range(32, 127)), *"\n砚山石水□"])
    built = inkstone("import-model", folder, "--name", "theirs", "--tokenizer", reference)
    assert built["result"] == "built"
    assert built["counts"] == {
        "steps": 0,
        "tokens": 0,
        "parameters": replace(
            GPT2, qkv_bias=True
        ).parameters,  # transformers' GPT-2 has these biases; here they are zero
    }
    second = inkstone("import-model", folder, "--name", "theirs", "--tokenizer", reference)
    assert second["result"] == "unchanged"
    output = inkstone("sample", "theirs", "--prompt", "a stone", "--greedy", "--max-tokens", "5")
    assert len(output["samples"][0]["token_ids"]) == 5
    assert inkstone("verify", "theirs", "--deep")["result"] == "unchanged"
    assert status.status(root)[-1].state == "current"
    out = Path(inkstone("export", "model", "theirs", "--to", "hf")["path"])
    assert out == root / "exports" / "theirs-hf"
    for name in ("model.safetensors", "tokenizer.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    card = (out / "README.md").read_text()
    assert "not evaluated" in card

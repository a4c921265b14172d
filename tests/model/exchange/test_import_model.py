"""Import of Hugging Face folders: malicious files are refused, valid ones become ordinary runs.

Case 60 is that of docs/design/reliability.md.
"""

from __future__ import annotations

import io
import json
import pickle
import re
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
from tests.support.exchanging import GPT2, QWEN3, export_run, publish_run, single_thread_offline
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


# Tensors that are no weights, and configs of other types


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the tensors of a folder, by their names in transformers, and save them again."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def set_value(name: str, value: float, dtype: torch.dtype = torch.float32) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        tensors[name] = tensors[name].to(dtype)
        tensors[name].view(-1)[-1] = value

    return change


NORM, WTE, QKV = "transformer.ln_f.weight", "transformer.wte.weight", "transformer.h.1.attn.c_attn.weight"


@pytest.mark.parametrize(
    ("name", "value", "dtype"),
    [
        (NORM, float("nan"), torch.float32),
        (QKV, float("inf"), torch.float32),
        (QKV, float("-inf"), torch.bfloat16),
        (WTE, float("nan"), torch.float16),
        (WTE, 1e300, torch.float64),
    ],
)
def test_weights_that_are_not_finite_are_named(
    root: Path, folder: Path, name: str, value: float, dtype: torch.dtype
) -> None:
    rewrite(folder, set_value(name, value, dtype))
    with pytest.raises(BadData, match=f"{name} holds values that are not finite"):
        import_folder(root, folder)
    assert not list((root / "runs" / "theirs").glob("[!.]*"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_every_floating_point_size_are_imported(root: Path, folder: Path, dtype: torch.dtype) -> None:
    expected = load_file(folder / "model.safetensors")[WTE].to(dtype).float()
    rewrite(folder, lambda tensors: tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()}))
    assert torch.equal(read_weights(import_folder(root, folder))["embedding.weight"], expected)


DTYPES = (
    *(torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu),
)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_that_are_no_floating_point_weights_are_named(
    root: Path, folder: Path, dtype: torch.dtype, capfd: pytest.CaptureFixture[str]
) -> None:
    rewrite(folder, lambda tensors: tensors.update({QKV: tensors[QKV].to(dtype)}))
    with pytest.raises(BadData, match=f"{QKV} is {str(dtype).removeprefix('torch.')}, expected"):
        import_folder(root, folder)
    assert capfd.readouterr().err == ""


def test_tensors_named_with_and_without_prefix_are_refused(root: Path, folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"ln_f.weight": tensors[NORM] * 0}))
    with pytest.raises(BadData, match=f"{NORM} is named twice"):
        import_folder(root, folder)


def test_tensors_named_in_two_shards_are_refused(root: Path, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    save_file({NORM: tensors[NORM] * 0}, folder / "b.safetensors")
    shards = {"weight_map": {WTE: "a.safetensors", NORM: "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(shards))
    with pytest.raises(BadData, match=rf"b\.safetensors: {NORM} is named twice"):
        import_folder(root, folder)


def test_tensors_named_twice_in_one_header_are_refused(root: Path, folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    entry = json.dumps({NORM: json.loads(data[8:end])[NORM] | {"dtype": "I32"}})
    header = data[8:end].rstrip().replace(b"{", f"{entry[:-1]},".encode(), 1)
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data[end:])
    with pytest.raises(BadData, match=f"{NORM} is named twice"):
        import_folder(root, folder)


def quantised(tensor: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


PICKLED: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "meta": (lambda tensor: tensor.to("meta"), "without values"),
    "sparse": (lambda tensor: tensor.to_sparse(), "sparse"),
    "csr": (lambda tensor: tensor.to_sparse_csr(), "sparse"),
    "quantised": (quantised, "quantised"),
    "nested": (lambda tensor: torch.nested.nested_tensor([tensor, tensor]), "nested"),
    "expanded": (lambda tensor: torch.ones(1, 1).expand(tensor.shape), "one value repeated"),
    "integer": (lambda tensor: tensor.to(torch.int32), "int32"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("convert_tensor", "message"), PICKLED.values(), ids=PICKLED.keys())
def test_tensors_of_a_trusted_pickle_that_are_no_weights_are_named(
    root: Path, folder: Path, convert_tensor: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors | {QKV: convert_tensor(tensors[QKV])}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadData, match=f"{QKV} is {message}"):
        import_folder(root, folder, trusted=True)


def test_a_pickle_whose_tensors_share_their_values_is_refused(root: Path, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    values = torch.ones(max(tensor.numel() for tensor in tensors.values()))
    shared = {name: values[: tensor.numel()].view(tensor.shape) for name, tensor in tensors.items()}
    torch.save(shared, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadData, match="share"):
        import_folder(root, folder, trusted=True)


WRONG_TYPES: dict[str, tuple[object, ...]] = {
    "model_type": (5, [], {}, True),
    "n_layer": ("2", 2.0, True, [2], {}, -1, 1 << 40, 1 << 80),
    "n_positions": ("many", -5, 1 << 28, (1 << 22) + 1),
    "vocab_size": ([], "1", -1),
    "resid_pdrop": ("0.1", [], True, 5),
    "tie_word_embeddings": ("yes", 1, []),
    "activation_function": (5, [], {"name": "gelu"}),
    "layer_norm_epsilon": ("1e-5", [], True),
    "scale_attn_weights": ("no", 1, []),
    "layer_types": (5, "full_attention", {"a": 1}, [1], [None], True),
    "rope_scaling": (5, [1], True, {"rope_type": 5}, {"type": []}),
    "rope_parameters": (5, "x", [], {"rope_theta": "x"}, {"partial_rotary_factor": []}),
    "quantization_config": (5, "int8", []),
    "head_dim": ("8", 8.5, []),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param(name, value, id=f"{name}={value}") for name, values in WRONG_TYPES.items() for value in values],
)
def test_a_config_value_of_another_type_is_named(name: str, value: Any) -> None:
    with pytest.raises(BadData, match=r"config\.json: ") as caught:
        convert.config_from_huggingface(convert.config_to_huggingface(GPT2) | {name: value}, "config.json")
    ours = {"n_layer": "layers", "resid_pdrop": "dropout", "n_positions": "block_size"}.get(name, name)
    inner = next(iter(value)) if isinstance(value, dict) and value else name
    assert {name, ours, inner} & {*re.findall(r"\w+", caught.value.message)}


@pytest.mark.parametrize("kinds", [["linear_attention", "full_attention"], ["sliding_attention"] * 2])
def test_attention_of_another_kind_is_not_supported(kinds: list[str]) -> None:
    config = convert.config_to_huggingface(QWEN3) | {"layer_types": kinds}
    with pytest.raises(BadConfig, match=r"layer_types=linear_attention|use_sliding_window"):
        convert.config_from_huggingface(config, "config.json")
    full = config | {"layer_types": ["full_attention"] * 2, "rope_theta": 10_000}
    assert convert.config_from_huggingface(full, "config.json") == replace(QWEN3, hidden=QWEN3.hidden_width)


# Missing files


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


def test_a_folder_inside_the_artifacts_folder_can_be_imported_and_exported(root: Path, folder: Path) -> None:
    inside = folder.rename(root / "theirs")
    assert export_run(import_folder(root, inside)).is_dir()


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

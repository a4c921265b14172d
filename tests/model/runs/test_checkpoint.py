"""Checkpoints: durable and read back before they get their name, and verified before they are used."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import save_file

from model.config import GPTConfig, TrainConfig
from model.device import ExecutionConfig
from model.network.gpt import GPT
from model.runs import checkpoint
from model.runs.checkpoint import CheckpointTensors, TrainState
from model.training.distributed import World
from model.training.metrics import RunningSums
from pipeline.errors import BadConfig, BadData, InputMissing, InternalError, StorageFailed
from pipeline.store import files
from tests.support import faults

CONFIG = GPTConfig(vocab_size=10, block_size=4, layers=1, heads=1, width=4)
STATE = TrainState(3, 1.0, None, CONFIG, TrainConfig(), ExecutionConfig("fp32", False, 1))
TENSORS = CheckpointTensors({"weight": torch.zeros(4)}, {"weight/momentum": torch.zeros(4)})


@pytest.mark.parametrize(
    "changes", [{"since_row": (1, math.inf, 1.0)}, {"seconds": math.nan}, {"val_loss": math.inf}], ids=str
)
def test_checkpoint_that_would_not_read_back_is_not_published(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(InternalError, match="does not read back"):
        checkpoint.save(tmp_path, msgspec.structs.replace(STATE, **changes), TENSORS)
    assert not checkpoint.newest_first(tmp_path)


def test_tensor_file_that_a_disk_cut_short_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_half(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
        save_file(tensors, path, metadata)
        path.write_bytes(path.read_bytes()[:-8])

    monkeypatch.setattr(checkpoint, "save_file", save_half)
    with pytest.raises(StorageFailed, match="does not read back"):
        checkpoint.save(tmp_path, STATE, TENSORS)
    assert not checkpoint.newest_first(tmp_path)


def test_checkpoint_reads_back(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, STATE, TENSORS)
    assert checkpoint.read_state(path).train == STATE.train
    assert checkpoint.read(path).weights.keys() == {"weight"}


def save(folder: Path, step: int, val_loss: float | None = None, **tensors: dict[str, torch.Tensor]) -> Path:
    state = msgspec.structs.replace(STATE, step=step, val_loss=val_loss)
    return checkpoint.save(folder, state, replace(TENSORS, **tensors))


def flip_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def change_step(path: Path) -> None:
    file = path / "state.json"
    file.write_text(file.read_text().replace('"step": 3', '"step": 2'))


AVERAGE = {"weight": torch.ones(4)}
FILES = ["average.safetensors", "model.safetensors", "optimizer.safetensors", "state.json"]


def test_checkpoint_is_durable_before_it_gets_its_name(tmp_path: Path) -> None:
    with faults.disk(disk := faults.LoggingDisk()):
        path = save(tmp_path, 3, average=AVERAGE)
    log = [(operation.kind, operation.path) for operation in disk.log]
    (renamed,) = (i for i, operation in enumerate(disk.log) if operation.other == str(path))
    draft = disk.log[renamed].path
    assert {("sync", file) for file in (draft, *(draft / name for name in FILES))} <= {*log[:renamed]}
    assert log[renamed + 1 :] == [("sync", tmp_path)]
    assert sorted(os.listdir(path)) == FILES
    assert len({(path / name).stat().st_mode for name in FILES}) == 1


def test_what_a_killed_save_left_is_replaced(tmp_path: Path) -> None:
    draft = tmp_path / f"{files.TEMPORARY}step-00000003"
    draft.mkdir()
    (draft / "average.safetensors").touch()
    path = save(tmp_path, 3)
    assert os.listdir(tmp_path) == [path.name] == ["step-00000003"]
    assert sorted(os.listdir(path)) == FILES[1:]


def test_checkpoint_that_is_saved_again_keeps_its_tensor_files(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    before = {name: (path / name).stat().st_ino for name in FILES[1:3]}
    assert save(tmp_path, 3, 2.5) == path
    assert {name: (path / name).stat().st_ino for name in FILES[1:3]} == before
    assert checkpoint.read_state(path).val_loss == 2.5
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("damage", [flip_bit, Path.unlink])
def test_damaged_checkpoint_is_replaced(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    damage(save(tmp_path, 3) / "optimizer.safetensors")
    assert checkpoint.read(save(tmp_path, 3)).moments.keys() == {"weight/momentum"}


def test_twice_the_size_of_the_tensors_must_be_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.store.files.free_space", lambda folder: 95)
    with pytest.raises(StorageFailed, match="GB needed"):
        save(tmp_path, 3, average=AVERAGE)  # three tensors of 16 bytes
    save(tmp_path, 3)
    monkeypatch.setattr("pipeline.store.files.free_space", lambda folder: 96)
    save(tmp_path, 4, average=AVERAGE)


def test_disk_that_refuses_tensors_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as caught:
        checkpoint.write_tensors(tmp_path / "missing" / "model.safetensors", {"weight": torch.zeros(1)})
    assert caught.value.filename == str(tmp_path / "missing")


@pytest.mark.parametrize("name", FILES[:3])
@pytest.mark.parametrize("damage", [flip_bit, Path.unlink])
def test_damaged_tensor_file_is_not_read(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    path = save(tmp_path, 3, average=AVERAGE)
    damage(path / name)
    with pytest.raises(BadData, match=f"{name}: missing, or changed"):
        checkpoint.read(path)


def test_file_that_is_no_tensor_file_is_bad_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, 3)
    (path / "model.safetensors").write_bytes(b"no tensors")
    monkeypatch.setattr("pipeline.store.files.sha256_of", lambda file: checkpoint.read_state(path).sha256[file.name])
    with pytest.raises(BadData, match=r"model\.safetensors: "):
        checkpoint.read_weights(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"step": "\xff"}', b"{}"])
def test_state_that_is_not_one_is_bad_data(tmp_path: Path, content: bytes) -> None:
    path = save(tmp_path, 3)
    (path / "state.json").write_bytes(content)
    with pytest.raises(BadData, match=r"state\.json: "):
        checkpoint.read_state(path)


def test_state_with_a_changed_number_is_bad_data(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    change_step(path)
    with pytest.raises(BadData, match="changed since it was saved"):
        checkpoint.read_state(path)


def test_state_of_an_older_version_has_counted_nothing(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    state = msgspec.json.decode((path / "state.json").read_bytes())
    for name in ("seal", "skipped", "rollbacks", "evaluations", "share", "since_row"):
        del state[name]
    (path / "state.json").write_bytes(msgspec.json.encode({**state, "seal": checkpoint._seal(state)}))
    read = checkpoint.read_state(path)
    assert (read.skipped, read.rollbacks, read.evaluations, read.share, read.since_row) == (0, 0, 0, 0.0, (0, 0.0, 0.0))


def test_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="no checkpoint here"):
        checkpoint.read_state(tmp_path / "step-00000001")


def test_checkpoint_without_moments_or_average_has_none(tmp_path: Path) -> None:
    path = save(tmp_path, 0, moments={})
    tensors = checkpoint.read(path)
    assert (tensors.moments, tensors.average) == ({}, {})
    assert sorted(os.listdir(path)) == ["model.safetensors", "state.json"]


def test_checkpoint_for_sampling_has_weights_only(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    for _ in range(2):
        checkpoint.drop_moments(path)
        assert checkpoint.read_weights(path).keys() == {"weight"}
    with pytest.raises(BadData, match="optimizer"):
        checkpoint.read(path)


def test_best_is_the_latest_of_the_lowest_losses_that_can_be_read(tmp_path: Path) -> None:
    assert checkpoint.best(tmp_path) is None
    for step, loss in ((1, None), (2, 1.0), (3, 1.0), (4, 2.0), (5, 0.5), (6, None), (7, 0.1)):
        save(tmp_path, step, loss)
    for step in (5, 7):
        flip_bit(tmp_path / f"step-0000000{step}" / "state.json")
    assert checkpoint.best(tmp_path) == tmp_path / "step-00000003"
    checkpoint.delete_except(tmp_path, {tmp_path / "step-00000001", None, tmp_path / "step-00000006"})
    assert [path.name for path in checkpoint.newest_first(tmp_path)] == ["step-00000006", "step-00000001"]
    assert checkpoint.best(tmp_path) is None


def load(folder: Path, messages: list[str]) -> TrainState | None:
    loaded = checkpoint.load_newest(folder, CONFIG, STATE.train, folder / "bad" / "quarantine", messages.append)
    return loaded[0] if loaded else None


@pytest.mark.parametrize(
    "damage", [lambda path: flip_bit(path / "model.safetensors"), lambda path: (path / "state.json").unlink()]
)
def test_damaged_checkpoints_are_kept_aside(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    messages: list[str] = []
    assert load(tmp_path, messages) is None
    for _ in range(2):  # the second time it replaces the one in the quarantine
        save(tmp_path, 1)
        damage(save(tmp_path, 2))
        state = load(tmp_path, messages)
        assert state is not None
        assert state.step == 1
        assert sorted(os.listdir(tmp_path)) == ["bad", "step-00000001"]
        assert os.listdir(tmp_path / "bad" / "quarantine") == ["step-00000002"]
    assert len(messages) == 2
    assert all(message.endswith("; trying the checkpoint before it") for message in messages)
    damage(tmp_path / "step-00000001")
    for _ in range(2):
        with pytest.raises(BadData, match="no checkpoint of the unfinished run is readable"):
            load(tmp_path, messages)


@pytest.mark.parametrize(
    ("field", "config", "difference"),
    [("model", replace(CONFIG, heads=2), "heads: 2, not 1"), ("train", TrainConfig(seed=7), "seed: 7, not 1")],
)
def test_checkpoint_of_another_configuration_is_refused(
    tmp_path: Path, field: str, config: object, difference: str
) -> None:
    path = checkpoint.save(tmp_path, msgspec.structs.replace(STATE, **{field: config}), TENSORS)
    with pytest.raises(BadConfig, match=f"another configuration: {difference}"):
        load(tmp_path, [])
    assert path.is_dir()


def network(value: float) -> GPT:
    model = GPT.empty(CONFIG, torch.device("cpu"))
    for weight in model.parameters():
        torch.nn.init.constant_(weight, value)
    return model


def test_model_is_loaded_with_the_average_of_its_weights(tmp_path: Path) -> None:
    weights, average = (dict(network(value).state_dict()) for value in (1.0, 2.0))
    for step, tensors, value in ((1, {}, 1.0), (2, average, 2.0)):
        model = checkpoint.load_model(save(tmp_path, step, weights=weights, average=tensors), torch.device("cpu"))
        assert all(bool((weight == value).all()) for weight in model.parameters())


def test_tensors_must_be_those_of_the_network() -> None:
    model = network(0.0)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    name = next(name for name, weight in weights.items() if weight.shape == (4, 4))
    optimizer = torch.optim.AdamW(model.parameters())
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    moments = checkpoint.moments(model, [optimizer])
    assert moments.keys() == {f"{name}/{key}" for name in weights for key in ("step", "exp_avg", "exp_avg_sq")}
    checkpoint.require_fit(CheckpointTensors(weights, moments, weights), model)
    other, missing = {**weights, name: torch.zeros(4, 3)}, {key: weights[key] for key in weights if key != name}
    for tensors, difference in (
        (CheckpointTensors(other, {}), f"{name}: 4 x 3 float32, expected 4 x 4 float32"),
        (CheckpointTensors(missing, {}), f"{name}: missing, expected 4 x 4 float32"),
        (CheckpointTensors({**weights, "x": torch.zeros(2)}, {}), "x: 2 float32, expected no such tensor"),
        (CheckpointTensors({**weights, name: weights[name].half()}, {}), f"{name}: 4 x 4 float16, expected"),
        (CheckpointTensors(weights, {}, other), f"{name}: 4 x 3 float32, expected 4 x 4 float32"),
        (CheckpointTensors(weights, {**moments, f"{name}/exp_avg": torch.zeros(3)}), f"{name}/exp_avg: 3 float32"),
    ):
        with pytest.raises(BadConfig) as caught:
            checkpoint.require_fit(tensors, model)
        assert caught.value.message.startswith(f"the checkpoint is of another model: {difference}")
        assert ";" not in caught.value.message


def test_only_five_differences_are_listed() -> None:
    tensors = CheckpointTensors({str(number): torch.zeros(1) for number in range(9)}, {})
    with pytest.raises(BadConfig) as caught:
        checkpoint.require_fit(tensors, network(0.0))
    assert caught.value.message.count(";") == 4


def test_sums_of_huge_gradient_norms_stay_finite() -> None:
    sums = RunningSums.on(torch.device("cpu"))
    for _ in range(2):
        sums.add(torch.tensor(1.0), torch.tensor(3e38))
    steps, loss, norm = sums.totals(World())
    assert (steps, loss) == (2, 2.0)
    assert math.isfinite(norm)

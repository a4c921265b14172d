"""Checkpoints and runs are read back before they get their name."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import save_file

from model.config import GPTConfig, TrainConfig
from model.device import ExecutionConfig
from model.runs import checkpoint
from model.runs.checkpoint import CheckpointTensors, TrainState
from model.training.distributed import World
from model.training.metrics import RunningSums
from pipeline.errors import InternalError, StorageFailed

STATE = TrainState(3, 1.0, None, GPTConfig(vocab_size=10), TrainConfig(), ExecutionConfig("fp32", False, 1))
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


def test_sums_of_huge_gradient_norms_stay_finite() -> None:
    sums = RunningSums.on(torch.device("cpu"))
    for _ in range(2):
        sums.add(torch.tensor(1.0), torch.tensor(3e38))
    steps, loss, norm = sums.totals(World())
    assert (steps, loss) == (2, 2.0)
    assert math.isfinite(norm)

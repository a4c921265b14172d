"""Runs from elsewhere: their result and their checkpoints decide no path outside, and no amount of memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from model.config import GPTConfig
from model.runs import checkpoint, run
from pipeline.errors import BadData
from tests.support.exchanging import GPT2, publish_run


@pytest.mark.parametrize("name", ["../../../secret", "/etc", "", "step-00000007/..", "step-7\n", 5])
def test_a_result_that_names_no_checkpoint_is_refused(tmp_path: Path, name: object) -> None:
    result = {"steps": 1, "tokens": 1, "parameters": 1, "last": "step-00000001", "best": name}
    (tmp_path / run.RESULT).write_bytes(msgspec.json.encode(result))
    with pytest.raises(BadData, match=r"result\.json: Expected `str`"):
        run.read_result(tmp_path)
    (tmp_path / run.RESULT).write_bytes(msgspec.json.encode(result | {"best": "step-00000007"}))
    assert run.read_result(tmp_path).best == "step-00000007"


@pytest.mark.parametrize("config", [replace(GPT2, layers=10_000), replace(GPT2, width=1 << 17)])
def test_a_state_of_a_larger_network_than_its_weights_is_refused(root: Path, config: GPTConfig) -> None:
    path = run.checkpoint_path(publish_run(root, GPT2), "best")
    state = msgspec.structs.replace(checkpoint.read_state(path), model=config)
    (path / "state.json").write_bytes(checkpoint._encode_state(state))
    with pytest.raises(BadData, match=r"weights, expected"):
        checkpoint.load_model(path, torch.device("cpu"))

"""`bench gpu` on a CPU, with small networks: claims that hold pass, others fail and set the exit code."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import cli
from benchmarks.gpu import check
from benchmarks.gpu.claims import Claim, Figure, Skipped, judge
from benchmarks.gpu.machine import Machine
from model.training.dataloader import Loader
from pipeline.errors import BadConfig

_SECONDS = 600.0
_FAST = ("batches", "attention", "NaN", "host reads", "first loss, qwen-8m")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Compute with one thread: on a loaded machine two would wait for each other."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(torch.device("cpu"), tmp_path, quick=True)


def claim(name: str) -> Claim:
    return next(claim for claim in check.CLAIMS if claim.name == name)


def shift_resident_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a fault: batches that are gathered on the device begin one token late."""
    gather = Loader._gather
    monkeypatch.setattr(Loader, "_gather", lambda loader, store: gather(loader, store).roll(1, dims=1))


def test_names_of_claims_are_unique() -> None:
    names = [claim.name for claim in check.CLAIMS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", _FAST)
def test_a_claim_passes_on_a_cpu(machine: Machine, name: str) -> None:
    verdict = judge(claim(name), machine, _SECONDS)
    assert verdict.verdict == "PASS", verdict.line()


def test_the_command_fails_with_a_planted_fault_and_writes_the_verdicts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "CLAIMS", (claim("batches"), claim("filled card")))
    arguments = ["--artifacts", str(tmp_path / "artifacts"), "bench", "gpu", "--device", "cpu"]
    assert cli.main(arguments) == 0
    shift_resident_ids(monkeypatch)
    assert cli.main(arguments) == 1
    assert "FAIL batches" in capsys.readouterr().out
    content = json.loads((tmp_path / "gpu-check-cpu.json").read_bytes())
    assert [row["verdict"] for row in content["claims"]] == ["FAIL", "SKIP"]
    assert content["claims"][0]["figure"]["value"] == 2
    assert content["machine"]["torch"] == torch.__version__


def test_an_error_is_a_failure_and_no_figure_passes_without_a_number(machine: Machine) -> None:
    def raise_error(_: Machine) -> Figure:
        raise RuntimeError("CUDA error: no kernel image\nmore")

    verdict = judge(Claim("error", "", raise_error), machine, _SECONDS)
    assert (verdict.verdict, verdict.reason) == ("FAIL", "RuntimeError: CUDA error: no kernel image")
    verdict = judge(Claim("nan", "", lambda _: Figure(math.nan, "nats", high=1)), machine, _SECONDS)
    assert verdict.verdict == "FAIL"
    assert json.dumps(verdict.fields(), allow_nan=False)


@pytest.mark.parametrize(
    ("options", "seconds", "reason"),
    [
        ({"slow": True}, _SECONDS, "left out by --quick"),
        ({}, 0.0, "the time is over"),
        ({"of_gpus": True}, _SECONDS, "the bound is for GPUs; measured on a reduced network"),
    ],
)
def test_a_claim_without_a_verdict_says_why(
    machine: Machine, options: dict[str, Any], seconds: float, reason: str
) -> None:
    verdict = judge(Claim("name", "", lambda _: Figure(2, "s", high=1), **options), machine, seconds)
    assert (verdict.verdict, verdict.reason) == ("SKIP", reason)


def test_what_a_machine_cannot_measure_is_skipped(machine: Machine) -> None:
    def skip(_: Machine) -> Figure:
        raise Skipped("one GPU")

    verdict = judge(Claim("name", "", skip), machine, _SECONDS)
    assert (verdict.verdict, verdict.reason) == ("SKIP", "one GPU")


def test_no_gpu_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadConfig, match="no CUDA device"):
        check.bench("cuda", print)

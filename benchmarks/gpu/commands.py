"""Claims about complete commands: kills, signals, several processes and the demo."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.gpu.claims import Figure, Skipped
from benchmarks.gpu.machine import Machine, greatest_difference
from model.device import has_compiler
from model.runs import run
from model.training import metrics
from pipeline.errors import InternalError
from pipeline.store import artifact
from pipeline.store.artifact import Artifact

_ROOT = Path(__file__).resolve().parents[2]
_PATIENCE = 300  # seconds for a command
_STEPS, _SIGNAL_STEP = 60, 35


def resumption(machine: Machine, **settings: object) -> Figure:
    """Kill a training after 35 of 60 steps and resume it; count the tensors that differ from those of one go.

    A compiled one is compiled again, with an empty cache.
    """
    if settings.get("compile") == "yes" and not has_compiler():
        raise Skipped("no C++ compiler")
    folder = Path(tempfile.mkdtemp(dir=machine.folder))
    words = _training(machine, dropout=0.1, deterministic="true", **settings)
    expected = _finished(folder / "one", words)
    killed = _run(folder / "two", words, signal="KILL")
    if killed.returncode != -9:
        raise InternalError("the training was not killed")
    shutil.rmtree(folder / "inductor", ignore_errors=True)
    return _different_tensors(_finished(folder / "two", words), expected)


def _different_tensors(actual: Artifact, expected: Artifact) -> Figure:
    tensors, reference = _tensors(actual), _tensors(expected)
    names = tensors.keys() | reference.keys()
    same = [name for name in names & tensors.keys() & reference.keys() if torch.equal(tensors[name], reference[name])]
    return Figure(len(names) - len(same), "tensors differ", high=0, note=f"{len(names)} of weights and moments")


def nondeterministic_resumption(machine: Machine) -> Figure:
    """Kill a training without deterministic=true and resume it; compare the last training losses."""
    folder = Path(tempfile.mkdtemp(dir=machine.folder))
    words = _training(machine)
    expected = _losses(_finished(folder / "one", words))
    _run(folder / "two", words, signal="KILL")
    losses = _losses(_finished(folder / "two", words))
    return Figure(greatest_difference(losses, expected), "nats", high=1e-3, note=f"{_STEPS} steps")


def termination(machine: Machine) -> Figure:
    """Return the seconds from SIGTERM to the end of a training, which has saved a checkpoint."""
    root = Path(tempfile.mkdtemp(dir=machine.folder))
    process = _run(root, _training(machine), signal="TERM")
    seconds = time.time() - float((root / "signalled").read_text())
    steps = [int(path.name.removeprefix("step-")) for path in root.rglob("checkpoints/step-*")]
    if process.returncode != 75 or max(steps, default=0) < _SIGNAL_STEP:
        raise InternalError(f"exit code {process.returncode}, checkpoints {steps}: {process.stderr[-150:]}")
    return Figure(seconds, "s", high=10, note="exit code 75, with a checkpoint of that step")


def annealing(machine: Machine) -> Figure:
    """Stop a training by SIGTERM with --on-stop anneal; count the runs that it publishes."""
    root = Path(tempfile.mkdtemp(dir=machine.folder))
    process = _run(root, [*_training(machine), "--on-stop", "anneal"], signal="TERM")
    if process.returncode:
        raise InternalError(f"exit code {process.returncode}: {process.stderr[-150:]}")
    steps = run.read_result(artifact.find(root, "runs", "check").path).steps
    return Figure(steps, "steps", low=_SIGNAL_STEP, high=_STEPS, note="in a published run")


def processes(machine: Machine, parallel: str, optimizer: str) -> Figure:
    """Compare the losses of two processes with those of one."""
    if machine.device.type == "cuda" and torch.cuda.device_count() < 2:
        raise Skipped("one GPU")
    root = Path(tempfile.mkdtemp(dir=machine.folder))
    settings = {"parallel": parallel, "optimizer": optimizer}
    alone = _losses(_finished(root / "one", _training(machine, optimizer=optimizer)))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    together = _losses(_finished(root / "two", _training(machine, **settings), launcher))
    return Figure(greatest_difference(together, alone), "nats", high=1e-3, note="2 processes and 1")


def demo(machine: Machine) -> Figure:
    """Time the demo."""
    start = time.monotonic()
    root = Path(tempfile.mkdtemp(dir=machine.folder))
    process = _command(root, [str(_ROOT / "cli.py")], ["demo", "--device", machine.device.type])
    if process.returncode:
        raise InternalError(f"exit code {process.returncode}: {process.stderr[-150:]}")
    return Figure(time.monotonic() - start, "s", high=60)


def _training(machine: Machine, **settings: object) -> list[str]:
    """Return the words of a small training in fp32 on the numbers 1, 2, 3, …"""
    values = {"steps": _STEPS, "evaluations": 6, "dropout": 0.0, "precision": "fp32"} | settings
    pairs = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    return ["train", "--counting", "--preset", "mini", "--name", "check", "--device", str(machine.device), *pairs]


def _run(root: Path, words: list[str], signal: str) -> subprocess.CompletedProcess[str]:
    """Run a training that sends itself a signal before one of its steps."""
    root.mkdir(exist_ok=True)
    module = ["-m", "benchmarks.gpu.signalled", signal, str(_SIGNAL_STEP), str(root / "signalled")]
    return _command(root, module, words)


def _finished(root: Path, words: list[str], launcher: list[str] | None = None) -> Artifact:
    process = _command(root, [*(launcher or []), str(_ROOT / "cli.py")], words)
    if process.returncode:
        raise InternalError(f"exit code {process.returncode}: {process.stderr[-150:]}")
    return artifact.find(root, "runs", "check")


def _command(root: Path, program: list[str], words: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "TORCHINDUCTOR_CACHE_DIR": str(root.parent / "inductor")}
    command = [sys.executable, *program, "--artifacts", str(root), *words]
    return subprocess.run(
        command, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=_PATIENCE, check=False
    )


def _tensors(artifact_: Artifact) -> dict[str, torch.Tensor]:
    paths = sorted(run.checkpoint_path(artifact_, "last").glob("*.safetensors"))
    return {f"{path.name} {name}": tensor for path in paths for name, tensor in load_file(path).items()}


def _losses(artifact_: Artifact) -> list[float]:
    rows = metrics.read(artifact_.file("metrics.csv"))
    return [float(row["train_loss"]) for row in rows if row["train_loss"]]

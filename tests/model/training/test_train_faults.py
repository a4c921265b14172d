"""Training under faults: cases 51 to 54, 57 and 60 of reference/reliability.md, section 2, each by its number.

After each of them the newest checkpoint that is whole is gone on from, and the run ends in the weights of one that
nothing disturbed; or the command ends with the exit code that says why it cannot.
"""

from __future__ import annotations

import os
import pickle
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from model.runs import checkpoint, run
from model.training.learner import Learner
from model.training.resume import QUARANTINE
from model.training.trainer import Training
from pipeline.errors import BadData
from pipeline.store import artifact, files
from pipeline.store.artifact import Artifact
from tests.model.training.test_resume import snapshot, vouch
from tests.pipeline.store.test_artifact import in_child
from tests.support import faults
from tests.support.faults import Fault, FaultyDisk, assert_one_error, require
from tests.support.training import (
    ALWAYS,
    after,
    assert_ends_well,
    assert_same_run,
    checkpoints,
    command,
    made,
    no_pictures,
    planned,
    quiet,
    sends,
    steps,
    tensors,
    train,
    warm,
)

__all__ = ["no_pictures", "warm"]  # fixtures


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, warm: None) -> Artifact:
    """The run of a training that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "model.training.loss_curve.draw", lambda table, folder, *_: (folder / "loss.png").write_bytes(b"a picture")
        )
        return quiet(tmp_path_factory.mktemp("quiet") / "artifacts")


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory, warm: None) -> Path:
    """Artifacts with a run that a signal stopped after step 12: it has checkpoints of steps 10 and 12."""
    root = tmp_path_factory.mktemp("half") / "artifacts"
    assert train(root, constants={"model.training.learner.Learner.step": after(12, Learner.step, sends(15))}).code == 75
    assert steps(checkpoints(root)) == [12, 10]
    return root


@pytest.fixture
def root(half: Path, tmp_path: Path) -> Path:
    """A copy of these."""
    return shutil.copytree(half, tmp_path / "artifacts", symlinks=True)


def newest(root: Path, quarantine: Path) -> int:
    """The step of the checkpoint that a training would go on from."""
    preset = planned(root).preset
    found = checkpoint.newest(checkpoints(root), preset.model, preset.train, quarantine, print)
    assert found
    return found[0].step


# 51: killed while a checkpoint is written


def killed_at(call: str, number: int) -> Callable[..., None]:
    """The saving of a checkpoint in which strace kills the process at its `number`-th system call of a kind."""
    real = Training._save

    def save(training: Training, *arguments: Any, **options: Any) -> None:
        who, inject = str(os.getpid()), f"inject={call}:signal=SIGKILL:when={number}"
        subprocess.Popen(["strace", "-qq", "-o", "/dev/null", "-p", who, "-e", f"trace={call}", "-e", inject])
        while "TracerPid:\t0" in Path("/proc/self/status").read_text():
            time.sleep(0.002)
        real(training, *arguments, **options)
        os._exit(0)

    return save


@pytest.mark.parametrize("call", ["mkdir", "write", "fsync", "rename", "unlinkat", "rmdir"])
def test_case_51_killed_at_any_call_of_a_save_the_newest_whole_checkpoint_is_gone_on_from(
    half: Path, tmp_path: Path, call: str, expected: Artifact
) -> None:
    require("strace", root=True)
    seen: list[int] = []
    for number in range(1, 40):
        root = shutil.copytree(half, tmp_path / str(number), symlinks=True)
        killed = command(
            root, constants={"model.training.trainer.Training._save": killed_at(call, number)}
        ).run_forked()
        if killed.code == 0:
            break
        assert killed.code == -9
        seen.append(newest(root, tmp_path / "quarantine"))
        assert not (tmp_path / "quarantine").exists(), "what has the name of a checkpoint is whole"
        if number == 1 or seen[-1] != seen[-2:][0]:
            assert_ends_well(root, expected)
    assert set(seen) <= {12, 20}
    assert seen == sorted(seen), "once it has its name it stays"
    assert seen, f"no {call} in a save"


def test_case_51_a_training_that_is_killed_again_and_again_ends_in_the_same_weights(
    tmp_path: Path, expected: Artifact
) -> None:
    """At ten times by chance, with a checkpoint at every step, so that many of them fall into one."""
    root, draw, killed = tmp_path / "artifacts", random.Random(51), 0
    work = command(root, constants=ALWAYS)
    for _ in range(10):
        killed += work.run_forked(kill_after=draw.uniform(0.05, 0.6)).code == -9
    assert killed
    assert_ends_well(root, expected)


# 52, 53: checkpoints that were damaged after they were saved


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [cut, flip, zero, Path.unlink])
def test_case_52_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(
    root: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    path = checkpoint.steps(checkpoints(root))[0]
    damage(path / name)
    damaged, said = snapshot(path), list[str]()
    quarantine, preset = tmp_path / "quarantine", planned(root).preset
    found = checkpoint.newest(checkpoints(root), preset.model, preset.train, quarantine, said.append)
    assert found
    assert found[0].step == 10
    assert snapshot(quarantine / path.name) == damaged
    (warning,) = said
    assert warning.startswith("warning: ")
    assert str(path) in warning


def test_case_52_it_is_warned_of_the_damaged_checkpoint_and_the_run_ends_in_the_same_weights(
    root: Path, expected: Artifact
) -> None:
    path = checkpoint.steps(checkpoints(root))[0]
    flip(path / "model.safetensors")
    stopped = train(root, constants={"model.training.learner.Learner.step": after(5, Learner.step, sends(15))})
    assert stopped.code == 75
    assert f"warning: {path}" in stopped.err
    assert "going on from step 10 " in stopped.err
    assert (checkpoints(root).parent / artifact.SCRATCH / QUARANTINE / path.name).is_dir()
    assert_ends_well(root, expected)


@pytest.mark.parametrize("damage", [flip, zero])
def test_case_53_when_all_are_damaged_it_ends_in_65_each_time_and_begins_anew_only_when_told(
    root: Path, expected: Artifact, damage: Callable[[Path], None]
) -> None:
    for path in checkpoint.steps(checkpoints(root)):
        damage(path / "model.safetensors")
    for _ in range(3):
        assert_one_error(train(root), 65, [str(checkpoints(root)), "--no-resume"])
    done = train(root, "--no-resume")
    assert done.code == 0, done.err
    assert "going on" not in done.err
    assert_same_run(made(root), expected)


# 54: a disk that is full


def test_case_54_on_a_full_disk_training_goes_on_and_the_third_failure_in_a_row_ends_it(
    half: Path, tmp_path: Path, expected: Artifact
) -> None:
    """Two of its checkpoints in a row do not fit; then all do again; then none does any more."""
    with faults.tmpfs(tmp_path / "disk", "8m") as disk:
        root = shutil.copytree(half, disk / "artifacts", symlinks=True)

        def full(*at: int) -> Callable[..., Path]:
            """The saving of a checkpoint, on a disk that is full at these steps."""
            real, ballast = checkpoint.save, disk / "ballast"

            def save(folder: Path, state: checkpoint.State, saved: checkpoint.Saved) -> Path:
                ballast.unlink(missing_ok=True)
                if state.step in at:
                    with open(ballast, "wb") as out:
                        os.posix_fallocate(out.fileno(), 0, shutil.disk_usage(disk).free - (1 << 17))
                return real(folder, state, saved)

            return save

        unforeseen = {"pipeline.store.files.require_space": lambda *_, **__: None}
        constants = {**ALWAYS, **unforeseen, "model.runs.checkpoint.save": full(13, 14, 16, 17, 18)}
        ended = train(root, constants=constants)
        assert_one_error(ended, 74, ["no space left on device"])
        warned = [line for line in ended.err.splitlines() if line.startswith("warning: no checkpoint of step")]
        assert [line.split()[5].strip(":,") for line in warned] == ["13", "14", "16", "17", "18"]
        assert steps(checkpoints(root)) == [15, 12, 10], "what was saved is kept, and nothing half"
        assert not list(checkpoints(root).glob(".tmp.*"))
        foreseen = train(root, constants={**ALWAYS, "model.runs.checkpoint.save": full(*range(21))})
        assert_one_error(foreseen, 74, ["GB needed"])
        (disk / "ballast").unlink()
        assert_ends_well(root, expected)


def test_case_54_whichever_operation_of_a_save_the_disk_refuses_the_next_save_is_whole(
    half: Path, tmp_path: Path, expected: Artifact
) -> None:
    """Of the save of step 13; that of step 14 has a disk as good as ever."""
    real = checkpoint.save

    def refused(number: int) -> bool:
        root = shutil.copytree(half, tmp_path / str(number), symlinks=True)
        faulty = FaultyDisk(Fault("any", number, "ENOSPC"))

        def save(folder: Path, state: checkpoint.State, saved: checkpoint.Saved) -> Path:
            with faults.disk(faulty if state.step == 13 else files.Disk()):
                path = real(folder, state, saved)
            if state.step > 12:
                os._exit(state.step)
            return path

        done = train(root, constants={**ALWAYS, "model.runs.checkpoint.save": save})
        assert not list(checkpoints(root).rglob(".tmp.*"))
        assert newest(root, tmp_path / "quarantine") == done.code
        if done.code == 13:
            return False  # nothing was refused
        assert done.code == 14, done.err
        assert done.err.count("warning: no checkpoint of step 13: ") == 1
        if number == 1:
            assert_ends_well(root, expected)
        return True

    assert faults.sweep(refused) >= 6


# 57: numbers that are none


NAN, INFINITE = float("nan"), float("inf")


def loses(at: set[int]) -> dict[str, object]:
    """In these steps, counted as they are made, the loss is no number."""
    return _hooked(at, lambda learner: None, lambda learner, loss: loss * NAN)


def explodes(at: set[int]) -> dict[str, object]:
    """In these steps the gradient of one weight is infinite."""

    def explode(learner: Learner, loss: Tensor) -> Tensor:
        gradient = learner.weights["blocks.1.attention.k.weight"].grad
        assert gradient is not None
        gradient[3, 4] = INFINITE
        return loss

    return _hooked(at, lambda learner: None, explode)


def rots(at: set[int]) -> dict[str, object]:
    """Before these steps a weight becomes no number."""

    @torch.no_grad()
    def rot(learner: Learner) -> None:
        learner.weights["blocks.0.feed_forward.up.weight"][5, 6] = NAN

    return _hooked(at, rot, lambda learner, loss: loss)


def _hooked(
    at: set[int], before: Callable[[Learner], None], then: Callable[[Learner, Tensor], Tensor]
) -> dict[str, object]:
    real_step, real_backward, made, bad = Learner.step, Learner.backward, [0], [False]

    def step(learner: Learner, *arguments: Any) -> Any:
        made[0] += 1
        bad[0] = made[0] in at
        if bad[0]:
            before(learner)
        return real_step(learner, *arguments)

    def backward(learner: Learner, *arguments: Any) -> Tensor:
        loss = real_backward(learner, *arguments)
        return then(learner, loss) if bad[0] else loss

    return {"model.training.learner.Learner.step": step, "model.training.learner.Learner.backward": backward}


def events(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_bytes().splitlines()
    return [each for line in lines if (each := msgspec.json.decode(line))["event"] in ("passed over", "rolled back")]


def assert_finite(folder: Path) -> None:
    for path in checkpoint.steps(folder):
        saved = checkpoint.read(path)
        for part in (saved.weights, saved.moments, saved.average):
            assert all(bool(tensor.isfinite().all()) for tensor in part.values()), path


@pytest.mark.parametrize(("hook", "named"), [(loses, "loss"), (explodes, "gradient of blocks.1.attention.k.weight")])
def test_case_57_a_step_without_finite_numbers_is_passed_over(
    tmp_path: Path, hook: Callable[[set[int]], dict[str, object]], named: str
) -> None:
    root = tmp_path / "artifacts"
    done = train(root, constants={**ALWAYS, **hook({5, 8})})
    assert done.code == 0, done.err
    assert [(each["step"], each["cause"]) for each in events(made(root).path)] == [(5, named), (8, named)]
    assert run.read_result(made(root).path).steps == 20
    assert all(bool(tensor.isfinite().all()) for _, tensor in tensors(made(root)))


@pytest.mark.parametrize("hook", [loses, explodes, rots])
def test_case_57_after_three_in_a_row_it_goes_back_to_the_last_checkpoint_and_past_the_data(
    half: Path, tmp_path: Path, hook: Callable[[set[int]], dict[str, object]]
) -> None:
    """From step 12 the steps 13 to 15 are bad: the data of 16 is what step 13 then sees."""
    root = shutil.copytree(half, tmp_path / "artifacts", symlinks=True)
    seen: list[int] = []
    hooks = hook({1, 2, 3})
    bad_step = hooks["model.training.learner.Learner.step"]
    assert callable(bad_step)

    def step(learner: Learner, ids: Tensor, seed: int, *rest: Any) -> Any:
        seen.append(seed & 0xFFFF_FFFF)
        if len(seen) == 8:
            (tmp_path / "seen").write_text(" ".join(map(str, seen)))
        return bad_step(learner, ids, seed, *rest)

    done = train(root, constants={**hooks, "model.training.learner.Learner.step": step})
    assert done.code == 0, done.err
    assert (tmp_path / "seen").read_text() == "12 13 14 15 16 17 18 19"
    kinds = [each["event"] for each in events(made(root).path)]
    assert kinds == ["passed over"] * 3 + ["rolled back"]
    assert done.err.count("going on from step 12 ") == 2
    assert run.read_result(made(root).path).steps == 20
    (path,) = made(root).path.glob("checkpoints/step-00000020")
    state = checkpoint.read_state(path)
    assert (state.skipped, state.rollbacks) == (3, 1)
    assert_finite(made(root).path / "checkpoints")


@pytest.mark.parametrize(
    ("hook", "named"),
    [
        (explodes, "the gradient of blocks.1.attention.k.weight"),
        (rots, "the weight blocks.0.feed_forward.up.weight"),
        (loses, "the loss"),
    ],
)
def test_case_57_after_two_returns_it_ends_in_12_and_names_the_tensor_and_no_checkpoint_holds_it(
    root: Path, expected: Artifact, hook: Callable[[set[int]], dict[str, object]], named: str
) -> None:
    ended = train(root, constants=hook(set(range(1, 40))))
    assert_one_error(ended, 12, [named, "learning_rate"])
    assert [each["event"] for each in events(checkpoints(root).parent)].count("rolled back") == 2
    assert_finite(checkpoints(root))
    assert steps(checkpoints(root)) == [12, 10]
    assert_ends_well(root, expected)


def test_case_57_weights_that_are_no_numbers_are_never_saved(root: Path, expected: Artifact) -> None:
    """What became of them after the last step before a checkpoint is seen when it is to be saved."""
    real, rotten = Training._save, [False]

    def save(training: Training, *arguments: Any, **options: Any) -> None:
        if training.schedule.step == 15 and not rotten[0]:
            rotten[0] = True
            with torch.no_grad():
                training.learner.weights["norm.weight"][7] = NAN
        real(training, *arguments, **options)

    done = train(root, constants={**ALWAYS, "model.training.trainer.Training._save": save})
    assert done.code == 0, done.err
    assert "the weight norm.weight is no finite number at step 15: rolling back" in done.err
    assert "going on from step 14 " in done.err
    assert_finite(made(root).path / "checkpoints")


# 60: checkpoints from elsewhere


class Gadget:
    """What runs a command when it is read as a pickle."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.sentinel}",))


def a_pickle(sentinel: Path) -> bytes:
    return pickle.dumps({"embedding.weight": Gadget(sentinel)})


def saved_by_torch(sentinel: Path) -> bytes:
    path = sentinel.with_suffix(".pt")
    torch.save({"embedding.weight": Gadget(sentinel)}, path)
    return path.read_bytes()


def a_header_of_2_pib(sentinel: Path) -> bytes:
    return (1 << 51).to_bytes(8, "little") + b"{}" * 100


def a_tensor_of_2_pib(sentinel: Path) -> bytes:
    tensor = {"dtype": "F32", "shape": [1 << 24, 1 << 25], "data_offsets": [0, 1 << 51]}
    header = msgspec.json.encode({"embedding.weight": tensor})
    return len(header).to_bytes(8, "little") + header + bytes(64)


@contextmanager
def memory(count: int) -> Iterator[None]:
    """At most so many bytes more than this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + count,) * 2)
    yield


@pytest.mark.parametrize("make", [a_pickle, saved_by_torch, a_header_of_2_pib, a_tensor_of_2_pib])
@pytest.mark.parametrize("vouched", [True, False])
def test_case_60_a_hostile_checkpoint_is_refused_and_nothing_in_it_runs(
    root: Path, tmp_path: Path, make: Callable[[Path], bytes], vouched: bool
) -> None:
    """Whether or not its hash is the one that the checkpoint tells."""
    sentinel = tmp_path / "sentinel"
    for path in checkpoint.steps(checkpoints(root)):
        (path / "model.safetensors").write_bytes(make(sentinel))
        if vouched:
            vouch(path)

    def read() -> None:
        with memory(256 << 20), pytest.raises(BadData, match=r"model\.safetensors"):
            checkpoint.read(path)
        with pytest.raises(BadData, match=r"model\.safetensors"):
            checkpoint.load_model(path, torch.device("cpu"))

    assert in_child(read) == 0
    assert_one_error(train(root), 65, [str(checkpoints(root))])
    assert not sentinel.exists()

"""Training under faults: cases 51 to 54, 57 and 60 of docs/design/reliability.md, section 2.

After each fault training resumes from the newest intact checkpoint and ends with the weights of an undisturbed run, or
the command ends with the exit code of the error.
"""

from __future__ import annotations

import os
import pickle
import random
import re
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
from model.training.checkpointer import QUARANTINE
from model.training.dataloader import Loader
from model.training.learner import Learner
from model.training.trainer import Trainer
from pipeline.errors import BadData
from pipeline.store import artifact, files
from pipeline.store.artifact import Artifact
from tests.model.training.test_resume import snapshot, update_hashes
from tests.pipeline.store.test_artifact import in_child
from tests.support import faults
from tests.support.faults import Fault, FaultyDisk, assert_one_error, require
from tests.support.training import (
    DRAW,
    SAVE_EVERY_STEP,
    STEP,
    assert_resumes_to,
    assert_same_run,
    before_call,
    command,
    current_run,
    draft_checkpoints,
    draw_placeholder,
    make_plan,
    no_loss_curve,
    preloaded,
    saved_steps,
    send,
    tensors,
    train,
    train_undisturbed,
)

__all__ = ["no_loss_curve", "preloaded"]  # fixtures


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, preloaded: None) -> Artifact:
    """The run of a training without faults."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DRAW, draw_placeholder)
        return train_undisturbed(tmp_path_factory.mktemp("quiet") / "artifacts")


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory, preloaded: None) -> Path:
    """Artifacts with a run that a signal stopped after step 12, with checkpoints of steps 10 and 12."""
    root = tmp_path_factory.mktemp("half") / "artifacts"
    assert train(root, constants={STEP: before_call(12, Learner.step, send(15))}).code == 75
    assert saved_steps(draft_checkpoints(root)) == [12, 10]
    return root


@pytest.fixture
def root(half: Path, tmp_path: Path) -> Path:
    """A copy of the artifacts of `half`."""
    return shutil.copytree(half, tmp_path / "artifacts", symlinks=True)


def newest(root: Path, quarantine: Path) -> int:
    """Return the step of the checkpoint that a training would resume from."""
    preset = make_plan(root).preset
    loaded = checkpoint.load_newest(draft_checkpoints(root), preset.model, preset.train, quarantine, print)
    assert loaded
    return loaded[0].step


# Killed while a checkpoint is written


def killed_at(call: str, number: int) -> Callable[..., None]:
    """Return a `Trainer._save` in which strace kills the process at the `number`-th system call of a kind."""
    original = Trainer._save

    def save(trainer: Trainer, *arguments: Any, **options: Any) -> None:
        pid, inject = str(os.getpid()), f"inject={call}:signal=SIGKILL:when={number}"
        subprocess.Popen(["strace", "-qq", "-o", "/dev/null", "-p", pid, "-e", f"trace={call}", "-e", inject])
        while "TracerPid:\t0" in Path("/proc/self/status").read_text():
            time.sleep(0.002)
        original(trainer, *arguments, **options)
        os._exit(0)

    return save


@pytest.mark.parametrize("call", ["mkdir", "write", "fsync", "rename", "unlinkat", "rmdir"])
def test_kill_at_any_system_call_of_a_save_leaves_an_intact_checkpoint(
    half: Path, tmp_path: Path, call: str, expected: Artifact
) -> None:
    """Case 51 of docs/design/reliability.md."""
    require("strace", root=True)
    newest_steps: list[int] = []
    for number in range(1, 40):
        root = shutil.copytree(half, tmp_path / str(number), symlinks=True)
        killed = command(root, constants={"model.training.trainer.Trainer._save": killed_at(call, number)}).run_forked()
        if killed.code == 0:
            break
        assert killed.code == -9
        newest_steps.append(newest(root, tmp_path / "quarantine"))
        assert not (tmp_path / "quarantine").exists(), "a folder with the name of a checkpoint is complete"
        if number == 1 or newest_steps[-1] != newest_steps[-2:][0]:
            assert_resumes_to(root, expected)
    assert set(newest_steps) <= {12, 20}
    assert newest_steps == sorted(newest_steps), "a checkpoint that has its name is kept"
    assert newest_steps, f"no {call} in a save"


def test_run_killed_at_random_times_ends_with_the_same_weights(tmp_path: Path, expected: Artifact) -> None:
    """Case 51 of docs/design/reliability.md.

    Ten kills at random times, with a checkpoint at every step, so that many of them interrupt a save.
    """
    root, rng, killed = tmp_path / "artifacts", random.Random(51), 0
    training = command(root, constants=SAVE_EVERY_STEP)
    for _ in range(10):
        killed += training.run_forked(kill_after=rng.uniform(0.05, 0.6)).code == -9
    assert killed
    assert_resumes_to(root, expected)


# Checkpoints damaged after they were saved


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def overwrite_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [truncate, flip_bit, overwrite_with_zeros, Path.unlink])
def test_damaged_checkpoint_is_quarantined_and_the_one_before_is_used(
    root: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """Case 52 of docs/design/reliability.md."""
    path = checkpoint.newest_first(draft_checkpoints(root))[0]
    damage(path / name)
    damaged, messages = snapshot(path), list[str]()
    quarantine, preset = tmp_path / "quarantine", make_plan(root).preset
    loaded = checkpoint.load_newest(draft_checkpoints(root), preset.model, preset.train, quarantine, messages.append)
    assert loaded
    assert loaded[0].step == 10
    assert snapshot(quarantine / path.name) == damaged
    (warning,) = messages
    assert warning.startswith("warning: ")
    assert str(path) in warning


def test_resume_past_a_damaged_checkpoint_warns_and_ends_the_same(root: Path, expected: Artifact) -> None:
    """Case 52 of docs/design/reliability.md."""
    path = checkpoint.newest_first(draft_checkpoints(root))[0]
    flip_bit(path / "model.safetensors")
    stopped = train(root, constants={STEP: before_call(5, Learner.step, send(15))})
    assert stopped.code == 75
    assert f"warning: {path}" in stopped.err
    assert "resuming from step 10 " in stopped.err
    assert (draft_checkpoints(root).parent / artifact.SCRATCH / QUARANTINE / path.name).is_dir()
    assert_resumes_to(root, expected)


@pytest.mark.parametrize("damage", [flip_bit, overwrite_with_zeros])
def test_only_damaged_checkpoints_exit_65_until_no_resume(
    root: Path, expected: Artifact, damage: Callable[[Path], None]
) -> None:
    """Case 53 of docs/design/reliability.md."""
    for path in checkpoint.newest_first(draft_checkpoints(root)):
        damage(path / "model.safetensors")
    for _ in range(3):
        assert_one_error(train(root), 65, [str(draft_checkpoints(root)), "--no-resume"])
    result = train(root, "--no-resume")
    assert result.code == 0, result.err
    assert "resuming" not in result.err
    assert_same_run(current_run(root), expected)


# Full disks


def test_third_failed_save_in_a_row_ends_training(half: Path, tmp_path: Path, expected: Artifact) -> None:
    """Case 54 of docs/design/reliability.md.

    Two saves in a row fail, the next one succeeds, and then all fail.
    """
    with faults.tmpfs(tmp_path / "disk", "8m") as disk:
        root = shutil.copytree(half, disk / "artifacts", symlinks=True)

        def save_on_full_disk(*full_at: int) -> Callable[..., Path]:
            """Return a `checkpoint.save` for a disk that is full at these steps."""
            original, ballast = checkpoint.save, disk / "ballast"

            def save(folder: Path, state: checkpoint.TrainState, saved: checkpoint.CheckpointTensors) -> Path:
                ballast.unlink(missing_ok=True)
                if state.step in full_at:
                    with open(ballast, "wb") as out:
                        os.posix_fallocate(out.fileno(), 0, shutil.disk_usage(disk).free - (1 << 17))
                return original(folder, state, saved)

            return save

        without_check = {"pipeline.store.files.require_space": lambda *_, **__: None}
        save = save_on_full_disk(13, 14, 16, 17, 18)
        ended = train(root, constants={**SAVE_EVERY_STEP, **without_check, "model.runs.checkpoint.save": save})
        assert_one_error(ended, 74, ["no space left on device"])
        failed = re.findall(r"^warning: could not save the checkpoint of step (\d+)", ended.err, re.MULTILINE)
        assert failed == ["13", "14", "16", "17", "18"]
        assert saved_steps(draft_checkpoints(root)) == [15, 12, 10], "complete checkpoints are kept, and no partial one"
        assert not list(draft_checkpoints(root).glob(".tmp.*"))
        save = save_on_full_disk(*range(21))
        checked = train(root, constants={**SAVE_EVERY_STEP, "model.runs.checkpoint.save": save})
        assert_one_error(checked, 74, ["GB needed"])
        (disk / "ballast").unlink()
        assert_resumes_to(root, expected)


def test_save_after_any_failed_disk_operation_is_intact(half: Path, tmp_path: Path, expected: Artifact) -> None:
    """Case 54 of docs/design/reliability.md. The save of step 13 fails, that of step 14 succeeds."""
    original = checkpoint.save

    def is_refused(number: int) -> bool:
        root = shutil.copytree(half, tmp_path / str(number), symlinks=True)
        faulty = FaultyDisk(Fault("any", number, "ENOSPC"))

        def save(folder: Path, state: checkpoint.TrainState, saved: checkpoint.CheckpointTensors) -> Path:
            with faults.disk(faulty if state.step == 13 else files.Disk()):
                path = original(folder, state, saved)
            if state.step > 12:
                os._exit(state.step)
            return path

        result = train(root, constants={**SAVE_EVERY_STEP, "model.runs.checkpoint.save": save})
        assert not list(draft_checkpoints(root).rglob(".tmp.*"))
        assert newest(root, tmp_path / "quarantine") == result.code
        if result.code == 13:
            return False  # no write failed
        assert result.code == 14, result.err
        assert result.err.count("warning: could not save the checkpoint of step 13: ") == 1
        if number == 1:
            assert_resumes_to(root, expected)
        return True

    assert faults.sweep(is_refused) >= 6


# Non-finite numbers


NAN, INFINITE = float("nan"), float("inf")


def with_nan_loss(bad_steps: set[int]) -> dict[str, object]:
    """Make the loss NaN in these steps, counted from 1 in this process."""
    return _patch_steps(bad_steps, lambda learner: None, lambda learner, loss: loss * NAN)


def with_infinite_gradient(bad_steps: set[int]) -> dict[str, object]:
    """Make the gradient of one weight infinite in these steps."""

    def explode(learner: Learner, loss: Tensor) -> Tensor:
        gradient = learner.weights["blocks.1.attention.k.weight"].grad
        assert gradient is not None
        gradient[3, 4] = INFINITE
        return loss

    return _patch_steps(bad_steps, lambda learner: None, explode)


def with_nan_weight(bad_steps: set[int]) -> dict[str, object]:
    """Make a weight NaN before these steps."""

    @torch.no_grad()
    def damage(learner: Learner) -> None:
        learner.weights["blocks.0.feed_forward.up.weight"][5, 6] = NAN

    return _patch_steps(bad_steps, damage, lambda learner, loss: loss)


def _patch_steps(
    bad_steps: set[int], before: Callable[[Learner], None], after_backward: Callable[[Learner, Tensor], Tensor]
) -> dict[str, object]:
    original_step, original_backward = Learner.step, Learner.backward
    step_count, is_bad = [0], [False]

    def step(learner: Learner, *arguments: Any) -> Any:
        step_count[0] += 1
        is_bad[0] = step_count[0] in bad_steps
        if is_bad[0]:
            before(learner)
        return original_step(learner, *arguments)

    def backward(learner: Learner, *arguments: Any) -> Tensor:
        loss = original_backward(learner, *arguments)
        return after_backward(learner, loss) if is_bad[0] else loss

    return {STEP: step, "model.training.learner.Learner.backward": backward}


def events(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_bytes().splitlines()
    return [event for line in lines if (event := msgspec.json.decode(line))["event"] in ("passed over", "rolled back")]


def assert_finite(folder: Path) -> None:
    for path in checkpoint.newest_first(folder):
        saved = checkpoint.read(path)
        for part in (saved.weights, saved.moments, saved.average):
            assert all(bool(tensor.isfinite().all()) for tensor in part.values()), path


@pytest.mark.parametrize(
    ("fault", "culprit"), [(with_nan_loss, "loss"), (with_infinite_gradient, "gradient of blocks.1.attention.k.weight")]
)
def test_step_with_non_finite_numbers_is_skipped(
    tmp_path: Path, fault: Callable[[set[int]], dict[str, object]], culprit: str
) -> None:
    """Case 57 of docs/design/reliability.md."""
    root = tmp_path / "artifacts"
    result = train(root, constants={**SAVE_EVERY_STEP, **fault({5, 8})})
    assert result.code == 0, result.err
    assert [(event["step"], event["cause"]) for event in events(current_run(root).path)] == [(5, culprit), (8, culprit)]
    assert run.read_result(current_run(root).path).steps == 20
    assert all(bool(tensor.isfinite().all()) for _, tensor in tensors(current_run(root)))


@pytest.mark.parametrize("fault", [with_nan_loss, with_infinite_gradient, with_nan_weight])
def test_three_bad_steps_in_a_row_roll_back_and_skip_the_data(
    half: Path, tmp_path: Path, fault: Callable[[set[int]], dict[str, object]]
) -> None:
    """Case 57 of docs/design/reliability.md.

    After a resume at step 12, steps 13 to 15 are bad; step 13 then gets the data of step 16.
    """
    root = shutil.copytree(half, tmp_path / "artifacts", symlinks=True)
    data_steps: list[int] = []
    constants = fault({1, 2, 3})
    bad_step = constants[STEP]
    assert callable(bad_step)

    def step(learner: Learner, ids: Tensor, seed: int, *rest: Any) -> Any:
        data_steps.append(seed & 0xFFFF_FFFF)
        if len(data_steps) == 8:
            (tmp_path / "data_steps").write_text(" ".join(map(str, data_steps)))
        return bad_step(learner, ids, seed, *rest)

    result = train(root, constants={**constants, STEP: step})
    assert result.code == 0, result.err
    assert (tmp_path / "data_steps").read_text() == "12 13 14 15 16 17 18 19"
    kinds = [event["event"] for event in events(current_run(root).path)]
    assert kinds == ["passed over"] * 3 + ["rolled back"]
    assert (result.err.count("resuming from step 12 "), result.err.count("back at step 12\n")) == (1, 1)
    assert run.read_result(current_run(root).path).steps == 20
    (path,) = current_run(root).path.glob("checkpoints/step-00000020")
    state = checkpoint.read_state(path)
    assert (state.skipped, state.rollbacks) == (3, 1)
    assert_finite(current_run(root).path / "checkpoints")


def with_nan_data(bad_steps: set[int]) -> Callable[..., Any]:
    """Return a `Learner.step` whose loss is NaN on the batches of these steps, counted from 0."""
    original_step, original_backward = Learner.step, Learner.backward

    def step(learner: Learner, ids: Tensor, seed: int, *rest: Any) -> Any:
        factor = NAN if seed & 0xFFFF_FFFF in bad_steps else 1.0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Learner, "backward", lambda *arguments: original_backward(*arguments) * factor)
            return original_step(learner, ids, seed, *rest)

    return step


def test_rollback_frees_the_tokens_on_the_device_before_it_loads_them_again(root: Path) -> None:
    """There may not be room for two copies."""
    loaders: list[Loader] = []

    class Single(Loader):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            assert all(loader._store is None for loader in loaders), "two copies"
            super().__init__(*arguments, **options)
            loaders.append(self)

    result = train(
        root,
        constants={STEP: with_nan_data({12, 13, 14}), "model.training.trainer.Loader": Single},
        resident="yes",
    )
    assert result.code == 0, result.err
    assert "rolling back" in result.err


def test_run_stopped_between_bad_steps_ends_with_the_same_weights(tmp_path: Path) -> None:
    """Case 57 of docs/design/reliability.md. Of three bad steps, the signal comes in the second."""
    step = with_nan_data({12, 13, 14})
    undisturbed = train_undisturbed(tmp_path / "undisturbed", constants={STEP: step})
    assert [event["event"] for event in events(undisturbed.path)] == ["passed over"] * 3 + ["rolled back"]
    root = tmp_path / "artifacts"
    assert train(root, constants={STEP: before_call(14, step, send(15))}).code == 75
    assert_resumes_to(root, undisturbed, constants={STEP: step})


@pytest.mark.parametrize(
    ("fault", "culprit"),
    [
        (with_infinite_gradient, "the gradient of blocks.1.attention.k.weight"),
        (with_nan_weight, "the weight blocks.0.feed_forward.up.weight"),
        (with_nan_loss, "the loss"),
    ],
)
def test_third_rollback_exits_12_and_names_the_tensor(
    root: Path, expected: Artifact, fault: Callable[[set[int]], dict[str, object]], culprit: str
) -> None:
    """Case 57 of docs/design/reliability.md."""
    ended = train(root, constants=fault(set(range(1, 40))))
    assert_one_error(ended, 12, [culprit, "learning_rate"])
    assert [event["event"] for event in events(draft_checkpoints(root).parent)].count("rolled back") == 2
    assert_finite(draft_checkpoints(root))
    assert saved_steps(draft_checkpoints(root)) == [12, 10]
    assert_resumes_to(root, expected)


def test_non_finite_weights_are_never_saved(root: Path, expected: Artifact) -> None:
    """Case 57 of docs/design/reliability.md.

    A weight that is damaged after the last step is noticed when the checkpoint is to be saved.
    """
    original, is_damaged = Trainer._save, [False]

    def save(trainer: Trainer, *arguments: Any, **options: Any) -> None:
        if trainer.schedule.step == 15 and not is_damaged[0]:
            is_damaged[0] = True
            with torch.no_grad():
                trainer.learner.weights["norm.weight"][7] = NAN
        original(trainer, *arguments, **options)

    result = train(root, constants={**SAVE_EVERY_STEP, "model.training.trainer.Trainer._save": save})
    assert result.code == 0, result.err
    assert "the weight norm.weight is not finite at step 15: rolling back" in result.err
    assert "back at step 14\n" in result.err
    assert_finite(current_run(root).path / "checkpoints")


# Checkpoints from untrusted sources


class Gadget:
    """Object that runs a command when it is unpickled."""

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
def limited_memory(count: int) -> Iterator[None]:
    """Limit the address space to `count` bytes more than it is now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + count,) * 2)
    yield


@pytest.mark.parametrize("content", [a_pickle, saved_by_torch, a_header_of_2_pib, a_tensor_of_2_pib])
@pytest.mark.parametrize("with_valid_hash", [True, False])
def test_hostile_checkpoint_is_refused_and_runs_no_code(
    root: Path, tmp_path: Path, content: Callable[[Path], bytes], with_valid_hash: bool
) -> None:
    """Case 60 of docs/design/reliability.md. With and without a valid hash in state.json."""
    sentinel = tmp_path / "sentinel"
    for path in checkpoint.newest_first(draft_checkpoints(root)):
        (path / "model.safetensors").write_bytes(content(sentinel))
        if with_valid_hash:
            update_hashes(path)

    def read() -> None:
        with limited_memory(256 << 20), pytest.raises(BadData, match=r"model\.safetensors"):
            checkpoint.read(path)
        with pytest.raises(BadData, match=r"model\.safetensors"):
            checkpoint.load_model(path, torch.device("cpu"))

    assert in_child(read) == 0
    assert_one_error(train(root), 65, [str(draft_checkpoints(root))])
    assert not sentinel.exists()

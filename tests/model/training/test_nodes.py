"""Several nodes train one model, each with its own artifacts root: a node that lacks the tokens, differs, or is lost.

Each process is a fork of this one, with the environment that torchrun gives to it.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from model.training import stage
from model.training.learner import Learner
from pipeline.store import artifact, remote
from pipeline.store.artifact import Artifact
from pipeline.store.bucket import Bucket
from pipeline.store.code import Code
from pipeline.tokens import counting
from tests.support.faults import Run, assert_one_error
from tests.support.training import (
    NAME,
    SAVE_EVERY_STEP,
    STEP,
    assert_same_curve,
    assert_same_run,
    before_call,
    command,
    current_run,
    no_loss_curve,
    preloaded,
    train_undisturbed,
)

__all__ = ["no_loss_curve", "preloaded"]  # fixtures

Roots = tuple[Path, Path]


def train_on_nodes(
    roots: Roots, *options: object, constants: Sequence[Mapping[str, object]] = ({}, {}), **environment: str
) -> tuple[Run, Run]:
    """Run `train` in one process on each node, and return their results."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}

    def run(rank: int) -> Run:
        variables = shared | {"RANK": str(rank), "MASTER_PORT": port} | environment
        node = command(roots[rank], *options, constants=constants[rank], dropout=0.0)
        return replace(node, environment=variables).run_forked()

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    other = context.Process(target=lambda: sender.send(run(1)))
    other.start()
    first = run(0)
    second = receiver.recv()
    other.join()
    return first, second


def die_at_step_11() -> Mapping[str, object]:
    """Return constants that kill a process before its step 11, after the checkpoint of step 10."""
    return {STEP: before_call(11, Learner.step, lambda: os.kill(os.getpid(), signal.SIGKILL)), **SAVE_EVERY_STEP}


def read_below(root: Path) -> Callable[[Path], Artifact]:
    """Return `artifact.read` of a machine that has only the disk with `root`."""
    read = artifact.read

    def read_here(path: Path) -> Artifact:
        return read(path if path.is_relative_to(root) else root / "on another machine")

    return read_here


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    """Two roots with the same tokens."""
    for name in ("first", "second"):
        counting.build(tmp_path / name)
    return tmp_path / "first", tmp_path / "second"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, preloaded: None) -> Artifact:
    """The run of two nodes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    results = train_on_nodes((folder / "first", folder / "second"))
    assert [result.code for result in results] == [0, 0], results[0].err + results[1].err
    assert not (folder / "second" / "runs").exists()
    return current_run(folder / "first")


def test_two_nodes_give_the_loss_curve_of_one(undisturbed: Artifact, tmp_path: Path) -> None:
    assert_same_curve(undisturbed, train_undisturbed(tmp_path, dropout=0.0))


@pytest.mark.parametrize("lost", [0, 1])
def test_lost_node_ends_with_75_and_the_same_command_gives_the_same_weights(
    undisturbed: Artifact, roots: Roots, lost: int
) -> None:
    constants: list[Mapping[str, object]] = [SAVE_EVERY_STEP, SAVE_EVERY_STEP]
    constants[lost] = die_at_step_11()
    results = train_on_nodes(roots, constants=constants)
    assert results[lost].code == -signal.SIGKILL
    step = "the last checkpoint" if lost == 0 else "step 10"
    assert_one_error(results[1 - lost], 75, ["a node was lost", "the same command", f"continues from {step}"])
    results = train_on_nodes(roots)
    assert [result.code for result in results] == [0, 0], results[0].err + results[1].err
    assert "resuming from step 10 " in results[0].err
    assert_same_run(current_run(roots[0]), undisturbed)


def test_node_that_does_not_answer_is_lost_after_the_timeout(roots: Roots) -> None:
    silent = {STEP: before_call(3, Learner.step, lambda: time.sleep(9))}
    first, second = train_on_nodes(roots, constants=[{}, silent], INKSTONE_NODE_TIMEOUT="0.1")
    assert_one_error(first, 75, ["a node was lost", "Timed out"])
    assert_one_error(second, 75, ["a node was lost"])
    assert first.seconds < 30


def test_node_without_the_tokens_ends_all_with_one_line_that_tells_what_to_copy(roots: Roots) -> None:
    shutil.rmtree(roots[1] / "tokens" / "counting")
    other_disk = {"pipeline.store.artifact.read": read_below(roots[1])}
    first, second = train_on_nodes(roots, constants=[{}, other_disk])
    assert_one_error(first, 66, ["process 1 on ", "no tokens/counting/", "copy ", str(roots[1])])
    assert (second.code, second.out, second.err) == (66, "", "")


def test_node_with_damaged_tokens_ends_all_before_the_training(roots: Roots) -> None:
    next(roots[1].glob("tokens/counting/*/train-*.bin")).write_bytes(b"")
    first, second = train_on_nodes(roots)
    assert_one_error(first, 65, ["process 1 on ", "0 bytes where the manifest says"])
    assert (second.code, second.out, second.err) == (65, "", "")


def test_tokens_are_checked_by_one_process_of_a_node(roots: Roots) -> None:
    refuse = {"pipeline.store.artifact.find_problems": lambda *_: ["checked"]}
    first, second = train_on_nodes(roots, constants=[{}, refuse], LOCAL_RANK="1")
    assert (first.code, second.code) == (0, 0), first.err + second.err


def test_node_fetches_the_tokens_from_the_bucket_that_its_root_mirrors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INKSTONE_CACHE", str(tmp_path / "cache"))
    url, planned = f"file://{tmp_path}/bucket", counting.build(tmp_path / "first").artifact
    remote.push(Bucket(url), planned.path, promote=True)
    mirror = remote.open_mirror(url)
    tokens = stage._find_tokens(mirror, planned)
    assert tokens.path == mirror / planned.ref
    assert artifact.find_problems(tokens, deep=True) == []


def test_parent_run_is_needed_on_the_main_node_only(roots: Roots) -> None:
    train_undisturbed(roots[0], dropout=0.0, steps=4)
    first, second = train_on_nodes(roots, "--from", NAME, "--name", "child")
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert f"starting from the weights of {NAME}/" in first.err


def test_main_process_on_another_node_than_before_is_refused(roots: Roots) -> None:
    first, _ = train_on_nodes(roots, constants=[SAVE_EVERY_STEP, die_at_step_11()])
    assert first.code == 75
    first, second = train_on_nodes((roots[1], roots[0]))
    assert_one_error(first, 78, ["has step 10 of this run", "--node-rank 0"])
    assert second.code == 78


def test_node_with_other_source_code_is_refused(roots: Roots) -> None:
    first, second = train_on_nodes(roots, constants=[{}, {"model.runs.plan.CODE": Code(("cli.py",), {})}])
    assert_one_error(first, 78, ["process 1 on ", "other source code", "the same checkout on every node"])
    assert second.code == 78


@pytest.mark.parametrize("value", ["soon", "0", "-1", "inf", "nan"])
def test_bad_timeout_is_refused(roots: Roots, value: str) -> None:
    first, second = train_on_nodes(roots, INKSTONE_NODE_TIMEOUT=value)
    assert_one_error(first, 78, [f"INKSTONE_NODE_TIMEOUT={value}", "minutes"])
    assert second.code == 78

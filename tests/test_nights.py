"""Seven nights of one recipe with a local folder and a server: what each night builds, refuses, says and keeps."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model.training.learner import Learner
from tests.support.editing import edit, sources
from tests.support.faults import Command
from tests.support.nights import NEWS, Nights, chapters, data, nights_in
from tests.support.training import KILL, STEP, assert_same_run, before_call, no_loss_curve, preloaded
from tests.support.upstream import published

__all__ = ["no_loss_curve", "preloaded", "sources"]

HEADINGS = "pipeline/clean/rules/headings.py"


@pytest.fixture
def nights(tmp_path: Path) -> Iterator[Nights]:
    with nights_in(tmp_path) as nights:
        yield nights


def test_seven_nights(nights: Nights, sources: Path, tmp_path: Path) -> None:
    outcome, _ = nights.expect(0)
    assert (outcome["result"], nights.steps) == ("built", 20)
    first_run, tokenizer = nights.run_key, nights.tokenizer()

    before, start = written(nights.root), time.monotonic()
    outcome, said = nights.expect(0)
    assert (outcome["result"], written(nights.root)) == ("unchanged", before)
    assert time.monotonic() - start < 5

    # Night 2: the book grows, and another file is added.
    (nights.texts / "a.txt").write_text(chapters(1, 7), encoding="utf-8")
    (nights.texts / "c.txt").write_text(chapters(31, 32), encoding="utf-8")
    dry = nights.refresh("--dry-run")
    assert f"continues from step 20 of runs/tales/{first_run}" in dry.out, dry.out
    outcome, said = nights.expect(0)
    assert (outcome["result"], nights.steps, nights.tokenizer()) == ("built", 40, tokenizer)
    assert f"continues from step 20 of runs/tales/{first_run}" in said
    assert re.search(r"tokenizer kept: [\d.]+ characters per token", said), said
    second_run = nights.run_key

    # Night 3: a file shrank. Night 4: it is whole again, and another one vanished, then one at the server.
    whole = (nights.texts / "b.txt").read_bytes()
    (nights.texts / "b.txt").write_bytes(whole[:600])
    assert "b.txt shrank from" in refused(nights, 10)
    (nights.texts / "b.txt").write_bytes(whole)
    (nights.texts / "c.txt").rename(tmp_path / "c.txt")
    assert "c.txt vanished" in refused(nights, 10)
    (tmp_path / "c.txt").rename(nights.texts / "c.txt")
    nights.hub.put(NEWS, chapters(51, 52).encode())
    assert f"{NEWS}: the file shrank" in refused(nights, 10)
    assert nights.run_key == second_run
    assert nights.steps == 40

    # Night 5: the server has more text, and the refresh is killed while it trains. The next one resumes.
    nights.add_news(55)
    quiet = shutil.copytree(nights.root, tmp_path / "quiet", symlinks=True)
    undisturbed = Nights(quiet, nights.texts, nights.hub, nights.recipe)
    undisturbed.expect(0)
    killed = nights.command(**{STEP: kill_at(7)}).run_forked()
    assert killed.code == -9
    assert nights.run_key == second_run
    nights.expect(0)
    assert (data(nights.root), nights.steps) == (data(quiet), 60)
    assert_same_run(nights.run(), undisturbed.run())

    # Night 6: the run is rolled back. Nothing happens until the text changes.
    rolled_back = nights.run_key
    assert Command(nights.root, ("rollback", "runs/tales")).run_forked().code == 0
    for _ in range(2):
        outcome, said = nights.expect(0)
        assert (outcome["result"], nights.run_key) == ("unchanged", second_run)
        assert f"runs/tales/{rolled_back} was rolled back; nothing to do until the text changes" in said

    # Night 7: a cleaning rule was edited, and the text grows.
    edit(sources / HEADINGS)
    nights.add_news(56)
    outcome, said = nights.expect(0)
    assert f"built with your {HEADINGS}" in said
    assert (outcome["result"], nights.steps, nights.tokenizer()) == ("built", 60, tokenizer)
    assert nights.run_key != rolled_back


def refused(nights: Nights, code: int) -> str:
    """Assert that a night is refused with this code and changes no current generation, and return its error."""
    before = published(nights.root)
    outcome, said = nights.expect(code)
    assert published(nights.root) == before
    assert outcome["exit_code"] == code
    assert "Traceback" not in said
    return str(outcome["error"])


def written(root: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of each file of the artifacts, without the records of refreshes."""
    paths = (path for path in root.rglob("*") if path.is_file() and ".state" not in path.parts)
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths if not path.name.startswith(".")}


def kill_at(number: int) -> Callable[..., object]:
    """Return `Learner.step`, which kills its process before its call of this number."""
    return before_call(number, Learner.step, KILL)

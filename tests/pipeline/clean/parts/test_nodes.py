"""Parts made elsewhere: the bytes of one process for any engine, after lost workers, on a node that differs."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.clean import stage
from pipeline.clean.options import CleanOptions
from pipeline.clean.parts import builder, nodes, part
from pipeline.errors import BadConfig, BadData, WorkerLost
from pipeline.runtime.engines import OpenEngine
from pipeline.runtime.progress import SilentProgress
from pipeline.sources.inputs import resolve_inputs
from pipeline.sources.nodes.check import versions_of
from pipeline.store.artifact import Artifact
from tests.support.engines import Processes, Threads, opening

PART_BYTES = 2_000


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Five files of records, with duplicates between them and a bad record in each."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(5):
        lines = [
            f'{{"text":"宋江说了{count}句话，又走了{count % 7}里。"}}' for count in range(20 * number, 20 * number + 30)
        ]
        (folder / f"{number}.jsonl").write_text("\n".join([*lines, '{"text":"cut']), encoding="utf-8")
    return folder


def clean(root: Path, texts: Path, open_engine: OpenEngine | None = None, **options: Any) -> Artifact:
    inputs, held_out = (resolve_inputs(root, str(path), corpora=False) for path in (texts, texts / "4.jsonl"))
    chosen = CleanOptions(max_bad=0.5, decontaminate=("held",), **options)
    return stage.clean(
        root, "some", inputs[:4], chosen, SilentProgress(),
        held_out=held_out, part_bytes=PART_BYTES, open_engine=open_engine,
    ).artifact  # fmt: skip


@pytest.mark.parametrize("dedup", ["no", "exact", "near"])
def test_any_engine_gives_the_manifest_of_one_process(root: Path, texts: Path, tmp_path: Path, dedup: str) -> None:
    if dedup == "near":
        pytest.importorskip("rensa")
    one = clean(root, texts, dedup=dedup)
    assert one.manifest.ledger["documents"]["dropped"]["contaminated"] == 10
    with Threads() as threads:
        assert clean(tmp_path / "threads", texts, opening(threads), dedup=dedup).manifest == one.manifest


def test_folder_renamed_while_it_is_listed_is_no_error(
    root: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    glob = Path.glob

    def vanished(path: Path, pattern: str) -> Any:
        if pattern.startswith(".*"):
            raise FileNotFoundError(pattern)
        return glob(path, pattern)

    one = clean(root, texts)
    monkeypatch.setattr(Path, "glob", vanished)
    with Threads() as threads:
        assert clean(tmp_path / "threads", texts, opening(threads)).manifest == one.manifest


class _Killed(Processes):
    """Kills the worker of the first call at each part."""

    def __init__(self, folder: Path, losses: int) -> None:
        super().__init__()
        self._folder, self._losses = folder, losses

    def submit(self, call: Any, /, *arguments: Any) -> Any:
        return super().submit(_call_once_killed, self._folder, self._losses, call, *arguments)


def _call_once_killed(folder: Path, losses: int, call: Any, *arguments: Any) -> Any:
    number = arguments[1].part.number
    if number == 1 and len([*folder.glob("lost-*")]) < losses:
        (folder / f"lost-{os.getpid()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return call(*arguments)


def test_lost_part_is_made_again_and_complete_ones_are_kept(root: Path, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkerLost, match=r"1\.jsonl: its worker was lost 3 times"):
        clean(root, texts, opening(_Killed(tmp_path, 3)), dedup="exact")
    complete = [*root.glob("corpora/some/.draft-*/.work/part-*/part.json")]
    assert complete
    stamps = {path.parent.name: path.stat().st_mtime_ns for path in complete}
    assert "part-00001" not in stamps
    resumed = clean(root, texts, dedup="exact")
    assert resumed.manifest == clean(tmp_path / "other", texts, dedup="exact").manifest
    killed = clean(tmp_path / "killed", texts, opening(_Killed(tmp_path, 4)), dedup="exact")
    assert killed.manifest == resumed.manifest


@pytest.fixture
def task(root: Path, texts: Path, tmp_path: Path) -> nodes.NodeTask:
    scratch = tmp_path / "draft/.work"
    scratch.mkdir(parents=True)
    [first, *_] = part.divide(resolve_inputs(root, str(texts), corpora=False), CleanOptions(), scratch, PART_BYTES)
    return nodes.NodeTask(first, 1, versions_of(nodes.CODE, ()))


def test_second_attempt_takes_the_part_of_the_first(task: nodes.NodeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    record = nodes.make_on_node(task)
    assert task.progress().finished == 1
    read, results = part.read_record, iter([None])
    monkeypatch.setattr(part, "read_record", lambda task: next(results, read(task)))
    assert nodes.make_on_node(task).files == record.files


def test_part_of_a_node_that_outlived_its_command_is_taken(
    root: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, finish = clean(tmp_path / "one", texts), builder._finish_part

    def finish_second(reading: builder.PartReading, writer: Any) -> builder.Part:
        made = finish(reading, writer)
        shutil.copytree(writer.folder, reading.task.path(""))
        return made

    monkeypatch.setattr(builder, "_finish_part", finish_second)
    assert clean(root, texts).manifest == one.manifest


def test_node_with_another_table_is_refused(task: nodes.NodeTask, tmp_path: Path) -> None:
    table = tmp_path / "table.tsv"
    table.write_text("甲\t乙\n", encoding="utf-8")
    changed = msgspec.structs.replace(task.part, options=CleanOptions(variants=str(table)))
    other = nodes.NodeTask(changed, 1, task.versions | {"options and tables": "0"})
    with pytest.raises(BadConfig, match=r"has options and tables .*, this command 0"):
        nodes.make_on_node(other)


def test_node_with_another_file_is_refused(task: nodes.NodeTask) -> None:
    path = task.part.inputs[0].path
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    with pytest.raises(BadData, match="not the file that the command was started with"):
        nodes.make_on_node(task)

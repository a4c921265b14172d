"""Units made elsewhere: the bytes of one process for any engine, after lost workers, on a node that differs."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zstandard

from pipeline.errors import BadConfig, BadData, InputMissing
from pipeline.runtime.progress import SilentProgress
from pipeline.runtime.spread import TaskProgress
from pipeline.store import artifact
from pipeline.tokens import chunks
from pipeline.tokens import stage as tokens_stage
from pipeline.tokens.options import TokenizeOptions
from pipeline.tokens.stage import TokenizeInputs
from pipeline.tokens.tasks import DocumentFilter, FileSpec
from pipeline.tokens.tasks import tasks as read_tasks
from pipeline.tokens.units import adopt, duplicates, make
from pipeline.tokens.worker import encode
from pipeline.tokens.writer import TokenWriter
from tests.support.chaos import left_behind, stamp
from tests.support.engines import Processes, Threads, opening
from tests.support.tokenizing import (
    LETTERS,
    TEXTS,
    dropped,
    input_file,
    lines,
    no_draft,
    nothing_published,
    rejects,
    run,
    some,
)


def repeated(folder: Path, files: int = 4) -> TokenizeInputs:
    """Texts that are repeated within and between files, with one line in each that is no document."""
    texts = [f"text {number * number % 70} of {number % 3}" for number in range(200)]
    inputs = some(folder, texts, files)
    for file in inputs.train:
        file.path.write_bytes(file.path.read_bytes() + b"broken\n")
    return TokenizeInputs(tuple(input_file(file.path) for file in inputs.train), ())


def validated(folder: Path) -> TokenizeInputs:
    """Files of which a few texts are in the validation file too."""
    return TokenizeInputs(some(folder).train, (lines(folder / "val.jsonl", [*TEXTS[:9], *map(str, range(30))]),))


CASES: list[tuple[Callable[[Path], TokenizeInputs], dict[str, Any]]] = [
    (some, {}),
    (repeated, {"max_bad": 0.5}),
    (repeated, {"max_bad": 0.5, "dedup": "exact"}),
    (validated, {}),
    (validated, {"dedup": "exact"}),
    (some, {"val_split": "stretch", "val_fraction": 0.2}),
]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("inputs_of", "options"), CASES)
def test_any_engine_gives_the_manifest_of_one_process(
    tmp_path: Path, inputs_of: Callable[[Path], TokenizeInputs], options: dict[str, Any]
) -> None:
    inputs = inputs_of(tmp_path)
    local = run(tmp_path / "local", inputs, **options).artifact
    with Threads(3) as threads:
        spread = run(tmp_path / "spread", inputs, open_engine=opening(threads), **options).artifact
    assert spread.digest == local.digest
    assert rejects(spread) == rejects(local)
    assert not list(spread.path.rglob(artifact.SCRATCH))
    assert no_draft(tmp_path / "spread")
    if options.get("dedup"):
        assert dropped(spread)["duplicate"] > 5


def test_processes_of_their_own_give_the_manifest_of_one_process(tmp_path: Path) -> None:
    inputs = validated(tmp_path)
    expected = run(tmp_path / "local", inputs).artifact.digest
    assert run(tmp_path / "local-2", inputs, jobs=2).artifact.digest == expected
    assert run(tmp_path / "spread", inputs, open_engine=opening(Processes())).artifact.digest == expected


def killed_once(call: Callable[..., Any], *arguments: Any) -> Any:
    """Make small units; at the first attempt at a file, die in the middle of its third."""
    chunks.UNIT_BYTES, chunks.CHUNK_BYTES = 600, 150
    task, add, calls = arguments[-1], TokenWriter.add, 0
    marker = task.scratch / f"killed-{task.number}"
    if marker.exists() or make.make not in arguments:
        return call(*arguments)
    marker.touch()

    def add_or_die(writer: TokenWriter, *added: Any) -> bool:
        nonlocal calls
        calls += 1
        if calls == 11:
            os.kill(os.getpid(), signal.SIGKILL)
        return add(writer, *added)

    TokenWriter.add = add_or_die  # type: ignore[method-assign, assignment]
    return call(*arguments)


class Lossy(Processes):
    """Processes of which the first at each file is killed."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        return super().submit(killed_once, call, *arguments)


@pytest.mark.usefixtures("small")
def test_killed_workers_change_no_byte(tmp_path: Path) -> None:
    inputs = repeated(tmp_path, files=2)
    options: dict[str, Any] = {"max_bad": 0.5, "dedup": "exact"}
    local = run(tmp_path / "local", inputs, **options).artifact
    engine = Lossy()
    spread = run(tmp_path / "spread", inputs, open_engine=opening(engine), **options).artifact
    assert engine.submitted == 2 * 3  # hashes, an attempt that is lost, and one that is not
    assert spread.digest == local.digest
    assert no_draft(tmp_path / "spread")


@pytest.mark.usefixtures("small")
def test_the_same_command_makes_only_unfinished_units(tmp_path: Path, root: Path) -> None:
    """The command ends after two of three files; then it runs again with another engine, and without one."""

    class Stopping(Threads):
        def submit(self, call: Callable[..., Any], /, *arguments: Any) -> Future[Any]:  # type: ignore[override]
            if arguments[-1].number == 2:
                raise KeyboardInterrupt
            return super().submit(call, *arguments)

    inputs = some(tmp_path)
    expected = run(tmp_path / "local", inputs).artifact.digest
    for again in (Threads(2), None):
        folder = tmp_path / str(again is None)
        with Stopping() as engine, pytest.raises(KeyboardInterrupt):
            run(folder, inputs, open_engine=opening(engine))
        before = left_behind(folder).finished
        assert len(before) > 4
        tokens = run(folder, inputs, open_engine=opening(again) if again else None).artifact
        assert {name: stamp(tokens.file(name)) for name in before} == before
        assert tokens.digest == expected


def test_bad_file_is_the_first_in_input_order_and_publishes_nothing(tmp_path: Path, root: Path) -> None:
    names = ("a", "b", "c")
    for name, cut in zip(names, (0, 9, 4), strict=True):
        data = zstandard.compress(b"".join(b'{"text": "%d of %b"}\n' % (n, name.encode()) for n in range(99)))
        (tmp_path / f"{name}.jsonl.zst").write_bytes(data[: len(data) - cut])
    inputs = TokenizeInputs(tuple(input_file(tmp_path / f"{name}.jsonl.zst") for name in names), ())
    with Threads(1) as engine, pytest.raises(BadData, match=r"b\.jsonl\.zst") as caught:
        run(root, inputs, open_engine=opening(engine), val_fraction=0)
    with pytest.raises(BadData) as local:
        run(tmp_path / "local", inputs, val_fraction=0)
    assert str(caught.value) == str(local.value)
    assert nothing_published(root)


@pytest.fixture
def task(tmp_path: Path) -> make.FileTask:
    """A file and a draft, as a node gets them."""
    draft = tmp_path / "draft"
    (draft / artifact.SCRATCH).mkdir(parents=True)
    LETTERS.save(draft)
    file = lines(tmp_path / "a.jsonl", TEXTS)
    spec = FileSpec("<u2", file.name, "train", None, DocumentFilter(), digests=False)
    (task,) = adopt.file_tasks(draft, [(17, file, spec)], [], ("msgspec",), LETTERS.encoder, (), 1)
    return task


def test_units_have_the_number_of_their_file(task: make.FileTask) -> None:
    (record,) = make.make(task)
    assert record.stem == "00017-0000"
    assert adopt.adopt(task.draft, [record]) == ["00017-0000"]
    assert (task.draft / "train-00017-0000.bin").exists()


@pytest.mark.parametrize("name", ["inkstone-gpt", "source code", "zstandard", "msgspec", "not-installed"])
def test_node_with_another_version_is_refused_with_both(task: make.FileTask, name: str) -> None:
    other = dataclasses.replace(task, versions=task.versions | {name: "0.0.1"})
    with pytest.raises(BadConfig, match=rf"has {name} .*, this command 0\.0\.1") as caught:
        make.make(other)
    assert task.versions.get(name, "none") in str(caught.value)
    assert caught.value.exit_code == 78


def test_node_that_does_not_see_the_draft_or_the_file_says_so(task: make.FileTask, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="elsewhere: no such folder"):
        make.make(dataclasses.replace(task, draft=tmp_path / "elsewhere"))
    task.entry.path.unlink()
    with pytest.raises(InputMissing, match=r"a\.jsonl: no such file"):
        make.make(task)


def test_copy_with_another_time_is_the_same_file_and_other_bytes_are_not(task: make.FileTask) -> None:
    os.utime(task.entry.path, (1, 1))
    assert make.make(task)
    data = task.entry.path.read_bytes()
    task.entry.path.write_bytes(data.replace(b"document", b"Document"))
    with pytest.raises(BadData, match="not the file that the command was started with"):
        make.make(task)


def test_unit_that_the_driver_does_not_see_names_a_shared_folder(task: make.FileTask) -> None:
    records = make.make(task)
    (task.draft / "train-00017-0000.src").unlink()
    with pytest.raises(BadConfig, match=r"train-00017-0000\.src: written by a node, not on this machine") as caught:
        adopt.adopt(task.draft, records, patience=0)
    assert "all nodes share" in caught.value.hint


def test_two_attempts_at_one_file_write_the_same_bytes(task: make.FileTask) -> None:
    """The second attempt begins and ends while the first one writes its unit."""
    source = (task.number, task.entry, task.spec)
    with TokenWriter(task.draft, "<u2", file=17) as first:
        read = read_tasks([source], None, first.next_unit, first.is_full, lambda count: None)
        for part in read:
            first.add(part, encode(LETTERS, part))
        assert task.progress() == TaskProgress(0, 1)
        second = make.make(task)
        ids = (task.draft / "train-00017-0000.bin").read_bytes()
        assert first.complete() == second
    assert (task.draft / "train-00017-0000.bin").read_bytes() == ids
    assert task.progress() == TaskProgress(1, 0)


@pytest.mark.parametrize("options", [{"max_documents": 50}, {"format": "hdf5"}, {"format": "both"}])
def test_limits_and_hdf5_stay_on_this_machine_and_say_so(tmp_path: Path, root: Path, options: dict[str, Any]) -> None:
    class Noted(SilentProgress):
        def note(self, text: str) -> None:
            notes.append(text)

    notes: list[str] = []
    engine = Processes()
    settings = TokenizeOptions(val_fraction=0.1, **options)
    tokens_stage.tokenize(
        root, "some", some(tmp_path), LETTERS, None, settings, Noted(), jobs=1, open_engine=opening(engine)
    )
    assert engine.submitted == 0
    assert [note for note in notes if note.endswith("this machine encodes everything, without the engine")] == notes[:1]


def test_texts_of_earlier_files_are_those_of_a_slow_search(tmp_path: Path) -> None:
    """The hashes end in zeros and begin with any byte."""
    draft = tmp_path / artifact.SCRATCH
    draft.mkdir()
    random = np.random.default_rng(0)
    pool = [bytes([first, *random.bytes(11), 0, 0, 0, end]) for first in range(256) for end in (0, 1)]
    lists = [[pool[index] for index in random.choice(512, 200, replace=False)] for _ in range(4)]
    tasks: list[Any] = []
    for number, hashes in enumerate(lists):
        (draft / f"texts-{number:05d}").write_bytes(b"".join(sorted(hashes)))
        tasks.append(SimpleNamespace(number=number, scratch=draft))
    duplicates.merge(tasks)
    for number, hashes in enumerate(lists):
        data = (draft / duplicates.earlier_name(number)).read_bytes()
        repeats = {data[start : start + 16] for start in range(0, len(data), 16)}
        assert repeats == {*hashes} & {digest for earlier in lists[:number] for digest in earlier}


def test_a_worker_imports_no_library_that_it_does_not_need() -> None:
    script = (
        "import sys, pipeline.runtime.spread, pipeline.tokens.units.make, pipeline.clean.worker; print(*sys.modules)"
    )
    modules = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "pandas", "pyarrow", "transformers", "matplotlib"} & {*modules}

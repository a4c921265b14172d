"""The clean stage: raw files become a corpus, one artifact in which every lost character is counted.

documents.jsonl.zst   one document per line: text, title, source, meta, all strings; meta is JSON
sentences.txt         one sentence per line, to train SentencePiece on
rejects.jsonl.zst     records that could not be read or were filtered out, with file, line, byte offset and reason
report.json           effects of each rule, statistics of the output, and tokenizer settings that suit it

tasks.py reads files into tasks of about a megabyte, worker.py cleans each in any process, writer.py collects the
results in order. A document of more than 4 M characters is filtered by its beginning and written as it is read, so
that memory use does not grow. A complete text file is held in memory only if a rule needs more context than a line
(containers, hard-wrapped lines, --notes, --unwrap, --verse, --dedup,
--decontaminate, --unit paragraph or sentence, chapters that only a
series proves).
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import msgspec

from pipeline.clean import profiles
from pipeline.clean.cleaner import Cleaner
from pipeline.clean.duplicates import held_out as held_out_text
from pipeline.clean.markup import titles
from pipeline.clean.options import CleanOptions
from pipeline.clean.report import examples, render
from pipeline.clean.report.report import CleaningReport
from pipeline.clean.tasks import CleanTask, TaskReader
from pipeline.clean.utf16 import Utf16Text, decode_utf16
from pipeline.clean.worker import CleanWorker, clean_task, divide_by_profile
from pipeline.clean.writer import REPORT, CorpusWriter
from pipeline.errors import BadConfig
from pipeline.readers import documents, readers
from pipeline.runtime import workers
from pipeline.runtime.ledger import Ledger
from pipeline.runtime.progress import Advance, Progress
from pipeline.sources.inputs import InputFile, require_unchanged, resolve_inputs
from pipeline.store import artifact, code
from pipeline.store.artifact import BuildResult, StageOutput
from pipeline.store.manifest import Identity

# Python's defaults look for cycles after every 700 new lists; those of documents are in no cycles.
_GC_THRESHOLDS = (100_000, 50, 100)
SCHEMA = 6  # increase when the same options give different bytes
CODE = code.Code(
    ("pipeline/clean", "pipeline/readers", "pipeline/runtime/ledger.py", "pipeline/runtime/workers.py"),
    code.HARMLESS
    | {
        "pipeline/clean/report/examples.py": "finds examples for people",
        "pipeline/clean/report/problems.py": "words the warnings of the report",
        "pipeline/clean/report/render.py": "prints the report",
    },
)


def identify(
    name: str, inputs: Sequence[InputFile], options: CleanOptions, held_out: Sequence[InputFile] = ()
) -> Identity:
    """Return the identity of the corpus: all that its bytes depend on."""
    # File names are part of it, because each document names its source.
    decisive = options.identity() | {"stage": SCHEMA, "files": [entry.name for entry in inputs]}
    listed_titles = [titles.listed_title(entry.path) for entry in inputs]
    if any(listed_titles):  # they stand in files that are no inputs
        decisive["titles"] = listed_titles
    if any(members := [entry.members for entry in inputs]):
        decisive["members"] = members
    libraries = ["zstandard"]
    libraries += sorted({library for entry in inputs for library in readers.libraries_of(entry.path)})
    libraries += ["opencc"] if options.script != "keep" else []
    libraries += ["rensa"] if options.dedup == "near" else []
    return Identity(
        "corpora",
        name,
        decisive,
        tuple(entry.as_input(role) for role, files in (("raw", inputs), ("held-out", held_out)) for entry in files),
        libraries=tuple(libraries),
        code=code.state_of(CODE),
    )


def clean(
    root: Path,
    name: str,
    inputs: Sequence[InputFile],
    options: CleanOptions,
    progress: Progress,
    *,
    jobs: int = 1,
    rebuild: bool = False,
    held_out: Sequence[InputFile] = (),
) -> BuildResult:
    """Clean every input into the corpus `name`, with `jobs` processes; with `rebuild` even if it is published.

    Documents that share passages with the files `held_out` are dropped; `options.decontaminate` only names them.
    Raises BadData if no text is left, TooManyRejects if more than `options.max_bad` of the documents are bad.
    """

    def write(draft: Path) -> StageOutput:
        with CorpusWriter(options, draft) as writer:
            _clean_into(writer, inputs, options, progress, jobs, held_out)
            content = writer.finish(inputs)
        paths = [str(entry.path.absolute()) for entry in inputs]
        return dataclasses.replace(content, run={"inputs": paths, "settings": options.settings()})

    return artifact.build(root, identify(name, inputs, options, held_out), write, rebuild=rebuild)


def build_report(
    inputs: Sequence[InputFile],
    options: CleanOptions,
    progress: Progress,
    *,
    jobs: int = 1,
    held_out: Sequence[InputFile] = (),
) -> CleaningReport:
    """Return the report that `clean` would publish, without writing anything. Raises the same errors."""
    with CorpusWriter(options, None) as writer:
        _clean_into(writer, inputs, options, progress, jobs, held_out)
        writer.check(inputs)
        return writer.report


def _clean_into(
    writer: CorpusWriter,
    inputs: Sequence[InputFile],
    options: CleanOptions,
    progress: Progress,
    jobs: int,
    held_out: Sequence[InputFile],
) -> None:
    """Clean all inputs in `jobs` processes, and write the results in input order."""
    total = sum(entry.path.stat().st_size for entry in inputs)
    with _held_out_index(writer, held_out, options) as index, progress.bar("clean", total) as advance:
        note = functools.cache(progress.note)  # the same field of many files is noted once
        tasks = _read_tasks(writer, inputs, options, advance, note)
        thresholds = gc.get_threshold()
        gc.set_threshold(*_GC_THRESHOLDS)
        results = workers.map_ordered(CleanWorker(options, index), tasks, jobs=jobs)
        try:
            for task, result in results:
                progress.safe_point("nothing was published")
                writer.add(task, result)
        finally:
            results.close()
            gc.set_threshold(*thresholds)
    writer.publish_candidates(progress, jobs)


def held_out_files(root: Path, options: CleanOptions, progress: Progress | None = None) -> list[InputFile]:
    """Return the files that `options.decontaminate` names. Raises the errors of `resolve_inputs`."""
    return [
        file
        for reference in options.decontaminate
        for file in resolve_inputs(root, reference, corpora=True, text_fields=options.text_fields, progress=progress)
    ]


@contextmanager
def _held_out_index(writer: CorpusWriter, inputs: Sequence[InputFile], options: CleanOptions) -> Iterator[Path | None]:
    """Yield a temporary folder with the index of held-out text; None if there is none."""
    if not inputs:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="inkstone-") as name:
        folder = Path(name)
        counts = held_out_text.write_index(_held_out_texts(inputs, options), folder)
        writer.report.held_out = counts._asdict()
        yield folder


def _held_out_texts(inputs: Sequence[InputFile], options: CleanOptions) -> Iterator[str]:
    for entry in inputs:
        with artifact.lease(entry.corpus) if entry.corpus else nullcontext():
            for document in readers.read_documents(
                entry.path,
                Ledger(),
                lambda reject: None,
                encoding=options.encoding,
                text_fields=options.text_fields,
                members=entry.members,
            ):
                yield document.text
        require_unchanged(entry)


def _read_tasks(
    writer: CorpusWriter,
    inputs: Sequence[InputFile],
    options: CleanOptions,
    advance: Advance,
    note: documents.Note,
) -> Iterator[CleanTask]:
    for entry in inputs:
        reader = TaskReader(entry, options, writer.ledger, writer.write_reject, note)
        for task in reader.tasks(advance):
            writer.count_records(task)
            yield task
        require_unchanged(entry)
        writer.count_file(reader)


def report_table(built: artifact.Artifact) -> list[str]:
    """Return the report of a corpus as lines for the terminal; none if the corpus is older than reports."""
    path = built.file(REPORT)
    return render.table_from_json(msgspec.json.decode(path.read_bytes())) if path.is_file() else []


def explain(inputs: Sequence[InputFile], options: CleanOptions, rule: str, limit: int = 10) -> list[tuple[str, str]]:
    """Return up to `limit` changes of a rule, as the text around each before and after.

    Raises BadConfig if no such rule runs on these texts.
    """
    changes: list[tuple[str, str]] = []
    rules: set[str] = set()

    def watch(name: str, before: Utf16Text, after: Utf16Text) -> None:
        rules.add(name)
        if name == rule and len(changes) < limit and after is not before:
            changes.extend(examples.find_examples(decode_utf16(before), decode_utf16(after), limit - len(changes)))

    for entry in inputs:
        for task in TaskReader(entry, options, Ledger(), lambda reject: None).tasks(lambda count: None):
            for part in divide_by_profile(task):
                cleaner = Cleaner(profiles.PROFILES[part.task.profile], options, watch)
                rules |= {*clean_task(part, cleaner).effects}
            if len(changes) >= limit:
                return changes
    if rule not in rules:
        raise BadConfig(f"no rule {rule!r} runs on these texts", hint=f"rules: {', '.join(sorted(rules))}")
    return changes

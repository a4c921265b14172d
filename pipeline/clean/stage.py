"""The clean stage: raw files become a corpus, one artifact in which every lost character is counted.

documents.jsonl.zst   one document per line: text, title, source, meta, all strings; meta is JSON
sentences.txt         one sentence per line, to train SentencePiece on
rejects.jsonl.zst     records that could not be read or were filtered out, with file, line, byte offset and reason
report.json           effects of each rule, statistics of the output, and tokenizer settings that suit it

Of more than 64 MiB of files, documents-00000.jsonl.zst and sentences-00000.txt are those of the first part, and so on.

tasks.py reads files into tasks of about a megabyte, worker.py cleans each in any process, parts/ collects the results
in order. A document of more than 4 M characters is filtered by its beginning and written as it is read, so
that memory use does not grow. A complete text file is held in memory only if a rule needs more context than a line
(containers, hard-wrapped lines, --notes, --unwrap, --verse, --dedup, --decontaminate, --unit paragraph or sentence,
chapters that only a series proves).
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipeline.clean import profiles
from pipeline.clean.chat.kind import with_kind
from pipeline.clean.cleaner import Cleaner
from pipeline.clean.duplicates import held_out as held_out_text
from pipeline.clean.duplicates.signatures import load_rensa
from pipeline.clean.markup import titles
from pipeline.clean.options import CleanOptions
from pipeline.clean.parts.assembly import REPORT, CorpusAssembly
from pipeline.clean.parts.builder import Part, make_parts
from pipeline.clean.parts.nodes import CODE, make_spread
from pipeline.clean.parts.part import DIGESTS, PART_BYTES, PartTask, divide, read_record
from pipeline.clean.report import examples, render
from pipeline.clean.report.report import CleaningReport
from pipeline.clean.tasks import TaskReader
from pipeline.clean.utf16 import Utf16Text, decode_utf16
from pipeline.clean.worker import clean_task, divide_by_profile
from pipeline.errors import BadConfig, BadData
from pipeline.readers import readers
from pipeline.runtime import workers
from pipeline.runtime.engines import OpenEngine
from pipeline.runtime.ledger import Ledger
from pipeline.runtime.progress import Progress
from pipeline.runtime.spread import describe
from pipeline.sources.inputs import InputFile, require_unchanged, resolve_inputs
from pipeline.store import artifact, code, files
from pipeline.store.artifact import BuildResult, StageOutput
from pipeline.store.generations import RUN
from pipeline.store.manifest import Identity

__all__ = ["CODE", "SCHEMA", "build_report", "clean", "explain", "held_out_files", "identify", "report_table"]

_HELD_OUT = "held-out"  # folder in the scratch folder of the draft
SCHEMA = 7  # increase when the same options give different bytes


def identify(
    name: str, inputs: Sequence[InputFile], options: CleanOptions, held_out: Sequence[InputFile] = ()
) -> Identity:
    """Return the identity of the corpus: all that its bytes depend on."""
    options = with_kind(options, inputs)
    # File names are part of it, because each document names its source.
    decisive = options.identity() | {"stage": SCHEMA, "files": [entry.name for entry in inputs]}
    listed_titles = [titles.listed_title(entry.path) for entry in inputs]
    if any(listed_titles):  # they are in files that are not inputs
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
    part_bytes: int = PART_BYTES,
    open_engine: OpenEngine | None = None,
) -> BuildResult:
    """Clean every input into the corpus `name`, with `jobs` processes; with `rebuild` even if it is published.

    Documents that share passages with the files `held_out` are dropped; `options.decontaminate` only names them.
    With `open_engine`, other nodes make the parts; they must have the artifacts folder and the inputs under the same
    paths. Parts that a killed run completed are reused. `part_bytes` decides bytes and is not part of the key, so only
    tests set it.

    Raises BadData if no text is left, TooManyRejects if more than `options.max_bad` of the documents are bad.
    """

    options = with_kind(options, inputs)

    def write(draft: Path) -> StageOutput:
        scratch = draft / artifact.SCRATCH
        _remove_all_but(draft, artifact.SCRATCH, RUN)
        scratch.mkdir(exist_ok=True)
        sources = CleanSources(inputs, held_out, options, part_bytes, identity.libraries, open_engine)
        try:
            content = _assemble(sources, scratch, progress, jobs).finish(draft, inputs)
        except BadData:  # the same parts would fail in the same way
            _remove_all_but(draft, RUN)
            raise
        except BaseException:
            if not any(scratch.glob("part-*")):
                files.remove_tree(scratch)
            raise
        paths = [str(entry.path.absolute()) for entry in inputs]
        return dataclasses.replace(content, run={"inputs": paths, "settings": options.settings()})

    identity = identify(name, inputs, options, held_out)
    return artifact.build(root, identity, write, keep_draft=True, rebuild=rebuild)


def build_report(
    inputs: Sequence[InputFile],
    options: CleanOptions,
    progress: Progress,
    *,
    jobs: int = 1,
    held_out: Sequence[InputFile] = (),
) -> CleaningReport:
    """Return the report that `clean` would publish, without publishing anything. Raises the same errors.

    Only with --dedup and --decontaminate, temporary files are written.
    """
    options = with_kind(options, inputs)
    with tempfile.TemporaryDirectory(prefix="inkstone-") as folder:
        sources = CleanSources(inputs, held_out, options)
        assembly = _assemble(sources, Path(folder), progress, jobs, is_trial=True)
        assembly.check([entry.name for entry in inputs])
        return assembly.report


class CleanSources(NamedTuple):
    """The files that a corpus is made from, the options, and the engine that makes its parts with `libraries`."""

    inputs: Sequence[InputFile]
    held_out: Sequence[InputFile]
    options: CleanOptions
    part_bytes: int = PART_BYTES
    libraries: Sequence[str] = ()
    open_engine: OpenEngine | None = None


def _assemble(
    sources: CleanSources, scratch: Path, progress: Progress, jobs: int, *, is_trial: bool = False
) -> CorpusAssembly:
    """Make the parts that are not complete yet in `scratch`, in `jobs` processes, and return all. A trial writes none.

    Candidates of --dedup are written in a trial too.
    """
    options, is_unique = sources.options, sources.options.dedup != "no"
    if options.dedup == "near":
        load_rensa()
    assembly = CorpusAssembly(options)
    index = None
    if sources.held_out:
        index = scratch / _HELD_OUT
        with progress.wait("reading the held-out text"):
            assembly.report.held_out = _write_held_out(index, sources.held_out, options)
    folder = None if is_trial and not is_unique else scratch
    tasks = divide(sources.inputs, options, folder, sources.part_bytes, index)
    with workers.rare_collections():
        for task, part in zip(tasks, _make_missing(sources, tasks, progress, jobs), strict=True):
            assembly.add(task, part)
        if is_unique:
            assembly.drop_duplicates(tasks, progress, jobs, writes=not is_trial)
    return assembly


def _make_missing(sources: CleanSources, tasks: Sequence[PartTask], progress: Progress, jobs: int) -> list[Part]:
    """Return all parts in order: those that an earlier run completed, and the others, made in `jobs` processes."""
    opened = sources.open_engine() if sources.open_engine else nullcontext()
    with opened as engine, progress.bar("clean", sum(task.size for task in tasks)) as advance:
        complete = {task.number: record for task in tasks if (record := read_record(task))}
        if complete:
            progress.note(f"reusing {len(complete)} of {len(tasks)} parts of an interrupted run")
        parts = {number: Part(record, tasks[number].path(DIGESTS).read_bytes()) for number, record in complete.items()}
        advance(sum(tasks[number].size for number in complete))
        missing = [task for task in tasks if task.number not in complete]
        for task in missing:
            if task.folder:
                files.remove_tree(task.folder)  # damaged
        if engine:
            progress.note(describe(engine, len(missing), "parts"))
            new_parts = make_spread(engine, missing, sources.libraries, advance)
        else:
            new_parts = make_parts(missing, advance, progress, jobs, len(complete))
        parts |= {part.record.number: part for part in new_parts}
        return [parts[task.number] for task in tasks]


def _remove_all_but(draft: Path, *names: str) -> None:
    for path in draft.iterdir():
        if path.name not in names:
            files.remove_any(path)


def held_out_files(root: Path, options: CleanOptions, progress: Progress | None = None) -> list[InputFile]:
    """Return the files that `options.decontaminate` names. Raises the errors of `resolve_inputs`."""
    return [
        file
        for reference in options.decontaminate
        for file in resolve_inputs(root, reference, corpora=True, text_fields=options.text_fields, progress=progress)
    ]


def _write_held_out(folder: Path, inputs: Sequence[InputFile], options: CleanOptions) -> dict[str, int]:
    """Write the index of held-out text into a folder, and return its counts."""
    files.remove_tree(folder)
    folder.mkdir()
    return held_out_text.write_index(_held_out_texts(inputs, options), folder)._asdict()


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

    options = with_kind(options, inputs)
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

"""The clean stage: raw files become a corpus, one artifact with every document cleaned and every loss counted.

documents.jsonl.zst   one document a line: text, title, source, meta
sentences.txt         one sentence a line, what SentencePiece is trained on
rejects.jsonl.zst     what could not be read or was weeded out, with file, line, byte offset and reason
report.json           what each rule did, what came out, and the settings that suit a tokenizer for it

Text comes in pieces of a megabyte, which workers clean (cleaning.py); here they are put together in their order. A
document of more than 4 M characters is judged by those, and is written as it comes, so that memory stays flat. Only
where a rule looks further than a line (containers, notes, --unwrap, --verse, --dedup, --unit paragraph or
sentence) is all of a text file held at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipeline.clean import profiles
from pipeline.clean import worker as cleaning
from pipeline.clean.cleaner import Cleaner
from pipeline.clean.options import CleanOptions
from pipeline.clean.report import examples as samples
from pipeline.clean.report import render as summary
from pipeline.clean.report import report
from pipeline.clean.report.report import Report
from pipeline.clean.tasks import Texts
from pipeline.clean.utf16 import text_of
from pipeline.clean.writer import REPORT, _Corpus
from pipeline.errors import BadConfig
from pipeline.runtime.ledger import Ledger
from pipeline.runtime.progress import Progress
from pipeline.sources import inputs as raw
from pipeline.store import artifact
from pipeline.store.artifact import Built, Content
from pipeline.store.manifest import Identity

SCHEMA = 3  # raise when the same options give other bytes


def identify(name: str, inputs: Sequence[raw.InputFile], options: CleanOptions) -> Identity:
    # A document says which file it came from.
    chosen = options.identity() | {"stage": SCHEMA, "files": [entry.name for entry in inputs]}
    libraries = ["zstandard"]
    libraries += ["pyarrow"] if any(entry.path.suffix == ".parquet" for entry in inputs) else []
    libraries += ["opencc"] if options.script != "keep" else []
    libraries += ["rensa"] if options.dedup == "near" else []
    return Identity(
        "corpora", name, chosen, tuple(entry.as_input("raw") for entry in inputs), libraries=tuple(libraries)
    )


def clean(
    root: Path,
    name: str,
    inputs: Sequence[raw.InputFile],
    options: CleanOptions,
    progress: Progress,
    *,
    jobs: int = 1,
) -> Built:
    """Clean every input into the corpus `name`.

    Raises BadData when no text is left, TooManyRejects when more than `options.max_bad` of the documents are bad.
    """

    def write(draft: Path) -> Content:
        with _Corpus(options, draft) as corpus:
            corpus.fill(inputs, progress, jobs)
            return corpus.content(inputs)

    return artifact.build(root, identify(name, inputs, options), write)


def survey(inputs: Sequence[raw.InputFile], options: CleanOptions, progress: Progress, *, jobs: int = 1) -> Report:
    """The report that `clean` would publish; nothing is written."""
    with _Corpus(options, None) as corpus:
        corpus.fill(inputs, progress, jobs)
        report.check(corpus.report)
        return corpus.report


def table(built: artifact.Artifact) -> list[str]:
    """The report of a corpus on one screen; nothing where it was made before there were reports."""
    path = built.file(REPORT)
    return summary.shown(msgspec.json.decode(path.read_bytes())) if path.is_file() else []


def explain(inputs: Sequence[raw.InputFile], options: CleanOptions, rule: str, most: int = 10) -> list[tuple[str, str]]:
    """Up to `most` places that a rule changes: the text around each before and after.

    Raises BadConfig when there is no such rule for these texts.
    """
    found: list[tuple[str, str]] = []
    names: set[str] = set()

    def watch(name: str, before: Any, after: Any) -> None:
        names.add(name)
        if name == rule and len(found) < most and after is not before:
            found.extend(samples.samples(text_of(before), text_of(after), most - len(found)))

    for entry in inputs:
        for task in Texts(entry, options, Ledger(), lambda reject: None).tasks(lambda count: None):
            names |= {*cleaning.cleaned(task, Cleaner(profiles.PROFILES[task.profile], options, watch)).effects}
            if len(found) >= most:
                return found
    if rule not in names:
        raise BadConfig(f"there is no rule {rule!r} for these texts", hint=f"rules: {', '.join(sorted(names))}")
    return found

"""Examples of the changes of each cleaning rule, from cleaning the beginning of the source files again.

A corpus has only the text after all rules, so the examples are made from its source files. There are none if these
files were moved or changed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec

from pipeline.clean import profiles
from pipeline.clean.cleaner import Cleaner
from pipeline.clean.options import CleanOptions
from pipeline.clean.report.examples import find_examples
from pipeline.clean.tasks import TaskReader
from pipeline.clean.utf16 import Utf16Text, decode_utf16
from pipeline.clean.worker import clean_task, divide_by_profile
from pipeline.errors import InkstoneError
from pipeline.readers import readers
from pipeline.runtime.ledger import Ledger
from pipeline.sources.inputs import InputFile, resolve_inputs
from pipeline.store.artifact import Artifact
from pipeline.store.generations import read_run_info

_FILES = 8  # spread evenly over the inputs
_CHARACTERS = 4_000_000  # of all of them
_MAX_TEXT_FILE = 1 << 26  # bytes: a text file may be read at once; of records, any number is read one by one
PAIRS = 3  # of a rule

Changes = dict[str, list[tuple[str, str]]]


def changes_of_rules(corpus: Artifact) -> tuple[Changes, bool]:
    """Return up to `PAIRS` excerpts before and after each rule, by rule, and True if the sources are unchanged.

    There are no excerpts if the sources, or the tables that the corpus was cleaned with, are missing or changed.
    """
    changes: Changes = {}
    try:
        files, options = _sources(corpus), _options(corpus)
    except (InkstoneError, msgspec.ValidationError, OSError):
        return changes, False
    if not files or options is None:
        return changes, False

    def watch(name: str, before: Utf16Text, after: Utf16Text) -> None:
        pairs = changes.setdefault(name, [])
        if len(pairs) < PAIRS and after is not before:
            pairs.extend(find_examples(decode_utf16(before), decode_utf16(after), PAIRS - len(pairs)))

    for entry in files:
        characters = 0
        reader = TaskReader(entry, options, Ledger(), lambda reject: None, note=lambda text: None)
        for task in reader.tasks(lambda count: None):
            for part in divide_by_profile(task):
                clean_task(part, Cleaner(profiles.PROFILES[part.task.profile], options, watch))
            characters += task.characters
            if characters > _CHARACTERS // len(files):
                break
    return {name: pairs for name, pairs in changes.items() if pairs}, True


def _sources(corpus: Artifact) -> list[InputFile]:
    """Return some of the files that a corpus was made from; none if one of these is missing, changed or too large."""
    inputs = [entry for entry in corpus.manifest.inputs if entry.role == "raw"]
    members = corpus.manifest.options.get("members") or [""] * len(inputs)
    paths = read_run_info(corpus.path).inputs
    if len(paths) != len(inputs):
        return []
    files = []
    for index in range(0, len(inputs), -(-len(inputs) // _FILES)):
        path = Path(paths[index])
        if not path.is_file() or (path.stat().st_size > _MAX_TEXT_FILE and not readers.has_many_documents(path)):
            return []
        (file,) = resolve_inputs(corpus.path.parents[2], str(path), corpora=False)
        if file.digest != inputs[index].digest:
            return []
        files.append(replace(file, members=members[index]))
    return files


def _options(corpus: Artifact) -> CleanOptions | None:
    """Return the options that a corpus was cleaned with, None if one of their tables has changed."""
    recorded = corpus.manifest.options
    names = {*CleanOptions.__struct_fields__}
    values = {name: value for name, value in recorded.items() if name in names}
    options = msgspec.convert({**values, **read_run_info(corpus.path).settings}, CleanOptions)
    identity = msgspec.json.decode(msgspec.json.encode(options.identity()))
    return options if all(recorded.get(name) == value for name, value in identity.items()) else None

"""The clean stage: raw files become a corpus, one artifact with every document cleaned and every loss counted.

documents.jsonl.zst   one document a line: text, title, source, meta
sentences.txt         one sentence a line, what SentencePiece is trained on
rejects.jsonl.zst     what could not be read, with file, line, byte offset and reason
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import artifact, documents, raw, readers
from pipeline.artifact import Built, Content
from pipeline.clean import profiles, sentences
from pipeline.errors import BadConfig, BadData
from pipeline.ledger import DEFAULT_MAX_BAD, Ledger
from pipeline.manifest import Identity
from pipeline.progress import Progress

SCHEMA = 1  # raise when the same options give other bytes
MAX_SENTENCE_BYTES = 4192  # SentencePiece's own default: longer lines would be skipped in silence


@dataclass(frozen=True)
class CleanOptions:
    """What a person can choose about cleaning; `profile` and `unit` are explained in pipeline/clean/profiles.py."""

    profile: str = "auto"
    unit: str = "chapter"
    encoding: str = "utf-8"
    min_chars: int = 1
    max_bad: float = DEFAULT_MAX_BAD

    def __post_init__(self) -> None:
        profiles.for_file("", self.profile)
        if self.unit not in profiles.UNITS:
            raise BadConfig(f"no unit {self.unit!r}", hint=f"units: {', '.join(profiles.UNITS)}")
        if self.min_chars < 1:
            raise BadConfig(f"min_chars is {self.min_chars}", hint="1 or more: a document has a text")


def identify(name: str, inputs: Sequence[raw.InputFile], options: CleanOptions) -> Identity:
    chosen = {
        "stage": SCHEMA,
        "profile": options.profile,
        "unit": options.unit,
        "encoding": options.encoding,
        "min_chars": options.min_chars,
        "files": [entry.name for entry in inputs],  # a document says which file it came from
    }
    libraries = ("zstandard", "pyarrow") if any(entry.path.suffix == ".parquet" for entry in inputs) else ("zstandard",)
    return Identity("corpora", name, chosen, tuple(entry.as_input("raw") for entry in inputs), libraries=libraries)


def clean(root: Path, name: str, inputs: Sequence[raw.InputFile], options: CleanOptions, progress: Progress) -> Built:
    """Clean every input into the corpus `name`.

    Raises BadData when no text is left, TooManyRejects when more than `options.max_bad` of the documents are bad.
    """

    def write(draft: Path) -> Content:
        return _write(draft, inputs, options, progress)

    return artifact.build(root, identify(name, inputs, options), write)


def _write(draft: Path, inputs: Sequence[raw.InputFile], options: CleanOptions, progress: Progress) -> Content:
    ledger, records = Ledger(), 0
    counts = {"documents": 0, "characters": 0, "sentences": 0, "headings": 0, "input_bytes": 0}
    total = sum(entry.path.stat().st_size for entry in inputs)
    with (
        documents.ZstdLines(draft / "documents.jsonl.zst") as corpus,
        documents.ZstdLines(draft / "rejects.jsonl.zst") as rejects,
        open(draft / "sentences.txt", "w", encoding="utf-8", newline="\n") as lines,
        progress.bar("clean", total) as advance,
    ):
        for entry in inputs:
            counts["input_bytes"] += entry.path.stat().st_size
            profile = profiles.for_file(entry.path.name, options.profile)
            found = readers.read(entry.path, ledger, rejects.write_reject, encoding=options.encoding, advance=advance)
            for document in found:
                progress.safe_point("nothing was published")
                records += 1
                units = list(profiles.apply(profile, document.text, document.title, options.unit, ledger))
                # The ledger counts what the corpus holds: a file of 161 chapters came in as 161 documents.
                ledger.documents.came += max(len(units), 1) - 1
                if not units:
                    ledger.documents.drop("empty", 1)
                for unit in units:
                    counts["headings"] += unit.headings
                    if len(unit.text.strip()) < options.min_chars:
                        reason = "too-short" if unit.text.strip() else "empty"
                        ledger.documents.drop(reason, 1)
                        ledger.characters.drop(reason, len(unit.text))
                        rejects.write_reject(document.as_reject(reason))
                        continue
                    ledger.documents.out += 1
                    ledger.characters.out += len(unit.text)
                    corpus.write(documents.json_line(unit.text, unit.title, entry.name, document.meta))
                    for sentence in _sentences(profile, unit.text):
                        counts["sentences"] += 1
                        lines.write(sentence + "\n")
            raw.require_unchanged(entry)
    closed = ledger.close(max_bad=options.max_bad, of=records + ledger.documents.bad)
    if not ledger.documents.out:
        files = ", ".join(entry.name for entry in inputs)
        raise BadData(f"{files}: no text is left after cleaning", hint="is it empty, or not a text?")
    counts["documents"], counts["characters"] = ledger.documents.out, ledger.characters.out
    return Content(counts, closed)


def _sentences(profile: profiles.Profile, text: str) -> list[str]:
    units = sentences.split(text) if profile.chinese else text.split("\n")
    return [piece for unit in units if unit.strip() for piece in sentences.limit(unit, MAX_SENTENCE_BYTES)]

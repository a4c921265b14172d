"""The tokenize stage: documents to token arrays.

    files ──tasks──▶ chunks of JSON lines ──workers: encode──▶ ids ──writer──▶ segments ──▶ artifact

One process reads, splits and collects the results in input order; it and its workers encode. So the bytes are the
same for any number of workers, and a killed run resumes after its last complete unit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pipeline import tokenizers
from pipeline.errors import BadConfig, BadData
from pipeline.runtime import workers
from pipeline.runtime.ledger import DEFAULT_MAX_BAD, Ledger
from pipeline.runtime.progress import Progress
from pipeline.sources import inputs as source_inputs
from pipeline.sources.inputs import InputFile
from pipeline.sources.walk import LeftOut
from pipeline.store import artifact, files
from pipeline.store.artifact import Artifact, BuildResult, StageOutput
from pipeline.store.manifest import Identity, Input
from pipeline.tokenizers import Tokenizer
from pipeline.tokens import hdf5, reuse
from pipeline.tokens.resume import UnitRecord
from pipeline.tokens.segments import FORMATS, SPLITS, dtype_for
from pipeline.tokens.tasks import DocumentFilter, FileSpec, tasks
from pipeline.tokens.worker import encode
from pipeline.tokens.writer import TokenWriter

SCHEMA = 4  # raise when the same options give different bytes
DEFAULT_VAL_FRACTION = 0.05
DEDUP = ("no", "exact")
_SMALL = 2 << 20  # bytes of input files, compressed or not, below which starting a worker costs more than it saves
_LIBRARIES = {
    "gigatoken": ("tiktoken", "gigatoken"),
    "tiktoken": ("tiktoken",),
    "sentencepiece": ("sentencepiece",),
    "tokenizers": ("tokenizers",),
}


class TokenizeOptions(msgspec.Struct, frozen=True):
    """Options of the stage.

    `val_fraction` is the fraction of documents held out, chosen by a hash of their text; None means 0.05, or 0 with a
    validation corpus. `max_documents` limits the training files and the validation files separately; 0 sets no limit.
    `dedup` "exact" keeps the first of equal texts in input order and takes about 110 bytes of memory per document.
    """

    format: str = "memmap"
    val_fraction: float | None = None
    max_bad: float = DEFAULT_MAX_BAD
    include_sets: tuple[str, ...] = ()
    exclude_sets: tuple[str, ...] = ()
    min_chars: int = 0
    max_documents: int = 0
    dedup: str = "no"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise BadConfig(f"unknown format {self.format!r}", hint=f"formats: {', '.join(FORMATS)}")
        if not 0 <= (self.val_fraction or 0) < 1:
            raise BadConfig(f"--val-fraction must be in [0, 1), got {self.val_fraction}", hint="for example 0.05")
        for option, value in (("--min-chars", self.min_chars), ("--max-documents", self.max_documents)):
            if value < 0:
                raise BadConfig(f"{option} must be at least 0, got {value}", hint="pass 0 for no limit")
        if not 0 <= self.max_bad <= 1:
            raise BadConfig(f"--max-bad must be in [0, 1], got {self.max_bad:g}", hint="for example 0.01")
        if self.dedup not in DEDUP:
            raise BadConfig(
                f"--dedup must be one of {', '.join(DEDUP)}, got {self.dedup!r}", hint="omit it to keep duplicates"
            )
        if overlap := set(self.include_sets) & set(self.exclude_sets):
            raise BadConfig(f"{min(overlap)} is both included and excluded", hint="omit one of the two options")

    @property
    def document_filter(self) -> DocumentFilter:
        return DocumentFilter(tuple(sorted({*self.include_sets})), tuple(sorted({*self.exclude_sets})), self.min_chars)


@dataclass(frozen=True)
class TokenizeInputs:
    """Files to train on and to validate on. Without `val` files, documents are divided by a hash of their text.

    `left_out` lists the entries of folders that are not read, and the files that were named twice.
    """

    train: tuple[InputFile, ...]
    val: tuple[InputFile, ...]
    left_out: tuple[LeftOut, ...] = ()

    def fraction(self, val_fraction: float | None) -> float:
        """Return the fraction of documents to hold out. Raises BadConfig if one is set beside validation files."""
        if self.val and val_fraction:
            raise BadConfig(
                f"{self.val[0].name} is for validation, and --val-fraction {val_fraction:g} would hold out more",
                hint="leave --val-fraction out",
            )
        if self.val:
            return 0.0
        return DEFAULT_VAL_FRACTION if val_fraction is None else val_fraction


def gather_inputs(
    root: Path,
    corpora: Sequence[str],
    val: Sequence[str],
    *,
    progress: Progress | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    deep: bool = False,
) -> TokenizeInputs:
    """Return the files of `corpora` and of the validation corpora `val`; `deep` hashes every byte again.

    Of folders, `include` and `exclude` choose the files. What is left out is reported.
    """
    named, named_val = (
        source_inputs.gather_inputs(
            root, references, progress or Progress(), corpora=True, include=include, exclude=exclude, deep=deep
        )
        for references in (corpora, val)
    )
    inputs = assign_splits(named.files, named_val.files)
    return dataclasses.replace(inputs, left_out=(*named.left_out, *named_val.left_out))


def assign_splits(named: Sequence[InputFile], named_val: Sequence[InputFile]) -> TokenizeInputs:
    """Divide files into training and validation: `named_val` validate, or else the files their source marks "val".

    Files marked "test" are left out, and files marked "val" if `named_val` is given, unless no others are named.
    """
    train = [file for file in named if file.split in ("", "train")]
    val = list(named_val) or [file for file in named if file.split == "val"]
    if not train:
        train, val = list(named), list(named_val)
    if overlap := {file.digest for file in train} & {file.digest for file in val}:
        name = next(file.name for file in train if file.digest in overlap)
        raise BadConfig(f"{name} is both trained on and validated on", hint="name another corpus with --val")
    return TokenizeInputs(tuple(train), tuple(val))


def identify(
    name: str, inputs: TokenizeInputs, tokenizer: Tokenizer, trained: Artifact | None, options: TokenizeOptions
) -> Identity:
    """Return the identity of the artifact: everything that decides its bytes."""
    entries = [entry.as_input("train") for entry in inputs.train]
    entries += [entry.as_input("val") for entry in inputs.val]
    if trained:
        entries.append(Input("tokenizer", trained.ref, trained.digest))
    libraries = _LIBRARIES.get(tokenizer.encoder, ())
    if options.format != "memmap":
        libraries += ("h5py",)
    if any(entry.path.suffix == ".parquet" for entry in (*inputs.train, *inputs.val)):
        libraries += ("pyarrow",)
    settings = {
        "stage": SCHEMA,
        "format": options.format,
        "val_fraction": inputs.fraction(options.val_fraction),
        "encoder": tokenizer.encoder,
        "max_documents": options.max_documents,
        "dedup": options.dedup,
        "files": [entry.name for entry in (*inputs.train, *inputs.val)],  # names appear in the manifest and in rejects
        **msgspec.structs.asdict(options.document_filter),
    }
    return Identity("tokens", name, settings, tuple(entries), tokenizer.fingerprint, libraries)


def tokenize(
    root: Path,
    name: str,
    inputs: TokenizeInputs,
    tokenizer: Tokenizer,
    trained: Artifact | None,
    options: TokenizeOptions,
    progress: Progress,
    *,
    jobs: int,
) -> BuildResult:
    """Tokenize `inputs` into the tokens artifact `name`; `trained` is the tokenizer's own artifact, if it has one.

    Raises BadData if a file is broken, if a split would be empty, or if gigatoken and tiktoken disagree on any
    document compared; TooManyRejects if more than the fraction `options.max_bad` of the documents is bad.
    """

    identity = identify(name, inputs, tokenizer, trained, options)

    def write(draft: Path) -> StageOutput:
        if tokenizer.kind == "tiktoken" and (problem := tokenizers.gigatoken_problem(tokenizer.name)):
            progress.note(f"gigatoken {problem}: using tiktoken, which gives the same ids many times slower")
        if reused := reuse.reuse_units(draft, identity):
            progress.note(f"reusing {len(reused)} units of {len({record.file for record in reused})} unchanged files")
        try:
            with contextlib.ExitStack() as leases:
                for entry in (*inputs.train, *inputs.val):
                    if entry.corpus:
                        leases.enter_context(artifact.lease(entry.corpus))
                return _write(draft, inputs, tokenizer, options, progress, jobs)
        except BadData:  # resuming from the units of this run would fail in the same way
            files.remove_tree(draft)
            draft.mkdir()
            raise

    return artifact.build(root, identity, write, keep_draft=True)


def _write(
    draft: Path, inputs: TokenizeInputs, tokenizer: Tokenizer, options: TokenizeOptions, progress: Progress, jobs: int
) -> StageOutput:
    fraction = inputs.fraction(options.val_fraction)
    dtype = dtype_for(tokenizer.vocab_size)
    dedup = options.dedup == "exact"
    train_split = "train" if inputs.val else ""
    specs = [
        (entry, FileSpec(dtype, entry.name, split, fraction, options.document_filter, dedup))
        for entries, split in ((inputs.train, train_split), (inputs.val, "val"))
        for entry in entries
    ]
    total = sum(entry.path.stat().st_size for entry, _ in specs)
    tokenizer.save(draft)
    with (
        progress.bar("tokenize", total) as advance,
        TokenWriter(
            draft, dtype, keep_bins=options.format != "hdf5", dedup=dedup, max_documents=options.max_documents
        ) as writer,
    ):
        todo = tasks(specs, tokenizer.boundary, writer.next_unit, writer.is_full, advance)
        jobs = jobs if total > _SMALL else 1
        with contextlib.closing(workers.map_ordered(functools.partial(encode, tokenizer), todo, jobs=jobs)) as results:
            for task, encoded in results:
                if writer.add(task, encoded):
                    progress.safe_point(f"{len(writer.records)} complete units are kept")
        for entry, _ in specs:
            source_inputs.require_unchanged(entry)
        units = writer.finish()
    content = _content(units, tokenizer, dtype, options, fraction)
    if options.format != "memmap":
        attributes: dict[str, str | int] = {"tokenizer": tokenizer.fingerprint, "end_of_text": tokenizer.end_of_text}
        for split in SPLITS:
            count = {"documents": content.counts[f"{split}_documents"]}
            path, bins = draft / f"{split}.h5", writer.bins(split)
            workers.run_isolated(hdf5.write_hdf5, path, bins, dtype, attributes | count)
    return dataclasses.replace(content, run={"inputs": [str(entry.path.absolute()) for entry, _ in specs]})


def _content(
    units: Sequence[UnitRecord], tokenizer: Tokenizer, dtype: str, options: TokenizeOptions, fraction: float
) -> StageOutput:
    """Return the counts over all units, the closed ledger, and the hashes computed while writing."""
    ledger = Ledger()
    split_counts = {f"{split}_{unit}": 0 for split in SPLITS for unit in ("tokens", "documents", "characters")}
    sets: dict[str, int] = {}
    for record in units:
        ledger.add(record.ledger)
        for split in SPLITS:
            split_counts[f"{split}_tokens"] += record.tokens.get(split, 0)
            split_counts[f"{split}_documents"] += record.documents.get(split, 0)
            split_counts[f"{split}_characters"] += record.characters.get(split, 0)
        for name, count in record.sets.items():
            sets[name] = sets.get(name, 0) + count
    closed = ledger.close(max_bad=options.max_bad)
    for split in SPLITS:
        if not split_counts[f"{split}_tokens"]:
            raise _empty_split(split, ledger, fraction)
    counts = {
        "tokens": split_counts["train_tokens"] + split_counts["val_tokens"],
        "documents": split_counts["train_documents"] + split_counts["val_documents"],
        "input_bytes": sum(record.input_bytes for record in units),
        "units": len(units),
        "longest_document": max(record.longest for record in units),
        "sets": dict(sorted(sets.items())),
        "dtype": dtype,
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
        "encoder": tokenizer.encoder,
        "compared": sum(record.compared for record in units),
        **split_counts,
    }
    return StageOutput(counts, closed, hashed=[file for record in units for file in record.files])


def _empty_split(split: str, ledger: Ledger, fraction: float) -> BadData:
    documents, dropped = ledger.documents.out, ledger.documents.dropped
    summary = f"the {split} split is empty: {documents:,} documents, val fraction {fraction:g}"
    if dropped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
        return BadData(f"{summary}; dropped: {reasons}", hint="relax the filters, or check the inputs")
    if split == "train":
        return BadData(summary, hint="lower --val-fraction, or name more to train on")
    return BadData(
        summary, hint="raise --val-fraction, name a validation corpus with --val, or clean into smaller units (--unit)"
    )

"""The tokenize stage: documents become token arrays.

    file ──json_lines──▶ text ──cut──▶ pieces ──workers: encode──▶ ids ──assembly──▶ segments ──▶ artifact

One process reads, cuts and puts the results together in the order of the input; it and its workers encode. So the
bytes are the same for any number of workers, and a unit that a killed run had finished is not done again.
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
from pipeline.runtime import workers as engines
from pipeline.runtime.ledger import DEFAULT_MAX_BAD, Ledger
from pipeline.runtime.progress import Progress
from pipeline.sources import inputs as raw
from pipeline.store import artifact, files
from pipeline.store.artifact import Artifact, Built, Content
from pipeline.store.manifest import Identity, Input
from pipeline.tokenizers import Tokenizer
from pipeline.tokens import hdf5, reuse, tasks
from pipeline.tokens import segments as tokens_segments
from pipeline.tokens.tasks import Choice, Job
from pipeline.tokens.units import UnitRecord
from pipeline.tokens.worker import encode
from pipeline.tokens.writer import Assembly

SCHEMA = 4  # raise when the same options give other bytes
DEFAULT_VAL_FRACTION = 0.05
DEDUP = ("no", "exact")
_SMALL = 2 << 20  # bytes of input files, packed or not, that are not worth the start of a worker
_LIBRARIES = {"gigatoken": ("tiktoken", "gigatoken"), "tiktoken": ("tiktoken",), "sentencepiece": ("sentencepiece",)}


class TokenizeOptions(msgspec.Struct, frozen=True):
    """What a person can choose. `val_fraction` is the share of documents, by a hash of their text, held out.

    None means 0.05, or nothing where there is a validation corpus. `max_documents` is the most of the files to train
    on, and of those to validate on; 0 sets no limit. `dedup` "exact" keeps the first of equal texts in the order of
    the input; it holds about 110 bytes of memory for each document.
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
        if self.format not in tokens_segments.FORMATS:
            raise BadConfig(f"no format {self.format!r}", hint=f"formats: {', '.join(tokens_segments.FORMATS)}")
        if not 0 <= (self.val_fraction or 0) < 1:
            raise BadConfig(
                f"--val-fraction {self.val_fraction} is no share", hint="from 0 to below 1, for example 0.05"
            )
        for name, value in (("min_chars", self.min_chars), ("max_documents", self.max_documents)):
            if value < 0:
                raise BadConfig(f"{name} is {value}", hint="0 sets no limit")
        if not 0 <= self.max_bad <= 1:
            raise BadConfig(f"max_bad {self.max_bad:g} is no share", hint="from 0 to 1, for example 0.01")
        if self.dedup not in DEDUP:
            raise BadConfig(f"no --dedup {self.dedup!r}", hint=f"one of {', '.join(DEDUP)}")
        if both := set(self.include_sets) & set(self.exclude_sets):
            raise BadConfig(f"{min(both)} is both included and excluded", hint="leave one of them out")

    @property
    def choice(self) -> Choice:
        return Choice(tuple(sorted({*self.include_sets})), tuple(sorted({*self.exclude_sets})), self.min_chars)


@dataclass(frozen=True)
class Inputs:
    """The files to tokenize. With `val` given, or files that their source marks as "val", nothing is split by hash."""

    train: tuple[raw.InputFile, ...]
    val: tuple[raw.InputFile, ...]

    def fraction(self, asked: float | None) -> float:
        """The share of documents to hold out. BadConfig when one is asked for beside files to validate on."""
        if self.val and asked:
            raise BadConfig(
                f"{self.val[0].name} validates; --val-fraction {asked:g} would hold out more",
                hint="leave --val-fraction out",
            )
        return 0.0 if self.val else DEFAULT_VAL_FRACTION if asked is None else asked


def gather(root: Path, corpora: Sequence[str], val: Sequence[str], *, deep: bool = False) -> Inputs:
    """The files of all `corpora`, and of the validation corpora `val`; with `deep` their bytes are hashed anew."""
    found = [file for reference in corpora for file in raw.inputs(root, reference, corpora=True, deep=deep)]
    chosen = [file for reference in val for file in raw.inputs(root, reference, corpora=True, deep=deep)]
    return divide(found, chosen)


def divide(found: Sequence[raw.InputFile], chosen: Sequence[raw.InputFile]) -> Inputs:
    """Which files train and which validate: `chosen` for validation, or else those that their source marks as "val".

    Files marked "test", and "val" where something else was chosen, are left out, unless nothing else was named.
    """
    kept = [file for file in found if file.split in ("", "train")]
    held_out = list(chosen) or [file for file in found if file.split == "val"]
    if not kept:
        kept, held_out = list(found), list(chosen)
    if both := {file.digest for file in kept} & {file.digest for file in held_out}:
        name = next(file.name for file in kept if file.digest in both)
        raise BadConfig(f"{name} is both trained on and validated on", hint="name another corpus with --val")
    return Inputs(tuple(kept), tuple(held_out))


def identify(
    name: str, inputs: Inputs, tokenizer: Tokenizer, trained: Artifact | None, options: TokenizeOptions
) -> Identity:
    made_from = [entry.as_input("train") for entry in inputs.train]
    made_from += [entry.as_input("val") for entry in inputs.val]
    if trained:
        made_from.append(Input("tokenizer", trained.ref, trained.digest))
    libraries = _LIBRARIES.get(tokenizer.encoder, ())
    if options.format != "memmap":
        libraries += ("h5py",)
    if any(entry.path.suffix == ".parquet" for entry in (*inputs.train, *inputs.val)):
        libraries += ("pyarrow",)
    chosen = {
        "stage": SCHEMA,
        "format": options.format,
        "val_fraction": inputs.fraction(options.val_fraction),
        "encoder": tokenizer.encoder,
        "max_documents": options.max_documents,
        "dedup": options.dedup,
        "files": [entry.name for entry in (*inputs.train, *inputs.val)],  # they stand in the manifest and in rejects
        **msgspec.structs.asdict(options.choice),
    }
    return Identity("tokens", name, chosen, tuple(made_from), tokenizer.fingerprint, libraries)


def tokenize(
    root: Path,
    name: str,
    inputs: Inputs,
    tokenizer: Tokenizer,
    trained: Artifact | None,
    options: TokenizeOptions,
    progress: Progress,
    *,
    jobs: int,
) -> Built:
    """Tokenize `inputs` into the tokens artifact `name`; `trained` is the tokenizer's own artifact, if it has one.

    Raises BadData when a file is broken, when a split would be empty, or when gigatoken and tiktoken disagree on any
    document compared; TooManyRejects when more than `options.max_bad` of the documents are bad.
    """

    identity = identify(name, inputs, tokenizer, trained, options)

    def write(draft: Path) -> Content:
        if tokenizer.kind == "tiktoken" and (why := tokenizers.why_not_fast(tokenizer.name)):
            progress.note(f"gigatoken {why}: tiktoken encodes, with the same ids and many times slower")
        if taken := reuse.take_over(draft, identity):
            progress.note(
                f"{len(taken)} units of {len({each.file for each in taken})} files are taken over as they are"
            )
        try:
            with contextlib.ExitStack() as leases:
                for entry in (*inputs.train, *inputs.val):
                    if entry.corpus:
                        leases.enter_context(artifact.lease(entry.corpus))
                return _write(draft, inputs, tokenizer, options, progress, jobs)
        except BadData:  # going on with what other units have done would not help
            files.remove_tree(draft)
            draft.mkdir()
            raise

    return artifact.build(root, identity, write, keep_draft=True)


def _write(
    draft: Path, inputs: Inputs, tokenizer: Tokenizer, options: TokenizeOptions, progress: Progress, jobs: int
) -> Content:
    fraction = inputs.fraction(options.val_fraction)
    dtype = tokens_segments.dtype_for(tokenizer.vocab_size)
    dedup = options.dedup == "exact"
    train_split = "train" if inputs.val else ""
    work = [
        (entry, Job(dtype, entry.name, split, fraction, options.choice, dedup))
        for entries, split in ((inputs.train, train_split), (inputs.val, "val"))
        for entry in entries
    ]
    total = sum(entry.path.stat().st_size for entry, _ in work)
    tokenizer.save(draft)
    with (
        progress.bar("tokenize", total) as advance,
        Assembly(
            draft, dtype, keep_bins=options.format != "hdf5", dedup=dedup, max_documents=options.max_documents
        ) as assembly,
    ):
        todo = tasks.tasks(work, tokenizer.boundary, assembly.next_unit, assembly.is_full, advance)
        jobs = jobs if total > _SMALL else 1
        with contextlib.closing(engines.stream(functools.partial(encode, tokenizer), todo, jobs=jobs)) as done:
            for task, encoded in done:
                if assembly.add(task, encoded):
                    progress.safe_point(f"{len(assembly.records)} units are kept")
        for entry, _ in work:
            raw.require_unchanged(entry)
        units = assembly.finish()
        assembly.write_units()
    content = _content(units, tokenizer, dtype, options, fraction)
    if options.format != "memmap":
        attributes: dict[str, str | int] = {"tokenizer": tokenizer.fingerprint, "end_of_text": tokenizer.end_of_text}
        for split in tokens_segments.SPLITS:
            count = {"documents": content.counts[f"{split}_documents"]}
            target, segments = draft / f"{split}.h5", assembly.bins(split)
            engines.isolated(hdf5.write_hdf5, target, segments, dtype, attributes | count)
    return dataclasses.replace(content, run={"inputs": [str(entry.path.absolute()) for entry, _ in work]})


def _content(
    units: Sequence[UnitRecord], tokenizer: Tokenizer, dtype: str, options: TokenizeOptions, fraction: float
) -> Content:
    """Counts over all units, the closed ledger, and the hashes taken on the way."""
    ledger = Ledger()
    counts = {
        f"{split}_{what}": 0 for split in tokens_segments.SPLITS for what in ("tokens", "documents", "characters")
    }
    sets: dict[str, int] = {}
    for record in units:
        ledger.add(record.ledger)
        for split in tokens_segments.SPLITS:
            counts[f"{split}_tokens"] += record.tokens.get(split, 0)
            counts[f"{split}_documents"] += record.documents.get(split, 0)
            counts[f"{split}_characters"] += record.characters.get(split, 0)
        for name, count in record.sets.items():
            sets[name] = sets.get(name, 0) + count
    closed = ledger.close(max_bad=options.max_bad)
    for split in tokens_segments.SPLITS:
        if not counts[f"{split}_tokens"]:
            raise _empty(split, ledger, fraction)
    told = {
        "tokens": counts["train_tokens"] + counts["val_tokens"],
        "documents": counts["train_documents"] + counts["val_documents"],
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
        **counts,
    }
    return Content(told, closed, hashed=[each for record in units for each in record.files])


def _empty(split: str, ledger: Ledger, fraction: float) -> BadData:
    kept, dropped = ledger.documents.out, ledger.documents.dropped
    what = f"the {split} split is empty: {kept:,} documents, val fraction {fraction:g}"
    if dropped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
        return BadData(f"{what}; dropped: {reasons}", hint="choose less strictly, or look at the inputs")
    if split == "train":
        return BadData(what, hint="lower --val-fraction, or name more to train on")
    return BadData(
        what, hint="raise --val-fraction, name a validation corpus with --val, or clean into smaller units (--unit)"
    )

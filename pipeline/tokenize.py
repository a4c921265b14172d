"""The tokenize stage: documents become token arrays, one segment for each unit of work.

A unit is one input file. What it writes depends on the file, the tokenizer and the options alone, so the bytes are
the same for any number of workers, and a unit that a killed run had finished is not done again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from pipeline import artifact, documents, engines, files, raw, tokenizers, tokens
from pipeline.artifact import Artifact, Built, Content, Identity, Input
from pipeline.documents import Document
from pipeline.errors import BadConfig, BadData
from pipeline.ledger import DEFAULT_MAX_BAD, Ledger
from pipeline.progress import Progress
from pipeline.tokenizers import Tokenizer
from pipeline.tokens import SegmentWriter

SCHEMA = 1  # raise when the same options give other bytes
DEFAULT_VAL_FRACTION = 0.05
_BATCH = 4 << 20  # characters handed to the tokenizer at once
_CHECK_FIRST, _CHECK_EVERY = 8, 1000
_LIBRARIES = {"tiktoken": ("tiktoken", "gigatoken"), "sentencepiece": ("sentencepiece",)}


@dataclass(frozen=True)
class TokenizeOptions:
    """What a person can choose. `val_fraction` is the share of documents, by a hash of their text, held out.

    None means 0.05, or nothing where there is a validation corpus.
    """

    format: str = "memmap"
    val_fraction: float | None = None
    max_bad: float = DEFAULT_MAX_BAD

    def __post_init__(self) -> None:
        if self.format not in tokens.FORMATS:
            raise BadConfig(f"no format {self.format!r}", hint=f"formats: {', '.join(tokens.FORMATS)}")
        if not 0 <= (self.val_fraction or 0) < 1:
            raise BadConfig(
                f"--val-fraction {self.val_fraction} is no share", hint="from 0 to below 1, for example 0.05"
            )


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


def gather(root: Path, corpora: Sequence[str], val: Sequence[str]) -> Inputs:
    """The files of all `corpora`, and of the validation corpora `val`."""
    found = [file for reference in corpora for file in raw.inputs(root, reference, corpora=True)]
    chosen = [file for reference in val for file in raw.inputs(root, reference, corpora=True)]
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
    libraries = _LIBRARIES.get(tokenizer.kind, ())
    if options.format != "memmap":
        libraries += ("h5py",)
    chosen = {"stage": SCHEMA, "format": options.format, "val_fraction": inputs.fraction(options.val_fraction)}
    return Identity("tokens", name, chosen, tuple(made_from), tokenizer.fingerprint, libraries)


class Unit(msgspec.Struct, frozen=True):
    """One piece of work: tokenize the file `path` into segments `<split>-<number>` in `folder`.

    `split` is "train" or "val" when the whole file belongs there, "" to divide its documents by hash.
    """

    path: Path
    number: int
    split: str
    val_fraction: float
    folder: Path
    dtype: str


class Record(msgspec.Struct):
    """What a unit did. It is written last, so its presence says that the unit is done."""

    number: int
    input_bytes: int = 0
    tokens: dict[str, int] = {}
    documents: dict[str, int] = {}
    characters: dict[str, int] = {}
    compared: int = 0
    files: dict[str, int] = {}
    ledger: Ledger = msgspec.field(default_factory=Ledger)


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

    Raises BadData when a split would be empty, or when gigatoken and tiktoken disagree on any document compared.
    """

    def write(draft: Path) -> Content:
        try:
            return _write(draft, inputs, tokenizer, options, progress, jobs)
        except BadData:  # going on with what other units have done would not help
            files.remove_tree(draft)
            draft.mkdir()
            raise

    return artifact.build(root, identify(name, inputs, tokenizer, trained, options), write, keep_draft=True)


def _write(
    draft: Path, inputs: Inputs, tokenizer: Tokenizer, options: TokenizeOptions, progress: Progress, jobs: int
) -> Content:
    tokenizer.save(draft)
    dtype = tokens.dtype_for(tokenizer.vocab_size)
    train_split = "train" if inputs.val else ""
    work = [(entry, train_split) for entry in inputs.train] + [(entry, "val") for entry in inputs.val]
    fraction = inputs.fraction(options.val_fraction)
    units = [Unit(e.path, n, split, fraction, draft, dtype) for n, (e, split) in enumerate(work)]
    with progress.bar("tokenize", sum(unit.path.stat().st_size for unit in units)) as advance:
        records = engines.run(
            encode, units, jobs=jobs, done=lambda record: advance(units[record.number].path.stat().st_size)
        )
    ledger, compared = Ledger(), 0
    counts = {f"{split}_{what}": 0 for split in tokens.SPLITS for what in ("tokens", "documents", "characters")}
    for record in records:
        ledger.add(record.ledger)
        compared += record.compared
        for split in tokens.SPLITS:
            counts[f"{split}_tokens"] += record.tokens.get(split, 0)
            counts[f"{split}_documents"] += record.documents.get(split, 0)
            counts[f"{split}_characters"] += record.characters.get(split, 0)
    closed = ledger.close(max_bad=options.max_bad)
    for split in tokens.SPLITS:
        if not counts[f"{split}_tokens"]:
            raise BadData(
                f"the {split} split is empty: {ledger.documents.out:,} documents, val fraction {fraction:g}",
                hint="raise --val-fraction, name a validation corpus with --val, or clean into smaller units (--unit)",
            )
    if options.format != "memmap":
        attributes: dict[str, str | int] = {"tokenizer": tokenizer.fingerprint, "end_of_text": tokenizer.end_of_text}
        hdf5 = [
            _HDF5(draft, split, dtype, {**attributes, "documents": counts[f"{split}_documents"]})
            for split in tokens.SPLITS
        ]
        engines.run(_write_hdf5, hdf5, jobs=1, isolated=True)
    for path in draft.glob("unit-*.json"):
        path.unlink()
    if options.format == "hdf5":
        for path in draft.glob("*.bin"):
            path.unlink()
    return Content(
        {
            "tokens": counts["train_tokens"] + counts["val_tokens"],
            "documents": counts["train_documents"] + counts["val_documents"],
            "input_bytes": sum(record.input_bytes for record in records),
            "dtype": dtype,
            "tokenizer": tokenizer.name,
            "vocab_size": tokenizer.vocab_size,
            "end_of_text": tokenizer.end_of_text,
            "compared": compared,
            **counts,
        },
        closed,
    )


class _HDF5(msgspec.Struct, frozen=True):
    folder: Path
    split: str
    dtype: str
    attributes: dict[str, str | int]


def _write_hdf5(unit: _HDF5) -> None:
    tokens.write_hdf5(unit.folder, unit.split, unit.dtype, unit.attributes)


def encode(unit: Unit) -> Record:
    """Do one unit of work, unless its record says that it was done before."""
    path = unit.folder / f"unit-{unit.number:05d}.json"
    if path.exists():
        record = msgspec.json.decode(path.read_bytes(), type=Record)
        if all(files.size_of(unit.folder / name) == size for name, size in record.files.items()):
            return record
    record = encode_with(unit, tokenizers.open_folder(unit.folder))
    files.sync([unit.folder / name for name in record.files])  # the record must not outlive what it vouches for
    files.write_file(path, msgspec.json.encode(record))
    return record


def encode_with(unit: Unit, tokenizer: Tokenizer) -> Record:
    """Read the unit's file, encode its documents, write its segments and rejects."""
    record = Record(unit.number)
    splits = (unit.split,) if unit.split else tokens.SPLITS
    rejects_path = unit.folder / f"rejects-{unit.number:05d}.jsonl.zst"
    names = [rejects_path.name]
    with documents.ZstdLines(rejects_path) as rejects:
        writers = {
            split: SegmentWriter(unit.folder, f"{split}-{unit.number:05d}", unit.dtype, tokenizer.end_of_text)
            for split in splits
        }
        pending: dict[str, list[str]] = {split: [] for split in splits}
        sizes = dict.fromkeys(splits, 0)

        def flush(split: str) -> None:
            texts = pending[split]
            ids, lengths = tokenizer.encode_batch(texts)
            record.compared += _compare(unit, tokenizer, texts, ids, lengths, writers[split].documents)
            writers[split].append(ids, lengths)
            record.characters[split] = record.characters.get(split, 0) + sizes[split]
            texts.clear()
            sizes[split] = 0

        for document in _kept(unit, record, rejects):
            split = unit.split or ("val" if is_validation(document.text, unit.val_fraction) else "train")
            pending[split].append(document.text)
            sizes[split] += len(document.text)
            record.input_bytes += len(document.text.encode())
            if sizes[split] >= _BATCH:
                flush(split)
        for split, writer in writers.items():
            with writer:
                if pending[split]:
                    flush(split)
            record.tokens[split] = writer.tokens
            record.documents[split] = writer.documents
            names += [f"{split}-{unit.number:05d}.bin", f"{split}-{unit.number:05d}.idx"]
    record.files = {name: (unit.folder / name).stat().st_size for name in names}
    return record


def _kept(unit: Unit, record: Record, rejects: documents.ZstdLines) -> Iterator[Document]:
    for document in documents.read(unit.path, record.ledger, rejects.write_reject):
        if not document.text:
            record.ledger.documents.drop("empty", 1)
            rejects.write_reject(document.as_reject("empty"))
            continue
        record.ledger.documents.out += 1
        record.ledger.characters.out += len(document.text)
        yield document


def is_validation(text: str, fraction: float) -> bool:
    """Whether a document is held out: by a hash of its content, so that adding others never moves it."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _compare(
    unit: Unit, tokenizer: Tokenizer, texts: Sequence[str], ids: np.ndarray, lengths: np.ndarray, first: int
) -> int:
    """Encode a sample of a batch again, one document at a time, with the reference: the first 8 of the segment, then
    one in 1,000. The number compared; BadData at the first difference."""
    chosen = [n for n in range(len(texts)) if first + n < _CHECK_FIRST or (first + n) % _CHECK_EVERY == 0]
    ends = np.cumsum(lengths)
    for n in chosen:
        if ids[ends[n] - lengths[n] : ends[n]].tolist() != tokenizer.encode(texts[n]):
            raise BadData(
                f"{unit.path}: document {first + n} is encoded differently by the fast path and by {tokenizer.kind}",
                hint="please report it with the document; nothing was published",
            )
    return len(chosen)

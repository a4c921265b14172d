"""The tokenize stage: documents to token arrays.

    files ──tasks──▶ chunks of JSON lines ──workers: encode──▶ ids ──writer──▶ segments ──▶ artifact

One process reads, splits and collects the results in input order; it and its workers encode. So the bytes are the
same for any number of workers, and a killed run resumes after its last complete unit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pipeline import tokenizers
from pipeline.errors import BadConfig, BadData
from pipeline.readers.readers import libraries_of
from pipeline.runtime import workers
from pipeline.runtime.ledger import DEFAULT_MAX_BAD
from pipeline.runtime.progress import Progress
from pipeline.sources import inputs as source_inputs
from pipeline.sources.inputs import InputFile
from pipeline.sources.walk import LeftOut
from pipeline.store import artifact, files
from pipeline.store.artifact import Artifact, BuildResult, StageOutput
from pipeline.store.code import state_of
from pipeline.store.manifest import Identity, Input
from pipeline.tokenizers import Tokenizer
from pipeline.tokens import hdf5, reuse, survey
from pipeline.tokens.overlap import Overlap
from pipeline.tokens.segments import FORMATS, SPLITS, dtype_for
from pipeline.tokens.split import MODES, SplitRule, rule_of
from pipeline.tokens.survey import Documents
from pipeline.tokens.tasks import DocumentFilter, FileSpec, tasks
from pipeline.tokens.totals import commonest_unknown, content_of, has_some_unknown, require_known, warnings_of
from pipeline.tokens.worker import encode
from pipeline.tokens.writer import TokenWriter

SCHEMA = 5  # raise when the same options give different bytes
DEFAULT_VAL_FRACTION = 0.05
DEDUP = ("no", "exact")
_REPEATED = "the same content as an earlier file"
_SMALL = 2 << 20  # bytes of input files, compressed or not, below which starting a worker costs more than it saves
_LIBRARIES = {
    "gigatoken": ("tiktoken", "gigatoken"),
    "tiktoken": ("tiktoken",),
    "sentencepiece": ("sentencepiece",),
    "tokenizers": ("tokenizers",),
}


class TokenizeOptions(msgspec.Struct, frozen=True):
    """Options of the stage.

    `val_fraction` is the fraction of the text held out, chosen by a hash; None means that of the generation before, or
    at first 0.05, or 0 with a validation corpus. `val_split` "document" or "stretch" says what is held out; "auto" does
    as the generation before, or chooses (survey.py). `allow_overlap` accepts a validation corpus of which most is
    trained on too, and `allow_unknown` a text of which more than 5 % of the characters are unknown. `max_documents`
    limits the training files and the validation files separately; 0 sets no limit. `text_fields` names the fields that
    hold the text of a record; () chooses one. `dedup` "exact" keeps the first of equal texts in input order and takes
    about 110 bytes of memory per document.
    """

    format: str = "memmap"
    val_fraction: float | None = None
    max_bad: float = DEFAULT_MAX_BAD
    include_sets: tuple[str, ...] = ()
    exclude_sets: tuple[str, ...] = ()
    min_chars: int = 0
    max_documents: int = 0
    dedup: str = "no"
    val_split: str = "auto"
    allow_overlap: bool = False
    text_fields: tuple[str, ...] = ()
    allow_unknown: bool = False

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
        if self.val_split not in MODES:
            raise BadConfig(
                f"--val-split must be one of {', '.join(MODES)}, got {self.val_split!r}", hint="omit it for auto"
            )
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
    """Files to train on and to validate on. Without `val` files, the text is divided by a hash.

    `left_out` lists the entries of folders that are not read, and files with the content of an earlier one.
    """

    train: tuple[InputFile, ...]
    val: tuple[InputFile, ...]
    left_out: tuple[LeftOut, ...] = ()

    def check_fraction(self, val_fraction: float | None) -> None:
        """Raise BadConfig if a fraction to hold out is set beside validation files."""
        if self.val and val_fraction:
            raise BadConfig(
                f"{self.val[0].name} is for validation, and --val-fraction {val_fraction:g} would hold out more",
                hint="leave --val-fraction out",
            )


def gather_inputs(
    root: Path,
    corpora: Sequence[str],
    val: Sequence[str],
    *,
    progress: Progress | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    text_fields: Sequence[str] = (),
    deep: bool = False,
    allow_overlap: bool = False,
) -> TokenizeInputs:
    """Return the files of `corpora` and of the validation corpora `val`; `deep` hashes every byte again.

    Of folders, `include`, `exclude` and `text_fields` choose the files. What is left out is reported.
    """
    named, named_val = (
        source_inputs.gather_inputs(
            root,
            references,
            progress or Progress(),
            corpora=True,
            include=include,
            exclude=exclude,
            text_fields=text_fields,
            deep=deep,
        )
        for references in (corpora, val)
    )
    inputs = assign_splits(named.files, named_val.files, allow_overlap=allow_overlap)
    return dataclasses.replace(inputs, left_out=(*named.left_out, *named_val.left_out, *inputs.left_out))


def assign_splits(
    named: Sequence[InputFile], named_val: Sequence[InputFile], *, allow_overlap: bool = False
) -> TokenizeInputs:
    """Divide files into training and validation: `named_val` validate, or else the files their source marks "val".

    Files marked "test" are left out, and files marked "val" if `named_val` is given, unless no others are named. Of
    files with the same content, the first counts. Raises BadConfig for a file in both splits, unless `allow_overlap`.
    """
    train = [file for file in named if file.split in ("", "train")]
    val = list(named_val) or [file for file in named if file.split == "val"]
    if not train:
        train, val = list(named), list(named_val)
    if (overlap := {file.digest for file in train} & {file.digest for file in val}) and not allow_overlap:
        name = next(file.name for file in train if file.digest in overlap)
        raise BadConfig(
            f"{name} is both trained on and validated on",
            hint="name another corpus with --val, or accept it with --allow-overlap",
        )
    distinct = [_distinct(train), _distinct(val)]
    first = {id(file) for group in distinct for file in group}
    left_out = [LeftOut(file.name, _REPEATED) for file in (*train, *val) if id(file) not in first]
    return TokenizeInputs(tuple(distinct[0]), tuple(distinct[1]), tuple(left_out))


def _distinct(entries: Sequence[InputFile]) -> list[InputFile]:
    """Return the first of the files with the same content, in order."""
    first: dict[str, InputFile] = {}
    for entry in entries:
        first.setdefault(entry.digest, entry)
    return list(first.values())


def split_rule(root: Path | None, name: str, inputs: TokenizeInputs, options: TokenizeOptions) -> SplitRule | None:
    """Return the rule that divides the text of the inputs, None if nothing is held out of it.

    With `root`, the current generation of the tokens `name` hands down its rule. Raises BadData if the text is too
    short to be divided.
    """
    inputs.check_fraction(options.val_fraction)
    if inputs.val or options.val_fraction == 0:
        return None
    stored = survey.stored_rule(root, name) if root else None
    fraction = options.val_fraction
    if fraction is None:
        fraction = stored.fraction if stored else DEFAULT_VAL_FRACTION
    return survey.choose_rule(_documents(inputs.train, options), options.val_split, fraction, stored)


def _documents(files: Sequence[InputFile], options: TokenizeOptions) -> Documents:
    return Documents(files, options.document_filter, options.max_documents, options.text_fields)


def identify(
    name: str,
    inputs: TokenizeInputs,
    tokenizer: Tokenizer,
    trained: Artifact | None,
    options: TokenizeOptions,
    *,
    root: Path | None = None,
) -> Identity:
    """Return the identity of the artifact: everything that decides its bytes.

    Without `root`, the identity is that of a first generation of the name.
    """
    rule = split_rule(root, name, inputs, options)
    entries = [entry.as_input("train") for entry in inputs.train]
    entries += [entry.as_input("val") for entry in inputs.val]
    if trained:
        entries.append(Input("tokenizer", trained.ref, trained.digest))
    libraries = _LIBRARIES.get(tokenizer.encoder, ())
    if options.format != "memmap":
        libraries += ("h5py",)
    files_read = (*inputs.train, *inputs.val)
    libraries += tuple(sorted({name for entry in files_read for name in libraries_of(entry.path)}))
    members = [entry.members for entry in files_read]
    settings = {
        "stage": SCHEMA,
        "format": options.format,
        "split": msgspec.structs.asdict(rule) if rule else None,
        "encoder": tokenizer.encoder,
        "max_documents": options.max_documents,
        "dedup": options.dedup,
        "files": [entry.name for entry in files_read],  # names appear in the manifest and in rejects
        **msgspec.structs.asdict(options.document_filter),
        **({"text_fields": options.text_fields} if options.text_fields else {}),
        **({"members": members} if any(members) else {}),
        **({"originals": True} if tokenizer.normalizes or tokenizer.unknown_id is not None else {}),
    }
    return Identity("tokens", name, settings, tuple(entries), tokenizer.fingerprint, libraries, state_of(reuse.CODE))


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
    rebuild: bool = False,
) -> BuildResult:
    """Tokenize `inputs` into the tokens artifact `name`; `trained` is the tokenizer's own artifact, if it has one.
    With `rebuild` published tokens are made again, without units of earlier generations.

    Raises BadData if a file is broken, a split would be empty, most validation documents are trained on too, more than
    5 % of the characters are unknown, or gigatoken and tiktoken disagree on a document; TooManyRejects for more bad
    documents than `options.max_bad`.
    """
    identity = identify(name, inputs, tokenizer, trained, options, root=root)
    rule = rule_of(identity.options)
    if repeated := [entry.name for entry in inputs.left_out if entry.reason == _REPEATED]:
        progress.note(f"{', '.join(repeated)}: {_REPEATED}, counted once")

    def write(draft: Path) -> StageOutput:
        if tokenizer.kind == "tiktoken" and (problem := tokenizers.gigatoken_problem(tokenizer.name)):
            progress.note(f"gigatoken {problem}: using tiktoken, which gives the same ids many times slower")
        if reused := [] if rebuild else reuse.reuse_units(draft, identity):
            progress.note(f"reusing {len(reused)} units of {len({record.file for record in reused})} unchanged files")
        try:
            with contextlib.ExitStack() as leases:
                for entry in (*inputs.train, *inputs.val):
                    if entry.corpus:
                        leases.enter_context(artifact.lease(entry.corpus))
                verified = {record.stem for record in reused}
                return _write(draft, inputs, tokenizer, options, rule, progress, jobs, verified)
        except BadData:  # resuming from the units of this run would fail in the same way
            files.remove_tree(draft)
            draft.mkdir()
            raise

    built = artifact.build(root, identity, write, keep_draft=True, rebuild=rebuild)
    for warning in warnings_of(built.artifact.manifest.counts):
        progress.note(warning)
    return built


def _write(
    draft: Path,
    inputs: TokenizeInputs,
    tokenizer: Tokenizer,
    options: TokenizeOptions,
    rule: SplitRule | None,
    progress: Progress,
    jobs: int,
    verified: Collection[str],
) -> StageOutput:
    dtype = dtype_for(tokenizer.vocab_size)
    dedup = options.dedup == "exact"  # then a validation document that is trained on too is dropped
    overlap = None
    if inputs.val and not dedup:
        overlap = Overlap(_documents(inputs.val, options), allow=options.allow_overlap)
    specs = [
        (entry, FileSpec(dtype, entry.name, split, rule, options.document_filter, dedup))
        for entries, split in ((inputs.train, "" if rule else "train"), (inputs.val, "val"))
        for entry in entries
    ]
    total = sum(entry.path.stat().st_size for entry, _ in specs)
    tokenizer.save(draft)
    with (
        progress.bar("tokenize", total) as advance,
        TokenWriter(
            draft,
            dtype,
            keep_bins=options.format != "hdf5",
            dedup=dedup,
            max_documents=options.max_documents,
            overlap=overlap,
            verified=verified,
        ) as writer,
    ):
        note = functools.cache(progress.note)  # the same field of many files is noted once
        todo = tasks(specs, tokenizer.boundary, writer.next_unit, writer.is_full, advance, options.text_fields, note)
        jobs = jobs if total > _SMALL else 1
        function = functools.partial(encode, tokenizer, val_prints=overlap.prints if overlap else frozenset())
        with contextlib.closing(workers.map_ordered(function, todo, jobs=jobs)) as results:
            for task, encoded in results:
                if writer.add(task, encoded):
                    progress.safe_point(f"{len(writer.records)} complete units are kept")
        for entry, _ in specs:
            source_inputs.require_unchanged(entry)
        units = writer.finish()
    content = content_of(units, tokenizer, dtype, options.max_bad, rule, overlap)
    _check_unknown(content.counts, inputs, tokenizer, options)
    if overlap and overlap.count:
        progress.note(
            f"warning: {overlap.count:,} of {overlap.documents:,} validation documents are in the training text too"
        )
    if options.format != "memmap":
        attributes: dict[str, str | int] = {"tokenizer": tokenizer.fingerprint, "end_of_text": tokenizer.end_of_text}
        for split in SPLITS:
            count = {"documents": content.counts[f"{split}_documents"]}
            path, bins = draft / f"{split}.h5", writer.bins(split)
            workers.run_isolated(hdf5.write_hdf5, path, bins, dtype, attributes | count)
    return dataclasses.replace(content, run={"inputs": [str(entry.path.absolute()) for entry, _ in specs]})


def _check_unknown(
    counts: dict[str, Any], inputs: TokenizeInputs, tokenizer: Tokenizer, options: TokenizeOptions
) -> None:
    """Add the commonest unknown characters to the counts. Raises BadData for too many, unless they are allowed."""
    if has_some_unknown(counts):
        documents = _documents((*inputs.train, *inputs.val), options)
        blocks = (block for document in documents for block in document.blocks())
        counts["commonest_unknown"] = commonest_unknown(tokenizer, blocks)
    require_known(counts, tokenizer, allow_unknown=options.allow_unknown)

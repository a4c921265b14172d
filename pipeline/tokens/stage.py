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
from typing import Any

import msgspec

from pipeline import tokenizers
from pipeline.errors import BadConfig, BadData
from pipeline.readers.readers import libraries_of
from pipeline.runtime import workers
from pipeline.runtime.engines import OpenEngine
from pipeline.runtime.progress import Advance, Progress
from pipeline.runtime.spread import describe
from pipeline.sources import inputs as source_inputs
from pipeline.sources.inputs import InputFile
from pipeline.sources.walk import LeftOut
from pipeline.store import artifact, files
from pipeline.store.artifact import Artifact, BuildResult, StageOutput
from pipeline.store.code import state_of
from pipeline.store.manifest import Identity, Input
from pipeline.tokenizers import ChatTokenizer, Tokenizer
from pipeline.tokens import hdf5, reuse, survey
from pipeline.tokens.options import TokenizeOptions
from pipeline.tokens.overlap import Overlap
from pipeline.tokens.resume import UnitRecord
from pipeline.tokens.segments import MASK, SPLITS, dtype_for
from pipeline.tokens.split import MARKED, SplitRule, rule_of
from pipeline.tokens.survey import Documents
from pipeline.tokens.tasks import FileSpec
from pipeline.tokens.totals import commonest_unknown, content_of, has_some_unknown, require_known, warnings_of
from pipeline.tokens.units.adopt import file_tasks, spread_files
from pipeline.tokens.units.make import encode_files
from pipeline.tokens.writer import TokenWriter

SCHEMA = 5  # raise when the same options give different bytes
DEFAULT_VAL_FRACTION = 0.05
_REPEATED = "the same content as an earlier file"
_SMALL = 2 << 20  # bytes of input files, compressed or not, below which starting a worker costs more than it saves
_LIBRARIES = {
    "gigatoken": ("tiktoken", "gigatoken"),
    "tiktoken": ("tiktoken",),
    "sentencepiece": ("sentencepiece",),
    "tokenizers": ("tokenizers",),
}


@dataclass(frozen=True)
class TokenizeInputs:
    """Files to train on and to validate on. Without `val` files, the text is divided by a hash.

    `left_out` lists the entries of folders that are not read, and files with the content of an earlier one.
    """

    train: tuple[InputFile, ...]
    val: tuple[InputFile, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def chat(self) -> str:
        """The kind of the corpora: "chat" for conversations, "preferences" for pairs of them, else "".

        Raises BadConfig if they are not all of one kind.
        """
        named = ((file.corpus, file.name) for file in (*self.train, *self.val))
        kinds = {corpus.manifest.options.get("format", "") if corpus else "": name for corpus, name in named}
        if len(kinds) > 1:
            listed = " and ".join(f"{kind or 'text'} ({name})" for kind, name in sorted(kinds.items()))
            raise BadConfig(f"{listed} together", hint="tokenize each kind by itself: they are trained on differently")
        return str(next(iter(kinds), ""))

    @property
    def has_marks(self) -> bool:
        """True if some records of the corpora are marked for validation."""
        return any(file.corpus.manifest.counts.get("held_out") for file in self.train if file.corpus)

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

    `include`, `exclude` and `text_fields` choose files of folders. The files that are left out are reported.
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
    """Divide files: `named_val` are for validation; without them, the files that their source marks "val" are.

    Files marked "test", and "val" beside `named_val`, are left out, unless no file remains to train on. Of files with
    the same content, the first counts. Raises BadConfig for a file in both splits, unless `allow_overlap`.
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

    With `root`, the rule of the current generation of the tokens `name` is used again if possible. Raises BadData if
    the text is too short to be divided.
    """
    inputs.check_fraction(options.val_fraction)
    if inputs.val or options.val_fraction == 0:
        return None
    if inputs.chat and options.val_split == "stretch":
        raise BadConfig("--val-split stretch would divide conversations", hint="leave it out")
    if options.val_fraction is None and inputs.has_marks:
        return MARKED
    stored = survey.stored_rule(root, name) if root else None
    fraction = options.val_fraction
    if fraction is None:
        fraction = stored.fraction if stored else DEFAULT_VAL_FRACTION
    mode = "document" if inputs.chat else options.val_split
    return survey.choose_rule(_documents(inputs.train, options), mode, fraction, stored)


def _for_inputs(tokenizer: Tokenizer, inputs: TokenizeInputs) -> Tokenizer:
    """Return the tokenizer of conversations over `tokenizer`, if the inputs are conversations."""
    is_base = bool(inputs.chat) and not isinstance(tokenizer, ChatTokenizer)
    return ChatTokenizer(tokenizer) if is_base else tokenizer


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
    tokenizer = _for_inputs(tokenizer, inputs)
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
        **({"chat": inputs.chat} if inputs.chat else {}),
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
    open_engine: OpenEngine | None = None,
) -> BuildResult:
    """Tokenize `inputs` into the tokens artifact `name`; `trained` is the tokenizer's own artifact, if it has one.
    With `rebuild`, published tokens are made again, without units of earlier generations. With `open_engine`, other
    nodes make the units; they must have the artifacts folder and the inputs under the same paths.

    Raises BadData if a file is broken, a split would be empty, most validation documents are trained on too, more than
    5 % of the characters are unknown, or gigatoken and tiktoken disagree on a document; TooManyRejects for more bad
    documents than `options.max_bad`.
    """
    tokenizer = _for_inputs(tokenizer, inputs)
    identity = identify(name, inputs, tokenizer, trained, options, root=root)
    rule = rule_of(identity.options)
    if repeated := [entry.name for entry in inputs.left_out if entry.reason == _REPEATED]:
        progress.note(f"{', '.join(repeated)}: {_REPEATED}, counted once")

    def write(draft: Path) -> StageOutput:
        if tokenizer.encoder == "tiktoken" and (problem := tokenizers.gigatoken_problem(tokenizer.name)):
            progress.note(f"gigatoken {problem}: using tiktoken, which gives the same ids many times slower")
        if reused := [] if rebuild else reuse.reuse_units(draft, identity):
            progress.note(reuse.describe(reused))
        try:
            with contextlib.ExitStack() as leases:
                corpora = {entry.corpus.path: entry.corpus for entry in (*inputs.train, *inputs.val) if entry.corpus}
                for corpus in corpora.values():
                    leases.enter_context(artifact.lease(corpus))
                work = _Work(draft, inputs, tokenizer, options, rule, identity.libraries, reused)
                return _write(work, progress, jobs, open_engine)
        except BadData:  # resuming from the units of this run would fail in the same way
            files.remove_tree(draft)
            draft.mkdir()
            raise

    built = artifact.build(root, identity, write, keep_draft=True, rebuild=rebuild)
    for warning in warnings_of(built.artifact.manifest.counts, rule):
        progress.note(warning)
    return built


@dataclass(frozen=True)
class _Work:
    """Everything that decides the units of a draft, and those that are `reused` from other generations."""

    draft: Path
    inputs: TokenizeInputs
    tokenizer: Tokenizer
    options: TokenizeOptions
    rule: SplitRule | None
    libraries: tuple[str, ...]
    reused: list[UnitRecord]

    @functools.cached_property
    def dtype(self) -> str:
        return dtype_for(self.tokenizer.vocab_size)

    @property
    def is_deduplicated(self) -> bool:
        """True if repeated texts are dropped, among them validation documents that are trained on too."""
        return self.options.dedup == "exact"

    @functools.cached_property
    def sources(self) -> list[tuple[int, InputFile, FileSpec]]:
        """The input files with their numbers and settings, in order."""
        splits = ((self.inputs.train, "" if self.rule else "train"), (self.inputs.val, "val"))
        entries = [(entry, split) for group, split in splits for entry in group]
        shared = (self.rule, self.options.document_filter, self.is_deduplicated, self.inputs.chat)
        return [
            (number, entry, FileSpec(self.dtype, entry.name, split, *shared))
            for number, (entry, split) in enumerate(entries)
        ]


def _write(work: _Work, progress: Progress, jobs: int, open_engine: OpenEngine | None) -> StageOutput:
    draft, options, tokenizer = work.draft, work.options, work.tokenizer
    overlap = None
    if work.inputs.val and not work.is_deduplicated:
        overlap = Overlap(_documents(work.inputs.val, options), allow=options.allow_overlap)
    total = sum(entry.path.stat().st_size for _, entry, _ in work.sources)
    tokenizer.save(draft)
    with progress.bar("tokenize", total) as advance:
        elsewhere = _spread(work, overlap, progress, advance, open_engine)
        with TokenWriter(
            draft,
            work.dtype,
            keep_bins=options.format != "hdf5",
            dedup=work.is_deduplicated,
            max_documents=options.max_documents,
            overlap=overlap,
            verified={*(record.stem for record in work.reused), *elsewhere},
        ) as writer:
            encode_files(
                writer,
                work.sources,
                tokenizer,
                overlap,
                options.text_fields,
                jobs if total > _SMALL else 1,
                (lambda count: None) if elsewhere else advance,
                functools.cache(progress.note),  # the same field of many files is noted once
                progress,
            )
            units = writer.finish()
    content = content_of(units, work.sources, tokenizer, work.dtype, options.max_bad, work.rule, overlap)
    _check_unknown(content.counts, work.inputs, tokenizer, options)
    if overlap and overlap.count:
        progress.note(
            f"warning: {overlap.count:,} of {overlap.documents:,} validation documents are in the training text too"
        )
    if options.format != "memmap":
        attributes: dict[str, str | int] = {"tokenizer": tokenizer.fingerprint, "end_of_text": tokenizer.end_of_text}
        for split in SPLITS:
            count = {"documents": content.counts[f"{split}_documents"]}
            path, bins = draft / f"{split}.h5", writer.bins(split)
            masks = [bin.with_suffix(MASK) for bin in bins] if work.inputs.chat else None
            workers.run_isolated(hdf5.write_hdf5, path, bins, work.dtype, attributes | count, masks)
    return dataclasses.replace(content, run={"inputs": [str(entry.path.absolute()) for _, entry, _ in work.sources]})


def _spread(
    work: _Work, overlap: Overlap | None, progress: Progress, advance: Advance, open_engine: OpenEngine | None
) -> list[str]:
    """Make the units on the nodes of an engine, if there is one. Returns the stems of those that are in the draft."""
    if not open_engine:
        return []
    options = work.options
    if options.max_documents or options.format != "memmap":
        reason = "--max-documents" if options.max_documents else f"--format {options.format}"
        progress.note(f"{reason}: this machine encodes everything, without the engine")
        return []
    with open_engine() as engine:
        (work.draft / artifact.SCRATCH).mkdir(exist_ok=True)
        todo = file_tasks(
            work.draft,
            work.sources,
            work.reused,
            work.libraries,
            work.tokenizer.encoder,
            options.text_fields,
            engine.cores,
        )
        progress.note(describe(engine, len(todo), "files"))
        return spread_files(engine, todo, overlap, advance)


def _check_unknown(
    counts: dict[str, Any], inputs: TokenizeInputs, tokenizer: Tokenizer, options: TokenizeOptions
) -> None:
    """Add the commonest unknown characters to the counts. Raises BadData for too many, unless they are allowed."""
    if has_some_unknown(counts):
        documents = _documents((*inputs.train, *inputs.val), options)
        blocks = (block for document in documents for block in document.blocks())
        counts["commonest_unknown"] = commonest_unknown(tokenizer, blocks)
    require_known(counts, tokenizer, allow_unknown=options.allow_unknown)

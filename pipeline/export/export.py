"""Table of export formats, and the export of a tokens artifact to one of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import BadConfig
from pipeline.export import datatrove, hdf5_int32, litdata, llmc, megatron, nanogpt
from pipeline.export.format import TokenFormat, TokenSource, open_source
from pipeline.export.verify import require_same
from pipeline.store import artifact, exports, files
from pipeline.store.artifact import Artifact
from pipeline.store.leftovers import require_new

FORMATS: dict[str, TokenFormat] = {
    module.FORMAT.name: module.FORMAT for module in (nanogpt, megatron, llmc, datatrove, hdf5_int32, litdata)
}


@dataclass(frozen=True)
class ExportedTokens:
    """Outcome of an export.

    `files` are paths inside `path`, `bytes` their total size. `warning` is a warning for the user, or "".
    """

    format: str
    path: Path
    files: tuple[str, ...]
    tokens: int
    documents: int
    bytes: int
    verified: bool
    warning: str


def export(
    tokens: Artifact, format_name: str, out: Path, *, verify: bool = False, shard_tokens: int = 0
) -> ExportedTokens:
    """Write a tokens artifact in another format as the new folder `out`, completely or not at all.

    With `verify`, the export is first read back by the format's own rules and compared with the store. `shard_tokens`
    is the number of ids in a file of llmc, 0 for its default.

    Raises BadConfig for an unknown format, a vocabulary that is too large for it, or `shard_tokens` that it does not
    support; CannotCreate if `out` exists; StorageFailed if there is not enough space; BadData if the artifact is
    damaged or the export differs when read back.
    """
    if format_name not in FORMATS:
        raise BadConfig(f"no format {format_name!r} to export tokens to", hint=f"formats: {', '.join(FORMATS)}")
    token_format = FORMATS[format_name]
    if shard_tokens and not token_format.has_shards:
        raise BadConfig(f"--shard-tokens is for --to llmc, not for {format_name}", hint="leave it out")
    require_new(out, outside=tokens.path)
    source = open_source(tokens, shard_tokens)
    _require_fit(source, token_format)
    out.parent.mkdir(parents=True, exist_ok=True)
    _require_space(source, token_format, out.parent)
    with artifact.lease(tokens), exports.new_export(out) as draft:
        token_format.write(source, draft)
        if verify:
            require_same(token_format, draft, source)
    return _describe(source, token_format, out, verify)


def _require_fit(source: TokenSource, token_format: TokenFormat) -> None:
    vocab_size = source.store.tokenizer.vocab_size
    if vocab_size > token_format.max_vocab_size:
        fitting = ", ".join(name for name, candidate in FORMATS.items() if candidate.max_vocab_size >= vocab_size)
        raise BadConfig(
            f"{source.artifact.ref}: {token_format.name} holds ids below {token_format.max_vocab_size:,}, "
            f"the vocabulary of {source.store.tokenizer.name} has {vocab_size:,}",
            hint=f"choose another format with --to: {fitting}",
        )


def _require_space(source: TokenSource, token_format: TokenFormat, folder: Path) -> None:
    itemsize = token_format.itemsize or np.dtype(source.dtype).itemsize
    files.require_space(folder, sum(len(split.ids) for split in source.splits) * itemsize, option="--out")


def _warning(source: TokenSource, token_format: TokenFormat) -> str:
    warnings = [token_format.warning(source)]
    if source.store.chat and not token_format.has_mask:
        fitting = ", ".join(name for name, candidate in FORMATS.items() if candidate.has_mask)
        warnings.append(
            f"{token_format.name} has no place for the mask: questions are trained on too; {fitting} has one"
        )
    return "; ".join(filter(None, warnings))


def _describe(source: TokenSource, token_format: TokenFormat, out: Path, verified: bool) -> ExportedTokens:
    names, size = exports.files_of(out)
    counts = source.artifact.manifest.counts
    return ExportedTokens(
        format=token_format.name,
        path=out,
        files=names,
        tokens=sum(len(split.ids) for split in source.splits),
        documents=sum(int(counts[f"{split.name}_documents"]) for split in source.splits),
        bytes=size,
        verified=verified,
        warning=_warning(source, token_format),
    )

"""The formats there are, and the export of a tokens artifact to one of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import BadConfig
from pipeline.export import arrays as stream
from pipeline.export import datatrove, hdf5_int32, litdata, llmc, megatron, nanogpt
from pipeline.export.format import Format, Source, open_source
from pipeline.export.verify import require_same
from pipeline.store import artifact, files
from pipeline.store.artifact import Artifact

FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT for module in (nanogpt, megatron, llmc, datatrove, hdf5_int32, litdata)
}


@dataclass(frozen=True)
class Exported:
    """What an export gave: `files` are paths inside `path`, `bytes` their size, of `linked` shared with the store."""

    format: str
    path: Path
    files: tuple[str, ...]
    tokens: int
    documents: int
    bytes: int
    linked: int
    verified: bool


def export(found: Artifact, to: str, out: Path, *, verify: bool = False) -> Exported:
    """Write the tokens artifact `found` in the format `to` as the new folder `out`, whole or not at all.

    With `verify` all that was written is read back by the format's own rules and compared with the store first.
    Raises BadConfig for an unknown format or a vocabulary that does not fit it, CannotCreate where `out` stands
    already, StorageFailed when there is no room, BadData when the artifact is damaged or what is read back differs.
    """
    if to not in FORMATS:
        raise BadConfig(f"no format {to!r} to export tokens to", hint=f"formats: {', '.join(FORMATS)}")
    chosen = FORMATS[to]
    files.require_new(out, besides=found.path)
    source = open_source(found)
    _require_fit(source, chosen)
    out.parent.mkdir(parents=True, exist_ok=True)
    _require_space(source, chosen, out.parent)
    with files.new_folder(out) as draft:
        with artifact.lease(found):
            chosen.write(source, draft)
            if verify:
                require_same(chosen, draft, source)
        return _describe(source, chosen, draft, out, verify)


def _require_fit(source: Source, chosen: Format) -> None:
    size = source.store.tokenizer.vocab_size
    if size > chosen.widest:
        wide = ", ".join(name for name, each in FORMATS.items() if each.widest >= size)
        raise BadConfig(
            f"{source.artifact.ref}: {chosen.name} holds ids below {chosen.widest:,}, "
            f"the vocabulary of {source.store.tokenizer.name} has {size:,}",
            hint=f"choose another format with --to: {wide}",
        )


def _require_space(source: Source, chosen: Format, folder: Path) -> None:
    itemsize = chosen.itemsize or np.dtype(source.dtype).itemsize
    copied = [s for s in source.splits if not (chosen.links and s.bin and stream.can_link(s.bin, folder))]
    files.require_space(folder, sum(len(split.ids) for split in copied) * itemsize, option="--out")


def _describe(source: Source, chosen: Format, draft: Path, out: Path, verified: bool) -> Exported:
    paths = sorted(path for path in draft.rglob("*") if path.is_file())
    counts = source.artifact.manifest.counts
    return Exported(
        format=chosen.name,
        path=out,
        files=tuple(str(path.relative_to(draft)) for path in paths),
        tokens=sum(len(split.ids) for split in source.splits),
        documents=sum(int(counts[f"{split.name}_documents"]) for split in source.splits),
        bytes=sum(path.stat().st_size for path in paths),
        linked=sum(path.stat().st_nlink > 1 for path in paths),
        verified=verified,
    )

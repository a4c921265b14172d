"""The decompress stage: replace a `.zst` or `.gz` file by the plain file, complete or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import BadConfig, CannotCreate, InputMissing
from pipeline.readers import compression
from pipeline.runtime.progress import Progress
from pipeline.runtime.regular_file import regular_file
from pipeline.store import files
from pipeline.store.leftovers import remove_leftovers_of

COMPRESSED = (".zst", ".gz")


def decompress(paths: Sequence[Path], out: Path | None, progress: Progress) -> list[Path]:
    """Decompress each file into the folder `out` (None: beside the file) and return the new files.

    Raises BadData, without leaving an output, if a frame is truncated or other data follows the last one.
    """
    for path in paths:
        if not regular_file(path).is_file():
            raise InputMissing(f"{path}: no such file", hint="check the path")
        if path.suffix not in COMPRESSED:
            raise BadConfig(f"{path}: not a compressed file", hint="pass files that end in .zst or .gz")
    targets = [(out or path.parent) / path.stem for path in paths]
    if duplicates := {target for target in targets if targets.count(target) > 1}:
        raise BadConfig(f"two files would become {min(duplicates)}", hint="decompress them into different folders")
    remove_leftovers_of(*targets)
    if existing := [target for target in targets if target.exists()]:
        raise CannotCreate(f"{existing[0]}: already exists", hint="move it away, or choose another folder with --out")
    for path, target in zip(paths, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.new_file(target) as plain, progress.bar(f"decompress {path.name}", path.stat().st_size) as advance:
            for block in compression.read_blocks(path, advance):
                progress.safe_point(f"{target.name} was not written")
                plain.write(block)
    return targets

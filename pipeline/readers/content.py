"""The content of one file, or of one member of an archive, as a reader of a format receives it."""

from __future__ import annotations

import codecs
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import BadData
from pipeline.readers.compression import read_blocks
from pipeline.readers.documents import Note
from pipeline.readers.encoding import AUTO
from pipeline.readers.kinds import FileKind
from pipeline.runtime.progress import Advance

_MARKS = ((codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


@dataclass(frozen=True)
class ReadOptions:
    """Options of reading; `note` receives the choices that the reader made itself.

    `members` is the pattern of the files to read of an archive, "" for all; its `*` stands for any characters, `/` too.
    """

    note: Note
    encoding: str = AUTO
    text_fields: tuple[str, ...] = ()
    members: str = ""


@dataclass(frozen=True)
class Content:
    """Decompressed content: what it is, its name in errors (`label`) and in documents (`file`), and its bytes.

    `blocks` can be read once. `path` is the file itself, if that is neither compressed nor in an archive.
    """

    kind: FileKind
    label: str
    file: str
    blocks: Iterator[bytes]
    path: Path | None
    advance: Advance

    @contextmanager
    def seekable(self) -> Iterator[BinaryIO]:
        """Yield the content as a file that can be read in any order: `path`, or a temporary file."""
        if self.path:
            with open(self.path, "rb") as file:
                yield file
            self.advance(self.path.stat().st_size)
            return
        with tempfile.TemporaryFile() as copy:
            for block in self.blocks:
                try:
                    copy.write(block)
                    copy.flush()
                except OSError as error:
                    error.filename = f"{self.label}: its decompressed copy in {tempfile.gettempdir()} (TMPDIR)"
                    raise
            copy.seek(0)
            yield copy

    def utf8_blocks(self) -> Iterator[bytes]:
        """Yield the content without its byte order mark; UTF-16 and UTF-32 with a mark are converted to UTF-8."""
        blocks, head = self.blocks, b""
        while len(head) < 4 and (block := next(blocks, b"")):
            head += block
        if head.startswith(codecs.BOM_UTF8):
            return chain([head.removeprefix(codecs.BOM_UTF8)], blocks)
        for mark, encoding in _MARKS:
            if head.startswith(mark):
                return self._converted(chain([head.removeprefix(mark)], blocks), encoding)
        return chain([head], blocks)

    def _converted(self, blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
        decoder = codecs.getincrementaldecoder(encoding)()
        try:
            for block in blocks:
                yield decoder.decode(block).encode()
            yield decoder.decode(b"", final=True).encode()
        except UnicodeError as error:
            raise BadData(f"{self.label}: not {encoding} text: {error}", hint="save it as UTF-8") from None


def open_content(path: Path, kind: FileKind, advance: Advance) -> Content:
    """Return the content of a file. Its blocks are read, and bytes reported to `advance`, as they are needed."""
    is_plain = not kind.compression
    return Content(kind, str(path), path.name, read_blocks(path, advance), path if is_plain else None, advance)

"""Read the members of ZIP and tar archives one after another, without unpacking them.

Hidden members, links and files that cannot be read are left out; `Omitted` counts them. An archive within an archive
is refused. What is read is bounded in members and in bytes.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from typing import BinaryIO, cast

from pipeline.errors import BadData
from pipeline.readers import binary
from pipeline.readers.compression import check_ratio, decompress, detect_compression
from pipeline.readers.content import Content
from pipeline.readers.kinds import HEAD_BYTES, format_suffix, has_text_suffix, kind_of
from pipeline.runtime.terminal import counted

MAX_MEMBERS = 1 << 18
_BLOCK = 1 << 20
_SHOWN = 5  # reasons
_DOWNLOAD_AGAIN = "download the file again"


@dataclass
class Omitted:
    """The members of an archive that were left out: their number for each reason, and the name of the first."""

    reasons: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, reason: str) -> None:
        names = self.reasons.setdefault(reason, [])
        names.append(name if not names else "")

    def __str__(self) -> str:
        counts = [f"{counted(len(names), reason)} ({names[0]})" for reason, names in self.reasons.items()]
        more = [counted(len(counts) - _SHOWN, "more reasons")] if len(counts) > _SHOWN else []
        return ", ".join(counts[:_SHOWN] + more)


def members(content: Content, omitted: Omitted, pattern: str = "") -> Iterator[Content]:
    """Yield the content of each readable member, in the order of the archive. Read it before requesting the next one.

    With a `pattern`, only members whose names match it.

    Raises BadData if the archive is truncated, corrupt or encrypted, or has too many members or bytes.
    """
    if content.kind.archive == "zip":
        yield from _zip_members(content, omitted, pattern)
    else:
        yield from _tar_members(content, omitted, pattern)


class ZipReader:
    """The members of a ZIP archive. Their total size is limited in proportion to the size of the archive."""

    def __init__(self, archive: zipfile.ZipFile, label: str) -> None:
        self._archive, self._label = archive, label
        self._size, self._total = 0, 0  # bytes of the archive, and of what was read
        file = cast(BinaryIO, archive.fp)
        self._size = file.seek(0, io.SEEK_END)
        self._infos = {member_name(info): info for info in archive.infolist() if not info.is_dir()}
        _check_count(len(archive.infolist()), label)

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def read(self, name: str) -> bytes | None:
        """Return the content of a member, None if there is none of this name."""
        return b"".join(self.blocks(name)) if name in self._infos else None

    def blocks(self, name: str) -> Iterator[bytes]:
        """Yield the content of a member, decompressed from the archive."""
        info = self._infos[name]
        if info.flag_bits & 1:
            hint = "unpack it with the password, then name the folder"
            raise BadData(f"{self._label}: {name} is encrypted", hint=hint)
        with zip_errors(f"{self._label}: {name}", "a member of a ZIP archive"), self._archive.open(info) as file:
            while block := file.read(_BLOCK):
                self._total += len(block)
                check_ratio(self._label, self._size, self._total)
                yield block


def member_name(info: zipfile.ZipInfo) -> str:
    """Return the name of a member. Old programs wrote names in the encoding of their system, often GBK."""
    if info.flag_bits & 0x800 or info.filename.isascii():
        return info.filename
    data = info.filename.encode("cp437")
    for encoding in ("utf-8", "gb18030"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return info.filename


@contextmanager
def zip_errors(label: str, name: str) -> Iterator[None]:
    """Convert the errors of zipfile to BadData, also NotImplementedError for a compression that it does not support."""
    try:
        yield
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, UnicodeError) as error:
        raise BadData(f"{label}: not {name}, or truncated or corrupt: {error}", hint=_DOWNLOAD_AGAIN) from None


def _zip_members(content: Content, omitted: Omitted, pattern: str) -> Iterator[Content]:
    with zip_errors(content.label, "a ZIP archive"), content.seekable() as file, zipfile.ZipFile(file) as archive:
        reader = ZipReader(archive, content.label)
        for name in reader:
            if _is_left_out(name, omitted, pattern):
                continue
            if member := _member(content, name, reader.blocks(name), omitted):
                yield member


def _tar_members(content: Content, omitted: Omitted, pattern: str) -> Iterator[Content]:
    source = _TarSource(content.blocks)
    try:
        with tarfile.open(fileobj=source, mode="r|") as archive:  # type: ignore[call-overload]
            for number, info in enumerate(archive, start=1):
                _check_count(number, content.label)
                if info.isdir():
                    continue
                if not info.isreg():
                    omitted.add(info.name, "links or devices")
                elif not _is_left_out(info.name, omitted, pattern):
                    file = cast(BinaryIO, archive.extractfile(info))
                    if member := _member(content, info.name, _tar_blocks(file, content.label), omitted):
                        yield member
    except (tarfile.TarError, EOFError) as error:
        raise _tar_error(content.label, error) from None
    source.check_end(content.label)


def _tar_blocks(file: BinaryIO, label: str) -> Iterator[bytes]:
    """Yield the content of a member."""
    try:
        while block := file.read(_BLOCK):
            yield block
    except (tarfile.TarError, EOFError) as error:
        raise _tar_error(label, error) from None


def _tar_error(label: str, error: Exception) -> BadData:
    return BadData(f"{label}: truncated or corrupt tar archive: {error}", hint=_DOWNLOAD_AGAIN)


class _TarSource:
    """File object over blocks of a tar archive."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._buffer = blocks, b""
        self._last = b""  # bytes that were read last

    def read(self, size: int) -> bytes:
        while len(self._buffer) < size and (block := next(self._blocks, b"")):
            self._buffer += block
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        self._last = (self._last + data)[-tarfile.BLOCKSIZE :]
        return data

    def check_end(self, label: str) -> None:
        """Raise BadData unless the archive ended with zeros, and only zeros follow."""
        if self._last.strip(b"\0"):
            raise BadData(f"{label}: truncated tar archive, it has no end mark", hint=_DOWNLOAD_AGAIN)
        for block in chain([self._buffer], self._blocks):
            if block.strip(b"\0"):
                raise BadData(f"{label}: other data follows the end of the tar archive", hint=_DOWNLOAD_AGAIN)


def _check_count(count: int, label: str) -> None:
    if count > MAX_MEMBERS:
        raise BadData(f"{label}: more than {MAX_MEMBERS:,} members", hint="unpack it, then name the folder")


def _is_left_out(name: str, omitted: Omitted, pattern: str) -> bool:
    parts = name.split("/")
    if "__MACOSX" in parts or any(part.startswith(".") and part not in (".", "..") for part in parts):
        omitted.add(name, "hidden")
        return True
    if not has_text_suffix(parts[-1]):
        omitted.add(name, f"{format_suffix(name)} files")
        return True
    if pattern and not fnmatchcase(name, pattern):
        omitted.add(name, "not included")
        return True
    return False


def _member(content: Content, name: str, blocks: Iterator[bytes], omitted: Omitted) -> Content | None:
    """Return a member as content, None if it cannot be read; its compression is removed."""
    head, is_complete = _read_head(blocks)
    label, file = f"{content.label}: {name}", f"{content.file}/{name}"
    blocks = chain([head], blocks)
    compression = detect_compression(head)
    if compression:
        stream: io.BufferedReader = io.BufferedReader(_BlockStream(blocks), _BLOCK)
        blocks = decompress(stream, label, by_name=False)
        head, is_complete = _read_head(blocks)
        blocks = chain([head], blocks)
    kind = kind_of(
        name, head[:HEAD_BYTES], is_complete=is_complete and len(head) <= HEAD_BYTES, compression=compression
    )
    if kind.archive:
        raise BadData(f"{label}: an archive within an archive", hint="unpack the outer one, then name the folder")
    if binary.is_pointer(kind.problem):
        raise BadData(f"{label}: {kind.problem}, not the file itself", hint=binary.hint_for(kind.problem))
    if kind.problem:
        omitted.add(name, kind.problem)
        return None
    return Content(kind, label, file, blocks, None, lambda count: None)


def _read_head(blocks: Iterator[bytes]) -> tuple[bytes, bool]:
    """Return the first blocks, HEAD_BYTES or more, and True if these are all."""
    head = b""
    while len(head) < HEAD_BYTES:
        if not (block := next(blocks, b"")):
            return head, True
        head += block
    return head, False


class _BlockStream(io.RawIOBase):
    """Raw stream over blocks of bytes."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest = blocks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer))
        while not self._rest:
            if not (block := next(self._blocks, b"")):
                return 0
            self._rest = block
        size = min(len(view), len(self._rest))
        view[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

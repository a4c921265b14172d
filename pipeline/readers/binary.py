"""Recognise binary data: files of other formats by their magic numbers, and bytes that no text contains."""

from __future__ import annotations

import re

from pipeline.errors import BadData

BINARY_WINDOW = 1 << 10  # bytes in which binary data is detected
CONTROLS = bytes({*range(0x20), 0x7F} - {*b"\t\n\v\f\r\x1a\x1b"})  # rare in any text
_CHARACTERS_PER_NUL = 1_000  # fewer, and the text is refused
_NULS_IN_A_ROW = 8  # a hole that a crash left in the file

_MAGIC_NUMBERS = (  # offset, bytes, kind of file
    (0, b"%PDF", "a PDF"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Word file"),
    (0, b"{\\rtf", "an RTF file"),
    (60, b"BOOKMOBI", "a Kindle book"),
    (0, b"AT&TFORM", "a DjVu file"),
    (0, b"\x1f\x8b\x08", "gzip data"),
    (0, b"\x28\xb5\x2f\xfd", "zstd data"),
    (0, b"\xfd7zXZ\0", "xz data"),
    (4, b"1AY&SY", "bzip2 data"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"ID3\x03", "an MP3 file"),
    (0, b"ID3\x04", "an MP3 file"),
    (0, b"OggS\0", "an Ogg file"),
    (0, b"SQLite format 3\0", "an SQLite database"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"ARROW1\0\0", "an Arrow file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"GGUF\x03\0\0\0", "a GGUF model"),
    (0, b"\x7fELF", "a program"),
)
_POINTERS = (  # texts that a repository stores instead of a large file
    (re.compile(rb"version https://(?:git-lfs|hawser)\b"), "a pointer of Git LFS"),
    (re.compile(rb"[/\\]annex[/\\]objects[/\\][A-Z0-9_]+-[^\n/\\]*--[^\n/\\]+(?:\n|$)"), "a pointer of git-annex"),
    (re.compile(rb"# xet version \d+\s+filesize = \d+\s+hash = "), "a pointer of Xet"),
)
_ZIP_MEMBERS = (
    (b"mimetypeapplication/epub+zip", "an EPUB book"),
    (b"mimetypeapplication/vnd.oasis.opendocument", "an OpenDocument file"),
    (b"word/", "a Word file"),
    (b"xl/", "an Excel file"),
    (b"ppt/", "a PowerPoint file"),
)
_ZIP_NAME = 30  # offset of the name of the first member
_ZIP_FIRST = (b"mimetype", b"[Content_Types].xml", b"_rels/", b"docProps/", *(name for name, _ in _ZIP_MEMBERS))
_ZIP_WINDOW = 1 << 16  # bytes in which the names of ZIP members are searched
_HINTS = {
    "a PDF": "take its text out with `pdftotext FILE.pdf`, then read the .txt",
    "a Kindle book": "convert it to EPUB, for example with Calibre",
    "a DjVu file": "take its text out with `djvutxt`",
    "an Excel file": "save each sheet as .csv",
    "a 7z archive": "unpack it, then name the folder",
    "a RAR archive": "unpack it, then name the folder",
    "a pointer of Git LFS": "fetch the file itself with `git lfs pull`",
    "a pointer of git-annex": "fetch the file itself with `git annex get .`",
    "a pointer of Xet": "fetch the file itself from the server of its repository",
}


def describe(head: bytes) -> str:
    """Return the kind of a file by the magic number in its `head`, such as "a PDF"; "" without a known one."""
    if head.startswith(b"PK\x03\x04"):
        if not head.startswith(_ZIP_FIRST, _ZIP_NAME):  # else the names may be those of a file in the archive
            return "a ZIP archive"
        return next((name for magic, name in _ZIP_MEMBERS if magic in head[:_ZIP_WINDOW]), "a ZIP archive")
    kind = next((kind for offset, magic, kind in _MAGIC_NUMBERS if head.startswith(magic, offset)), "")
    return kind or describe_pointer(head)


def describe_pointer(head: bytes) -> str:
    """Return the kind of pointer, such as "a pointer of Git LFS", if `head` begins one, else ""."""
    return next((kind for pattern, kind in _POINTERS if pattern.match(head)), "")


def is_pointer(kind: str) -> bool:
    """Return True for a kind that `describe_pointer` returned."""
    return kind.startswith("a pointer of ")


def hint_for(kind: str) -> str:
    """Return what to do with a file that `describe` recognised."""
    return _HINTS.get(kind, "leave it out" if "image" in kind else "save its content as plain text (.txt)")


def refuse_other_formats(head: bytes) -> None:
    """Raise BadData, without the name of the file, if its `head` is in one of these formats."""
    if kind := describe(head):
        raise BadData(f"{kind}, not text", hint=hint_for(kind))


def is_binary(data: bytes) -> bool:
    """Return True if bytes contain a NUL, or more control characters than any text."""
    return b"\0" in data or len(data) - len(data.translate(None, CONTROLS)) > max(8, len(data) // 100)


def without_few_nuls(data: bytes) -> bytes:
    """Return the bytes without NULs if they have few enough for `NulFilter`, else unchanged."""
    nuls = data.count(0)
    if nuls and nuls * _CHARACTERS_PER_NUL <= len(data) and b"\0" * _NULS_IN_A_ROW not in data:
        return data.translate(None, b"\0")
    return data


class NulFilter:
    """Removes the NUL characters of a text, and refuses a text with many of them, or with many in a row.

    `count` is the number removed.
    """

    def __init__(self) -> None:
        self.count = 0
        self._characters = 0
        self._run = 0  # NULs at the end of the last piece
        self._first = 0  # offset of the first NUL in the file, in bytes

    def remove(self, piece: str, start: int, encoding: str) -> str:
        """Return a piece of decoded text that begins at byte `start` of the file, without NULs."""
        self._characters += len(piece)
        if (position := piece.find("\0")) < 0:
            self._run = 0 if piece else self._run
            return piece
        if not self.count:
            self._first = start + len(piece[:position].encode(encoding, "replace"))
        run = ("\0" * self._run + piece).find("\0" * _NULS_IN_A_ROW)
        if run >= 0:
            before = piece[: max(run - self._run, 0)]
            raise binary_error(start + len(before.encode(encoding, "replace")))
        self._run = len(piece) - len(piece.rstrip("\0"))
        text = piece.replace("\0", "")
        self.count += len(piece) - len(text)
        return text

    def check_end(self) -> None:
        """Raise BadData, without the name of the file, if the text had too many NULs."""
        if self.count * _CHARACTERS_PER_NUL > self._characters:
            raise BadData(
                f"{self.count:,} NUL characters in {self._characters:,} characters, the first at offset "
                f"{self._first:,}; up to 1 in {_CHARACTERS_PER_NUL:,} is removed",
                hint="if the rest is text, remove them with `tr -d '\\000' < FILE > NEW`",
            )


def before_binary(text: str) -> str:
    """Return the part of a text before the first NUL among its last characters, where binary data follows the text."""
    position = text.find("\0", max(0, len(text) - BINARY_WINDOW))
    return text if position < 0 else text[:position]


def binary_error(offset: int) -> BadData:
    """Return the error for binary data that begins at `offset`."""
    if offset < BINARY_WINDOW:
        return BadData(
            f"binary data, not text (at offset {offset:,})",
            hint="remove it from the input; "
            "or, if it is UTF-16 without a byte order mark, pass --encoding utf-16-le or utf-16-be",
        )
    return BadData(
        f"text up to offset {offset:,}, and binary data after it",
        hint=f"download the file again, or keep the text with `head -c {offset}`",
    )

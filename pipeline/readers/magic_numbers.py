"""Recognise by their magic numbers the formats that are no text, and say what to do with each."""

from __future__ import annotations

from pipeline.errors import BadData

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
    (0, b"version https://git-lfs.github.com/spec/", "a pointer of Git LFS"),
)
_ZIP_MEMBERS = (
    (b"mimetypeapplication/epub+zip", "an EPUB book"),
    (b"mimetypeapplication/vnd.oasis.opendocument", "an OpenDocument file"),
    (b"word/", "a Word file"),
    (b"xl/", "an Excel file"),
    (b"ppt/", "a PowerPoint file"),
)
_ZIP_WINDOW = 1 << 16  # bytes in which the names of ZIP members are searched
_HINTS = {
    "a PDF": "take its text out with `pdftotext FILE.pdf`, then read the .txt",
    "a Kindle book": "convert it to EPUB, for example with Calibre",
    "a DjVu file": "take its text out with `djvutxt`",
    "an Excel file": "save each sheet as .csv",
    "a 7z archive": "unpack it, then name the folder",
    "a RAR archive": "unpack it, then name the folder",
    "a pointer of Git LFS": "fetch the file itself with `git lfs pull`",
}


def describe(head: bytes) -> str:
    """Return what a file is whose `head` is not text, as "a PDF"; "" if it has none of these magic numbers."""
    if head.startswith(b"PK\x03\x04"):
        return next((name for magic, name in _ZIP_MEMBERS if magic in head[:_ZIP_WINDOW]), "a ZIP archive")
    return next((kind for offset, magic, kind in _MAGIC_NUMBERS if head.startswith(magic, offset)), "")


def hint_for(kind: str) -> str:
    """Return what to do with a file that `describe` recognised."""
    return _HINTS.get(kind, "leave it out" if "image" in kind else "save its content as plain text (.txt)")


def refuse_other_formats(head: bytes) -> None:
    """Raise BadData, without the name of the file, if its `head` is in one of these formats."""
    if kind := describe(head):
        raise BadData(f"{kind}, not text", hint=hint_for(kind))

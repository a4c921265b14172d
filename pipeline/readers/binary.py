"""Binary data in text: what is tolerated, what is removed, and the errors for the rest."""

from __future__ import annotations

from pipeline.errors import BadData

BINARY_WINDOW = 1 << 10  # bytes in which binary data is detected
CONTROLS = bytes({*range(0x20), 0x7F} - {*b"\t\n\v\f\r\x1a\x1b"})  # rare in any text
_CHARACTERS_PER_NUL = 1_000  # fewer, and the text is refused
_NULS_IN_A_ROW = 8  # a hole that a crash left in the file


def is_binary(data: bytes) -> bool:
    """Return True if bytes contain a NUL, or more control characters than any text."""
    return b"\0" in data or len(data) - len(data.translate(None, CONTROLS)) > max(8, len(data) // 100)


def without_few_nuls(data: bytes) -> bytes:
    """Return the bytes without NULs if they are so few that `NulFilter` removes them."""
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

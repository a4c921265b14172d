"""Documents that are both trained on and validated on: a low loss on them may be memorization."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from pipeline.errors import BadData
from pipeline.store import files
from pipeline.tokens.split import DIGEST_BYTES
from pipeline.tokens.survey import SurveyedDocument
from pipeline.tokens.worker import CHECKSUM_CHARACTERS, checksum_of


class Overlap:
    """Number the distinct validation texts, by hash and in input order, and count the documents that are trained on.

    `checksums` are those of the texts: a worker hashes only documents with one of them. `count` is the number of
    validation documents whose text is trained on, `documents` the number of all validation documents.
    """

    def __init__(self, documents: Iterable[SurveyedDocument], *, allow: bool) -> None:
        self._allow = allow
        self._numbers: dict[bytes, int] = {}
        self._copies: list[int] = []  # number of validation documents with each text, by the number of the text
        self._seen: set[int] = set()
        self.count = self.documents = 0
        checksums = set()
        for document in documents:
            self.documents += 1
            checksums.add(_checksum_of_document(document))
            number = self._numbers.setdefault(document.digest()[:DIGEST_BYTES], len(self._copies))
            if number == len(self._copies):
                self._copies.append(0)
            self._copies[number] += 1
        self.checksums = frozenset(checksums)

    def save(self, path: Path) -> None:
        """Write the hashes and checksums for other nodes, which number the texts by them."""
        files.write_file(path, msgspec.msgpack.encode(([*self._numbers], [*self.checksums])))

    @classmethod
    def load(cls, path: Path) -> Overlap:
        """Read what `save` wrote. Texts keep their numbers; `count` and `documents` stay 0."""
        digests, checksums = msgspec.msgpack.decode(path.read_bytes(), type=tuple[list[bytes], frozenset[int]])
        overlap = cls((), allow=True)
        overlap._numbers = {digest: number for number, digest in enumerate(digests)}
        overlap._copies, overlap.checksums = [0] * len(digests), checksums
        return overlap

    def numbers_of(self, digests: Iterable[bytes]) -> list[int]:
        """Return the numbers of the validation texts with these hashes; other hashes are left out."""
        return [self._numbers[digest] for digest in digests if digest in self._numbers]

    def add(self, numbers: Iterable[int]) -> None:
        """Count validation texts as trained on. Raises BadData once they are more than half, unless allowed."""
        for number in {*numbers} - self._seen:
            self._seen.add(number)
            self.count += self._copies[number]
        if not self._allow and self.count * 2 > self.documents:
            raise BadData(
                f"more than half of the {self.documents:,} validation documents are in the training text too",
                hint="name another text with --val, or accept it with --allow-overlap",
            )


def _checksum_of_document(document: SurveyedDocument) -> int:
    beginning, characters = "", 0
    for block in document.blocks():
        if characters < CHECKSUM_CHARACTERS:
            beginning += block[:CHECKSUM_CHARACTERS]
        characters += len(block)
    return checksum_of(beginning, characters)

"""Documents that are both trained on and validated on: a loss on them shows memory, not learning."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from pipeline.errors import BadData
from pipeline.store import files
from pipeline.tokens.split import DIGEST_BYTES
from pipeline.tokens.survey import SurveyedDocument
from pipeline.tokens.worker import PRINT_CHARACTERS, print_of


class Overlap:
    """The texts of the validation documents, by their hash and numbered in input order, and those trained on too.

    `prints` are checksums of the texts, by which workers select the documents to hash. `count` is the number of
    validation documents whose text is trained on, `documents` the number of all validation documents.
    """

    def __init__(self, documents: Iterable[SurveyedDocument], *, allow: bool) -> None:
        self._allow = allow
        self._numbers: dict[bytes, int] = {}
        self._copies: list[int] = []  # validation documents with the text of each number
        self._seen: set[int] = set()
        self.count = self.documents = 0
        prints = set()
        for document in documents:
            self.documents += 1
            prints.add(_print_of_document(document))
            number = self._numbers.setdefault(document.digest()[:DIGEST_BYTES], len(self._copies))
            if number == len(self._copies):
                self._copies.append(0)
            self._copies[number] += 1
        self.prints = frozenset(prints)

    def save(self, path: Path) -> None:
        """Write the hashes and prints, with which other nodes number the texts."""
        files.write_file(path, msgspec.msgpack.encode(([*self._numbers], [*self.prints])))

    @classmethod
    def load(cls, path: Path) -> Overlap:
        """Read what `save` wrote. Texts are numbered as before; `count` and `documents` are not those of the text."""
        digests, prints = msgspec.msgpack.decode(path.read_bytes(), type=tuple[list[bytes], frozenset[int]])
        overlap = cls((), allow=True)
        overlap._numbers = {digest: number for number, digest in enumerate(digests)}
        overlap._copies, overlap.prints = [0] * len(digests), prints
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


def _print_of_document(document: SurveyedDocument) -> int:
    beginning, characters = "", 0
    for block in document.blocks():
        if characters < PRINT_CHARACTERS:
            beginning += block[:PRINT_CHARACTERS]
        characters += len(block)
    return print_of(beginning, characters)

"""Read the beginning of the inputs before anything is encoded, to choose the rule that divides them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pipeline.errors import BadData, InkstoneError
from pipeline.readers import jsonl, readers
from pipeline.runtime.terminal import counted
from pipeline.sources.inputs import InputFile
from pipeline.store import artifact
from pipeline.store.generations import current_key, generation_keys
from pipeline.tokens.chunks import Chunk, LongText, split_chunks
from pipeline.tokens.split import (
    MARKED,
    SplitRule,
    digest_of,
    draw_of,
    drawn_stretches,
    rule_of,
    stretches,
    threshold_of,
)
from pipeline.tokens.tasks import DocumentFilter

FEW_DOCUMENTS = 50  # a text of fewer documents is divided into stretches,
LARGE_SHARE = 5  # and so is one of which a document has more than 1 / LARGE_SHARE of the bytes
_COUNTED_BYTES, _COUNTED_DOCUMENTS = 8 << 20, 250  # counting ends once both are reached
_LARGEST, _SMALLEST, _TINIEST = 64 << 10, 4 << 10, 64  # bytes of a stretch
_STRETCHES = 400  # minimum number, unless stretches would be smaller than _SMALLEST
_FEWEST_STRETCHES = 20  # minimum number, unless stretches would be smaller than _TINIEST


@dataclass(frozen=True)
class SurveyedDocument:
    """A document that passed the filter; a long one is decoded in blocks each time."""

    text: str | LongText

    def blocks(self) -> Iterator[str]:
        """Yield the text in blocks, up to where it cannot be decoded; then it is rejected when it is encoded."""
        if isinstance(self.text, str):
            yield self.text
            return
        with suppress(*jsonl.DECODE_ERRORS):
            yield from self.text.blocks()

    def digest(self) -> bytes:
        if isinstance(self.text, str):
            return digest_of(self.text)
        sha256 = hashlib.sha256()
        for block in self.blocks():
            sha256.update(block.encode())
        return sha256.digest()

    def size(self) -> int:
        """Return the number of bytes in UTF-8."""
        return sum(len(block) if block.isascii() else len(block.encode()) for block in self.blocks())


@dataclass(frozen=True)
class Documents:
    """The documents of some files that pass a filter, at most `limit` of them (0: all), in input order.

    `text_fields` names the fields that hold the text of a record; () chooses one.
    """

    files: Sequence[InputFile]
    filter: DocumentFilter
    limit: int = 0
    text_fields: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[SurveyedDocument]:
        count = 0
        for entry in self.files:
            for chunk in self._chunks_of(entry):
                for document in self._documents_of(chunk):
                    yield document
                    count += 1
                    if count == self.limit:
                        return

    def sizes(self) -> Iterator[int]:
        """Yield the size of each document in bytes: of its line of JSON, or with a filter of its text in UTF-8.

        Without a filter and a limit no line is decoded, which makes this several times faster.
        """
        if self.limit or self.filter != DocumentFilter():
            yield from (document.size() for document in self)
            return
        for entry in self.files:
            for chunk in self._chunks_of(entry):
                if chunk.long:
                    yield len(chunk.data)
                elif not chunk.overlong:
                    yield from filter(None, map(len, chunk.data.split(b"\n")))

    def _chunks_of(self, entry: InputFile) -> Iterator[Chunk]:
        blocks = readers.read_json_lines(
            entry.path, text_fields=self.text_fields, members=entry.members, note=lambda line: None
        )
        return split_chunks(blocks)

    def _documents_of(self, chunk: Chunk) -> Iterator[SurveyedDocument]:
        if chunk.overlong:
            return
        if not chunk.long:  # one line after the other: often a few are enough
            for line in bytes(chunk.data).split(b"\n"):
                record = jsonl.parse_line(line)
                if not isinstance(record, str) and self._is_accepted(len(record.text), record.meta):
                    yield SurveyedDocument(record.text)
            return
        try:
            document = SurveyedDocument(long := LongText(chunk.data))
        except jsonl.DECODE_ERRORS:  # rejected when it is encoded
            return
        blocks = document.blocks()
        characters = sum(map(len, blocks)) if self.filter.min_chars else len(next(blocks, ""))
        if self._is_accepted(characters, long.meta):
            yield document

    def _is_accepted(self, characters: int, meta: object) -> bool:
        return not self.filter.drop_reason(characters, jsonl.pile_set_name(meta))


def stored_rule(root: Path, name: str) -> SplitRule | None:
    """Return the rule of the current generation of some tokens, or of the newest one that can be read.

    None if that generation was divided by the marks of its conversations, which other conversations do not have.
    """
    shelf = root / "tokens" / name
    for key in (current_key(shelf), *reversed(generation_keys(shelf))):
        try:
            rule = rule_of(artifact.read(shelf / key).manifest.options) if key else None
            return None if rule == MARKED else rule
        except InkstoneError:  # damaged: it is built again with the rule of the one before
            continue
    return None


def choose_rule(documents: Documents, mode: str, fraction: float, stored: SplitRule | None) -> SplitRule:
    """Return the rule to divide documents by. `mode` is "auto", "document" or "stretch".

    The `stored` rule of the earlier generation decides mode and size, unless `mode` differs from it or it cannot
    divide this text. If the threshold leaves a split empty, it is moved until both splits have text. The result depends
    only on the inputs, the options and `stored`. Raises BadData if the text is too short to be divided.
    """
    if stored and mode in ("auto", stored.mode):
        threshold = stored.threshold if stored.fraction == fraction else threshold_of(fraction)
        rule = msgspec.structs.replace(stored, threshold=threshold, fraction=fraction)
        if settled := _settle(rule, documents):
            return settled
    mode, size = _choose_mode(documents, mode)
    rule = SplitRule(mode, _stretch_size(documents, size) if mode == "stretch" else 0, threshold_of(fraction), fraction)
    if settled := _settle(rule, documents):
        return settled
    count = sum(1 for _ in documents)
    characters = sum(len(block) for document in documents for block in document.blocks())
    message = f"{counted(count, 'documents')} of {counted(characters, 'characters')}"
    reason = " cannot be divided by documents" if mode == "document" else ": too short to hold some of it out"
    hint = "--val-fraction 0 (in a recipe `val_fraction = 0`) trains on everything; --val FILE holds out another text"
    raise BadData(f"{message}{reason}", hint=hint)


def _choose_mode(documents: Documents, mode: str) -> tuple[str, int]:
    """Return the mode, and the number of bytes counted so far, which may be fewer than the documents have."""
    count, size, largest = 0, 0, 0
    for own in () if mode == "document" else documents.sizes():
        count, size, largest = count + 1, size + own, max(largest, own)
        if mode == "stretch" and size >= _STRETCHES * _LARGEST:
            break
        if size >= _COUNTED_BYTES and count >= _COUNTED_DOCUMENTS:
            break
    if mode == "auto":
        mode = "stretch" if count < FEW_DOCUMENTS or largest * LARGE_SHARE > size else "document"
    return mode, size


def _stretch_size(documents: Documents, size: int) -> int:
    """Return the size of a stretch for `size` bytes of text: a power of two.

    The largest from 4 to 64 KiB of which there are 400; 4 KiB if there are fewer. Of text below 80 KiB, the largest
    from 64 bytes to 4 KiB that gives 20 stretches, and 64 bytes if none does.
    """
    stretch = _LARGEST
    while stretch > _SMALLEST and size < stretch * _STRETCHES:
        stretch //= 2
    if size < _FEWEST_STRETCHES * _SMALLEST:
        texts = ["".join(document.blocks()) for document in documents]
        while stretch > _TINIEST and sum(1 for text in texts for _ in stretches([text], stretch)) < _FEWEST_STRETCHES:
            stretch //= 2
    return stretch


def is_divisible(text: str, fraction: float) -> bool:
    """Return True if `fraction` of a text that is one document can be held out: False if the text is too short."""
    rule = SplitRule("stretch", _TINIEST, threshold_of(fraction), fraction)
    return _settle(rule, [SurveyedDocument(text)]) is not None


def _settle(rule: SplitRule, documents: Iterable[SurveyedDocument]) -> SplitRule | None:
    """Return the rule with a threshold that leaves no split empty, None if the text has fewer than two hashes.

    The documents are read until both splits have text. Without any documents, the rule is returned unchanged.
    """
    smallest, largest = 1 << 64, -1
    for document in documents:
        for draw in _draws(rule, document):
            smallest, largest = min(smallest, draw), max(largest, draw)
            if smallest < rule.threshold <= largest:
                return rule
    if largest < 0:
        return rule
    if smallest == largest:
        return None
    return msgspec.structs.replace(rule, threshold=min(max(rule.threshold, smallest + 1), largest))


def _draws(rule: SplitRule, document: SurveyedDocument) -> Iterator[int]:
    if rule.mode == "document":
        yield draw_of(document.digest())
        return
    for _, draw, _ in drawn_stretches(document.blocks(), rule):
        yield draw

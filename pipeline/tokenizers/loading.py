"""The way to a tokenizer: from the folder it was saved in, or by what a person calls it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pipeline.errors import BadConfig, BadData, InputMissing
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.tokenizers.characters import Characters
from pipeline.tokenizers.gigatoken import choose_encoder
from pipeline.tokenizers.integers import Integers
from pipeline.tokenizers.sentencepiece import SentencePiece
from pipeline.tokenizers.tiktoken import ENCODINGS, Tiktoken
from pipeline.tokenizers.tokenizer import CARD, Card, Tokenizer
from pipeline.tokenizers.untrusted import open_foreign


def find(root: Path, reference: str, encoder: str = "auto") -> tuple[Tokenizer, Artifact | None]:
    """The tokenizer that `reference` means: an encoding of tiktoken, a trained one by name, or a `.model` file.

    `encoder` chooses who encodes one of tiktoken's encodings; the others have no choice, and refuse one.
    """
    check_encoder(reference, encoder)
    if reference in ENCODINGS:
        return Tiktoken.named(reference, encoder), None
    path = Path(reference)
    if path.suffix == ".model" and path.is_file():
        return open_foreign(path), None
    try:
        found = artifact.find(root, "tokenizers", reference)
    except InputMissing as error:
        raise InputMissing(error.what, hint=f"{error.hint}; ready ones: {', '.join(ENCODINGS)}") from None
    if damage := artifact.problems(found, deep=True):  # it is small, and everything is made with it
        raise BadData(damage[0], hint="`train-tokenizer` it again")
    return open_folder(found.path), found


def check_encoder(reference: str, encoder: str) -> None:
    """Raises BadConfig where `encoder` cannot be chosen for the tokenizer `reference` ("": one still to be trained)."""
    if reference in ENCODINGS:
        choose_encoder(reference, encoder)
    elif encoder != "auto":
        what = reference or "a trained tokenizer"
        raise BadConfig(f"--encoder {encoder}: {what} is none of tiktoken's encodings", hint="leave it out")


def open_folder(folder: Path) -> Tokenizer:
    """The tokenizer saved in `folder`. Raises BadData when its fingerprint is not the one on its card."""
    try:
        card = msgspec.json.decode((folder / CARD).read_bytes(), type=Card)
        tokenizer = _load(card, folder)
    except FileNotFoundError as error:
        raise InputMissing(f"{error.filename}: missing", hint="build the artifact again") from None
    except (msgspec.DecodeError, ValueError) as error:  # a damaged card, or ranks or characters that do not decode
        raise BadData(f"{folder / CARD}: a damaged tokenizer: {error}", hint="build the artifact again") from None
    if tokenizer.fingerprint != card.fingerprint:
        raise BadData(
            f"{folder}: the tokenizer is {tokenizer.fingerprint}, its card says {card.fingerprint}",
            hint="the files were changed or mixed; build the artifact again",
        )
    return tokenizer


def _load(card: Card, folder: Path) -> Tokenizer:
    match card.kind:
        case Tiktoken.kind:
            return Tiktoken.load(folder, card)
        case SentencePiece.kind:
            return SentencePiece.load(folder, card)
        case Characters.kind:
            return Characters.load(folder, card)
        case Integers.kind:
            return Integers(card.vocab_size)
    raise BadData(f"{folder / CARD}: no tokenizer kind {card.kind!r}", hint="written by a newer version?")

"""Load a tokenizer from the folder it was saved in, or resolve the name that a user gives."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pipeline.errors import BadConfig, BadData, InputMissing
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.tokenizers.characters import Characters
from pipeline.tokenizers.end_of_text import missing_file, open_tokenizer_file, tokenizer_file_at
from pipeline.tokenizers.fast_tokenizer import FastTokenizer
from pipeline.tokenizers.gigatoken import choose_encoder
from pipeline.tokenizers.integers import Integers
from pipeline.tokenizers.sentencepiece import SentencePiece
from pipeline.tokenizers.tiktoken import ENCODINGS, Tiktoken
from pipeline.tokenizers.tokenizer import CARD, Tokenizer, TokenizerCard
from pipeline.tokenizers.untrusted import open_foreign


def find(root: Path, reference: str, encoder: str = "auto", end_of_text: str = "") -> tuple[Tokenizer, Artifact | None]:
    """Return the tokenizer that `reference` names, and its artifact if it was trained here.

    `reference` is one of tiktoken's encodings, the name of a trained tokenizer, a `.model` file, or a Hugging Face
    tokenizer.json or its folder. `encoder` is one of ENCODERS; only tiktoken's encodings offer a choice. `end_of_text`
    is a token of a tokenizer.json, "" for the one that its files name. Raises BadConfig, InputMissing or BadData.
    """
    check_encoder(reference, encoder)
    is_trained = reference not in ENCODINGS and artifact.current(root, "tokenizers", reference) is not None
    if not is_trained and (file := tokenizer_file_at(reference)):
        return open_tokenizer_file(file, end_of_text), None
    if end_of_text:
        raise BadConfig(
            f"--end-of-text {end_of_text}: {reference} is not a tokenizer.json, and has its own", hint="leave it out"
        )
    if reference in ENCODINGS:
        return Tiktoken.named(reference, encoder), None
    path = Path(reference)
    if path.suffix == ".model" and path.is_file():
        return open_foreign(path), None
    try:
        trained = artifact.find(root, "tokenizers", reference)
    except InputMissing as error:
        if path.is_dir():
            raise missing_file(path) from None
        raise InputMissing(error.message, hint=f"{error.hint}; ready ones: {', '.join(ENCODINGS)}") from None
    if problems := artifact.find_problems(trained, deep=True):  # small, and every later artifact depends on it
        raise BadData(problems[0], hint="`train-tokenizer` it again")
    return open_folder(trained.path), trained


def check_encoder(reference: str, encoder: str) -> None:
    """Raise BadConfig if `encoder` cannot be chosen for the tokenizer `reference` ("": one still to be trained)."""
    if reference in ENCODINGS:
        choose_encoder(reference, encoder)
    elif encoder != "auto":
        name = reference or "a trained tokenizer"
        raise BadConfig(f"--encoder {encoder}: {name} is not one of tiktoken's encodings", hint="leave it out")


def open_folder(folder: Path) -> Tokenizer:
    """Open the tokenizer saved in `folder`. Raises InputMissing, and BadData if it does not match its card."""
    try:
        card = msgspec.json.decode((folder / CARD).read_bytes(), type=TokenizerCard)
        tokenizer = _load(card, folder)
    except FileNotFoundError as error:
        raise InputMissing(f"{error.filename}: missing", hint="build the artifact again") from None
    except (msgspec.DecodeError, ValueError) as error:  # a damaged card, or ranks or characters that do not decode
        raise BadData(f"{folder / CARD}: damaged tokenizer: {error}", hint="build the artifact again") from None
    if tokenizer.fingerprint != card.fingerprint:
        raise BadData(
            f"{folder}: the card names {card.fingerprint}, the files hold {tokenizer.fingerprint}",
            hint="the files were changed or mixed; build the artifact again",
        )
    return tokenizer


def _load(card: TokenizerCard, folder: Path) -> Tokenizer:
    match card.kind:
        case Tiktoken.kind:
            return Tiktoken.load(folder, card)
        case SentencePiece.kind:
            return SentencePiece.load(folder, card)
        case FastTokenizer.kind:
            return FastTokenizer.load(folder, card)
        case Characters.kind:
            return Characters.load(folder, card)
        case Integers.kind:
            return Integers(card.vocab_size)
    raise BadData(
        f"{folder / CARD}: unknown tokenizer kind {card.kind!r}", hint="update Inkstone, or build the artifact again"
    )

"""Load a tokenizer from the folder it was saved in, resolve the name that a user gives, or choose one for a text."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from pipeline.errors import BadConfig, BadData, InputMissing
from pipeline.runtime.regular_file import regular_file
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.store.generations import names_newest_first
from pipeline.store.manifest import name_from_path
from pipeline.tokenizers.characters import Characters
from pipeline.tokenizers.chat import ChatCard, ChatTokenizer
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

    `reference` is one of tiktoken's encodings, the name of a trained tokenizer, a `.model` file, a Hugging Face
    tokenizer.json or its folder, or a run; a name is that of a run only if no tokenizer has it. `encoder` is one of
    ENCODERS; only tiktoken's encodings offer a choice. `end_of_text` is a token of a tokenizer.json, "" for the one
    that its files name. Raises BadConfig, InputMissing or BadData.
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
    if path.suffix == ".model" and regular_file(path).is_file():
        return open_foreign(path), None
    try:
        trained = artifact.find(root, "tokenizers", reference)
    except InputMissing as error:
        if tokenizer := _of_run(root, reference):
            return tokenizer, None
        if path.is_dir():
            raise missing_file(path) from None
        raise InputMissing(error.message, hint=f"{error.hint}; ready ones: {', '.join(ENCODINGS)}") from None
    if problems := artifact.find_problems(trained, deep=True):  # small, and every later artifact depends on it
        raise BadData(problems[0], hint="`train-tokenizer` it again")
    return open_folder(trained.path), trained


def _of_run(root: Path, reference: str) -> Tokenizer | None:
    """Return the tokenizer of a run that is named as `artifact.find` allows, None if there is no such run."""
    with suppress(InputMissing):
        return open_folder(artifact.find(root, "runs", reference).path)
    return None


def choose(root: Path, texts: Sequence[str], namesake: str) -> tuple[Artifact, str]:
    """Choose the tokenizer for texts, given by name; return it, and the reason unless the choice is obvious.

    A tokenizer that was trained on all of these texts is preferred: the one called `namesake`, else the newest. If none
    was, the choice is the one called `namesake`, else the only tokenizer. Raises BadConfig, with their names, if
    several tokenizers remain, InputMissing if there are no tokenizers.
    """
    names = names_newest_first(root, "tokenizers")
    tokenizers = {name: entry for name in names if (entry := artifact.current(root, "tokenizers", name))}
    wanted, all_texts = set(texts), " and ".join(dict.fromkeys(texts))
    trained = [name for name, entry in tokenizers.items() if wanted <= set(training_names(entry))]
    if namesake in trained or trained == texts[:1]:
        return tokenizers[namesake if namesake in trained else trained[0]], ""
    if trained:
        others = f", the newest of {len(trained)}: {', '.join(sorted(trained))}" if len(trained) > 1 else ""
        return tokenizers[trained[0]], f"trained on {all_texts}{others}"
    if entry := tokenizers.get(namesake) or (next(iter(tokenizers.values())) if len(tokenizers) == 1 else None):
        reason = "of the same name" if entry.manifest.name == namesake else "the only one"
        return entry, f"{reason}, trained on {' and '.join(training_names(entry))}"
    if tokenizers:
        raise BadConfig(
            f"none of the {len(tokenizers)} tokenizers was trained on {all_texts}: {', '.join(sorted(tokenizers))}",
            hint=f"name one with --tokenizer, e.g. --tokenizer {names[0]}, or run `train-tokenizer`",
        )
    raise InputMissing(
        f"no tokenizers in {root} yet", hint="`train-tokenizer` creates one, or name a ready one: --tokenizer r50k_base"
    )


def training_names(tokenizer: Artifact) -> list[str]:
    """Return the names of the corpora and files that a tokenizer was trained on."""
    return [
        entry.name.split("/")[1] if entry.role == "corpus" else name_from_path(entry.name)
        for entry in tokenizer.manifest.inputs
    ]


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
        data = regular_file(folder / CARD).read_bytes()
        card = msgspec.json.decode(data, type=TokenizerCard)
        if card.kind == ChatTokenizer.kind:
            card = msgspec.json.decode(data, type=ChatCard)
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
    if isinstance(card, ChatCard):
        return ChatTokenizer(_load(card.base, folder), card.template)
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

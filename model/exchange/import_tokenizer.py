"""The tokenizer of an imported network: chosen, and proved to be the network's own by the files in its folder.

tokenizer.json    compared id by id; the text of each token, and texts on which tokenizers differ, give the same ids
tokenizer.model   SentencePiece's, compared piece by piece; texts on which tokenizers differ give the same ids
vocab.json        token by token
vocab.txt         line by line
meta.pkl          nanoGPT's, the text of each id

Beside a tokenizer.json the others may lack tokens that were added to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np

from model.exchange.nanogpt_vocabulary import META, open_vocabulary, require_same_texts
from model.exchange.probe_texts import PROBE_TEXTS
from pipeline import tokenizers
from pipeline.errors import BadConfig, BadData
from pipeline.runtime.regular_file import regular_file
from pipeline.tokenizers import FastTokenizer, Integers, Tokenizer, require_same_ids, token_strings
from pipeline.tokenizers.tokenizer import Unencodable
from pipeline.tokenizers.tokenizer_file import TokenizerFile
from pipeline.tokenizers.untrusted import open_foreign

_JSON, _MODEL, _VOCABULARY, _LINES = "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"
_FILES = (_JSON, _MODEL, _VOCABULARY, _LINES, META)
_GPT2_VOCAB_SIZE = 50_257
_HINT = "name the tokenizer that the model was trained with, with --tokenizer"


def find_tokenizer(
    root: Path, folder: Path, vocab_size: int, reference: str = "", *, assumed: bool = False, end_of_text: str = ""
) -> Tokenizer:
    """Return the tokenizer that `reference` names; "": the folder's own, or GPT-2's for a vocabulary of its size.

    `reference` may be a meta.pkl of nanoGPT too.

    Raises BadConfig if it has more ids than the network's `vocab_size`, BadData if a file in the folder has others, and
    BadConfig if the folder has no file that proves it to be the network's, unless it is `assumed`.
    """
    reference = reference or _default(folder, vocab_size)
    if Path(reference).suffix == ".pkl":
        tokenizer = open_vocabulary(Path(reference), end_of_text)
    else:
        tokenizer, _ = tokenizers.find(root, reference, end_of_text=end_of_text)
    if tokenizer.vocab_size > vocab_size:
        raise BadConfig(f"{tokenizer.name} has {tokenizer.vocab_size:,} ids, the network {vocab_size:,}", hint=_HINT)
    present = [name for name in _FILES if regular_file(folder / name).is_file()]
    if not (present or assumed):
        raise BadConfig(
            f"{folder}: no {', '.join(_FILES[:-1])} or {_FILES[-1]} that proves {tokenizer.name} to be the network's",
            hint="copy one of them there, or pass --assume-tokenizer if you are sure",
        )
    added: frozenset[str] | None = None
    model = open_foreign(folder / _MODEL) if _MODEL in present else None
    is_own_model = model is not None and tokenizer.fingerprint == model.fingerprint
    for name in present:
        path = folder / name
        if name == _JSON:
            added = _compare_json(tokenizer, path, same_texts=not is_own_model)
        elif name == META:
            require_same_texts(tokenizer, path)
        elif model is not None and name == _MODEL:
            _compare(tokenizer, dict(enumerate(model.pieces())), path, added)
            if added is None and not is_own_model:
                _require_same_texts(tokenizer, model, _texts(tokenizer), path)
        else:
            _compare(tokenizer, _read_vocabulary(path) if name == _VOCABULARY else _read_lines(path), path, added)
    return tokenizer


def _default(folder: Path, vocab_size: int) -> str:
    for name in (_JSON, _MODEL, META):
        if regular_file(folder / name).is_file():
            return str(folder / name)
    if vocab_size == _GPT2_VOCAB_SIZE:
        return "r50k_base"
    raise BadConfig(
        f"no default tokenizer for a vocabulary of {vocab_size:,}",
        hint="name it with --tokenizer: an encoding, a trained tokenizer, a .model file, a tokenizer.json, a meta.pkl",
    )


def _compare_json(tokenizer: Tokenizer, path: Path, *, same_texts: bool) -> frozenset[str]:
    """Compare with a tokenizer.json, and return its special tokens, which our tokenizer may lack.

    Texts are compared if `same_texts`. The tokenizer.model from which a tokenizer.json was converted often gives other
    ids to spaces at the beginning of a text.
    """
    data = path.read_bytes()
    theirs = TokenizerFile(data, str(path))
    special = frozenset(token for token in theirs.special.values() if isinstance(token, str))
    if isinstance(tokenizer, FastTokenizer) and tokenizer.data == data:
        return special
    ids = {token: token_id for token_id, token in theirs.tokens.items() if isinstance(token, str)}
    require_same_ids(tokenizer, ids, str(path))
    _require_known(tokenizer, theirs.tokens, path, special)
    if not same_texts:
        return special
    texts = _texts(tokenizer)
    texts += [
        tokenizer.decode([token_id]) for token_id in range(tokenizer.vocab_size) if token_id != tokenizer.unknown_id
    ]
    _require_same_texts(tokenizer, FastTokenizer(data, str(path), tokenizer.end_of_text, theirs), texts, path)
    return special


def _compare(tokenizer: Tokenizer, theirs: Mapping[int, str], path: Path, added: frozenset[str] | None) -> None:
    """Raise BadData unless `theirs`, tokens by id, are the tokens of the tokenizer.

    `added` are the special tokens of the tokenizer.json in the same folder, None if there is none.
    """
    if added is None:
        require_same_ids(tokenizer, {token: token_id for token_id, token in theirs.items()}, str(path))
    _require_known(tokenizer, theirs, path, added or frozenset())


def _require_known(tokenizer: Tokenizer, theirs: Mapping[int, str], path: Path, special: frozenset[str]) -> None:
    """Raise BadData unless each of their tokens that is not special has the same id in our tokenizer."""
    ours = dict(enumerate(token_strings(tokenizer)))
    for token_id, token in theirs.items():
        if ours.get(token_id) != token and token not in special:
            raise BadData(
                f"{path}: {token!r} for id {token_id}, but {ours.get(token_id)!r} in {tokenizer.name}", hint=_HINT
            )


def _require_same_texts(ours: Tokenizer, theirs: Tokenizer, texts: list[str], path: Path) -> None:
    """Raise BadData at the first text to which the tokenizers give other ids."""
    with suppress(Unencodable):
        pairs = zip(ours.encode_batch(texts), theirs.encode_batch(texts), strict=True)
        if all(np.array_equal(*pair) for pair in pairs):
            return
    for text in texts:
        if _ids_of(ours, text) != _ids_of(theirs, text):
            raise BadData(f"{path}: {text[:40]!r} has other ids than in {ours.name}", hint=_HINT)


def _ids_of(tokenizer: Tokenizer, text: str) -> list[int] | None:
    try:
        return tokenizer.encode(text)
    except Unencodable:
        return None


def _texts(tokenizer: Tokenizer) -> list[str]:
    return [] if isinstance(tokenizer, Integers) else list(PROBE_TEXTS)


def _read_vocabulary(path: Path) -> dict[int, str]:
    """Return the token of each id of a vocab.json. Raises BadData if two tokens have the same id."""
    try:
        ids = msgspec.json.decode(path.read_bytes(), type=dict[str, int])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadData(f"{path}: {error}", hint="download it again") from None
    tokens: dict[int, str] = {}
    for token, token_id in ids.items():
        if (other := tokens.setdefault(token_id, token)) != token:
            raise BadData(f"{path}: {other!r} and {token!r} have the same id {token_id}", hint="download it again")
    return tokens


def _read_lines(path: Path) -> dict[int, str]:
    try:
        lines = path.read_bytes().decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise BadData(f"{path}: {error}", hint="download it again") from None
    return {number: line.removesuffix("\r") for number, line in enumerate(lines)}

"""nanoGPT's meta.pkl: the text of each id, from which the tokenizer of a network of characters follows.

Source: nanoGPT's data/shakespeare_char/prepare.py and sample.py. The pickle has plain values only, and is read as such.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from pipeline.errors import BadConfig, BadData
from pipeline.runtime.plain_pickle import load_plain_pickle
from pipeline.tokenizers import (
    END_OF_TEXT,
    Characters,
    FastTokenizer,
    Tokenizer,
    character_json,
    texts_of_ids,
    token_strings,
)

META = "meta.pkl"
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Meta(msgspec.Struct):
    vocab_size: int
    itos: dict[int, str]


def read_texts(path: Path) -> list[str]:
    """Return the text of each id. Raises BadData if the file has no texts for all ids from 0 on."""
    try:
        meta = msgspec.convert(load_plain_pickle(path), _Meta)
    except msgspec.ValidationError as error:
        raise BadData(f"{path}: {error}", hint="expected a meta.pkl of nanoGPT") from None
    if not 0 < meta.vocab_size == len(meta.itos) or meta.itos.keys() != set(range(meta.vocab_size)):
        raise BadData(
            f"{path}: {len(meta.itos):,} texts, vocab_size {meta.vocab_size:,}", hint="expected a meta.pkl of nanoGPT"
        )
    texts = [meta.itos[token] for token in range(meta.vocab_size)]
    if surrogates := _SURROGATE.findall("".join(texts)):
        raise BadData(f"{path}: {surrogates[0]!r} is not a character", hint="expected a meta.pkl of nanoGPT")
    return texts


def open_vocabulary(path: Path, end_of_text: str = "") -> Tokenizer:
    """Return the tokenizer of a network of characters. `end_of_text` is the character that ends a text.

    It is "" for a file that our export of tokens wrote, which has an id for the end of a text. Raises BadData for
    another file, and BadConfig for a vocabulary of longer texts, and if no id ends a text.
    """
    texts = read_texts(path)
    if not end_of_text and texts[0] == END_OF_TEXT:
        tokenizer = Characters("".join(texts[Characters.FIRST :]), path.parent.name)
        if list(texts_of_ids(tokenizer).values()) == texts:
            return tokenizer
    ids = {text: token for token, text in enumerate(texts)}
    end_of_text = end_of_text or (END_OF_TEXT if END_OF_TEXT in ids else "")
    if any(len(text) != 1 and text != end_of_text for text in texts):
        raise BadConfig(
            f"{path}: tokens of several characters, without the rules that divide a text into them",
            hint="name the tokenizer that the model was trained with, with --tokenizer",
        )
    if len(ids) < len(texts):
        raise BadData(f"{path}: two ids have the same text", hint="expected a meta.pkl of nanoGPT")
    if end_of_text not in ids:
        raise BadConfig(
            f"{path}: {f'no token {end_of_text!r}' if end_of_text else 'no id ends a text'}",
            hint="name a character that ends a text, or hardly occurs in one, with --end-of-text",
        )
    return FastTokenizer(character_json(ids, end_of_text), path.parent.name, ids[end_of_text])


def require_same_texts(tokenizer: Tokenizer, path: Path) -> None:
    """Raise BadData unless meta.pkl has the text of each id of the tokenizer."""
    texts, ours = read_texts(path), texts_of_ids(tokenizer)
    for token, text in ours.items():
        theirs = texts[token] if token < len(texts) else None
        names = (text, token_strings(tokenizer)[token]) if token == tokenizer.end_of_text else (text,)
        if theirs not in names:
            raise BadData(
                f"{path}: {theirs!r} for id {token}, but {text!r} in {tokenizer.name}",
                hint="name the tokenizer that the model was trained with, with --tokenizer",
            )

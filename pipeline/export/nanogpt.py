"""nanoGPT: `train.bin` and `val.bin` hold ids as <u2 without a header, `meta.pkl` the vocabulary.

Source: nanoGPT's data/openwebtext/prepare.py, train.py and sample.py.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import export_mismatch
from pipeline.export import arrays
from pipeline.export.format import Span, TokenFormat, TokenSource
from pipeline.runtime.plain_pickle import load_plain_pickle
from pipeline.tokenizers import END_OF_TEXT, Tokenizer, texts_of_ids
from pipeline.tokens import segments

_DTYPE = "<u2"  # the only one that train.py reads

# Without a meta.pkl, nanoGPT assumes GPT-2's ids, encodes prompts with tiktoken and pads the vocabulary to 50,304.
# With one, sample.py encodes prompts character by character, which would be worse for these encodings.
_GPT2_ENCODINGS = (("tiktoken", "gpt2"), ("tiktoken", "r50k_base"))


def _write(source: TokenSource, folder: Path) -> None:
    for split in source.splits:
        arrays.write_ids(folder / f"{split.name}.bin", arrays.blocks(split.ids))
    tokenizer = source.store.tokenizer
    if (tokenizer.kind, tokenizer.name) not in _GPT2_ENCODINGS:
        (folder / "meta.pkl").write_bytes(pickle.dumps(_meta(tokenizer, texts_of_ids(tokenizer)), protocol=4))


def _meta(tokenizer: Tokenizer, itos: dict[int, str]) -> dict[str, Any]:
    """Return the size of the vocabulary, and the maps `itos` and `stoi` between ids and texts that sample.py needs.

    sample.py joins the texts of `itos`, so the text of an id is the one that it has inside a text, with its space. It
    encodes a prompt character by character with `stoi`. If several ids have the same text, such as the unknown
    character and parts of characters, `stoi` has the last one, so a known character gets its own id. A character whose
    only id begins with a space gets that id.
    """
    alone = {tokenizer.decode([token]): token for token in itos}
    return {"vocab_size": len(itos), "itos": itos, "stoi": alone | {text: token for token, text in itos.items()}}


def _check(folder: Path, source: TokenSource) -> None:
    """Raise BadData unless meta.pkl has the texts to which the tokenizer decodes the ids inside a text."""
    tokenizer, path = source.store.tokenizer, folder / "meta.pkl"
    if path.exists() and load_plain_pickle(path) != _meta(tokenizer, _decoded(tokenizer)):
        raise export_mismatch(path.name, f"the texts of its ids are not those of {tokenizer.name}")


def _decoded(tokenizer: Tokenizer) -> dict[int, str]:
    """Decode each id after the first word of the vocabulary: a decoder may change an id at the beginning of a text."""
    texts = {token: tokenizer.decode([token]) for token in range(tokenizer.vocab_size)}
    words = (token for token, text in texts.items() if text.strip("\ufffd ") and token != tokenizer.unknown_id)
    first = next(words, 0)
    inside = {
        token: tokenizer.decode([first, token]).removeprefix(texts[first])
        for token, text in texts.items()
        if "\ufffd" not in text  # the parts of two characters may form a third
    }
    return texts | inside | {tokenizer.end_of_text: END_OF_TEXT}


def _read(folder: Path) -> Iterator[Span]:
    for split in segments.SPLITS:
        path = folder / f"{split}.bin"
        if path.exists():
            for ids in arrays.read_ids(path, _DTYPE):
                yield Span(split, path.name, ids)


FORMAT = TokenFormat("nanogpt", _write, _read, max_vocab_size=1 << 16, check=_check)

"""nanoGPT: `train.bin` and `val.bin` hold ids as <u2 without a header, `meta.pkl` the vocabulary.

Source: nanoGPT's data/openwebtext/prepare.py, train.py and sample.py.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.export import arrays
from pipeline.export.format import Span, TokenFormat, TokenSource
from pipeline.tokenizers import END_OF_TEXT, Tokenizer
from pipeline.tokens import segments

_DTYPE = "<u2"  # the only one that train.py reads

# Without a meta.pkl, nanoGPT assumes GPT-2's ids, encodes prompts with tiktoken and pads the vocabulary to 50,304.
# With one, sample.py encodes prompts character by character, which would be worse for these encodings.
_GPT2_ENCODINGS = (("tiktoken", "gpt2"), ("tiktoken", "r50k_base"))


def _write(source: TokenSource, folder: Path) -> None:
    for split in source.splits:
        arrays.write_split(split, folder / f"{split.name}.bin")
    tokenizer = source.store.tokenizer
    if (tokenizer.kind, tokenizer.name) not in _GPT2_ENCODINGS:
        (folder / "meta.pkl").write_bytes(pickle.dumps(_meta(tokenizer), protocol=4))


def _meta(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the size of the vocabulary, and the maps between ids and texts without which sample.py fails.

    Several ids may have the same text, such as parts of a character. `stoi` has the last of them. For a character
    that occurs in the training text, that is its own id and not that of the unknown character.
    """
    itos = {token: tokenizer.decode([token]) for token in range(tokenizer.vocab_size)}
    itos[tokenizer.end_of_text] = END_OF_TEXT
    stoi = {text: token for token, text in itos.items()}
    return {"vocab_size": tokenizer.vocab_size, "itos": itos, "stoi": stoi}


def _read(folder: Path) -> Iterator[Span]:
    for split in segments.SPLITS:
        path = folder / f"{split}.bin"
        if path.exists():
            for ids in arrays.read_ids(path, _DTYPE):
                yield Span(split, path.name, ids)


FORMAT = TokenFormat("nanogpt", _write, _read, max_vocab_size=1 << 16, links=True)

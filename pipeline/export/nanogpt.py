"""nanoGPT: `train.bin` and `val.bin`, ids as <u2 without a header; `meta.pkl` says what they mean.

Source: nanoGPT's data/openwebtext/prepare.py, train.py and sample.py.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.export import arrays as stream
from pipeline.export.format import Format, Source, Span
from pipeline.tokenizers import END_OF_TEXT, Tokenizer
from pipeline.tokens import segments

_DTYPE = "<u2"  # train.py reads nothing else

# Without a meta.pkl nanoGPT takes ids for GPT-2's, encodes prompts with tiktoken and pads the vocabulary to 50,304.
# With one, sample.py encodes a prompt character by character, which for these encodings would be the lesser way.
_DEFAULT = (("tiktoken", "gpt2"), ("tiktoken", "r50k_base"))


def _write(source: Source, folder: Path) -> None:
    for split in source.splits:
        stream.write_split(split, folder / f"{split.name}.bin")
    tokenizer = source.store.tokenizer
    if (tokenizer.kind, tokenizer.name) not in _DEFAULT:
        (folder / "meta.pkl").write_bytes(pickle.dumps(_meta(tokenizer), protocol=4))


def _meta(tokenizer: Tokenizer) -> dict[str, Any]:
    """`vocab_size`, and the text of each id and the id of each text, without which sample.py fails on any meta.pkl.

    Of ids with the same text, such as parts of a character, `stoi` has the last, which for a character that stands
    in the training text itself is its own id and not that of an unknown one.
    """
    itos = {token: tokenizer.decode([token]) for token in range(tokenizer.vocab_size)}
    itos[tokenizer.end_of_text] = END_OF_TEXT
    stoi = {text: token for token, text in itos.items()}
    return {"vocab_size": tokenizer.vocab_size, "itos": itos, "stoi": stoi}


def _read(folder: Path) -> Iterator[Span]:
    for split in segments.SPLITS:
        path = folder / f"{split}.bin"
        if path.exists():
            for ids in stream.read_ids(path, _DTYPE):
                yield Span(split, path.name, ids)


FORMAT = Format("nanogpt", _write, _read, widest=1 << 16, links=True)

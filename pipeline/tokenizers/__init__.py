"""Tokenizers: one interface over tiktoken's encodings, SentencePiece models and plain characters.

Text that spells a special token is ordinary text, always: no method here turns text into the end-of-text id.
A tokenizer is saved as a small folder (`tokenizer.json` and, where there is one, a model file), so that token arrays
and runs carry the very tokenizer they were made with.

`interface.py` says what a tokenizer is. Each kind is one module: `tiktoken.py` (with `gigatoken.py`, its fast
encoder), `sentencepiece.py`, and `characters.py` (with the numbers of the counting toy). `unfolding.py` makes text of
ids that come one at a time. `huggingface.py` writes the tokenizer.json that other programs read. `foreign.py` tries a
SentencePiece model that came from elsewhere before it is trusted, and `store.py` is the way in: it opens a saved folder
and finds what a name means.
"""

from pipeline.tokenizers.characters import Characters
from pipeline.tokenizers.detokenizer import Unfolding
from pipeline.tokenizers.gigatoken import ENCODERS, why_not_fast
from pipeline.tokenizers.huggingface import merges, pieces, require_exact, require_same_ids, spelled, tokenizer_json
from pipeline.tokenizers.integers import Integers
from pipeline.tokenizers.loading import check_encoder, find, open_folder
from pipeline.tokenizers.sentencepiece import SentencePiece
from pipeline.tokenizers.tiktoken import ENCODINGS, Tiktoken
from pipeline.tokenizers.tokenizer import END_OF_TEXT, Card, FlatIds, Tokenizer, Unencodable

__all__ = [
    "ENCODERS",
    "ENCODINGS",
    "END_OF_TEXT",
    "Card",
    "Characters",
    "FlatIds",
    "Integers",
    "SentencePiece",
    "Tiktoken",
    "Tokenizer",
    "Unencodable",
    "Unfolding",
    "check_encoder",
    "find",
    "merges",
    "open_folder",
    "pieces",
    "require_exact",
    "require_same_ids",
    "spelled",
    "tokenizer_json",
    "why_not_fast",
]

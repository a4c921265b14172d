"""Tokenizers: one interface over tiktoken, SentencePiece, Hugging Face's fast tokenizers and plain characters.

Text that spells a special token is always ordinary text: no method here turns text into the end-of-text id.
A tokenizer is saved as a small folder (`tokenizer.json` and, for some kinds, a model file), so that token arrays and
runs carry the tokenizer they were made with.

Start with `tokenizer.py`, the interface. Each kind is one module: `tiktoken.py` (with `ranks.py`, where its ranks come
from, and `gigatoken.py`, its fast encoder), `sentencepiece.py`, `fast_tokenizer.py` (with `tokenizer_file.py`, what its
file says), `characters.py` and `integers.py`. `loading.py` opens a saved folder or resolves a name; it checks
SentencePiece models of unknown origin with `untrusted.py`, and `end_of_text.py` opens a tokenizer.json from elsewhere.
`boundaries.py` says where a long text can be cut. `stage.py` trains a tokenizer on `training_text.py` with
`sentencepiece_training.py` or `byte_level.py`. `chat/` encodes conversations with any of them.
`detokenizer.py` decodes ids one at a time, and `huggingface.py` writes
the tokenizer.json that other programs read.
"""

from pipeline.tokenizers.characters import Characters
from pipeline.tokenizers.chat import ChatTokenizer
from pipeline.tokenizers.detokenizer import IncrementalDetokenizer
from pipeline.tokenizers.fast_tokenizer import FastTokenizer
from pipeline.tokenizers.gigatoken import ENCODERS, gigatoken_problem
from pipeline.tokenizers.huggingface import (
    bpe_merges,
    character_json,
    require_exportable,
    require_same_ids,
    token_strings,
    tokenizer_json,
)
from pipeline.tokenizers.integers import Integers
from pipeline.tokenizers.loading import check_encoder, choose, find, open_folder
from pipeline.tokenizers.sentencepiece import SentencePiece
from pipeline.tokenizers.tiktoken import ENCODINGS, Tiktoken
from pipeline.tokenizers.tokenizer import END_OF_TEXT, FlatIds, Tokenizer, TokenizerCard, Unencodable, texts_of_ids
from pipeline.tokenizers.tokenizer_file import bytes_to_unicode

__all__ = [
    "ENCODERS",
    "ENCODINGS",
    "END_OF_TEXT",
    "Characters",
    "ChatTokenizer",
    "FastTokenizer",
    "FlatIds",
    "IncrementalDetokenizer",
    "Integers",
    "SentencePiece",
    "Tiktoken",
    "Tokenizer",
    "TokenizerCard",
    "Unencodable",
    "bpe_merges",
    "bytes_to_unicode",
    "character_json",
    "check_encoder",
    "choose",
    "find",
    "gigatoken_problem",
    "open_folder",
    "require_exportable",
    "require_same_ids",
    "texts_of_ids",
    "token_strings",
    "tokenizer_json",
]

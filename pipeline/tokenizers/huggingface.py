"""tokenizer.json: a tokenizer of ours as Hugging Face's `tokenizers` runs it, and the proof that its ids are the same.

Every kind becomes one of its models: tiktoken's encodings and SentencePiece's BPE a BPE of merges, characters and
numbers a WordLevel of whole tokens. Unigram models do not: its Unigram adds up scores in another precision than
SentencePiece, and so decides some ties otherwise.

Text that spells the end of text is text here; there it is the end of text, as in all of Hugging Face's tokenizers,
unless `encode_special_tokens` is set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from pipeline.errors import BadConfig, BadData
from pipeline.tokenizers.characters import Characters
from pipeline.tokenizers.integers import Integers
from pipeline.tokenizers.sentencepiece import SentencePiece
from pipeline.tokenizers.tiktoken import Tiktoken
from pipeline.tokenizers.tokenizer import END_OF_TEXT, Tokenizer

UNKNOWN = "<unk>"
_LETTERS = {byte: 0x100 + n for n, byte in enumerate([*range(0x21), *range(0x7F, 0xA1), 0xAD])}
_TELLING = " Ａ①  b "  # every normaliser but the identity would change it
Piece = TypeVar("Piece", str, bytes)


def pieces(tokenizer: Tokenizer) -> list[str]:
    """What each id is called in a tokenizer.json; ids without a text get a name that no text has."""
    named = _named(tokenizer)
    return [named.get(number, f"<|unused {number}|>") for number in range(tokenizer.vocab_size)]


def _named(tokenizer: Tokenizer) -> dict[int, str]:
    match tokenizer:
        case Tiktoken():
            named = {number: spelled(token) for token, number in tokenizer.ranks.items()}
        case SentencePiece():
            return dict(enumerate(tokenizer.pieces()))
        case Characters():
            named = {tokenizer.UNKNOWN: UNKNOWN, **dict(enumerate(tokenizer.characters, tokenizer.FIRST))}
        case _:
            named = {number: str(number) for number in range(tokenizer.vocab_size)}
    return {**named, tokenizer.end_of_text: END_OF_TEXT}


def spelled(token: bytes) -> str:
    """Bytes as printable letters, a letter each: those of bytes_to_unicode in GPT-2's encoder.py."""
    return token.decode("latin-1").translate(_LETTERS)


def merges(ranks: Mapping[Piece, int]) -> list[tuple[Piece, Piece]]:
    """Every pair of pieces that make a third one, in the order in which BPE prefers them: by the rank of the third.

    Both tiktoken and SentencePiece merge any pair that makes a piece, the leftmost one first; a list of merges prefers
    the pair that stands first. So of `ab a` and `a ba` in `ab a ba`, the one that can stand to the left comes first.
    """
    found: list[tuple[Piece, Piece]] = []
    for piece in sorted(ranks, key=lambda piece: ranks[piece]):
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        pairs = [pair for pair in halves if pair[0] in ranks and pair[1] in ranks]
        found += sorted(pairs, key=lambda pair: not piece.startswith(pair[1]))
    return found


def tokenizer_json(tokenizer: Tokenizer, texts: Iterable[str]) -> bytes:
    """The bytes of a tokenizer.json, once `tokenizers` was seen to make the same ids of every piece and of `texts`.

    Raises BadConfig for a kind that cannot be exact, or without that package; BadData where an id differs.
    """
    library = _library()
    require_exact(tokenizer)
    names = pieces(tokenizer)
    vocabulary = {name: number for number, name in enumerate(names)}
    match tokenizer:
        case Tiktoken():
            parts = _tiktoken(tokenizer, vocabulary)
        case SentencePiece():
            parts = _sentencepiece(tokenizer, names)
        case Characters():
            parts = _words(vocabulary, "[\\s\\S]", "Isolated", {"type": "Fuse"})
        case Integers():
            parts = _words(vocabulary, "[\\s,]+", "Removed", None)
        case _:
            raise BadConfig(f"a tokenizer of the kind {tokenizer.kind} has no tokenizer.json")
    end = {"id": tokenizer.end_of_text, "content": names[tokenizer.end_of_text], "special": True, "normalized": False}
    made = msgspec.json.encode(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{**end, "single_word": False, "lstrip": False, "rstrip": False}],
            "normalizer": None,
            "pre_tokenizer": None,
            "post_processor": None,
            **parts,
        }
    )
    _require_same(tokenizer, names, library.from_str(made.decode()), texts)
    return made


def _tiktoken(tokenizer: Tiktoken, vocabulary: dict[str, int]) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": onig(tokenizer.pattern)}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    pairs = [(spelled(left), spelled(right)) for left, right in merges(tokenizer.ranks)]
    return {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "decoder": level,
        "model": _bpe(vocabulary, pairs, ignore_merges=True),  # a word that is a piece is that piece
    }


def onig(pattern: str) -> str:
    """A split pattern of tiktoken's for the regular expressions of `tokenizers`.

    There {1,3}+ repeats the repetition instead of keeping what it took, and $ is the end of each line.
    """
    return re.sub(r"(\{\d+,\d+\})\+", r"\1", pattern).replace("$", "\\z")


def _sentencepiece(tokenizer: SentencePiece, names: list[str]) -> dict[str, Any]:
    processor = tokenizer.processor
    words = {
        name: -round(processor.get_score(number))
        for number, name in enumerate(names)
        if not (processor.is_control(number) or processor.is_unknown(number) or processor.is_byte(number))
    }
    blank = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "decoder": {"type": "Sequence", "decoders": [blank, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": _bpe({name: number for number, name in enumerate(names)}, merges(words), byte_fallback=True),
    }


def require_exact(tokenizer: Tokenizer) -> None:
    """Raise BadConfig for a model of which other programs make other ids."""
    if not isinstance(tokenizer, SentencePiece):
        return
    rules = (
        (tokenizer.is_bpe(), "a unigram model"),
        (tokenizer.unknown_id is None, "a model without bytes for what it does not know"),
        (tokenizer.processor.normalize(_TELLING) == _TELLING.replace(" ", "▁"), "a model that normalises text"),
    )
    for holds, what in rules:
        if not holds:
            raise BadConfig(
                f"{tokenizer.name} is {what}, of which other programs make other ids",
                hint="train a tokenizer with `train-tokenizer --kind bpe`",
            )


def _bpe(
    vocabulary: dict[str, int],
    pairs: list[tuple[str, str]],
    *,
    ignore_merges: bool = False,
    byte_fallback: bool = False,
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocabulary,
        "merges": pairs,
    }


def _words(vocabulary: dict[str, int], pattern: str, behavior: str, decoder: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False},
        "decoder": decoder,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": UNKNOWN},
    }


def _require_same(tokenizer: Tokenizer, names: Sequence[str], theirs: Any, texts: Iterable[str]) -> None:
    """Raise BadData at the first id, or the first text, of which `tokenizers` makes something else than we do."""
    theirs.encode_special_tokens = True  # text that spells a special token is text, as with us
    for number, name in enumerate(names):
        if theirs.id_to_token(number) != name:
            raise _differs(tokenizer, f"id {number} is {theirs.id_to_token(number)!r} instead of {name!r}")
    own = [tokenizer.decode([number]) for number in range(tokenizer.vocab_size) if number != tokenizer.unknown_id]
    for text in [*own, *texts]:
        ids = tokenizer.encode(text)
        if theirs.encode(text, add_special_tokens=False).ids != ids:
            raise _differs(tokenizer, f"other ids of {text[:40]!r}")
        if "\ufffd" not in text and tokenizer.unknown_id not in ids and theirs.decode(ids) != tokenizer.decode(ids):
            raise _differs(tokenizer, f"another text of the ids of {text[:40]!r}")


def _library() -> Any:
    try:
        from tokenizers import Tokenizer as Library
    except ImportError:
        raise BadConfig("a tokenizer.json needs tokenizers", hint="pip install 'inkstone[exchange]'") from None
    return Library


def _differs(tokenizer: Tokenizer, what: str) -> BadData:
    return BadData(
        f"the tokenizer.json of {tokenizer.name}: {what}", hint="nothing was exported; this is worth a report"
    )


def require_same_ids(tokenizer: Tokenizer, vocabulary: Mapping[str, int], where: str) -> None:
    """Raise BadData unless `vocabulary`, the id of each piece as in a vocab.json, has the ids of our tokenizer."""
    for number, name in _named(tokenizer).items():
        if vocabulary.get(name) != number:
            raise BadData(
                f"{where}: {name!r} is {vocabulary.get(name, 'no piece')} there, and id {number} in {tokenizer.name}",
                hint="choose the tokenizer that the model was trained with, with --tokenizer",
            )

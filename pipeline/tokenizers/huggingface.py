"""Export to the tokenizer.json of Hugging Face's `tokenizers`, verified to give the same ids.

tiktoken's encodings and SentencePiece's BPE become a BPE of merges; characters and integers become a WordLevel.
Unigram models are not exported: Hugging Face's Unigram adds scores in another precision than SentencePiece, so some
ties are decided differently.

Text that spells the end-of-text token is ordinary text here. In `tokenizers` it becomes the end-of-text id unless
`encode_special_tokens` is set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from pipeline.errors import BadConfig, BadData
from pipeline.tokenizers.characters import Characters
from pipeline.tokenizers.chat import ChatTokenizer
from pipeline.tokenizers.fast_tokenizer import FastTokenizer
from pipeline.tokenizers.integers import Integers
from pipeline.tokenizers.sentencepiece import SentencePiece
from pipeline.tokenizers.tiktoken import Tiktoken
from pipeline.tokenizers.tokenizer import END_OF_TEXT, Tokenizer, Unencodable
from pipeline.tokenizers.tokenizer_file import bytes_to_unicode

UNKNOWN = "<unk>"
_NORMALIZER_PROBE = " Ａ①  b "  # every normaliser but the identity changes it
_SPACE = "▁"
Piece = TypeVar("Piece", str, bytes)


def token_strings(tokenizer: Tokenizer) -> list[str]:
    """Return the token string of each id in a tokenizer.json; ids without text get one that no text contains."""
    strings = _token_strings(tokenizer)
    return [strings.get(token_id, f"<|unused {token_id}|>") for token_id in range(tokenizer.vocab_size)]


def _token_strings(tokenizer: Tokenizer) -> dict[int, str]:
    """Return the token string of each id that has text, and of the end-of-text id."""
    match tokenizer:
        case ChatTokenizer():
            return {
                **_token_strings(tokenizer.base),
                **{token_id: token for token, token_id in tokenizer.special.items()},
            }
        case Tiktoken():
            strings = {token_id: bytes_to_unicode(token) for token, token_id in tokenizer.ranks.items()}
        case FastTokenizer():
            return tokenizer.tokens
        case SentencePiece():
            return dict(enumerate(tokenizer.pieces()))
        case Characters():
            strings = {tokenizer.UNKNOWN: UNKNOWN, **dict(enumerate(tokenizer.characters, tokenizer.FIRST))}
        case _:
            strings = {token_id: str(token_id) for token_id in range(tokenizer.vocab_size)}
    return {**strings, tokenizer.end_of_text: END_OF_TEXT}


def bpe_merges(ranks: Mapping[Piece, int]) -> list[tuple[Piece, Piece]]:
    """Return every pair of pieces that form another piece, in BPE's order: by the rank of the merged piece.

    tiktoken and SentencePiece merge any two pieces that form another one, the leftmost two first. A list of merges
    applies its own order instead. So of two pairs that form the same piece and can overlap, the one that is further
    left in the overlap comes first: of `ab a` and `a ba`, which overlap in `ab a ba`, it is `ab a`.
    """
    merge_list: list[tuple[Piece, Piece]] = []
    for piece in sorted(ranks, key=lambda piece: ranks[piece]):
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        pairs = [pair for pair in halves if pair[0] in ranks and pair[1] in ranks]
        merge_list += sorted(pairs, key=lambda pair: not piece.startswith(pair[1]))
    return merge_list


def tokenizer_json(tokenizer: Tokenizer, texts: Iterable[str]) -> bytes:
    """Return the bytes of a tokenizer.json, verified by encoding every token string and `texts` with `tokenizers`.

    A fast tokenizer is its own file, unchanged. A chat tokenizer is its base with its special tokens added, verified by
    encoding conversations of `texts` too. Raises BadConfig for a kind that cannot be exact, BadData if an id differs.
    """
    if isinstance(tokenizer, ChatTokenizer):
        texts = list(texts)
        data = _with_special_tokens(tokenizer_json(tokenizer.base, texts), tokenizer)
        _require_same_conversations(tokenizer, data, texts)
        return data
    if isinstance(tokenizer, FastTokenizer):
        _require_same(tokenizer, token_strings(tokenizer), _opened(tokenizer.data), texts)
        return tokenizer.data
    require_exportable(tokenizer)
    strings = token_strings(tokenizer)
    vocabulary = {string: token_id for token_id, string in enumerate(strings)}
    match tokenizer:
        case Tiktoken():
            parts = _tiktoken(tokenizer, vocabulary)
        case SentencePiece():
            parts = _sentencepiece(tokenizer, vocabulary)
        case Characters():
            parts = _character_level(vocabulary)
        case Integers():
            parts = _word_level(vocabulary, "[\\s,]+", "Removed", None)
        case _:
            raise BadConfig(f"a {tokenizer.kind} tokenizer cannot be exported to a tokenizer.json")
    data = _encoded(tokenizer.end_of_text, strings[tokenizer.end_of_text], parts)
    _require_same(tokenizer, strings, _opened(data), texts)
    return data


def character_json(ids: dict[str, int], end_of_text: str) -> bytes:
    """Return a tokenizer.json of characters with these ids. `end_of_text` is the one that ends a text."""
    return _encoded(ids[end_of_text], end_of_text, _character_level(ids))


def _character_level(vocabulary: dict[str, int]) -> dict[str, Any]:
    return _word_level(vocabulary, "[\\s\\S]", "Isolated", {"type": "Fuse"})


def _encoded(eos_id: int, eos: str, parts: dict[str, Any]) -> bytes:
    """Return the bytes of a tokenizer.json with one special token."""
    return msgspec.json.encode(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [_special_token(eos_id, eos)],
            "normalizer": None,
            "pre_tokenizer": None,
            "post_processor": None,
            **parts,
        }
    )


def _special_token(token_id: int, content: str) -> dict[str, Any]:
    flags = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    return {"id": token_id, "content": content, **flags}


def _with_special_tokens(data: bytes, tokenizer: ChatTokenizer) -> bytes:
    """Return a tokenizer.json with the special tokens that its base lacks."""
    added = [item for item in tokenizer.special.items() if item[1] >= tokenizer.base.vocab_size]
    if not added:
        return data
    content = msgspec.json.decode(data)
    content["added_tokens"] = [
        *(content.get("added_tokens") or []),
        *(_special_token(token_id, token) for token, token_id in added),
    ]
    return msgspec.json.encode(content)


def _require_same_conversations(tokenizer: ChatTokenizer, data: bytes, texts: Sequence[str]) -> None:
    """Raise BadData at the first special token, or conversation of `texts`, for which the ids differ from ours."""
    exported = _opened(data)
    for token, token_id in tokenizer.special.items():
        if (actual := exported.token_to_id(token)) != token_id:
            raise _differs(tokenizer, f"expected id {token_id} for {token!r}, got {actual}")
    special = [token.content for token in exported.get_added_tokens_decoder().values() if token.special]
    contents = [text.strip() for text in texts if not any(token in text for token in special)]  # it would become it
    for question, answer in zip(contents, reversed(contents), strict=True):
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        try:
            ids = tokenizer.encode_messages(messages)
        except Unencodable:  # characters without an id
            continue
        if exported.encode(tokenizer.text_of(messages), add_special_tokens=False).ids != ids:
            raise _differs(tokenizer, f"a conversation with {question[:40]!r} is encoded differently")


def _tiktoken(tokenizer: Tiktoken, vocabulary: dict[str, int]) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": onig(tokenizer.pattern)}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    pairs = [(bytes_to_unicode(first), bytes_to_unicode(second)) for first, second in bpe_merges(tokenizer.ranks)]
    return {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "decoder": level,
        "model": _bpe(vocabulary, pairs, ignore_merges=True),  # a word that is in the vocabulary is one token
    }


def onig(pattern: str) -> str:
    """Translate a split pattern of tiktoken into the regular expressions of `tokenizers` (Oniguruma).

    There, {1,3}+ repeats the repetition instead of being possessive, and $ matches at the end of each line.
    """
    return re.sub(r"(\{\d+,\d+\})\+", r"\1", pattern).replace("$", "\\z")


def _sentencepiece(tokenizer: SentencePiece, vocabulary: dict[str, int]) -> dict[str, Any]:
    processor = tokenizer.processor
    ranks = {
        piece: -round(processor.get_score(token_id))
        for piece, token_id in vocabulary.items()
        if not (processor.is_control(token_id) or processor.is_unknown(token_id) or processor.is_byte(token_id))
    }
    normalizer: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    space = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    decoders = [space, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if tokenizer.adds_prefix:  # not Metaspace, which adds none to a text that begins with a space
        prefix = {"type": "Prepend", "prepend": _SPACE}
        normalizer = {"type": "Sequence", "normalizers": [prefix, normalizer]}
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": normalizer,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(vocabulary, bpe_merges(ranks), byte_fallback=True),
    }


def require_exportable(tokenizer: Tokenizer) -> None:
    """Raise BadConfig for a SentencePiece model for which other programs would give different ids."""
    if isinstance(tokenizer, ChatTokenizer):
        require_exportable(tokenizer.base)
    if not isinstance(tokenizer, SentencePiece):
        return
    prefix = " " if tokenizer.adds_prefix else ""
    requirements = (
        (tokenizer.is_bpe(), "a unigram model"),
        (tokenizer.unknown_id is None, "a model without byte fallback"),
        (tokenizer.normalize(_NORMALIZER_PROBE) == prefix + _NORMALIZER_PROBE, "a model that normalises text"),
    )
    for is_met, description in requirements:
        if not is_met:
            raise BadConfig(
                f"{tokenizer.name} is {description}, for which other programs give different ids",
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


def _word_level(
    vocabulary: dict[str, int], pattern: str, behavior: str, decoder: dict[str, Any] | None
) -> dict[str, Any]:
    return {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False},
        "decoder": decoder,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": UNKNOWN},
    }


def _require_same(tokenizer: Tokenizer, strings: Sequence[str], exported: Any, texts: Iterable[str]) -> None:
    """Raise BadData at the first id or text for which the exported tokenizer differs from ours."""
    exported.encode_special_tokens = True  # text that spells a special token is ordinary text, as in ours
    for token_id, string in enumerate(strings):
        if (actual := exported.id_to_token(token_id)) != string:
            raise _differs(tokenizer, f"expected {string!r} for id {token_id}, got {actual!r}")
    unknown = tokenizer.unknown_id
    token_texts = [tokenizer.decode([token_id]) for token_id in range(tokenizer.vocab_size) if token_id != unknown]
    for text in [*token_texts, *texts]:
        try:
            ids = tokenizer.encode(text)
        except Unencodable:  # characters without an id
            continue
        if exported.encode(text, add_special_tokens=False).ids != ids:
            raise _differs(tokenizer, f"{text[:40]!r} is encoded differently")
        if "\ufffd" not in text and unknown not in ids and exported.decode(ids) != tokenizer.decode(ids):
            raise _differs(tokenizer, f"the ids of {text[:40]!r} are decoded differently")


def _opened(data: bytes) -> Any:
    from tokenizers import Tokenizer as HFTokenizer

    return HFTokenizer.from_buffer(data)


def _differs(tokenizer: Tokenizer, difference: str) -> BadData:
    return BadData(
        f"the tokenizer.json of {tokenizer.name}: {difference}", hint="nothing was exported; please report it"
    )


def require_same_ids(tokenizer: Tokenizer, vocabulary: Mapping[str, int], source: str) -> None:
    """Raise BadData unless `vocabulary`, token string → id as in a vocab.json, has the ids of our tokenizer."""
    for token_id, string in _token_strings(tokenizer).items():
        if vocabulary.get(string) != token_id:
            actual = vocabulary.get(string, "none")
            raise BadData(
                f"{source}: expected id {token_id} for {string!r} as in {tokenizer.name}, got {actual}",
                hint="name the tokenizer that the model was trained with, with --tokenizer",
            )

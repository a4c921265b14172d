"""Small tokenizer.json files in the shapes that published tokenizers have, trained with the library."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_SPLITS = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)


def _byte_level(split: Sequence[str], special: list[str], texts: Sequence[str]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def qwen(texts: Sequence[str]) -> str:
    """Byte-level BPE after NFC, special tokens behind the vocabulary, and added tokens that are not special."""
    tokenizer = _byte_level([QWEN_SPLIT], [], texts)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    return tokenizer.to_str()


def minimind(texts: Sequence[str]) -> str:
    """Byte-level BPE with GPT-2's pattern, and special tokens at the beginning of the vocabulary."""
    return _byte_level([], ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], texts).to_str()


def deepseek(texts: Sequence[str]) -> str:
    """Byte-level BPE after three splits, with a template that adds the begin token."""
    tokenizer = _byte_level(DEEPSEEK_SPLITS, [], texts)
    tokenizer.add_special_tokens(["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"])
    begin = tokenizer.token_to_id("<｜begin▁of▁sentence｜>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<｜begin▁of▁sentence｜> $A", special_tokens=[("<｜begin▁of▁sentence｜>", begin)]
    )
    return tokenizer.to_str()


def llama(texts: Sequence[str]) -> str:
    """BPE with byte fallback, as converted from Llama 2: no pre-tokenizer, ▁ before every text."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=["<unk>", "<s>", "</s>", *pieces], limit_alphabet=400, show_progress=False
    )
    tokenizer.train_from_iterator([line for text in texts for line in text.split(".")], trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]  # the byte pieces are ordinary tokens
    return json.dumps(content)


def unigram(texts: Sequence[str]) -> str:
    """Unigram with Metaspace, as T5 and XLM-R have it: </s> is a piece of the model too."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=2600, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


def wordpiece(texts: Sequence[str]) -> str:
    """WordPiece, as BERT has it."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=1500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer.to_str()


def wordlevel(texts: Sequence[str]) -> str:
    """One id per word between spaces; a special token is a word of the vocabulary too."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(vocab_size=800, special_tokens=["<unk>", "<eos>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


SHAPES: dict[str, Callable[[Sequence[str]], str]] = {
    shape.__name__: shape for shape in (qwen, minimind, deepseek, llama, unigram, wordpiece, wordlevel)
}
END_OF_TEXT_OF = {
    "qwen": "<|endoftext|>",
    "minimind": "<|endoftext|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "llama": "</s>",
    "unigram": "</s>",
    "wordpiece": "[SEP]",
    "wordlevel": "<eos>",
}


def library(data: bytes | str) -> Any:
    """Open a tokenizer.json as other programs do, with special tokens as ordinary text."""
    tokenizer = tokenizers.Tokenizer.from_str(data if isinstance(data, str) else data.decode())
    tokenizer.encode_special_tokens = True
    return tokenizer

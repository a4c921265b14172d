"""Open a Hugging Face tokenizer from a file or folder, and decide which of its tokens ends a text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import BadConfig, BadData, InputMissing
from pipeline.runtime.regular_file import regular_file
from pipeline.tokenizers.fast_tokenizer import FastTokenizer
from pipeline.tokenizers.tokenizer import CARD, END_OF_TEXT
from pipeline.tokenizers.tokenizer_file import TokenizerFile

TOKENIZER_JSON = "tokenizer.json"
_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")  # beside tokenizer.json
# Names that published tokenizers use: GPT-2 and Qwen, Llama 3, DeepSeek, Llama 2 and T5, Gemma, Phi, chat models, BERT.
_USUAL = (
    *(END_OF_TEXT, "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>", "<|eos|>", "[EOS]"),
    *("<|im_end|>", "<|eot_id|>", "<|end|>", "[SEP]"),
)


def tokenizer_file_at(reference: str) -> Path | None:
    """Return the tokenizer.json that a path names, itself or by its folder, None if the path has none.

    The tokenizer.json that this package saves has another form; a folder with that is an artifact, not a file.
    """
    path = Path(reference)
    file = regular_file(path if path.suffix == ".json" else path / TOKENIZER_JSON)
    return file if file.is_file() and not _is_card(file) else None


def _is_card(path: Path) -> bool:
    if path.name != CARD:
        return False
    try:
        content = msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return "fingerprint" in content and "model" not in content


def open_tokenizer_file(path: Path, end_of_text: str = "") -> FastTokenizer:
    """Open a tokenizer.json. `end_of_text` is the token that ends a text, "" for the one that its files name.

    Raises BadData if it is not a tokenizer.json, and BadConfig if no token for end-of-text is known.
    """
    name = path.resolve().parent.name if path.name == TOKENIZER_JSON else path.stem
    data = path.read_bytes()
    tokenizer_file = TokenizerFile(data, str(path))
    ids = {token: token_id for token_id, token in tokenizer_file.tokens.items()}
    special = [*tokenizer_file.special.values()]
    listed = ", ".join(special[:12]) or "none"
    if end_of_text:
        if end_of_text not in ids:
            raise BadConfig(f"--end-of-text {end_of_text}: no such token in {path}", hint=f"special tokens: {listed}")
        return FastTokenizer(data, name, ids[end_of_text], tokenizer_file)
    named = [token for token in _configured(path.parent) if token in ids]
    usual = [token for token in _USUAL if token in special]
    for token in (*named[:1], *usual[:1]):
        return FastTokenizer(data, name, ids[token], tokenizer_file)
    raise BadConfig(
        f"{path} does not say which token ends a text; its special tokens: {listed}",
        hint=f"name one: --end-of-text {special[0] if special else 'TOKEN'}",
    )


def _configured(folder: Path) -> Iterator[str]:
    """Yield the end-of-text tokens named by the configuration files beside a tokenizer.json."""
    for name in _CONFIGS:
        try:
            content: Any = msgspec.json.decode(regular_file(folder / name).read_bytes())
        except FileNotFoundError:
            continue
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadData(f"{folder / name}: not JSON: {error}", hint="download it again") from None
        token = content.get("eos_token") if isinstance(content, dict) else None
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            yield token


def missing_file(folder: Path) -> InputMissing:
    """Return the error for a folder with a tokenizer in another form than tokenizer.json."""
    if (folder / "tokenizer.model").is_file():
        return InputMissing(f"{folder} has no {TOKENIZER_JSON}", hint=f"--tokenizer {folder / 'tokenizer.model'}")
    return InputMissing(
        f"{folder} has no {TOKENIZER_JSON}",
        hint=f"transformers writes one: AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')",
    )

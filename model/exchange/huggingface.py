"""Export to Hugging Face: a folder for `AutoModelForCausalLM.from_pretrained(DIR)`.

*.py                      the network's code, only if transformers has no class for it (custom_code.py)
config.json               the network
model.safetensors         its weights in fp32
generation_config.json    the end of text and of an answer, and padding ids to suppress
tokenizer.json            the tokenizer, which was compared with ours id by id
tokenizer_config.json     how transformers loads tokenizer.json, and the chat template
tokenizer.model           the SentencePiece model, which llama.cpp's converter reads, only if it gives the same ids
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from safetensors.torch import load_file
from torch import Tensor

from model.config import GPTConfig
from model.exchange import convert, custom_code
from model.exchange.export_source import ExportSource
from model.exchange.probe_texts import PROBE_TEXTS
from model.runs import checkpoint
from pipeline.tokenizers import (
    ChatTokenizer,
    Integers,
    SentencePiece,
    Tokenizer,
    require_exportable,
    token_strings,
    tokenizer_json,
)

_WEIGHTS = "model.safetensors"


def require(config: GPTConfig, tokenizer: Tokenizer) -> None:
    """Raise BadConfig if no tokenizer.json gives the same ids as the tokenizer."""
    require_exportable(tokenizer)


def weights(source: ExportSource) -> dict[str, Tensor]:
    """Convert our weights to the names and shapes of the folder."""
    config = source.state.model
    convert_weights = custom_code.weights if custom_code.is_needed(config) else convert.to_huggingface
    return convert_weights(config, source.weights)


def write(source: ExportSource, folder: Path) -> None:
    """Write the files. Raises BadData if tokenizer.json gives other ids than ours for one of the texts."""
    config, tokenizer = source.state.model, source.tokenizer
    test_texts = () if isinstance(tokenizer, Integers) else PROBE_TEXTS
    (folder / "tokenizer.json").write_bytes(tokenizer_json(tokenizer, (*test_texts, *source.texts)))
    eos = tokenizer.end_of_text
    special_ids = {"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": eos}
    if custom_code.is_needed(config):
        custom_code.write(folder)
        fields = custom_code.config_json(config)
    else:
        fields = convert.config_to_huggingface(config)
    _write_json(folder / "config.json", fields | special_ids | {"dtype": "float32"})
    # Rows beyond the tokenizer's ids are padding and must not be sampled.
    padding = list(range(tokenizer.vocab_size, config.vocab_size))
    generation: dict[str, Any] = special_ids | ({"suppress_tokens": padding} if padding else {})
    chat: dict[str, Any] = {}
    if isinstance(tokenizer, ChatTokenizer):  # an answer ends at its end of turn
        generation["eos_token_id"] = list(dict.fromkeys([tokenizer.end_of_turn, eos]))
        chat = {"chat_template": tokenizer.template, "additional_special_tokens": list(tokenizer.special)}
    _write_json(folder / "generation_config.json", generation)
    path = folder / _WEIGHTS
    checkpoint.write_tensors(path, weights(source), {"format": "pt"})
    path.chmod((folder / "config.json").stat().st_mode)  # safetensors makes it readable for the owner only
    eos_piece = token_strings(tokenizer)[eos]
    prefix = {}
    # llama.cpp's converter reads `add_prefix_space` for Llama only; other families would get a space before each text.
    if isinstance(tokenizer, SentencePiece) and config.family == "llama":
        (folder / "tokenizer.model").write_bytes(tokenizer.processor.serialized_model_proto())
        prefix = {"add_prefix_space": False}
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": eos_piece,
            "eos_token": eos_piece,
            "pad_token": eos_piece,
            "model_max_length": config.block_size,
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            "add_bos_token": False,  # for llama.cpp's converter
            **prefix,
            **chat,
        },
    )


def read(folder: Path) -> dict[str, Tensor]:
    """Read the weights back."""
    return load_file(folder / _WEIGHTS)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")


def usage(source: ExportSource) -> str:
    """Return example code for the model card, and why it must be trusted if the folder has code."""
    name = source.run.manifest.name
    option = ", trust_remote_code=True" if custom_code.is_needed(source.state.model) else ""
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}-hf"{option})
model = AutoModelForCausalLM.from_pretrained("{name}-hf"{option})
prompt = tokenizer("...", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=50)[0]))
```{custom_code.NOTE if option else ""}"""

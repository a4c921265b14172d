"""A folder that transformers loads without code of ours: `AutoModelForCausalLM.from_pretrained(DIR)`.

config.json               the network
model.safetensors         its weights, fp32
generation_config.json    where a text ends, and which ids are none of the tokenizer's
tokenizer.json            the tokenizer, compared with ours id by id
tokenizer_config.json     that it is one of `tokenizers`, as it stands
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from safetensors.torch import load_file
from torch import Tensor

from model.exchange import convert as exchange
from model.exchange.export_source import Source
from model.runs import checkpoint
from pipeline.tokenizers import Integers, Tokenizer, pieces, require_exact, tokenizer_json

_WEIGHTS = "model.safetensors"
# What is easily got wrong: blanks, ends of lines, digits, contractions, text that spells what is special, and signs
# of several bytes.
_HARD = (
    "  double  spaces \n\n\tand a tab\r\n ",
    "It's 12345 o'clock, I'LL say; don’t they've 3,141.59?",
    "<|endoftext|> </s> <unk> <0x0A> ▁",
    "话说天下大势，分久必合。𠮷 é ﬁ 🙂",
)


def require(tokenizer: Tokenizer) -> None:
    """Raise BadConfig for a tokenizer that no tokenizer.json does exactly."""
    require_exact(tokenizer)


def write(source: Source, folder: Path) -> None:
    config, tokenizer = source.state.model, source.tokenizer
    hard = () if isinstance(tokenizer, Integers) else _HARD
    (folder / "tokenizer.json").write_bytes(tokenizer_json(tokenizer, (*hard, *source.texts)))
    end = tokenizer.end_of_text
    ends = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    _write(folder / "config.json", exchange.config_for_huggingface(config) | ends | {"dtype": "float32"})
    # Rows beyond the tokenizer's ids are padding, which nothing should choose.
    padding = list(range(tokenizer.vocab_size, config.vocab_size))
    _write(folder / "generation_config.json", ends | ({"suppress_tokens": padding} if padding else {}))
    weights = folder / _WEIGHTS
    checkpoint.write_tensors(weights, exchange.for_huggingface(config, source.weights), {"format": "pt"})
    weights.chmod((folder / "config.json").stat().st_mode)  # safetensors lets nobody else read it
    name = pieces(tokenizer)[end]
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": name,
            "eos_token": name,
            "pad_token": name,
            "model_max_length": config.block_size,
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
        },
    )


def read(folder: Path) -> dict[str, Tensor]:
    """The weights that were written."""
    return load_file(folder / _WEIGHTS)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")


def usage(name: str) -> str:
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}-hf")
model = AutoModelForCausalLM.from_pretrained("{name}-hf")
prompt = tokenizer("...", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=50)[0]))
```"""

"""One .gguf file for llama.cpp: the network, its tokenizer and its weights in fp32, to be quantised there.

The layout is that of its convert_hf_to_gguf.py, the names are those of the package `gguf`. Two of its tokenizers make
our ids: "gpt2" those of tiktoken's encodings, all of whose pieces their merges reach, where it has their split pattern;
and "llama" those of SentencePiece's BPE. Its "gpt-4o" is not that of o200k_base (नमस्ते becomes other ids), and it has
no tokenizer of characters.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from model.exchange import convert as exchange
from model.exchange.export_source import Source
from pipeline.errors import BadConfig
from pipeline.tokenizers import SentencePiece, Tiktoken, Tokenizer, merges, pieces, require_exact, spelled

# What llama.cpp calls the split patterns of encodings: by the model that first came with them.
_SPLITS = {"gpt2": "gpt-2", "r50k_base": "gpt-2", "p50k_base": "gpt-2", "cl100k_base": "dbrx"}


def require(tokenizer: Tokenizer) -> None:
    """Raise BadConfig for a tokenizer that llama.cpp does not have, or without the package that writes the format."""
    _gguf()
    if isinstance(tokenizer, SentencePiece):
        require_exact(tokenizer)
    elif not (isinstance(tokenizer, Tiktoken) and tokenizer.name in _SPLITS):
        raise BadConfig(
            f"llama.cpp has no tokenizer that makes the ids of {tokenizer.name}",
            hint=f"it has SentencePiece's BPE, and {', '.join(_SPLITS)}; `--to hf` takes others too",
        )


def _gguf() -> ModuleType:
    try:
        import gguf
    except ImportError:
        raise BadConfig("a GGUF file needs gguf", hint="pip install 'inkstone[exchange]'") from None
    return gguf


def write(source: Source, folder: Path) -> None:
    config, name = source.state.model, source.run.manifest.name
    writer = _gguf().GGUFWriter(folder / f"{name}.gguf", config.family)
    writer.add_name(name)
    writer.add_file_type(0)  # all fp32
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.hidden_width)
    writer.add_head_count(config.heads)
    writer.add_vocab_size(config.vocab_size)
    if config.family == "gpt2":
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_head_count_kv(config.kv_heads or config.heads)
        writer.add_key_length(config.head_width)
        writer.add_value_length(config.head_width)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_freq_base(config.rotary_base)
    _add_tokenizer(writer, source.tokenizer, config.vocab_size)
    for place, tensor in exchange.for_gguf(config, source.weights).items():
        writer.add_tensor(place, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(folder: Path) -> dict[str, Tensor]:
    """The weights that were written. GGUF counts the dimensions from the last one on."""
    (path,) = folder.glob("*.gguf")
    tensors = _gguf().GGUFReader(path).tensors
    return {each.name: torch.tensor(each.data).view(*reversed(each.shape.tolist())) for each in tensors}


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, rows: int) -> None:
    """`rows` is how many ids the network has: those beyond the tokenizer's are padding."""
    kinds = _gguf().TokenType
    names, types = pieces(tokenizer), [kinds.NORMAL] * tokenizer.vocab_size
    types[tokenizer.end_of_text] = kinds.CONTROL
    padding = range(tokenizer.vocab_size, rows)
    if isinstance(tokenizer, Tiktoken):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_SPLITS[tokenizer.name])
        for number in set(range(tokenizer.vocab_size)) - {*tokenizer.ranks.values(), tokenizer.end_of_text}:
            types[number] = kinds.UNUSED
        pairs = ((spelled(left), spelled(right)) for left, right in merges(tokenizer.ranks))
        writer.add_token_merges([" ".join(pair) for pair in pairs])
    else:
        assert isinstance(tokenizer, SentencePiece)
        processor = tokenizer.processor
        checks = {
            kinds.BYTE: processor.is_byte,
            kinds.UNKNOWN: processor.is_unknown,
            kinds.CONTROL: processor.is_control,
            kinds.UNUSED: processor.is_unused,
        }
        for number in range(tokenizer.vocab_size):
            types[number] = next((kind for kind, holds in checks.items() if holds(number)), kinds.NORMAL)
        scores = [processor.get_score(number) for number in range(tokenizer.vocab_size)]
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([*scores, *(-10_000.0 for _ in padding)])
        writer.add_unk_token_id(processor.unk_id())
        writer.add_add_space_prefix(False)
    writer.add_token_list([*names, *(f"[PAD{number}]" for number in padding)])
    writer.add_token_types([*types, *(kinds.UNUSED for _ in padding)])
    writer.add_bos_token_id(tokenizer.end_of_text)
    writer.add_eos_token_id(tokenizer.end_of_text)
    writer.add_add_bos_token(False)


def usage(name: str) -> str:
    return f"""```sh
llama-cli --model {name}.gguf --prompt "..." -no-cnv
```"""

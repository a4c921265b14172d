"""GGUF export for llama.cpp: one .gguf file with the config, the tokenizer and the weights in fp32 or in q8_0.

The layout is that of llama.cpp's convert_hf_to_gguf.py; names come from the package `gguf`. Two tokenizers of llama.cpp
give our ids: "gpt2" those of tiktoken encodings, if it has their split pattern (their merges reach every piece), and
"llama" those of SentencePiece BPE. Its "gpt-4o" differs from o200k_base (in the ids of नमस्ते, for example), and it has
no character tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.config import GPTConfig
from model.exchange import convert
from model.exchange.architectures import family_of
from model.exchange.export_source import ExportSource
from pipeline.errors import BadConfig, install_command
from pipeline.tokenizers import (
    ChatTokenizer,
    SentencePiece,
    Tiktoken,
    Tokenizer,
    bpe_merges,
    bytes_to_unicode,
    require_exportable,
    token_strings,
)

_GENERATION = re.compile(r"{%-?\s*(?:end)?generation\s*-?%}")  # a block that only transformers knows
_ACTIVATIONS = ("gelu", "swiglu")
# llama.cpp names the split pattern of an encoding after the first model that used it.
_SPLIT_PATTERNS = {"gpt2": "gpt-2", "r50k_base": "gpt-2", "p50k_base": "gpt-2", "cl100k_base": "dbrx"}

TYPES = ("q8_0",)  # of matrices; llama.cpp makes the others from a file in fp32


def require(config: GPTConfig, tokenizer: Tokenizer) -> None:
    """Raise BadConfig if llama.cpp has no equal network or tokenizer, or if the package `gguf` is not installed."""
    family_of(config)  # raises for a network without a counterpart
    _gguf()
    if config.activation not in _ACTIVATIONS:
        raise BadConfig(
            f"llama.cpp has no {family_of(config).architecture} with activation={config.activation}",
            hint="export with --to hf",
        )
    base = tokenizer.base if isinstance(tokenizer, ChatTokenizer) else tokenizer
    if isinstance(base, SentencePiece):
        require_exportable(base)
    elif not (isinstance(base, Tiktoken) and base.name in _SPLIT_PATTERNS):
        raise BadConfig(
            f"llama.cpp has no tokenizer that gives the ids of {tokenizer.name}",
            hint=f"export with --to hf; gguf supports SentencePiece BPE and {', '.join(_SPLIT_PATTERNS)}",
        )


def _gguf() -> ModuleType:
    try:
        import gguf
    except ImportError:
        raise BadConfig("export to GGUF needs the package gguf", hint=install_command("exchange")) from None
    return gguf


def write(source: ExportSource, folder: Path) -> None:
    """Write NAME.gguf into `folder`. Raises BadConfig if the rows of a matrix cannot be quantised."""
    package, config = _gguf(), source.state.model
    writer = package.GGUFWriter(folder / _file_name(source), family_of(config).gguf)
    writer.add_name(source.run.manifest.name)
    if source.quantize:
        writer.add_file_type(package.LlamaFileType[f"MOSTLY_{source.quantize.upper()}"])
        writer.add_quantization_version(package.GGML_QUANT_VERSION)
    else:
        writer.add_file_type(package.LlamaFileType.ALL_F32)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.hidden_width)
    writer.add_head_count(config.heads)
    writer.add_vocab_size(config.vocab_size)
    if config.norm == "layer":
        writer.add_layer_norm_eps(config.epsilon)
    if config.family == "gpt_neox":
        writer.add_parallel_residual(False)
        writer.add_rope_dimension_count(config.head_width)
        writer.add_rope_freq_base(config.rotary_base)
    if config.norm == "rms":
        writer.add_head_count_kv(config.kv_heads or config.heads)
        writer.add_key_length(config.head_width)
        writer.add_value_length(config.head_width)
        writer.add_layer_norm_rms_eps(config.epsilon)
        writer.add_rope_dimension_count(config.head_width)
        writer.add_rope_freq_base(config.rotary_base)
    _add_tokenizer(writer, source.tokenizer, config.vocab_size)
    for tensor_name, (data, tensor_type) in _tensors(source):
        writer.add_tensor(tensor_name, data, raw_dtype=tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(source: ExportSource) -> Iterator[tuple[str, tuple[np.ndarray, Any]]]:
    """Yield the name, the stored data and the type of each tensor.

    Matrices are quantised, except the positions: llama.cpp's converter keeps those and all vectors in fp32.
    """
    types, quantize = _gguf().GGMLQuantizationType, _gguf().quants.quantize
    for name, tensor in convert.to_gguf(source.state.model, source.weights).items():
        tensor_type = types.F32
        if source.quantize and tensor.ndim == 2 and name != "position_embd.weight":
            tensor_type = types[source.quantize.upper()]
            block = _gguf().GGML_QUANT_SIZES[tensor_type][0]
            if tensor.shape[1] % block:
                raise BadConfig(
                    f"--quantize {source.quantize} needs rows of a multiple of {block} weights, {name} has "
                    f"{tensor.shape[1]}",
                    hint="leave out --quantize",
                )
        yield name, (quantize(tensor.numpy(), tensor_type), tensor_type)


def weights(source: ExportSource) -> dict[str, Tensor]:
    """Convert our weights to the names, shapes and precision of the file."""
    dequantize = _gguf().quants.dequantize
    return {name: torch.from_numpy(dequantize(data, stored)) for name, (data, stored) in _tensors(source)}


def read(folder: Path) -> dict[str, Tensor]:
    """Read the weights back. GGUF lists dimensions in reverse order."""
    (path,) = folder.glob("*.gguf")
    return {
        tensor.name: torch.tensor(_gguf().quants.dequantize(tensor.data, tensor.tensor_type)).view(
            *reversed(tensor.shape.tolist())
        )
        for tensor in _gguf().GGUFReader(path).tensors
    }


def _file_name(source: ExportSource) -> str:
    return f"{'-'.join(filter(None, (source.run.manifest.name, source.quantize)))}.gguf"


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, rows: int) -> None:
    """Add the tokenizer. `rows` is the number of ids of the network; those beyond the tokenizer's are padding."""
    token_type = _gguf().TokenType
    names, types = token_strings(tokenizer), [token_type.NORMAL] * tokenizer.vocab_size
    types[tokenizer.end_of_text] = token_type.CONTROL
    special: list[int] = []
    if isinstance(tokenizer, ChatTokenizer):
        special = sorted(tokenizer.special.values())
        writer.add_eot_token_id(tokenizer.end_of_turn)
        writer.add_chat_template(_GENERATION.sub("", tokenizer.template))
    base = tokenizer.base if isinstance(tokenizer, ChatTokenizer) else tokenizer
    padding = range(tokenizer.vocab_size, rows)
    if isinstance(base, Tiktoken):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_SPLIT_PATTERNS[base.name])
        for unused_id in set(range(base.vocab_size)) - {*base.ranks.values(), base.end_of_text}:
            types[unused_id] = token_type.UNUSED
        pairs = ((bytes_to_unicode(first), bytes_to_unicode(second)) for first, second in bpe_merges(base.ranks))
        writer.add_token_merges([" ".join(pair) for pair in pairs])
    else:
        assert isinstance(base, SentencePiece)
        processor = base.processor
        checks = {
            token_type.BYTE: processor.is_byte,
            token_type.UNKNOWN: processor.is_unknown,
            token_type.CONTROL: processor.is_control,
            token_type.UNUSED: processor.is_unused,
        }
        for piece_id in range(base.vocab_size):
            matches = (kind for kind, is_kind in checks.items() if is_kind(piece_id))
            types[piece_id] = next(matches, token_type.NORMAL)
        scores = [processor.get_score(piece_id) for piece_id in range(base.vocab_size)]
        unscored = rows - base.vocab_size
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([*scores, *(-10_000.0 for _ in range(unscored))])
        writer.add_unk_token_id(processor.unk_id())
        writer.add_add_space_prefix(base.adds_prefix)
    for token_id in special:
        types[token_id] = token_type.CONTROL
    writer.add_token_list([*names, *(f"[PAD{padding_id}]" for padding_id in padding)])
    writer.add_token_types([*types, *(token_type.UNUSED for _ in padding)])
    writer.add_bos_token_id(tokenizer.end_of_text)
    writer.add_eos_token_id(tokenizer.end_of_text)
    writer.add_add_bos_token(False)


def usage(source: ExportSource) -> str:
    """Return example commands for the model card."""
    name = source.run.manifest.name
    run = f"""```sh
llama-completion --model {_file_name(source)} --prompt "..." -n 100 -no-cnv
```

In llama.cpp's builds before December 2025 the command is `llama-cli`."""
    if source.quantize:
        return f"{run} The matrices are stored as {source.quantize}."
    return f"""{run} It quantises the weights to other types, such as `Q4_K_M`:

```sh
llama-quantize {name}.gguf {name}-q4_k_m.gguf Q4_K_M
```"""

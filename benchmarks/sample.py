"""`bench sample`: tokens per second of GPT-2 small with random weights, by Inkstone, nanoGPT's method and transformers.

nanoGPT recomputes the complete text for each token; transformers has a KV cache, as Inkstone does. All use the same
weights and sample from the 50 likeliest tokens, and they run alternately.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.rows import Row
from model.device import pick_device
from model.exchange import convert
from model.generation import quantization
from model.generation.engine import sample
from model.generation.sampling import SampleOptions
from model.network.gpt import GPT
from model.presets import get_preset
from pipeline.errors import BadConfig
from pipeline.tokenizers import Integers

_NEW, _WARM, _TOP_K, _TEMPERATURE = 256, 8, 50, 0.8
_PROMPT = [464, 2068, 7586, 21831]
_MANY = 16

GenerateFunction = Callable[[int, int], int]
"""Continue a number of samples by a number of tokens each, and return the total number of new tokens."""


def bench(rounds: int, report: Callable[[str], None]) -> list[Row]:
    """Return a row for each number of samples, precision and peer, in tokens per second."""
    device = pick_device()
    config = get_preset("gpt2-124m").model
    model = GPT(config)
    model.init_weights(1)
    model = model.to(device).eval()
    peers: dict[str, GenerateFunction] = {"full recomputation for each token": _recomputing(model)}
    try:
        peers["transformers"] = _transformers(model)
    except ImportError as error:
        report(f"transformers: skipped, {error}")
    ours = {"fp32": _ours(model)}
    for precision in ("bf16", "int8"):
        try:
            ours[f"{precision} weights"] = _ours(quantization.prepare_for_decoding(copy.deepcopy(model), precision))
        except BadConfig as error:
            report(f"{precision}: skipped, {error}")
    rows = []
    for samples in (1, _MANY):
        compared = {name: generate for name, generate in peers.items() if samples == 1 or name == "transformers"}
        rates: dict[str, list[float]] = {name: [] for name in (*ours, *compared)}
        for _ in range(rounds):
            for name, generate in (ours | compared).items():
                rates[name].append(_rate(generate, samples))
        median = {name: statistics.median(values) for name, values in rates.items()}
        rows += [
            Row(f"sample {samples} x {_NEW}, {name}", median[name], median[peer], peer, "tokens/s")
            for name in ours
            for peer in compared
        ]
    return rows


def _rate(generate: GenerateFunction, samples: int) -> float:
    generate(samples, _WARM)
    start = time.perf_counter()
    return generate(samples, _NEW) / (time.perf_counter() - start)


def _ours(model: GPT) -> GenerateFunction:
    tokenizer = Integers(model.config.vocab_size)

    def run(samples: int, new: int) -> int:
        options = SampleOptions(max_tokens=new, temperature=_TEMPERATURE, top_k=_TOP_K, min_p=0.0)
        candidates = sample(model, tokenizer, [("", _PROMPT)] * samples, options)
        return sum(len(candidate.token_ids) for candidate in candidates)

    return run


def _recomputing(model: GPT) -> GenerateFunction:
    """generate of nanoGPT's model.py, on our network."""
    device = model.embedding.weight.device

    @torch.inference_mode()
    def run(samples: int, new: int) -> int:
        ids = torch.tensor([_PROMPT] * samples, device=device)
        for _ in range(new):
            states = model.hidden_states(ids[:, -model.config.block_size :])
            logits = model.logits(states[:, -1]) / _TEMPERATURE
            logits[logits < logits.topk(_TOP_K).values[:, -1:]] = -torch.inf
            ids = torch.cat((ids, torch.multinomial(logits.softmax(-1), 1)), dim=1)
        return samples * new

    return run


def _transformers(model: GPT) -> GenerateFunction:
    import transformers

    config = transformers.GPT2Config(**convert.config_to_huggingface(model.config))
    peer: Any = transformers.GPT2LMHeadModel(config)
    weights = convert.to_huggingface(model.config, dict(model.named_parameters()))
    loaded = peer.load_state_dict({name: weight.detach() for name, weight in weights.items()}, strict=False)
    assert not loaded.unexpected_keys
    peer.to(model.embedding.weight.device).eval()

    def run(samples: int, new: int) -> int:
        ids = torch.tensor([_PROMPT] * samples, device=peer.device)
        options = {"do_sample": True, "top_k": _TOP_K, "temperature": _TEMPERATURE, "eos_token_id": None}
        outputs = peer.generate(ids, max_new_tokens=new, min_new_tokens=new, pad_token_id=0, **options)
        return outputs[:, ids.shape[1] :].numel()

    return run

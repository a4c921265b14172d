"""`bench sample`: tokens per second of GPT-2 small with random weights, against two other manners, in turn.

nanoGPT reads the whole text anew for each token; transformers remembers keys and values as we do. Every way has the
same weights and draws among the 50 likeliest tokens.
"""

from __future__ import annotations

import copy
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.rows import Row
from model import device as devices
from model.exchange import convert as exchange
from model.generation import quantization as packed
from model.generation.engine import sample
from model.generation.sampling import SampleOptions
from model.network.gpt import GPT
from model.presets import preset
from pipeline.errors import BadConfig
from pipeline.tokenizers import Integers

_NEW, _WARM, _TOP_K, _TEMPERATURE = 256, 8, 50, 0.8
_PROMPT = [464, 2068, 7586, 21831]
_MANY = 16

Way = Callable[[int, int], int]
"""Continue so many samples by so many tokens; how many tokens that made."""


def bench(rounds: int, report: Callable[[str], None]) -> list[Row]:
    device = devices.pick()
    config = preset("gpt2-124m").model
    model = GPT(config)
    model.initialise(1)
    model = model.to(device).eval()
    peers: dict[str, Way] = {"all anew for each token": _recomputing(model)}
    try:
        peers["transformers"] = _transformers(model)
    except ImportError as error:
        report(f"without transformers: {error}")
    ours = {"fp32": _ours(model)}
    for precision in ("bf16", "int8"):
        try:
            ours[f"{precision} weights"] = _ours(packed.quick(copy.deepcopy(model), precision))
        except BadConfig as error:
            report(f"without {precision}: {error}")
    rows = []
    for samples in (1, _MANY):
        chosen = {name: way for name, way in peers.items() if samples == 1 or name == "transformers"}
        rates: dict[str, list[float]] = {name: [] for name in (*ours, *chosen)}
        for _ in range(rounds):
            for name, way in (ours | chosen).items():
                rates[name].append(_rate(way, samples))
        median = {name: statistics.median(each) for name, each in rates.items()}
        rows += [
            Row(f"sample {samples} x {_NEW}, {name}", median[name], median[peer], peer, "tokens/s")
            for name in ours
            for peer in chosen
        ]
    return rows


def _rate(way: Way, samples: int) -> float:
    way(samples, _WARM)
    start = time.perf_counter()
    return way(samples, _NEW) / (time.perf_counter() - start)


def _ours(model: GPT) -> Way:
    tokenizer = Integers(model.config.vocab_size)

    def run(samples: int, new: int) -> int:
        options = SampleOptions(max_tokens=new, temperature=_TEMPERATURE, top_k=_TOP_K)
        made = sample(model, tokenizer, [("", _PROMPT)] * samples, options)
        return sum(len(each.token_ids) for each in made)

    return run


def _recomputing(model: GPT) -> Way:
    """nanoGPT's model.generate."""
    device = model.embedding.weight.device

    @torch.inference_mode()
    def run(samples: int, new: int) -> int:
        ids = torch.tensor([_PROMPT] * samples, device=device)
        for _ in range(new):
            states = model.states(ids[:, -model.config.block_size :])
            logits = model.logits(states[:, -1]) / _TEMPERATURE
            logits[logits < logits.topk(_TOP_K).values[:, -1:]] = -torch.inf
            ids = torch.cat((ids, torch.multinomial(logits.softmax(-1), 1)), dim=1)
        return samples * new

    return run


def _transformers(model: GPT) -> Way:
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):  # one that is built for another torch, over which transformers would stumble
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    import transformers

    theirs: Any = transformers.GPT2LMHeadModel(transformers.GPT2Config(**exchange.config_for_huggingface(model.config)))
    weights = exchange.for_huggingface(model.config, dict(model.named_parameters()))
    loaded = theirs.load_state_dict({name: weight.detach() for name, weight in weights.items()}, strict=False)
    assert not loaded.unexpected_keys
    theirs.to(model.embedding.weight.device).eval()

    def run(samples: int, new: int) -> int:
        ids = torch.tensor([_PROMPT] * samples, device=theirs.device)
        options = {"do_sample": True, "top_k": _TOP_K, "temperature": _TEMPERATURE, "eos_token_id": None}
        made = theirs.generate(ids, max_new_tokens=new, min_new_tokens=new, pad_token_id=0, **options)
        return made[:, ids.shape[1] :].numel()

    return run

"""Untrained runs with random weights for the tests of exchange, and their import by transformers."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from model.config import GPTConfig, Preset, TrainConfig
from model.device import ExecutionConfig
from model.exchange import export
from model.network.gpt import GPT
from model.runs import checkpoint, run
from model.runs.checkpoint import CheckpointTensors, TrainState
from model.runs.run import Result
from pipeline.store import artifact, files
from pipeline.store.artifact import Artifact, StageOutput
from pipeline.store.manifest import Identity
from pipeline.tokenizers import Characters, Tokenizer

LETTERS = Characters("".join(map(chr, range(32, 127))) + "\n砚山石水□", "letters")
GPT2 = GPTConfig(vocab_size=LETTERS.vocab_size, block_size=96, layers=2, heads=4, width=32)
QWEN3 = replace(GPT2, positions="rotary", norm="rms", activation="swiglu", bias=False, qk_norm=True, kv_heads=2)
NEOX = replace(GPT2, positions="rotary")
LLAMA = replace(QWEN3, qk_norm=False)
QWEN2 = replace(LLAMA, qkv_bias=True)
CONFIGS = {
    "gpt2": GPT2,
    "gpt2 with biases in attention": replace(GPT2, qkv_bias=True),
    "gpt2 without biases, untied, padded": replace(GPT2, bias=False, tied=False, hidden=48, vocab_size=128),
    "gpt_neox": NEOX,
    "gpt_neox without biases, untied, padded": replace(
        NEOX, bias=False, qkv_bias=True, tied=False, hidden=48, rotary_base=1e6, vocab_size=128
    ),
    "gpt2 with exact gelu": replace(GPT2, activation="gelu_erf"),
    "gpt2 with relu": replace(GPT2, activation="relu", norm_epsilon=1e-3),
    "gpt_neox with exact gelu": replace(NEOX, activation="gelu_erf", norm_epsilon=1e-3),
    "llama": replace(LLAMA, norm_epsilon=1e-3, head_dim=12),
    "llama untied, padded, with all heads": replace(LLAMA, tied=False, kv_heads=0, rotary_base=1e5, vocab_size=128),
    "qwen2": QWEN2,
    "qwen2 untied, padded": replace(QWEN2, tied=False, norm_epsilon=1e-3, rotary_base=1e6, vocab_size=128),
    "qwen3": QWEN3,
    "qwen3 with wide heads": replace(QWEN3, head_dim=16, norm_epsilon=1e-3),
    "qwen3 untied, padded, with all heads": replace(QWEN3, tied=False, kv_heads=0, rotary_base=1e6, vocab_size=128),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@pytest.fixture(autouse=True, scope="module")
def single_thread_offline() -> None:
    """Use one thread, since OpenMP's threads do not survive the forks of other tests, and no network."""
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"


def random_network(config: GPTConfig, seed: int = 1) -> GPT:
    """A network in which every weight differs from its initial value, so that each norm, bias and scalar matters."""
    model = GPT(config)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return model.eval()


def publish_run(
    root: Path,
    config: GPTConfig,
    tokenizer: Tokenizer = LETTERS,
    *,
    name: str = "small",
    average: GPT | None = None,
    samples: tuple[str, ...] = (),
) -> Artifact:
    """Publish a run as training does, with a network of the config."""
    weights = dict(random_network(config).named_parameters())

    def write(draft: Path) -> StageOutput:
        tokenizer.save(draft)
        preset = {"preset": "mini", **asdict(Preset(config.family, "a test", config))}
        files.write_file(draft / run.CONFIG, msgspec.json.encode(preset))
        lines = (msgspec.json.encode({"step": 1, "prompt": text[:2], "text": text[2:]}) + b"\n" for text in samples)
        files.write_file(draft / "samples.jsonl", b"".join(lines))
        state = TrainState(
            7, 1.0, 2.5, config, TrainConfig(steps=7), ExecutionConfig("fp32", compiled=False, micro_batch=1)
        )
        tensors = CheckpointTensors(weights, {}, dict(average.named_parameters()) if average else {})
        checkpoint.save(draft / "checkpoints", state, tensors)
        step = checkpoint.folder_name(7)
        scores: dict[str, Any] = {"val_loss": 2.5, "bits_per_char": 3.25}
        scores |= {"best_val_loss": 2.5, "best_bits_per_char": 3.25}
        result = Result(7, 700, config.parameters, step, step, **scores)
        files.write_file(draft / run.RESULT, msgspec.json.encode(result))
        return StageOutput({"steps": 7, "tokens": 700, "parameters": config.parameters})

    identity = Identity("runs", name, {"model": asdict(config), "average": bool(average)}, (), tokenizer.fingerprint)
    return artifact.build(root, identity, write).artifact


def export_run(run_artifact: Artifact, format_name: str = "hf") -> Path:
    out = run_artifact.path.parents[2] / "exports" / f"{run_artifact.manifest.key}-{format_name}"
    return export.export(run_artifact, format_name, out).path


def load_in_transformers(folder: Path) -> Any:
    """Load a folder with transformers, which must find every weight there, and no unexpected one."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, problems = loaded
    assert not any(problems.values()), problems
    return model.eval()

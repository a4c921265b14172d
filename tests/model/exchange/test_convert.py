"""Export to transformers keeps the logits, and imported models are exported unchanged."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import GPTConfig
from model.exchange import convert, import_model
from model.exchange.architectures import FAMILIES, tensor_mappings
from model.generation import engine
from model.generation.sampling import SampleOptions
from model.network.gpt import GPT
from model.presets import PRESETS
from model.runs import checkpoint, run
from pipeline.errors import BadConfig, BadData
from pipeline.store.artifact import Artifact
from tests.support.exchanging import (
    CONFIGS,
    GPT2,
    LETTERS,
    LLAMA,
    NEOX,
    QWEN2,
    QWEN3,
    each_config,
    export_run,
    load_in_transformers,
    publish_run,
    random_network,
    single_thread_offline,
)
from tests.support.upstream import letters

__all__ = ["single_thread_offline"]  # fixtures


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, LETTERS.vocab_size, shape, generator=torch.Generator().manual_seed(1))


@each_config
def test_transformers_gives_our_logits(root: Path, config: GPTConfig) -> None:
    run_artifact = publish_run(root, config)
    ids = random_ids(4, config.block_size)
    with torch.no_grad():
        logits = load_in_transformers(export_run(run_artifact))(ids).logits
        expected = random_network(config)(ids)
    assert expected.std() > 0.3, "the logits differ between tokens"
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@each_config
def test_transformers_generates_the_same_greedy_tokens(root: Path, config: GPTConfig) -> None:
    model, exported = random_network(config), load_in_transformers(export_run(publish_run(root, config)))
    prompts = [random_ids(20, 30)[i, : 3 + i].tolist() for i in range(20)]
    options = SampleOptions(max_tokens=64, greedy=True)
    samples = engine.sample(model, LETTERS, [("", prompt) for prompt in prompts], options)
    for prompt, expected in zip(prompts, samples, strict=True):
        ids = torch.tensor([prompt])
        output = exported.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False)
        generated = [token for token in output[0, len(prompt) :].tolist() if token != LETTERS.end_of_text]
        assert generated == expected.token_ids


def test_the_moving_average_of_the_weights_is_exported(root: Path) -> None:
    average = random_network(GPT2, seed=2)
    run_artifact = publish_run(root, GPT2, average=average)
    ids = random_ids(1, 9)
    with torch.no_grad():
        torch.testing.assert_close(load_in_transformers(export_run(run_artifact))(ids).logits, average(ids))


def test_transformers_never_generates_padding_ids(root: Path) -> None:
    config = CONFIGS["gpt2 without biases, untied, padded"]
    exported = load_in_transformers(export_run(publish_run(root, config)))
    with torch.no_grad():
        exported.lm_head.weight[LETTERS.vocab_size :] *= 1000
    ids = random_ids(1, 5)
    output = exported.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
    assert int(output.max()) < LETTERS.vocab_size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "none"}, "positions=none"),
        ({"activation": "relu2", "softcap": 9.0}, "softcap, activation=relu2"),
        ({"heads": 4, "kv_heads": 2}, "kv_heads"),
        ({"gates": True, "values": True}, "values, gates"),
    ],
)
def test_a_network_without_counterpart_raises_and_suggests_presets(
    root: Path, changes: dict[str, Any], message: str
) -> None:
    run_artifact = publish_run(root, replace(GPT2, **changes))
    with pytest.raises(BadConfig, match=message) as caught:
        export_run(run_artifact, "gguf")
    assert "qwen-8m" in caught.value.hint
    assert not list((root / "exports").glob("*"))


def test_mappings_cover_every_weight_of_every_preset_with_a_family() -> None:
    for preset in PRESETS.values():
        if preset.model.family != "fast":
            config = replace(preset.model, vocab_size=100, layers=2)
            with torch.device("meta"):
                weights = dict(GPT(config).named_parameters())
            assert {name for mapping in tensor_mappings(config) for name in mapping.ours} >= weights.keys()


# --- import, and export again ---


def save_with_transformers(folder: Path, model_type: str, **settings: Any) -> Any:
    """Save a network of random weights with transformers, and return it."""
    import transformers

    model: transformers.PreTrainedModel
    common = {"bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.2, **settings}
    torch.manual_seed(1)
    if model_type == "gpt2":
        sizes = {"n_positions": 48, "n_embd": 24, "n_layer": 2, "n_head": 3, "vocab_size": LETTERS.vocab_size}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**sizes, **common}))
    elif model_type == "gpt_neox":
        sizes = {"max_position_embeddings": 48, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
        sizes |= {"intermediate_size": 40, "vocab_size": LETTERS.vocab_size}
        kinds: dict[str, Any] = {"use_parallel_residual": False, "rotary_pct": 1.0}
        model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**{**sizes, **kinds, **common}))
    else:
        sizes = {"max_position_embeddings": 48, "hidden_size": 24, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 40}
        sizes |= {"vocab_size": LETTERS.vocab_size} | ({"head_dim": 8} if model_type == "qwen3" else {})
        config = transformers.AutoConfig.for_model(model_type, **{**sizes, **common})
        model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():  # biases are initialised to zero, norms to one
            weight.add_(torch.randn_like(weight), alpha=0.1)
    model.save_pretrained(folder)
    return model.eval()


def import_folder(root: Path, folder: Path) -> Artifact:
    reference = str(letters(root, map(chr, range(32, 127))))
    return import_model.import_model(root, folder, "theirs", tokenizer=reference, assumed=True).artifact


def read_weights(run_artifact: Artifact) -> dict[str, torch.Tensor]:
    return checkpoint.read_weights(run.checkpoint_path(run_artifact, "last"))


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("gpt2", {}),
        ("gpt2", {"tie_word_embeddings": False, "n_inner": 40}),
        ("gpt_neox", {}),
        ("gpt_neox", {"tie_word_embeddings": True, "rotary_emb_base": 5e5, "hidden_act": "gelu_new"}),
        ("gpt2", {"activation_function": "relu", "layer_norm_epsilon": 1e-3}),
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5, "head_dim": 10}),
        ("llama", {"rms_norm_eps": 0.03, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}),
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": True, "rms_norm_eps": 0.03, "num_key_value_heads": 3}),
        ("qwen3", {"head_dim": 20, "rms_norm_eps": 0.03}),
        ("qwen3", {}),
        ("qwen3", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    ],
)
def test_an_imported_network_keeps_its_logits_and_exports_the_same_bits(
    root: Path, tmp_path: Path, model_type: str, settings: dict[str, Any]
) -> None:
    theirs = save_with_transformers(tmp_path / "theirs", model_type, **settings)
    run_artifact = import_folder(root, tmp_path / "theirs")
    ours = checkpoint.load_model(run.checkpoint_path(run_artifact, "best"), torch.device("cpu")).eval()
    ids = random_ids(2, 40) % 90
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)
    expected = load_file(tmp_path / "theirs" / "model.safetensors")
    out = export_run(run_artifact)
    exported = load_file(out / "model.safetensors")
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in expected.items())
    with torch.no_grad():
        assert torch.equal(load_in_transformers(out)(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_shards_bare_names_masks_and_tied_heads_are_read(root: Path, tmp_path: Path, model_type: str) -> None:
    save_with_transformers(tmp_path / "single", model_type)
    expected = read_weights(import_folder(root, tmp_path / "single"))
    tensors = load_file(tmp_path / "single" / "model.safetensors")
    prefix = re.compile(r"^(transformer|gpt_neox|model)\.")
    bare = {prefix.sub("", name): tensor for name, tensor in tensors.items()}
    if model_type == "gpt2":
        bare |= {"h.0.attn.bias": torch.ones(1, 1, 48, 48), "h.1.attn.masked_bias": torch.tensor(-1e4)}
        bare["lm_head.weight"] = bare["wte.weight"].clone()  # some folders store it although it is tied
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "config.json").write_bytes((tmp_path / "single" / "config.json").read_bytes())
    index = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(sorted(bare))}
    for file in set(index.values()):
        save_file({name: bare[name].clone() for name in bare if index[name] == file}, shards / file)
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    weights = read_weights(import_folder(root, shards))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_shards_in_bfloat16_are_exported_with_the_same_values(
    root: Path, tmp_path: Path, model_type: str, tied: bool
) -> None:
    theirs = save_with_transformers(tmp_path / "whole", model_type, tie_word_embeddings=tied)
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / "theirs", max_shard_size="8KB")
    shards = list((tmp_path / "theirs").glob("model-*.safetensors"))
    assert len(shards) > 1
    run_artifact = import_folder(root, tmp_path / "theirs")
    assert {tensor.dtype for tensor in read_weights(run_artifact).values()} == {torch.float32}
    exported = load_file(export_run(run_artifact) / "model.safetensors")
    expected = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], tensor.float()) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("gpt2", {"activation_function": "gelu_fast"}, "activation_function=gelu_fast"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False"),
        ("gpt2", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("gpt_neox", {"use_parallel_residual": True}, "use_parallel_residual=True"),
        ("gpt_neox", {"hidden_act": "quick_gelu"}, "hidden_act=quick_gelu"),
        ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 0.25}}, "rotary_pct=0.25"),
        ("gpt_neox", {"attention_bias": False}, "attention_bias=False"),
        ("qwen3", {"attention_bias": True}, "attention_bias=True"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window=True"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "use_sliding_window=True"),
        ("qwen3", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling=yarn"),
        ("qwen3", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_scaling=llama3"),
        ("qwen3", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ("qwen2", {"head_dim": 16}, "head_dim=16"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window=True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act=gelu"),
        ("llama", {"attention_bias": True}, "attention_bias=True"),
        ("llama", {"mlp_bias": True}, "mlp_bias=True"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved=True"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling=llama3"),
        ("mistral", {}, "model_type 'mistral'"),
    ],
)
def test_unsupported_options_are_named(model_type: str, changes: dict[str, Any], message: str) -> None:
    configs = {"qwen3": QWEN3, "qwen2": QWEN2, "llama": LLAMA, "gpt_neox": NEOX}
    config_json = convert.config_to_huggingface(configs.get(model_type, GPT2))
    with pytest.raises(BadConfig, match=message):
        convert.config_from_huggingface({**config_json, "model_type": model_type, **changes}, "config.json")


PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "Qwen3-0.6B": (
        {"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28}
        | {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960}
        | {"rms_norm_eps": 1e-6, "rope_theta": 1000000, "tie_word_embeddings": True, "vocab_size": 151936}
        | {"max_window_layers": 28, "sliding_window": None, "rope_scaling": None, "use_sliding_window": False},
        {"head_dim": 128, "norm_epsilon": 0.0, "qk_norm": True},
        596_049_920,
    ),
    "Qwen3-4B": (
        {"model_type": "qwen3", "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36}
        | {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960}
        | {"rms_norm_eps": 1e-6, "rope_theta": 1000000, "tie_word_embeddings": True, "vocab_size": 151936},
        {"head_dim": 128, "norm_epsilon": 0.0},
        4_022_468_096,
    ),
    "SmolLM2-135M": (
        {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
        | {"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "hidden_act": "silu"}
        | {"rms_norm_eps": 1e-5, "rope_theta": 100000, "tie_word_embeddings": True, "vocab_size": 49152}
        | {"attention_bias": False, "mlp_bias": False, "rope_interleaved": False, "is_llama_config": True},
        {"head_dim": 0, "norm_epsilon": 1e-5, "qkv_bias": False},
        134_515_008,
    ),
    "Qwen2.5-0.5B": (
        {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}
        | {"num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768}
        | {"rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": True, "vocab_size": 151936},
        {"head_dim": 0, "norm_epsilon": 0.0, "qkv_bias": True},
        494_032_768,
    ),
}


@pytest.mark.parametrize(("config_json", "expected", "parameters"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_configs_of_published_models_are_read(
    config_json: dict[str, Any], expected: dict[str, Any], parameters: int
) -> None:
    config = convert.config_from_huggingface(config_json, "config.json")
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.parameters == parameters
    with torch.device("meta"):
        assert (
            sum(weight.numel() for weight in GPT(replace(config, layers=1)).parameters())
            == replace(config, layers=1).parameters
        )


@pytest.mark.parametrize("changes", [{"rms_norm_eps": 0.0}, {"head_dim": 0}])
def test_a_zero_that_stands_for_our_default_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadData, match=f"{next(iter(changes))} is 0"):
        convert.config_from_huggingface(convert.config_to_huggingface(LLAMA) | changes, "config.json")


def test_absent_options_have_the_defaults_of_transformers() -> None:
    neox = {name: value for name, value in convert.config_to_huggingface(NEOX).items() if name != "hidden_act"}
    assert convert.config_from_huggingface(neox, "config.json").activation == "gelu_erf"
    qwen3 = {name: value for name, value in convert.config_to_huggingface(QWEN3).items() if name != "head_dim"}
    assert convert.config_from_huggingface(qwen3, "config.json").head_width == 128
    assert convert.config_from_huggingface(qwen3 | {"head_dim": None}, "config.json").head_width == 8


def test_absent_options_of_gpt_neox_have_the_defaults_of_transformers() -> None:
    config_json = convert.config_to_huggingface(NEOX)
    for name, default in (("rotary_pct", 0.25), ("use_parallel_residual", True)):
        rest = {field: value for field, value in config_json.items() if field != name}
        with pytest.raises(BadConfig, match=f"{name}={default}"):
            convert.config_from_huggingface(rest, "config.json")


@pytest.mark.parametrize("changes", [{"n_embd": "32"}, {"n_embd": 0}, {"n_layer": -1}, {"vocab_size": 1 << 62}])
def test_invalid_sizes_in_a_config_raise_bad_data(changes: dict[str, Any]) -> None:
    with pytest.raises(BadData):
        convert.config_from_huggingface({**convert.config_to_huggingface(GPT2), **changes}, "config.json")


@each_config
def test_a_config_survives_the_round_trip(config: GPTConfig) -> None:
    converted = convert.config_from_huggingface(convert.config_to_huggingface(config), "config.json")
    explicit = replace(config, hidden=config.hidden_width, kv_heads=converted.kv_heads)
    biases: dict[str, Any] = {"bias": True, "qkv_bias": True} if config.norm == "layer" else {}
    assert converted == replace(explicit, **biases)
    assert converted.kv_width == config.kv_width


def test_missing_unexpected_and_misshapen_tensors_are_listed() -> None:
    tensors = convert.to_huggingface(GPT2, dict(random_network(GPT2).named_parameters()))
    tensors["transformer.ln_f.weight"] = torch.zeros(31)
    tensors["transformer.h.9.ln_1.weight"] = tensors.pop("transformer.wpe.weight")
    with pytest.raises(BadData) as caught:
        convert.from_huggingface(replace(GPT2, qkv_bias=True), tensors, "here")
    for problem in ("wpe.weight is missing", "h.9.ln_1.weight is unexpected", "ln_f.weight is 31, not 32"):
        assert problem in caught.value.message


def test_a_tied_head_that_differs_from_the_embedding_raises() -> None:
    tensors = convert.to_huggingface(GPT2, dict(random_network(GPT2).named_parameters()))
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1
    with pytest.raises(BadData, match="tie_word_embeddings"):
        convert.from_huggingface(GPT2, tensors, "here")

"""transformers makes of an exported run what we make of it, and what came from there goes back unchanged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import GPTConfig
from model.exchange import architectures as families
from model.exchange import convert as exchange
from model.exchange import import_model as adoption
from model.generation import engine as generate
from model.generation.sampling import SampleOptions
from model.network.gpt import GPT
from model.presets import PRESETS
from model.runs import checkpoint, run
from pipeline.errors import BadConfig, BadData
from pipeline.store.artifact import Artifact
from tests.support.exchanging import (
    CONFIGS,
    EVERY,
    GPT2,
    LETTERS,
    QWEN3,
    alone,
    exported,
    network,
    published,
    their_model,
)
from tests.support.upstream import letters

__all__ = ["alone"]  # fixtures


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, LETTERS.vocab_size, shape, generator=torch.Generator().manual_seed(1))


@EVERY
def test_transformers_gives_our_logits(root: Path, config: GPTConfig) -> None:
    found = published(root, config)
    some = ids(4, config.block_size)
    with torch.no_grad():
        ours, theirs = network(config)(some), their_model(exported(found))(some).logits
    assert ours.std() > 0.3, "they say something"
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


@EVERY
def test_transformers_goes_on_greedily_with_the_same_tokens(root: Path, config: GPTConfig) -> None:
    model, theirs = network(config), their_model(exported(published(root, config)))
    prompts = [ids(20, 30)[number, : 3 + number].tolist() for number in range(20)]
    options = SampleOptions(max_tokens=64, greedy=True)
    own = generate.sample(model, LETTERS, [("", each) for each in prompts], options)
    for prompt, ours in zip(prompts, own, strict=True):
        given = torch.tensor([prompt])
        made = theirs.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=64, do_sample=False)
        made = [token for token in made[0, len(prompt) :].tolist() if token != LETTERS.end_of_text]
        assert made == ours.token_ids


def test_the_average_of_the_weights_is_what_is_exported(root: Path) -> None:
    average = network(GPT2, seed=2)
    found = published(root, GPT2, average=average)
    with torch.no_grad():
        torch.testing.assert_close(their_model(exported(found))(ids(1, 9)).logits, average(ids(1, 9)))


def test_ids_beyond_the_tokenizer_are_never_chosen(root: Path) -> None:
    config = CONFIGS["gpt2 without biases, untied, padded"]
    theirs = their_model(exported(published(root, config)))
    with torch.no_grad():
        theirs.lm_head.weight[LETTERS.vocab_size :] *= 1000
    given = ids(1, 5)
    made = theirs.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=40, do_sample=False)
    assert int(made.max()) < LETTERS.vocab_size


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"positions": "rotary"}, "positions=rotary"),
        ({"activation": "relu2", "softcap": 9.0}, "softcap, activation=relu2"),
        ({"heads": 4, "kv_heads": 2}, "kv_heads"),
        ({"gates": True, "values": True}, "values, gates"),
    ],
)
def test_a_network_that_others_do_not_have_is_refused_with_its_parts_and_presets_that_they_have(
    root: Path, change: dict[str, Any], named: str
) -> None:
    found = published(root, replace(GPT2, **change))
    with pytest.raises(BadConfig, match=named) as refused:
        exported(found)
    assert "qwen-8m" in refused.value.hint
    assert not list((root / "exports").glob("*"))


def test_every_preset_with_a_family_has_a_place_for_every_weight() -> None:
    for preset in PRESETS.values():
        if preset.model.family != "fast":
            config = replace(preset.model, vocab_size=100, layers=2)
            with torch.device("meta"):
                weights = dict(GPT(config).named_parameters())
            assert {name for place in families.places(config) for name in place.ours} >= weights.keys()


# --- from there, and back ---


def foreign(folder: Path, kind: str, **settings: Any) -> Any:
    """A network of random weights as transformers saves it."""
    import transformers

    common = {"bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.2, **settings}
    torch.manual_seed(1)
    if kind == "gpt2":
        sizes = {"n_positions": 48, "n_embd": 24, "n_layer": 2, "n_head": 3, "vocab_size": LETTERS.vocab_size}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**sizes, **common}))
    else:
        sizes = {"max_position_embeddings": 48, "hidden_size": 24, "num_hidden_layers": 2, "head_dim": 8}
        sizes |= {"num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 40}
        sizes |= {"vocab_size": LETTERS.vocab_size}
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**{**sizes, **common}))
    with torch.no_grad():
        for weight in model.parameters():  # biases begin at zero, norms at one
            weight.add_(torch.randn_like(weight), alpha=0.1)
    model.save_pretrained(folder)
    return model.eval()


def adopted(root: Path, folder: Path, **options: Any) -> Artifact:
    reference = str(letters(root, map(chr, range(32, 127))))
    return adoption.adopt(root, folder, "theirs", tokenizer=reference, **options).artifact


KINDS = [
    ("gpt2", {}),
    ("gpt2", {"tie_word_embeddings": False, "n_inner": 40}),
    ("qwen3", {}),
    ("qwen3", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
]


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_a_network_from_there_gives_its_logits_and_goes_back_bit_for_bit(
    root: Path, tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    theirs = foreign(tmp_path / "theirs", kind, **settings)
    found = adopted(root, tmp_path / "theirs")
    ours = checkpoint.load_model(run.checkpoint_path(found, "best"), torch.device("cpu")).eval()
    some = ids(2, 40) % 90
    with torch.no_grad():
        torch.testing.assert_close(ours(some), theirs(some).logits, atol=1e-4, rtol=1e-4)
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    out = exported(found)
    after = load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        assert torch.equal(their_model(out)(some).logits, theirs(some).logits)


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_shards_names_without_a_prefix_and_masks_are_read_as_the_same_network(
    root: Path, tmp_path: Path, kind: str
) -> None:
    foreign(tmp_path / "whole", kind)
    expected = weights(adopted(root, tmp_path / "whole"))
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    bare = {name.removeprefix("transformer.").removeprefix("model."): each for name, each in tensors.items()}
    if kind == "gpt2":
        bare |= {"h.0.attn.bias": torch.ones(1, 1, 48, 48), "h.1.attn.masked_bias": torch.tensor(-1e4)}
        bare["lm_head.weight"] = bare["wte.weight"].clone()  # as some folders have it, though it is tied
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "config.json").write_bytes((tmp_path / "whole" / "config.json").read_bytes())
    index = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(sorted(bare))}
    for file in set(index.values()):
        save_file({name: bare[name].clone() for name in bare if index[name] == file}, shards / file)
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    found = weights(adopted(root, shards))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def weights(found: Artifact) -> dict[str, torch.Tensor]:
    return checkpoint.read_weights(run.checkpoint_path(found, "last"))


def test_half_precision_becomes_fp32(root: Path, tmp_path: Path) -> None:
    theirs = foreign(tmp_path / "theirs", "qwen3")
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    found = weights(adopted(root, tmp_path / "half"))
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert torch.equal(found["embedding.weight"], theirs.model.embed_tokens.weight.float())


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("gpt2", {"activation_function": "relu"}, "activation_function=relu"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False"),
        ("gpt2", {"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon=1e-06"),
        ("gpt2", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("qwen3", {"attention_bias": True}, "attention_bias=True"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window=True"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "use_sliding_window=True"),
        ("qwen3", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling=yarn"),
        ("qwen3", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_scaling=llama3"),
        ("qwen3", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ("qwen3", {"head_dim": 16}, "head_dim=16"),
        ("qwen3", {"rms_norm_eps": 1e-5}, "rms_norm_eps=1e-05"),
        ("llama", {}, "model_type 'llama'"),
    ],
)
def test_what_we_have_no_part_for_is_refused_by_name(kind: str, changes: dict[str, Any], named: str) -> None:
    config = exchange.config_for_huggingface(QWEN3 if kind == "qwen3" else GPT2)
    with pytest.raises(BadConfig, match=named):
        exchange.config_from_huggingface({**config, "model_type": kind, **changes}, "config.json")


@pytest.mark.parametrize("changes", [{"n_embd": "32"}, {"n_embd": 0}, {"n_layer": -1}, {"vocab_size": 1 << 62}])
def test_a_config_of_nonsense_is_bad_data(changes: dict[str, Any]) -> None:
    with pytest.raises(BadData):
        exchange.config_from_huggingface({**exchange.config_for_huggingface(GPT2), **changes}, "config.json")


@EVERY
def test_a_config_comes_back_as_the_same_network(config: GPTConfig) -> None:
    again = exchange.config_from_huggingface(exchange.config_for_huggingface(config), "config.json")
    plain = replace(config, hidden=config.hidden_width, kv_heads=again.kv_heads)
    biased = {"bias": True, "qkv_bias": True} if config.family == "gpt2" else {}
    assert again == replace(plain, **biased)
    assert again.key_width == config.key_width


def test_missing_extra_and_misshapen_tensors_are_listed() -> None:
    theirs = exchange.for_huggingface(GPT2, dict(network(GPT2).named_parameters()))
    theirs["transformer.ln_f.weight"] = torch.zeros(31)
    theirs["transformer.h.9.ln_1.weight"] = theirs.pop("transformer.wpe.weight")
    with pytest.raises(BadData) as refused:
        exchange.from_huggingface(replace(GPT2, qkv_bias=True), theirs, "here")
    for said in ("wpe.weight is missing", "h.9.ln_1.weight is too much", "ln_f.weight is 31, not 32"):
        assert said in refused.value.what


def test_a_tied_head_that_is_another_is_refused() -> None:
    theirs = exchange.for_huggingface(GPT2, dict(network(GPT2).named_parameters()))
    theirs["lm_head.weight"] = theirs["transformer.wte.weight"] + 1
    with pytest.raises(BadData, match="tie_word_embeddings"):
        exchange.from_huggingface(GPT2, theirs, "here")

"""The family `fast` in transformers: its code travels with the weights, and computes what our network computes."""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from model.config import GPTConfig
from model.exchange import custom_code, export, import_model
from model.generation import engine
from model.generation.sampling import SampleOptions
from model.presets import PRESETS
from model.runs import checkpoint, run
from pipeline.errors import BadConfig, BadData
from tests.support.exchanging import GPT2, LETTERS, export_run, publish_run, random_network, single_thread_offline
from tests.support.networks import config_variants, perturbed_network

__all__ = ["single_thread_offline"]  # fixtures

EVERYTHING: dict[str, Any] = {
    **{"positions": "rotary", "norm": "rms", "activation": "swiglu", "kv_heads": 2, "hidden": 48, "tied": False},
    **dict.fromkeys(("qkv_bias", "qk_norm", "scalars", "values", "gates", "input_norm", "head_bias"), True),
    **{"softcap": 9.0, "bigrams": 64, "convolution": 3},
}
TINY: dict[str, Any] = {"vocab_size": LETTERS.vocab_size, "block_size": 96, "width": 32}
ALL = replace(GPT2, **EVERYTHING)
CONFIGS = {
    "shuihu-fast": replace(PRESETS["shuihu-fast"].model, **TINY, layers=3, heads=2),
    "fast-124m, padded": replace(PRESETS["fast-124m"].model, **{**TINY, "vocab_size": 128}, layers=2, heads=2),
    "bigram": replace(PRESETS["bigram"].model, **TINY),
    "everything": ALL,
    "everything, learned positions": replace(ALL, positions="learned", norm="layer", activation="relu"),
    "no positions, no attention": replace(GPT2, positions="none", layers=0, convolution=4, bigrams=64),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@pytest.fixture(autouse=True, scope="module")
def code_cache(tmp_path_factory: pytest.TempPathFactory, single_thread_offline: None) -> Iterator[None]:
    """Let transformers copy the code of folders into a temporary folder, not into the user's cache."""
    from transformers import dynamic_module_utils

    folder = str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", folder)
        yield
    sys.path[:] = [path for path in sys.path if path != folder]
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        del sys.modules[name]


def load(folder: Path) -> Any:
    """Load a folder with transformers, which must find every weight there, and no unexpected one."""
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"trust_remote_code": True, "output_loading_info": True}
    model, problems = AutoModelForCausalLM.from_pretrained(folder, **options)
    assert not any(problems.values()), problems
    return model.eval()


def exported(root: Path, config: GPTConfig) -> Any:
    return load(export_run(publish_run(root, config)))


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, LETTERS.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def greedy(model: Any, prompts: list[list[int]], count: int, **options: Any) -> list[list[int]]:
    """Tokens that transformers generates for prompts, which are padded on the left to one batch."""
    length = max(map(len, prompts))
    ids = torch.tensor([[LETTERS.end_of_text] * (length - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False, **options)
    return [[token for token in row[length:].tolist() if token != LETTERS.end_of_text] for row in output]


def expected_tokens(config: GPTConfig, prompts: list[list[int]], count: int) -> list[list[int]]:
    options = SampleOptions(max_tokens=count, greedy=True)
    samples = engine.sample(random_network(config), LETTERS, [("", prompt) for prompt in prompts], options)
    return [list(sample.token_ids) for sample in samples]


# --- the same network ---


@each_config
def test_transformers_gives_our_logits(root: Path, config: GPTConfig) -> None:
    model, ids = exported(root, config), random_ids(4, config.block_size)
    with torch.no_grad():
        expected = random_network(config)(ids)
        assert expected.std() > 0.3, "the logits differ between tokens"
        for use_cache in (True, False):
            torch.testing.assert_close(model(ids, use_cache=use_cache).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", config_variants(), ids=str)
def test_every_option_alone_gives_our_logits(config: GPTConfig) -> None:
    from model.exchange.hub_code.configuration_inkstone import InkstoneConfig
    from model.exchange.hub_code.modeling_inkstone import InkstoneForCausalLM

    network = perturbed_network(config)
    model = InkstoneForCausalLM(InkstoneConfig(**custom_code.config_json(config)))
    model.load_state_dict(custom_code.weights(config, dict(network.named_parameters())))
    ids = random_ids(3, config.block_size) % config.vocab_size
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, network(ids), atol=1e-4, rtol=1e-4)


@each_config
def test_a_text_in_pieces_gives_the_logits_of_the_whole(root: Path, config: GPTConfig) -> None:
    from transformers import DynamicCache

    model, ids, cache, logits = exported(root, config), random_ids(3, 40), DynamicCache(), []
    with torch.no_grad():
        for first, last in ((0, 7), (7, 12), *((position, position + 1) for position in range(12, 40))):
            logits.append(model(ids[:, first:last], past_key_values=cache).logits)
        torch.testing.assert_close(torch.cat(logits, 1), model(ids, use_cache=False).logits, atol=1e-4, rtol=1e-4)


@each_config
@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
def test_transformers_generates_the_same_greedy_tokens(root: Path, config: GPTConfig, use_cache: bool) -> None:
    prompts = [random_ids(20, 30)[i, : 3 + i].tolist() for i in range(20)]
    expected = expected_tokens(config, prompts, 64)
    assert greedy(exported(root, config), prompts, 64, use_cache=use_cache) == expected


def test_generation_goes_on_beyond_the_block_as_ours_does(root: Path) -> None:
    config, prompts = replace(ALL, block_size=24), [random_ids(9).tolist(), random_ids(2, 9)[1].tolist()]
    expected = expected_tokens(config, prompts, 60)
    assert greedy(exported(root, config), prompts, 60) == expected


def test_beam_search_and_assisted_decoding_move_the_whole_cache(root: Path) -> None:
    model, prompts = exported(root, ALL), [[5, 6, 7, 5, 6, 7, 5, 6]]
    beams = [greedy(model, prompts, 12, num_beams=3, use_cache=use_cache) for use_cache in (True, False)]
    assert beams[0] == beams[1]
    assisted = greedy(model, prompts, 30, prompt_lookup_num_tokens=3)
    assert assisted[0][:30] == expected_tokens(ALL, prompts, 30)[0]


def test_labels_give_the_loss_of_our_network_and_every_weight_a_gradient(root: Path) -> None:
    model, ids = exported(root, ALL).train(), random_ids(2, 40)
    loss = model(ids, labels=ids).loss
    torch.testing.assert_close(loss, random_network(ALL)(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()))
    loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_change_the_logits(root: Path, side: str) -> None:
    model, ids = exported(root, CONFIGS["everything, learned positions"]), random_ids(1, 20)
    mask = torch.ones_like(ids)
    amounts = (7, 0) if side == "left" else (0, 7)
    padded, mask = (torch.nn.functional.pad(tensor, amounts) for tensor in (ids, mask))
    with torch.no_grad():
        logits = model(padded, attention_mask=mask).logits[:, amounts[0] : amounts[0] + 20]
        torch.testing.assert_close(logits, model(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "last_dropout"])
def test_each_dropout_acts_in_training_only(root: Path, name: str) -> None:
    changes: dict[str, Any] = {name: 0.5}
    model, ids = exported(root, replace(ALL, **changes)), random_ids(1, 20)
    with torch.no_grad():
        expected = model(ids).logits
        assert not torch.allclose(model.train()(ids).logits, expected, atol=1e-2)
        assert torch.equal(model.eval()(ids).logits, expected)


def test_a_model_saved_by_transformers_opens_again_with_its_code(root: Path, tmp_path: Path) -> None:
    model, ids = exported(root, ALL), random_ids(1, 20)
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    assert {"modeling_inkstone.py", "configuration_inkstone.py"} <= {
        path.name for path in (tmp_path / "again").iterdir()
    }
    assert type(again) is not type(model), "its code is the saved one"
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_a_cache_of_fixed_size_is_refused_by_name(root: Path) -> None:
    with pytest.raises(ValueError, match="expected a DynamicCache, got a StaticCache"):
        greedy(exported(root, ALL), [[1, 2]], 2, cache_implementation="static")


# --- import ---


@each_config
def test_an_export_is_imported_with_the_same_network_and_exported_with_the_same_bits(
    root: Path, config: GPTConfig
) -> None:
    folder = export_run(publish_run(root, config))
    imported = import_model.import_model(root, folder, "again").artifact
    path = run.checkpoint_path(imported, "best")
    assert checkpoint.read_state(path).model == replace(config, zero_init=False, ngram=0)
    again = export_run(imported)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name
    ids, ours = random_ids(2, 40), checkpoint.load_model(path, torch.device("cpu")).eval()
    with torch.no_grad():
        assert torch.equal(ours(ids), random_network(config)(ids))


def test_a_folder_that_transformers_saved_in_half_precision_is_imported(root: Path, tmp_path: Path) -> None:
    folder = export_run(publish_run(root, replace(ALL, layers=GPTConfig.layers)))
    load(folder).to(torch.bfloat16).save_pretrained(tmp_path / "again", max_shard_size="30KB")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    shutil.copy(folder / "tokenizer.json", tmp_path / "again")
    shutil.copy(folder / "tokenizer_config.json", tmp_path / "again")
    imported = import_model.import_model(root, tmp_path / "again", "again").artifact
    ours = checkpoint.load_model(run.checkpoint_path(imported, "best"), torch.device("cpu"))
    weights = dict(random_network(replace(ALL, layers=GPTConfig.layers)).named_parameters())
    assert all(torch.equal(weight, weights[name].bfloat16().float()) for name, weight in ours.named_parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 3}, "is missing"),
        ({"layers": "2"}, "layers: Expected `int`"),
        ({"layers": 1 << 40}, "at most"),
        ({"activation": "gelu_fast"}, "activation"),
        ({"bigrams": 128}, r"bigrams\.table\.weight is 64 x 32, not 128 x 32"),
        ({"gates": False}, r"gate\.weight is unexpected"),
        ({"tie_word_embeddings": True}, r"head\.weight is unexpected"),
    ],
)
def test_a_configuration_of_another_network_is_refused(root: Path, change: dict[str, Any], message: str) -> None:
    folder = export_run(publish_run(root, ALL))
    content = msgspec.json.decode((folder / "config.json").read_bytes())
    (folder / "config.json").write_bytes(msgspec.json.encode(content | change))
    with pytest.raises(BadData, match=message):
        import_model.import_model(root, folder, "again")


# --- the folder ---


def test_the_folder_has_the_code_and_the_card_says_why_it_must_be_trusted(root: Path) -> None:
    result = export.export(publish_run(root, ALL), "hf", root / "exports" / "fast", verify=True)
    assert {"modeling_inkstone.py", "configuration_inkstone.py"} <= set(result.files)
    card = (result.path / "README.md").read_text()
    assert 'from_pretrained("small-hf", trust_remote_code=True)' in card
    assert "transformers has no class for this network" in card
    other = export_run(publish_run(root, GPT2))
    assert not list(other.glob("*.py"))
    assert "trust_remote_code" not in (other / "README.md").read_text()


def test_every_option_of_the_network_is_in_the_configuration() -> None:
    from model.exchange.hub_code.configuration_inkstone import DEFAULTS, InkstoneConfig

    assert isinstance(InkstoneConfig.keys_to_ignore_at_inference, list), "the Trainer appends a list to it"
    options = {field.name for field in fields(GPTConfig)} - {"zero_init", "tied", "ngram"}
    assert set(DEFAULTS) == options | {"use_cache"}
    config = GPTConfig()
    changes: dict[str, Any] = {"kv_heads": config.heads, "hidden": config.hidden_width, "use_cache": True}
    changes |= {"head_dim": config.head_width, "norm_epsilon": config.epsilon}
    assert {name: getattr(config, name, None) for name in DEFAULTS} | changes == DEFAULTS


def test_the_code_stays_readable_and_needs_torch_and_transformers_only() -> None:
    folder = Path(custom_code.__file__).with_name("hub_code")
    for path in folder.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 250, path.name
        names = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add("." * node.level + (node.module or ""))
        packages = {name.split(".")[0] for name in names if not name.startswith(".")}
        assert packages <= {"__future__", "torch", "transformers"}, path.name


@each_config
def test_gguf_of_the_family_is_refused_and_names_the_other_format(root: Path, config: GPTConfig) -> None:
    with pytest.raises(BadConfig, match="no counterpart of") as caught:
        export_run(publish_run(root, config), "gguf")
    assert "--to hf" in caught.value.hint

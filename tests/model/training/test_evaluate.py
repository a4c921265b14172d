"""Evaluation scores every validation token once, with context, in units comparable across tokenizers."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from model.config import GPTConfig
from model.network.gpt import GPT
from model.training.distributed import World
from model.training.evaluate import ValidationSet, evaluate, validation_set, windows
from pipeline.runtime.progress import SilentProgress
from pipeline.tokenizers import Characters
from pipeline.tokens import counting
from pipeline.tokens import stage as tokens_stage
from pipeline.tokens import store as tokens
from pipeline.tokens.options import TokenizeOptions
from pipeline.tokens.store import TokenStore

CPU = torch.device("cpu")


@pytest.fixture
def store(root: Path) -> TokenStore:
    return tokens.open_store(counting.build(root).artifact)


@pytest.fixture
def model() -> GPT:
    network = GPT(GPTConfig(vocab_size=100, block_size=16, layers=2, heads=4, width=32, positions="rotary"))
    network.init_weights(5)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(3)  # so that the context matters
    return network.eval()


@pytest.mark.parametrize("block", [1, 2, 7, 16])
def test_windows_score_each_input_once_with_half_a_block_of_context(block: int) -> None:
    for count in range(2, 80):
        scored = [0] * count
        for start, first in windows(count, block):
            for position in range(first, min(start + block, count - 1)):
                scored[position] += 1
                assert position - start >= block // 2 or not start
        assert scored == [1] * (count - 1) + [0], count


def scored_one_by_one(model: GPT, validation: ValidationSet) -> float:
    """Return the summed nats of every id but the first, each from its own pass over the context in its window."""
    ids, total = torch.from_numpy(validation.ids), 0.0
    for start, first in windows(len(ids), model.config.block_size):
        for position in range(first, min(start + model.config.block_size, len(ids) - 1)):
            with torch.no_grad():
                total -= float(model(ids[None, start : position + 1])[0, -1].log_softmax(-1)[ids[position + 1]])
    return total


@pytest.mark.parametrize("size", [1, 20, 47, 60, 300])
def test_loss_equals_scoring_one_token_at_a_time(store: TokenStore, model: GPT, size: int) -> None:
    validation = validation_set(store, size)
    expected, evaluation = scored_one_by_one(model, validation), evaluate(model, validation, CPU)
    assert evaluation
    assert evaluation.loss == pytest.approx(expected / (len(validation.ids) - 1), rel=1e-4)
    assert evaluation.bits_per_char == pytest.approx(expected / math.log(2) / validation.characters, rel=1e-4)
    assert evaluation.bits_per_byte == pytest.approx(expected / math.log(2) / validation.bytes, rel=1e-4)


def test_logits_of_a_long_window_are_held_in_pieces(
    store: TokenStore, model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = validation_set(store, 300)
    expected = evaluate(model, validation, CPU)
    limit = 3 * model.config.vocab_size
    monkeypatch.setattr("model.training.evaluate._BATCH_VALUES", limit)
    sizes: list[int] = []

    def logits(network: GPT, states: torch.Tensor) -> torch.Tensor:
        values = compute(network, states)
        sizes.append(values.numel())
        return values

    compute = GPT.logits
    monkeypatch.setattr(GPT, "logits", logits)
    evaluation = evaluate(model, validation, CPU)
    assert expected
    assert evaluation
    assert max(sizes) <= limit
    assert evaluation.loss == pytest.approx(expected.loss, rel=1e-6)


def test_validation_set_is_cut_by_bytes_of_text(store: TokenStore) -> None:
    for size in (1, 10, 100, 1000):
        validation = validation_set(store, size)
        text = store.tokenizer.decode(validation.ids[1:].tolist())
        longer = store.tokenizer.decode(store.val.read(0, len(validation.ids)).tolist())
        assert len(text.encode()) == validation.bytes
        assert len(text.encode()) <= size or len(validation.ids) == 2
        assert len(longer.encode()) > size or len(validation.ids) > len(store.val)


def test_validation_set_is_all_of_the_split_by_default(store: TokenStore) -> None:
    validation = validation_set(store)
    assert len(validation.ids) == len(store.val) + 1
    assert validation.ids[0] == store.tokenizer.end_of_text


def test_unknown_character_costs_a_choice_among_all_code_points(root: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("山水" * 40, encoding="utf-8")
    (tmp_path / "val.txt").write_text("山水石火", encoding="utf-8")
    inputs = tokens_stage.gather_inputs(root, [str(tmp_path / "train.txt")], [str(tmp_path / "val.txt")])
    built = tokens_stage.tokenize(
        root, "two", inputs, Characters("山水", "two"), None, TokenizeOptions(), SilentProgress(), jobs=1
    )
    validation = validation_set(tokens.open_store(built.artifact))
    assert (validation.characters, validation.unknown) == (4, 2)
    model = GPT(GPTConfig(vocab_size=4, block_size=16, layers=0, heads=1, width=2))
    evaluation = evaluate(model, validation, CPU)
    assert evaluation
    token_bits = evaluation.loss * (len(validation.ids) - 1) / math.log(2) / 4
    assert evaluation.bits_per_char == pytest.approx(token_bits + 2 * math.log2(1_112_064) / 4)


def test_processes_share_the_windows_and_sum_their_losses(
    store: TokenStore, model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = validation_set(store, 400)
    expected = evaluate(model, validation, CPU)
    parts: list[float] = []

    def total(self: World, value: float) -> float:
        parts.append(value)
        return value

    monkeypatch.setattr(World, "all_reduce_sum", total)
    for rank in range(3):
        evaluate(model, validation, CPU, world=World(rank, 3))
    assert expected
    assert sum(parts[::2]) / (len(validation.ids) - 1) == pytest.approx(expected.loss, rel=1e-5)


def test_stopped_evaluation_returns_none(store: TokenStore, model: GPT) -> None:
    stopped = threading.Event()
    stopped.set()
    model.train()
    assert evaluate(model, validation_set(store), CPU, stopped=stopped.is_set) is None
    assert model.training


def test_document_mask_scores_each_document_alone(model: GPT) -> None:
    documents = torch.tensor([0]), torch.tensor([7, 8, 9, 0]), torch.tensor([5, 4, 3, 2, 1])
    ids, total = torch.cat((*documents, torch.tensor([0]))), 0.0
    offset = 0
    for document in documents:
        targets = ids[offset + 1 : offset + 1 + len(document)]
        with torch.no_grad():
            total += float(F.cross_entropy(model(document[None])[0], targets, reduction="sum"))
        offset += len(document)
    validation = ValidationSet(ids.numpy(), 1, 1)
    masked, unmasked = (evaluate(model, validation, CPU, mask_eos=end) for end in (0, None))
    assert masked
    assert unmasked
    assert masked.loss * (len(ids) - 1) == pytest.approx(total, rel=1e-5)
    assert masked.loss != pytest.approx(unmasked.loss, rel=1e-3)

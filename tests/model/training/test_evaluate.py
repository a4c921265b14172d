"""Evaluation: every validation token is scored once, with context, in units that compare across tokenizers."""

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
from pipeline.runtime.progress import Silent
from pipeline.tokenizers import Characters
from pipeline.tokens import counting
from pipeline.tokens import stage as tokenize
from pipeline.tokens import store as tokens
from pipeline.tokens.stage import TokenizeOptions
from pipeline.tokens.store import TokenStore

CPU = torch.device("cpu")


@pytest.fixture
def store(root: Path) -> TokenStore:
    return tokens.open_store(counting.build(root).artifact)


@pytest.fixture
def model() -> GPT:
    made = GPT(GPTConfig(vocab_size=100, block_size=16, layers=2, heads=4, width=32, positions="rotary"))
    made.initialise(5)
    with torch.no_grad():
        for weight in made.parameters():
            weight *= 3  # so that what came before matters
    return made.eval()


@pytest.mark.parametrize("block", [1, 2, 7, 16])
def test_windows_score_each_input_once_with_half_a_block_before_it(block: int) -> None:
    for count in range(2, 80):
        scored = [0] * count
        for start, first in windows(count, block):
            for place in range(first, min(start + block, count - 1)):
                scored[place] += 1
                assert place - start >= block // 2 or not start
        assert scored == [1] * (count - 1) + [0], count


def scored_one_by_one(model: GPT, chosen: ValidationSet) -> float:
    """Nats of every id but the first, each from a pass of its own over what its window lets it see."""
    ids, total = torch.from_numpy(chosen.ids), 0.0
    for start, first in windows(len(ids), model.config.block_size):
        for place in range(first, min(start + model.config.block_size, len(ids) - 1)):
            with torch.no_grad():
                total -= float(model(ids[None, start : place + 1])[0, -1].log_softmax(-1)[ids[place + 1]])
    return total


@pytest.mark.parametrize("size", [1, 20, 47, 60, 300])
def test_the_loss_is_that_of_one_token_after_another(store: TokenStore, model: GPT, size: int) -> None:
    chosen = validation_set(store, size)
    expected, found = scored_one_by_one(model, chosen), evaluate(model, chosen, CPU)
    assert found
    assert found.loss == pytest.approx(expected / (len(chosen.ids) - 1), rel=1e-4)
    assert found.bits_per_char == pytest.approx(expected / math.log(2) / chosen.characters, rel=1e-4)
    assert found.bits_per_byte == pytest.approx(expected / math.log(2) / chosen.bytes, rel=1e-4)


def test_a_slice_is_the_same_text_whatever_its_tokens(store: TokenStore) -> None:
    for size in (1, 10, 100, 1000):
        chosen = validation_set(store, size)
        text = store.tokenizer.decode(chosen.ids[1:].tolist())
        longer = store.tokenizer.decode(store.val.read(0, len(chosen.ids)).tolist())
        assert len(text.encode()) == chosen.bytes
        assert len(text.encode()) <= size or len(chosen.ids) == 2
        assert len(longer.encode()) > size or len(chosen.ids) > len(store.val)


def test_all_of_the_validation_text_is_scored_unless_less_is_asked_for(store: TokenStore) -> None:
    chosen = validation_set(store)
    assert len(chosen.ids) == len(store.val) + 1
    assert chosen.ids[0] == store.tokenizer.end_of_text


def test_a_character_without_an_id_costs_the_choice_among_all(root: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("山水" * 40, encoding="utf-8")
    (tmp_path / "val.txt").write_text("山水石火", encoding="utf-8")
    inputs = tokenize.gather(root, [str(tmp_path / "train.txt")], [str(tmp_path / "val.txt")])
    made = tokenize.tokenize(root, "two", inputs, Characters("山水", "two"), None, TokenizeOptions(), Silent(), jobs=1)
    chosen = validation_set(tokens.open_store(made.artifact))
    assert (chosen.characters, chosen.unknown) == (4, 2)
    model = GPT(GPTConfig(vocab_size=4, block_size=16, layers=0, heads=1, width=2))
    found = evaluate(model, chosen, CPU)
    assert found
    spelled = found.loss * (len(chosen.ids) - 1) / math.log(2) / 4
    assert found.bits_per_char == pytest.approx(spelled + 2 * math.log2(0x110000) / 4)


def test_processes_share_the_work_and_add_it_up(store: TokenStore, model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = validation_set(store, 400)
    whole = evaluate(model, chosen, CPU)
    parts: list[float] = []

    def total(self: World, value: float) -> float:
        parts.append(value)
        return value

    monkeypatch.setattr(World, "total", total)
    for rank in range(3):
        evaluate(model, chosen, CPU, world=World(rank, 3))
    assert whole
    assert sum(parts[::2]) / (len(chosen.ids) - 1) == pytest.approx(whole.loss, rel=1e-5)


def test_a_signal_ends_an_evaluation_without_a_result(store: TokenStore, model: GPT) -> None:
    stopped = threading.Event()
    stopped.set()
    model.train()
    assert evaluate(model, validation_set(store), CPU, stopped=stopped.is_set) is None
    assert model.training


def test_with_document_masks_a_document_is_scored_as_if_alone(model: GPT) -> None:
    documents = torch.tensor([0]), torch.tensor([7, 8, 9, 0]), torch.tensor([5, 4, 3, 2, 1])
    ids, total = torch.cat((*documents, torch.tensor([0]))), 0.0
    begin = 0
    for document in documents:
        following = ids[begin + 1 : begin + 1 + len(document)]
        with torch.no_grad():
            total += float(F.cross_entropy(model(document[None])[0], following, reduction="sum"))
        begin += len(document)
    chosen = ValidationSet(ids.numpy(), 1, 1)
    masked, plain = (evaluate(model, chosen, CPU, documents_end=end) for end in (0, None))
    assert masked
    assert plain
    assert masked.loss * (len(ids) - 1) == pytest.approx(total, rel=1e-5)
    assert masked.loss != pytest.approx(plain.loss, rel=1e-3)

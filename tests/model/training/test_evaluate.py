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
from tests.support.gpu import HostReads

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


def scored_one_by_one(model: GPT, validation: ValidationSet) -> list[float]:
    """Return the nats of every id but the first, each from its own pass over the context in its window."""
    ids, losses = torch.from_numpy(validation.ids), list[float]()
    for start, first in windows(len(ids), model.config.block_size):
        for position in range(first, min(start + model.config.block_size, len(ids) - 1)):
            with torch.no_grad():
                losses.append(-float(model(ids[None, start : position + 1])[0, -1].log_softmax(-1)[ids[position + 1]]))
    return losses


@pytest.mark.parametrize("size", [1, 20, 47, 60, 300])
def test_loss_equals_scoring_one_token_at_a_time(store: TokenStore, model: GPT, size: int) -> None:
    validation = validation_set(store, size)
    losses, evaluation = scored_one_by_one(model, validation), evaluate(model, validation, CPU)
    expected = sum(losses)
    assert evaluation
    assert evaluation.token_losses == pytest.approx(losses, rel=1e-4, abs=1e-5)
    assert evaluation.loss == pytest.approx(expected / (len(validation.ids) - 1), rel=1e-4)
    assert evaluation.bits_per_char == pytest.approx(expected / math.log(2) / validation.characters, rel=1e-4)
    assert evaluation.bits_per_byte == pytest.approx(expected / math.log(2) / validation.bytes, rel=1e-4)


@pytest.mark.parametrize("size", [1, 47, 300])
def test_losses_by_position_are_means_over_all_windows(store: TokenStore, model: GPT, size: int) -> None:
    validation, block = validation_set(store, size), model.config.block_size
    ids, columns = torch.from_numpy(validation.ids), [list[float]() for _ in range(block)]
    for start, _ in windows(len(ids), block):
        window = ids[start : start + block + 1]
        with torch.no_grad():
            losses = F.cross_entropy(model(window[None, :-1])[0], window[1:], reduction="none")
        for column, loss in zip(columns, losses.tolist(), strict=False):
            column.append(loss)
    expected = [sum(column) / len(column) if column else math.nan for column in columns]
    evaluation = evaluate(model, validation, CPU)
    assert evaluation
    assert evaluation.position_losses == pytest.approx(expected, rel=1e-4, nan_ok=True)


def test_only_the_first_token_losses_are_held(store: TokenStore, model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    validation = validation_set(store, 300)
    complete = evaluate(model, validation, CPU)
    monkeypatch.setattr("model.training.evaluate.MAX_TOKEN_LOSSES", 37)
    first = evaluate(model, validation, CPU)
    assert complete
    assert first
    assert first.loss == complete.loss
    assert first.token_losses.tolist() == complete.token_losses[:37].tolist()


def test_logits_of_a_long_window_are_held_in_pieces(
    store: TokenStore, model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = validation_set(store, 300)
    expected = evaluate(model, validation, CPU)
    limit = 3 * model.config.vocab_size
    monkeypatch.setattr("model.training.evaluate._BATCH_VALUES", {"cpu": limit})
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


def test_the_host_reads_one_number_of_an_evaluation(
    store: TokenStore, model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = validation_set(store, 300)
    monkeypatch.setattr("model.training.evaluate._BATCH_VALUES", {"cpu": 1})
    with HostReads() as reads:
        evaluate(model, validation, CPU)
    assert reads.count == 1


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
    tensors: list[torch.Tensor] = []

    def total(self: World, value: float) -> float:
        parts.append(value)
        return value

    def tensor_total(self: World, tensor: torch.Tensor) -> torch.Tensor:
        tensors.append(tensor.clone())
        return tensor

    monkeypatch.setattr(World, "all_reduce_sum", total)
    monkeypatch.setattr(World, "sum_tensor", tensor_total)
    for rank in range(3):
        evaluate(model, validation, CPU, world=World(rank, 3))
    assert expected
    assert sum(parts[1::2]) / (len(validation.ids) - 1) == pytest.approx(expected.loss, rel=1e-5)
    token_losses, (sums, counts) = (torch.stack(tensors[first::2]).sum(0) for first in (0, 1))
    assert token_losses.tolist() == pytest.approx(expected.token_losses, rel=1e-5, abs=1e-6)
    assert (sums / counts).tolist() == pytest.approx(expected.position_losses, rel=1e-5)


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

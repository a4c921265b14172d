"""One step: masks hide documents; recomputed and compiled steps give the same gradients."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import GPTConfig, TrainConfig
from model.device import ExecutionConfig
from model.network import masks
from model.network.gpt import GPT
from model.training.distributed import World
from model.training.learner import Learner
from tests.support.gpu import HostReads
from tests.support.training import preloaded

__all__ = ["preloaded"]  # fixtures

CPU = torch.device("cpu")
MODEL = GPTConfig(vocab_size=50, block_size=16, layers=2, heads=4, width=32, dropout=0.2)
END = 0


def make_learner(model: GPTConfig = MODEL, *, compiled: bool = False, **settings: Any) -> Learner:
    learner = Learner(
        model, TrainConfig(batch_size=4, **settings), CPU, ExecutionConfig("fp32", compiled, 4), 4, World()
    )
    learner.initialise()
    return learner


@pytest.fixture
def ids() -> Tensor:
    """Four rows, each with several documents."""
    return torch.randint(0, 8, (4, MODEL.block_size + 1), generator=torch.Generator().manual_seed(5))


def gradients(learner: Learner, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(3)
    loss = learner.backward(ids, 1.0, END)
    return loss, {name: weight.grad for name, weight in learner.weights.items() if weight.grad is not None}


def test_recomputed_activations_give_the_same_loss_and_gradients(ids: Tensor) -> None:
    """With dropout, which must drop the same values in both passes."""
    loss, expected = gradients(make_learner(), ids)
    recomputed, actual = gradients(make_learner(recompute=True), ids)
    assert torch.equal(loss, recomputed)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(gradient, expected[name]) for name, gradient in actual.items())


def test_document_mask_hides_earlier_documents(ids: Tensor) -> None:
    """Logits after an end-of-text id do not depend on the text before it; without the mask they do."""
    model = GPT(replace(MODEL, positions="rotary", dropout=0.0))
    model.init_weights(1)
    model.eval()
    eos_position = 7
    first, second = ids[:, :-1].clone(), ids[:, :-1].clone()
    second[:, :eos_position] = (second[:, :eos_position] + 3) % 8 + 8
    first[:, eos_position] = second[:, eos_position] = END
    first_masked, second_masked = (
        model(row, mask=masks.document_mask(row, END))[:, eos_position + 1 :] for row in (first, second)
    )
    assert torch.equal(first_masked, second_masked)
    first_unmasked, second_unmasked = (model(row)[:, eos_position + 1 :] for row in (first, second))
    assert not torch.allclose(first_unmasked, second_unmasked, atol=1e-4)


def test_training_uses_the_document_mask(ids: Tensor) -> None:
    """The loss is the mean over the documents, each computed alone."""
    config = replace(MODEL, positions="rotary", dropout=0.0)
    loss, _ = gradients(make_learner(config, document_mask=True), ids)
    unmasked, _ = gradients(make_learner(config), ids)
    model, nats = make_learner(config).model.eval(), 0.0
    for row in ids:
        starts = [0, *(int(position) + 1 for position in (row[:-1] == END).nonzero())]
        for start, stop in zip(starts, [*starts[1:], len(row) - 1], strict=True):
            if start < stop:  # rotary positions are relative, so a document may start anywhere
                document_loss = model(row[None, start:stop], row[None, start + 1 : stop + 1])
                nats += float(document_loss.detach()) * (stop - start)
    assert float(loss) == pytest.approx(nats / (4 * MODEL.block_size), abs=1e-5)
    assert float(unmasked) != pytest.approx(float(loss), abs=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_host_reads_one_number_of_a_step(ids: Tensor, optimizer: str) -> None:
    """Whether the gradient is finite, after the next batch is prepared."""
    learner, reads_before = make_learner(optimizer=optimizer, document_mask=True, ema=0.9), list[int]()
    learner.step(ids, 1, 0, END)
    with HostReads() as reads:
        learner.step(ids, 2, 1, END, lambda: reads_before.append(reads.count))
    assert (reads_before, reads.count) == ([0], 1)


def test_compiled_step_gives_the_same_gradients(ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which("g++"):
        pytest.skip("compile=yes was not tested: there is no C++ compiler")
    small = replace(MODEL, layers=1, dropout=0.0)
    monkeypatch.setattr("torch._inductor.config.cpp.simdlen", 1)  # vectorised code takes twice as long to compile
    (loss, expected), (compiled, actual) = (
        gradients(make_learner(small, compiled=is_compiled), ids) for is_compiled in (False, True)
    )
    assert float(compiled) == pytest.approx(float(loss), abs=1e-4)
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=0)

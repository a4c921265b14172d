"""One step: what is masked is not seen, what is computed twice or compiled is the same."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import GPTConfig, TrainConfig
from model.device import Execution
from model.network import masks
from model.network.gpt import GPT
from model.training.distributed import World
from model.training.learner import Learner
from tests.support.training import warm

__all__ = ["warm"]  # fixtures

CPU = torch.device("cpu")
MODEL = GPTConfig(vocab_size=50, block_size=16, layers=2, heads=4, width=32, dropout=0.2)
END = 0


def learner(model: GPTConfig = MODEL, *, compiled: bool = False, **settings: Any) -> Learner:
    made = Learner(model, TrainConfig(batch_size=4, **settings), CPU, Execution("fp32", compiled, 4), 4, World())
    made.begin()
    return made


@pytest.fixture
def ids() -> Tensor:
    """Four rows, each of several documents."""
    return torch.randint(0, 8, (4, MODEL.block_size + 1), generator=torch.Generator().manual_seed(5))


def gradients(made: Learner, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(3)
    loss = made.backward(ids, 1.0, END)
    return loss, {name: weight.grad for name, weight in made.weights.items() if weight.grad is not None}


def test_recomputed_activations_give_the_same_loss_and_gradients(ids: Tensor) -> None:
    """With dropout, which must drop the same numbers the second time."""
    loss, expected = gradients(learner(), ids)
    again, found = gradients(learner(recompute=True), ids)
    assert torch.equal(loss, again)
    assert found.keys() == expected.keys()
    assert all(torch.equal(gradient, expected[name]) for name, gradient in found.items())


def test_with_a_document_mask_a_token_sees_nothing_before_its_document(ids: Tensor) -> None:
    """Whatever stands before an end of text, what comes after it is computed alike; and without the mask it is not."""
    model = GPT(replace(MODEL, positions="rotary", dropout=0.0))
    model.initialise(1)
    model.eval()
    border = 7
    first, second = ids[:, :-1].clone(), ids[:, :-1].clone()
    second[:, :border] = (second[:, :border] + 3) % 8 + 8
    first[:, border] = second[:, border] = END
    masked = [model(each, mask=masks.document_mask(each, END))[:, border + 1 :] for each in (first, second)]
    assert torch.equal(*masked)
    plain = [model(each)[:, border + 1 :] for each in (first, second)]
    assert not torch.allclose(*plain, atol=1e-4)


def test_training_takes_the_document_mask(ids: Tensor) -> None:
    """The loss is the mean of those of the documents, each alone at its place in the row."""
    config = replace(MODEL, positions="rotary", dropout=0.0)
    loss, _ = gradients(learner(config, document_mask=True), ids)
    unmasked, _ = gradients(learner(config), ids)
    model, nats = learner(config).model.eval(), 0.0
    for row in ids:
        starts = [0, *(int(place) + 1 for place in (row[:-1] == END).nonzero())]
        for start, stop in zip(starts, [*starts[1:], len(row) - 1], strict=True):
            if start < stop:  # rotary angles only tell distances, so a document may stand anywhere
                loss_here = model(row[None, start:stop], row[None, start + 1 : stop + 1])
                nats += float(loss_here.detach()) * (stop - start)
    assert float(loss) == pytest.approx(nats / (4 * MODEL.block_size), abs=1e-5)
    assert float(unmasked) != pytest.approx(float(loss), abs=1e-6)


def test_a_compiled_step_is_the_same_step(ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which("g++"):
        pytest.skip("compile=yes was NOT tested: there is no compiler here")
    small = replace(MODEL, layers=1, dropout=0.0)
    monkeypatch.setattr("torch._inductor.config.cpp.simdlen", 1)  # half the time of a compiler that vectorises
    (loss, expected), (compiled, found) = (gradients(learner(small, compiled=each), ids) for each in (False, True))
    assert float(compiled) == pytest.approx(float(loss), abs=1e-4)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=0)

"""The losses and gradients of tuning equal those of a plain loop over conversations, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import GPTConfig, TrainConfig
from model.device import ExecutionConfig
from model.network.gpt import GPT
from model.runs.checkpoint import CheckpointTensors
from model.training.dataloader import to_device
from model.training.distributed import World
from model.training.learner import Learner
from model.training.tuning import lora
from model.training.tuning.evaluation import HeldOutAnswers, HeldOutPairs
from model.training.tuning.objective import PreferenceLoss, Tuning, answer_loss
from model.training.tuning.packing import Documents, Pieces, conversation_pieces, preference_pieces
from model.training.tuning.rows import PackedRows
from tests.model.training.tuning.test_packing import documents
from tests.support.networks import perturbed_network
from tests.support.tuning import CHAT, pairs, sums

CPU = torch.device("cpu")
PLAIN = GPTConfig(vocab_size=CHAT.vocab_size, block_size=96, layers=2, heads=4, width=16)
FAST = replace(
    PLAIN, positions="rotary", bias=False, bigrams=64, convolution=3, scalars=True, values=True, gates=True, softcap=9.0
)
families = pytest.mark.parametrize("config", [PLAIN, FAST, replace(PLAIN, tied=False, norm="rms")], ids=str)


def packed(talks: Any, pieces: Callable[[Documents, int], Pieces]) -> PackedRows:
    return PackedRows(documents(talks), pieces(documents(talks), 96), 96, 1, "key")


def learner_of(model: GPT, tuning: Tuning, rows: int, micro_batch: int, **settings: Any) -> Learner:
    config = TrainConfig(batch_size=rows, **settings)
    execution = ExecutionConfig("fp32", compiled=False, micro_batch=micro_batch)
    learner = Learner(model.config, config, CPU, execution, rows, World(), tuning=tuning)
    learner.load(CheckpointTensors(dict(model.named_parameters()), {}))
    return learner


def step_gradients(learner: Learner, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and the gradients of a step, in micro-batches."""
    parts = torch.split(batch, learner.execution.micro_batch)
    loss = torch.stack([learner.backward(part, 0.0, CHAT.end_of_text) for part in parts]).sum()
    return loss, {name: weight.grad.to_dense() for name, weight in learner.weights.items() if weight.grad is not None}


def log_probability(model: GPT, talk: list[dict[str, str]]) -> tuple[Tensor, int]:
    """Return the log probability of the answers of a conversation, in a row of its own, and their number of tokens."""
    ids, mask = CHAT.encode_conversation(talk)
    inputs, targets = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
    has_loss = torch.tensor(mask[1:])
    log_p = F.log_softmax(model(inputs[None])[0], -1).gather(-1, targets[:, None]).squeeze(-1)
    return (log_p * has_loss).sum(), int(has_loss.sum())


def plain_gradients(model: GPT, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.to_dense() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same(actual: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(actual[0].detach(), expected[0].detach(), atol=1e-6, rtol=1e-6)
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in actual[1].items():
        torch.testing.assert_close(gradient, expected[1][name], atol=1e-6, rtol=1e-4, msg=name)


@families
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_gradients_of_packed_answers_equal_a_plain_loop_over_conversations(config: GPTConfig, micro_batch: int) -> None:
    talks = sums(20)
    rows, model = packed(talks, conversation_pieces), perturbed_network(config)
    count = len(rows.rows)
    learner = learner_of(model, Tuning(answer_loss, ()), count, micro_batch)
    actual = step_gradients(learner, to_device(rows.batch(0, count), CPU))
    scores = [log_probability(model, talk) for talk in talks]
    loss = -torch.stack([log_p for log_p, _ in scores]).sum() / sum(tokens for _, tokens in scores)
    assert_same(actual, (loss, plain_gradients(model, loss)))


@families
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_loss_and_gradients_of_pairs_equal_the_formula_of_the_paper(config: GPTConfig, micro_batch: int) -> None:
    talks = pairs(9)
    rows, model = packed(talks, preference_pieces), perturbed_network(config)
    reference = perturbed_network(replace(config, softcap=3.0))
    count = len(rows.rows)
    loss_function = PreferenceLoss(reference, 0.3, rows.max_segments)
    learner = learner_of(model, Tuning(loss_function, ()), count, micro_batch)
    actual = step_gradients(learner, to_device(rows.batch(0, count), CPU))

    ratios = [log_probability(model, talk)[0] - log_probability(reference, talk)[0].detach() for talk in talks]
    margins = 0.3 * (torch.stack(ratios[::2]) - torch.stack(ratios[1::2]))
    loss = -F.logsigmoid(margins).mean()
    assert_same(actual, (loss, plain_gradients(model, loss)))
    loss, margins = loss.detach(), margins.detach()

    evaluation = HeldOutPairs(rows, loss_function).evaluate(model, CPU, "fp32", World(), bool)
    assert evaluation is not None
    assert evaluation.loss == pytest.approx(float(loss), abs=1e-5)
    assert evaluation.margin == pytest.approx(float(margins.mean()), abs=1e-5)
    assert evaluation.accuracy == pytest.approx(float((margins > 0).float().mean()))


def test_kl_is_the_mean_divergence_at_the_targets_of_all_answers() -> None:
    rows, model, reference = packed(talks := pairs(5), preference_pieces), *map(perturbed_network, (PLAIN, PLAIN))
    with torch.no_grad():
        reference.embedding.weight.mul_(0.5)
    loss = PreferenceLoss(reference, 0.1, rows.max_segments)
    evaluation = HeldOutPairs(rows, loss).evaluate(model, CPU, "fp32", World(), bool)
    divergences: list[Tensor] = []
    for talk in talks:
        ids, mask = CHAT.encode_conversation(talk)
        log_p, log_ref = (F.log_softmax(net(torch.tensor([ids[:-1]]))[0], -1) for net in (model, reference))
        kl = F.kl_div(log_ref, log_p, reduction="none", log_target=True).sum(-1)
        divergences += [kl[torch.tensor(mask[1:])]]
    assert evaluation is not None
    assert evaluation.kl == pytest.approx(float(torch.cat(divergences).mean().detach()), rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_before_the_first_step_the_margins_are_zero_and_the_accuracy_is_a_half(precision: str) -> None:
    rows, model = packed(pairs(5), preference_pieces), perturbed_network(PLAIN)
    loss = PreferenceLoss(perturbed_network(PLAIN), 0.1, rows.max_segments)
    evaluation = HeldOutPairs(rows, loss).evaluate(model, CPU, precision, World(), bool)
    assert evaluation is not None
    assert (evaluation.margin, evaluation.accuracy, evaluation.kl) == (0, 0.5, 0)
    assert evaluation.loss == pytest.approx(np.log(2))


@families
def test_held_out_answers_are_scored_as_one_conversation_at_a_time(config: GPTConfig) -> None:
    talks = sums(30)
    rows, model = packed(talks, conversation_pieces), perturbed_network(config)
    held_out = HeldOutAnswers.read(rows, 0)
    evaluation = held_out.evaluate(model, CPU, "fp32", World(), bool)
    scores = [log_probability(model, talk) for talk in talks]
    nats = -float(torch.stack([log_p for log_p, _ in scores]).detach().sum())
    text = "".join(turn["content"] for talk in talks for turn in talk if turn["role"] == "assistant")
    assert evaluation is not None
    assert evaluation.loss == pytest.approx(nats / sum(tokens for _, tokens in scores), abs=1e-5)
    assert evaluation.bits_per_char == pytest.approx(nats / np.log(2) / len(text), rel=1e-5)


def test_a_limit_of_bytes_takes_the_first_answers() -> None:
    held_out = HeldOutAnswers.read(packed(sums(30), conversation_pieces), 12)
    assert held_out.text == "= 0= 2= 4"
    assert len(held_out.rows.pieces.starts) == 2


@families
def test_merged_factors_compute_what_unmerged_ones_do(config: GPTConfig) -> None:
    model, ids = perturbed_network(config), torch.arange(96)[None] % 50
    expected = model(ids).detach()
    lora.add(model, 4, CHAT.special.values())
    initial = lora.with_factors({}, model, 1)
    model.load_state_dict(initial, strict=False)
    assert torch.equal(model(ids), expected), "nothing changes before training"
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora" in name:
                weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(len(name)))
    unmerged = model(ids).detach()
    assert not torch.allclose(unmerged, expected, atol=1e-2)
    plain = GPT(config).eval()
    plain.load_state_dict(lora.merged(dict(model.named_parameters())))
    torch.testing.assert_close(plain(ids), unmerged, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "sizes", [{}, {"width": CHAT.vocab_size, "heads": 1, "positions": "learned"}], ids=["", "width"]
)
def test_factors_and_the_rows_of_special_tokens_are_all_that_is_trained(sizes: dict[str, Any]) -> None:
    config = replace(FAST, tied=False, head_bias=True, **sizes)
    rows, model = packed(sums(20), conversation_pieces), perturbed_network(config)
    special = tuple(CHAT.special.values())
    learner = learner_of(model, Tuning(answer_loss, special), 4, 4, lora_rank=2, learning_rate=0.1)
    before = {name: weight.detach().clone() for name, weight in learner.weights.items()}
    for step in range(2):
        learner.step(to_device(rows.batch(step, 4), CPU), 1, step, CHAT.end_of_text)
    changed = {name for name, weight in learner.weights.items() if not torch.equal(weight, before[name])}
    tables = {"embedding.weight", "head.weight", "head_bias"}
    assert changed == tables | {name for name in before if "lora" in name}
    for name in tables:
        is_same = (learner.weights[name] == before[name]).view(CHAT.vocab_size, -1).all(1)
        assert np.flatnonzero(~is_same.numpy()).tolist() == sorted(special)


def test_packed_answers_compile_to_one_graph_with_the_same_gradients() -> None:
    rows, model = packed(sums(20), conversation_pieces), perturbed_network(FAST)
    batch = to_device(rows.batch(0, 4), CPU)
    expected = answer_loss(model, batch)
    gradients = plain_gradients(model, expected)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    actual = answer_loss(torch.compile(model, backend="aot_eager", dynamic=False), batch)
    assert_same((actual, plain_gradients(model, actual)), (expected, gradients))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]

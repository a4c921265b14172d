"""Optimizers: each weight is in one of them, and Muon equals torch's own."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from model.config import GPTConfig, TrainConfig
from model.network.gpt import GPT
from model.training import optim
from model.training.distributed import World


def network(**changes: object) -> GPT:
    model = GPT(GPTConfig(vocab_size=40, block_size=16, layers=2, heads=2, width=16, **changes))  # type: ignore[arg-type]
    model.init_weights(1)
    return model


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("changes", [{}, {"tied": False, "scalars": True, "bigrams": 64, "convolution": 3}], ids=str)
def test_each_weight_is_trained_by_one_optimizer(name: str, changes: dict[str, object]) -> None:
    model = network(**changes)
    made = optim.make_optimizers(model, TrainConfig(optimizer=name))
    trained = [id(weight) for each in made for group in each.param_groups for weight in group["params"]]
    assert sorted(trained) == sorted(id(weight) for weight in model.parameters())


def test_muon_trains_only_the_matrices_of_the_blocks() -> None:
    model = network(tied=False)
    muon, adamw = optim.make_optimizers(model, TrainConfig(optimizer="muon", embedding_rate=0.3, head_rate=0.004))
    assert isinstance(muon, optim.Muon)
    names = {id(weight): name for name, weight in model.named_parameters()}
    by_muon = {names[id(weight)] for group in muon.param_groups for weight in group["params"]}
    assert by_muon == {name for name, weight in model.named_parameters() if "blocks" in name and weight.dim() == 2}
    assert [group["lr"] for group in adamw.param_groups] == [0.3, 0.004, TrainConfig().vector_rate]


def matrices(shapes: list[tuple[int, int]], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("shapes", [[(8, 8)], [(16, 4), (16, 4), (4, 16)], [(8, 8), (12, 20), (8, 8)]], ids=str)
def test_muon_steps_like_torch_muon(shapes: list[tuple[int, int]]) -> None:
    ours = [weight.clone().requires_grad_() for weight in matrices(shapes, 1)]
    theirs = [weight.clone().requires_grad_() for weight in matrices(shapes, 1)]
    muon = optim.Muon(ours, lr=0.02, weight_decay=0.1, momentum=0.95)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95)
    for step in range(4):
        for ours_, theirs_, gradient in zip(ours, theirs, matrices(shapes, 10 + step), strict=True):
            ours_.grad, theirs_.grad = gradient.clone(), gradient.clone()
        muon.step()
        reference.step()
        for our_weight, their_weight in zip(ours, theirs, strict=True):
            torch.testing.assert_close(
                our_weight, their_weight, atol=2e-4, rtol=2e-3
            )  # products in bfloat16, in another order


SHAPES = [(8, 8), (8, 8), (8, 8), (16, 4), (4, 16)]


def trained(world: World) -> list[Tensor]:
    """Return weights after three steps of Muon in fp32, by gradients that all processes have."""
    weights = [weight.requires_grad_() for weight in matrices(SHAPES, 1)]
    muon = optim.Muon(weights, 0.02, 0.1, 0.95, cautious=True, dtype=torch.float32, world=world)
    for step in range(3):
        for weight, gradient in zip(weights, matrices(SHAPES, 10 + step), strict=True):
            weight.grad = gradient
        muon.step()
    return [weight.detach() for weight in weights]


def train_as(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    torch.save(trained(World(rank, size)), folder / f"{rank}.pt")


@pytest.mark.parametrize("size", [2, 4])
def test_processes_that_share_the_matrices_of_muon_get_the_weights_of_one(tmp_path: Path, size: int) -> None:
    """Bit for bit the same in all of them. Three matrices of a shape are not divisible, and one is less than two."""
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=train_as, args=(rank, size, tmp_path)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    first, *others = (torch.load(tmp_path / f"{rank}.pt") for rank in range(size))
    for other in others:
        assert all(torch.equal(x, y) for x, y in zip(first, other, strict=True))
    for weight, alone in zip(first, trained(World()), strict=True):
        torch.testing.assert_close(weight, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(8, 8), (20, 8), (8, 20)])
def test_orthogonal_gives_singular_values_near_one(shape: tuple[int, int]) -> None:
    made = optim.orthogonal(torch.stack(matrices([shape] * 3, 2))).float()
    values = torch.linalg.svdvals(made)
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.3


def test_zero_gradient_only_decays_the_weight() -> None:
    weight = torch.ones(4, 4, requires_grad=True)
    weight.grad = torch.zeros(4, 4)
    optim.Muon([weight], lr=0.1, weight_decay=0.5, momentum=0.9).step()
    torch.testing.assert_close(weight.detach(), torch.full((4, 4), 0.95))


def test_cautious_decay_shrinks_only_what_the_step_shrinks() -> None:
    start = torch.tensor([[2.0, -2.0], [2.0, 2.0]])
    results = {}
    for cautious in (False, True):
        weight = start.clone().requires_grad_()
        weight.grad = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
        optim.Muon([weight], lr=0.1, weight_decay=0.5, momentum=0.0, cautious=cautious).step()
        results[cautious] = weight.detach()
    decays = results[False] != results[True]
    assert decays.tolist() == [[False, True], [True, False]]  # where gradient and weight disagree, only the step acts

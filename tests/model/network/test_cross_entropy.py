"""The cross entropy that never holds all logits equals the one that does, and so do its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.network import cross_entropy
from model.network.cross_entropy import linear_cross_entropy, softcapped


def slow(x: Tensor, weight: Tensor, targets: Tensor, softcap: float, bias: Tensor | None = None) -> Tensor:
    logits = softcapped(F.linear(x, weight).float(), softcap)
    return F.cross_entropy(logits if bias is None else logits + bias, targets)


def example(rows: int = 37, width: int = 8, vocabulary: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, width, generator=generator)
    weight = torch.randn(vocabulary, width, generator=generator)
    return x, weight, torch.randint(vocabulary, (rows,), generator=generator)


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("pieces", [1, 5, 37])
def test_loss_and_gradients_are_those_of_all_logits_at_once(
    softcap: float, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, targets = example()
    bias = torch.linspace(-2, 2, 50)
    monkeypatch.setitem(cross_entropy._PIECE, "cpu", 50 * -(-37 // pieces))
    found = []
    for way in (linear_cross_entropy, slow):
        a, b, c = (each.clone().requires_grad_() for each in (x, weight, bias))
        without, loss = way(a, b, targets, softcap), way(a, b, targets, softcap, c)
        (3 * loss + without).backward()
        found.append((without.detach(), loss.detach(), a.grad, b.grad, c.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_the_gradient_with_a_softcap_is_that_of_finite_differences() -> None:
    x, weight, targets = (each.double() if each.is_floating_point() else each for each in example(5, 3, 7))

    def loss(a: Tensor) -> Tensor:
        return F.cross_entropy(softcapped(a @ weight.T, 2.0), targets)

    assert torch.autograd.gradcheck(loss, (x.requires_grad_(),))


def test_products_are_in_the_precision_of_autocast_and_the_loss_in_fp32() -> None:
    x, weight, targets = example()
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, weight, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    torch.testing.assert_close(loss, slow(x, weight, targets, 0.0), atol=0.05, rtol=0.02)


def test_a_softcap_bends_large_logits_and_leaves_small_ones() -> None:
    logits = torch.tensor([-1000.0, -0.1, 0.0, 0.1, 1000.0])
    torch.testing.assert_close(
        softcapped(logits, 15.0), torch.tensor([-15.0, -0.1, 0.0, 0.1, 15.0]), atol=0.01, rtol=0.001
    )
    assert softcapped(logits, 0.0) is logits

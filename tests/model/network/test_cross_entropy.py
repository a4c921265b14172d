"""The chunked cross entropy and its gradients equal those of the plain computation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.network import cross_entropy
from model.network.cross_entropy import linear_cross_entropy, softcapped, token_losses


def plain_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, softcap: float, bias: Tensor | None = None
) -> Tensor:
    logits = softcapped(F.linear(x, weight).float(), softcap)
    return F.cross_entropy(logits if bias is None else logits + bias, targets)


def random_inputs(rows: int = 37, width: int = 8, vocab_size: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, width, generator=generator)
    weight = torch.randn(vocab_size, width, generator=generator)
    return x, weight, torch.randint(vocab_size, (rows,), generator=generator)


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("chunks", [1, 5, 37])
def test_loss_and_gradients_equal_the_plain_computation(
    softcap: float, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, targets = random_inputs()
    bias = torch.linspace(-2, 2, 50)
    monkeypatch.setattr(cross_entropy, "_MIN_ROWS", 1)
    monkeypatch.setitem(cross_entropy._CHUNK_LOGITS, "cpu", 50 * -(-37 // chunks))
    results = []
    for function in (linear_cross_entropy, plain_cross_entropy):
        a, b, c = (tensor.clone().requires_grad_() for tensor in (x, weight, bias))
        unbiased, loss = function(a, b, targets, softcap), function(a, b, targets, softcap, c)
        (3 * loss + unbiased).backward()
        results.append((unbiased.detach(), loss.detach(), a.grad, b.grad, c.grad))
    for chunked, plain in zip(*results, strict=True):
        torch.testing.assert_close(chunked, plain, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("chunks", [1, 5])
def test_weighted_losses_and_gradients_equal_the_plain_computation(
    softcap: float, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Summed, and squared token by token: a loss that is no weighted sum. Half of the weights are 0."""
    x, weight, targets = random_inputs()
    bias, weights = torch.linspace(-2, 2, 50), torch.linspace(-1, 1, 37).clamp(min=0)
    monkeypatch.setattr(cross_entropy, "_MIN_ROWS", 1)
    monkeypatch.setitem(cross_entropy._CHUNK_LOGITS, "cpu", 50 * -(-37 // chunks))
    results = []
    for is_plain in (False, True):
        a, b, c = (tensor.clone().requires_grad_() for tensor in (x, weight, bias))
        if is_plain:
            losses = weights * F.cross_entropy(softcapped(a @ b.T, softcap) + c, targets, reduction="none")
            total = losses.sum()
        else:
            losses = token_losses(a, b, targets, softcap, c, weights)
            total = linear_cross_entropy(a, b, targets, softcap, c, weights)
        (total + losses.square().sum()).backward()
        results.append((total.detach(), losses.detach(), a.grad, b.grad, c.grad))
    for chunked, plain in zip(*results, strict=True):
        torch.testing.assert_close(chunked, plain, atol=1e-5, rtol=1e-5)


def test_gradient_with_softcap_equals_finite_differences() -> None:
    x, weight, targets = random_inputs(5, 3, 7)
    weight = weight.double()

    def loss(a: Tensor) -> Tensor:
        return F.cross_entropy(softcapped(a @ weight.T, 2.0), targets)

    assert torch.autograd.gradcheck(loss, (x.double().requires_grad_(),))


def test_products_follow_autocast_and_the_loss_is_fp32() -> None:
    x, weight, targets = random_inputs()
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, weight, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    torch.testing.assert_close(loss, plain_cross_entropy(x, weight, targets, 0.0), atol=0.05, rtol=0.02)


def test_softcap_limits_large_logits_and_keeps_small_ones() -> None:
    logits = torch.tensor([-1000.0, -0.1, 0.0, 0.1, 1000.0])
    torch.testing.assert_close(
        softcapped(logits, 15.0), torch.tensor([-15.0, -0.1, 0.0, 0.1, 15.0]), atol=0.01, rtol=0.001
    )
    assert softcapped(logits, 0.0) is logits

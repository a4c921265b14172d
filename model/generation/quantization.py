"""Linear layers for generating on a CPU: their weights in fewer bytes, and in the order in which they are read.

One token at a time, each weight is read once for one multiplication, so that memory is what generating waits for.
torch's own bfloat16 product lays the weights out anew for each token, which takes longer than fp32 does; laid out once,
half the bytes are two fifths more tokens a second than fp32, a quarter of them three quarters (benchmarks/README.md).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network.dropout import Dropout
from model.network.gpt import GPT, Attention, FeedForward
from pipeline.errors import BadConfig

_AT_ONCE = 16  # numbers that torch's product of 8-bit weights reads, beyond the end of a row of other widths
_SMALLEST = 1e-30  # for a scale, so that a row of zeros has one
_WORTH_IT = 20_000_000  # weights: fewer stay in a processor's cache, and fp32 is as fast


def quick(model: GPT, precision: str) -> GPT:
    """The same model, to generate with: as it is for "fp32"; for "bf16" with weights of half the bytes; for "int8" of a
    quarter; for "auto" with bf16 where that makes it faster. Raises BadConfig for what the device does not have."""
    device = model.embedding.weight.device
    on_cpu = device.type == "cpu"
    if precision == "int8":
        if not on_cpu:
            raise BadConfig(f"weights of 8 bits are for CPUs, and this is {device.type}", hint="leave out --precision")
        return pack(model, Int8Linear)
    if precision == "fp32" or (precision == "auto" and on_cpu and model.config.parameters < _WORTH_IT):
        return model
    if not _multiplies_bfloat16(device):
        if precision == "bf16":
            raise BadConfig(f"no bfloat16 on this {device.type}", hint="leave out --precision")
        return model
    return pack(model) if on_cpu else halved(model)


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    with_onednn = device.type == "cpu" and torch.backends.mkldnn.is_available()
    return with_onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def halved(model: GPT) -> GPT:
    """The same model with its weights in bfloat16, but not the angles of its positions, which that could not tell
    apart."""
    for weight in model.parameters():
        weight.data = weight.data.bfloat16()
    return model


class PackedLinear:
    """`nn.Linear` with bfloat16 weights, laid out once. Takes fp32 or bfloat16 (..., C), gives bfloat16.

    Not a module: those are called more slowly, and have what only training needs.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> None:
        """With `gelu` that is done in the same pass."""
        self.in_features = weight.shape[1]
        self._multiply = torch.ops.mkldnn._linear_pointwise.default  # looked up once: as long as a small product
        self._then: tuple[str, list[float], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().bfloat16(), 1)
        self._bias = bias.detach().bfloat16() if bias is not None else None

    def __call__(self, x: Tensor) -> Tensor:
        made: Tensor = self._multiply(x.bfloat16(), self._packed, self._bias, *self._then)
        return made


class Int8Linear:
    """`nn.Linear` with weights of 8 bits and a scale for each row of them. Takes and gives what `PackedLinear` does."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.in_features = weight.shape[1]
        self._multiply = torch.ops.aten._weight_int8pack_mm.default
        self._missing = -self.in_features % _AT_ONCE
        scales = (weight.detach().abs().amax(dim=1, keepdim=True).clamp(min=_SMALLEST) / 127).bfloat16()
        rounded = (weight.detach() / scales.float()).round().clamp(-127, 127)
        self._weight = F.pad(rounded, (0, self._missing)).to(torch.int8)
        self._scales = scales[:, 0].contiguous()
        self._bias = bias.detach().bfloat16() if bias is not None else None

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.bfloat16().reshape(-1, self.in_features)
        if self._missing:
            rows = F.pad(rows, (0, self._missing))
        made: Tensor = self._multiply(rows, self._weight, self._scales)
        made = made.view(*x.shape[:-1], -1)
        return made if self._bias is None else made + self._bias


def pack(model: GPT, layer: type[PackedLinear] | type[Int8Linear] = PackedLinear) -> GPT:
    """The same model with its linear layers packed, in place: it can generate, and not be trained or saved any more."""
    for module in list(model.modules()):
        if isinstance(module, Attention):
            _join(module, layer)
        elif isinstance(module, FeedForward) and module.activation == "gelu" and layer is PackedLinear:
            up, module.activation = module.up, ""
            _replace(module, "up", PackedLinear(up.weight, up.bias, gelu=True))
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                _replace(parent, name, layer(child.weight, child.bias))
            elif isinstance(child, (nn.Identity, Dropout)):
                _replace(parent, name, _same)
    model.packed_head = layer(model.embedding.weight) if model.head is None else model.head
    return model


def _join(attention: Attention, layer: type[PackedLinear] | type[Int8Linear]) -> None:
    """Queries, keys and values by one product."""
    three = (attention.q, attention.k, attention.v)
    biases = [each.bias.data for each in three if each.bias is not None]
    joined = layer(torch.cat([each.weight.data for each in three]), torch.cat(biases) if biases else None)
    attention.qkv = joined if isinstance(attention.q_norm, nn.Identity) else _Widened(joined)
    del attention.q, attention.k, attention.v


class _Widened:
    """Gives fp32: what reads it has weights of that."""

    def __init__(self, layer: Callable[[Tensor], Tensor]) -> None:
        self._layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        return self._layer(x).float()


def _replace(parent: nn.Module, name: str, function: Callable[[Tensor], Tensor]) -> None:
    delattr(parent, name)
    setattr(parent, name, function)


def _same(x: Tensor) -> Tensor:
    return x

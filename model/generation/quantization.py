"""Linear layers for decoding on a CPU: smaller weights, laid out in the order in which they are read.

Decoding reads each weight once per token for a single multiplication, so memory bandwidth limits it. torch's own
bfloat16 product reorders the weights for each token, which takes longer than fp32. Reordered once in advance, bfloat16
weights give 1.4 times the tokens per second of fp32, and 8-bit weights 1.75 times (benchmarks/README.md).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.device import has_bfloat16
from model.network.dropout import Dropout
from model.network.gpt import GPT, Attention, FeedForward
from pipeline.errors import BadConfig

_INT8_BLOCK = 16  # torch's 8-bit product reads rows in blocks of this width, even past their end
_MIN_SCALE = 1e-30  # so that a row of zeros does not divide by zero
_MIN_PARAMETERS = 20_000_000  # smaller networks fit into a processor's cache, where fp32 is as fast


def prepare_for_decoding(model: GPT, precision: str) -> GPT:
    """Convert a model in place for fast decoding, and return it.

    "fp32" leaves it unchanged, "bf16" halves the size of its weights and "int8" quarters it (on CPUs only); "auto" is
    bf16 where that is faster. Raises BadConfig if the device does not support the precision.
    """
    device = model.embedding.weight.device
    is_cpu = device.type == "cpu"
    if precision == "int8":
        if not is_cpu:
            raise BadConfig(f"8-bit weights need a CPU, got {device.type}", hint="leave out --precision")
        return pack(model, Int8Linear)
    if precision == "fp32" or (precision == "auto" and is_cpu and model.config.parameters < _MIN_PARAMETERS):
        return model
    if not _multiplies_bfloat16(device):
        if precision == "bf16":
            raise BadConfig(f"this {device.type} does not support bfloat16", hint="leave out --precision")
        return model
    return pack(model) if is_cpu else to_bfloat16(model)


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return has_bfloat16(device)
    has_onednn: Callable[[], bool] = torch.backends.mkldnn.is_available
    return device.type == "cpu" and has_onednn() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def to_bfloat16(model: GPT) -> GPT:
    """Convert the weights to bfloat16, in place, but not the rotary angles, which need more precision."""
    for weight in model.parameters():
        weight.data = weight.data.bfloat16()
    return model


class PackedLinear:
    """`nn.Linear` with bfloat16 weights, reordered once for oneDNN. fp32 or bfloat16 (..., C) -> bfloat16 (..., OUT).

    Not an `nn.Module`, whose calls are slower and do more than inference needs.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> None:
        """`weight` (OUT, C), `bias` (OUT,). `gelu` applies GPT-2's GELU in the same pass."""
        self.in_features = weight.shape[1]
        # Looked up once, since a lookup takes as long as a small product.
        self._multiply = torch.ops.mkldnn._linear_pointwise.default
        self._activation: tuple[str, list[float], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().bfloat16(), 1)
        self._bias = bias.detach().bfloat16() if bias is not None else None

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self._multiply(x.bfloat16(), self._weight, self._bias, *self._activation)
        return y


class Int8Linear:
    """`nn.Linear` with 8-bit weights and a scale per output row. fp32 or bfloat16 (..., C) -> bfloat16 (..., OUT)."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """`weight` (OUT, C), `bias` (OUT,)."""
        self.in_features = weight.shape[1]
        self._multiply = torch.ops.aten._weight_int8pack_mm.default
        self._padding = -self.in_features % _INT8_BLOCK
        scales = (weight.detach().abs().amax(dim=1, keepdim=True).clamp(min=_MIN_SCALE) / 127).bfloat16()
        rounded = (weight.detach() / scales.float()).round().clamp(-127, 127)
        self._weight = F.pad(rounded, (0, self._padding)).to(torch.int8)
        self._scales = scales[:, 0].contiguous()
        self._bias = bias.detach().bfloat16() if bias is not None else None

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.bfloat16().reshape(-1, self.in_features)
        if self._padding:
            rows = F.pad(rows, (0, self._padding))
        y: Tensor = self._multiply(rows, self._weight, self._scales)
        y = y.view(*x.shape[:-1], -1)
        return y if self._bias is None else y + self._bias


def pack(model: GPT, layer: type[PackedLinear] | type[Int8Linear] = PackedLinear) -> GPT:
    """Replace all linear layers in place. The model can generate then, but not be trained or saved any more."""
    for module in list(model.modules()):
        if isinstance(module, Attention):
            _fuse_qkv(module, layer)
        elif isinstance(module, FeedForward) and module.activation == "gelu" and layer is PackedLinear:
            up, module.activation = module.up, ""
            _replace(module, "up", PackedLinear(up.weight, up.bias, gelu=True))
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                _replace(parent, name, layer(child.weight, child.bias))
            elif isinstance(child, (nn.Identity, Dropout)):
                _replace(parent, name, _identity)
    model.packed_head = layer(model.embedding.weight) if model.head is None else model.head
    return model


def _fuse_qkv(attention: Attention, layer: type[PackedLinear] | type[Int8Linear]) -> None:
    """Replace the layers of queries, keys and values by a single one."""
    projections = (attention.q, attention.k, attention.v)
    biases = [projection.bias.data for projection in projections if projection.bias is not None]
    weight = torch.cat([projection.weight.data for projection in projections])
    fused = layer(weight, torch.cat(biases) if biases else None)
    attention.fused_qkv = fused if isinstance(attention.q_norm, nn.Identity) else _Fp32Output(fused)
    del attention.q, attention.k, attention.v


class _Fp32Output:
    """Converts the output of a layer to fp32, for norms with fp32 weights."""

    def __init__(self, layer: Callable[[Tensor], Tensor]) -> None:
        self._layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        return self._layer(x).float()


def _replace(parent: nn.Module, name: str, function: Callable[[Tensor], Tensor]) -> None:
    delattr(parent, name)
    setattr(parent, name, function)


def _identity(x: Tensor) -> Tensor:
    return x

"""Linear layers for generating on a CPU: bfloat16 weights in the order in which the processor reads them.

One token at a time, each weight is read once for one multiplication, so that memory is what generating waits for.
torch's own bfloat16 product lays the weights out anew for each token, which takes longer than fp32 does; laid out once,
half the bytes are a fifth more tokens (benchmarks/NOTES.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.gpt import GPT
from pipeline.errors import BadConfig

_WORTH_IT = 20_000_000  # weights: fewer stay in a processor's cache, and fp32 is as fast


def quick(model: GPT, precision: str) -> GPT:
    """The same model, to generate with: as it is for "fp32"; for "bf16" with weights of half the bytes; for "auto" with
    those where they make it faster. Raises BadConfig for bf16 that the device does not have."""
    device = model.embedding.weight.device
    on_cpu = device.type == "cpu"
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


class PackedLinear(nn.Module):
    """`nn.Linear` with its weights laid out once. Takes and gives fp32 (..., C)."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.in_features = weight.shape[1]
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().bfloat16(), 1)
        self._bias = bias.detach().bfloat16() if bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self._packed, self._bias, "none", [], "")
        return made.to(x.dtype)


def pack(model: GPT) -> GPT:
    """The same model with its linear layers packed, in place: it can generate, and not be trained or saved any more."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, PackedLinear(child.weight, child.bias))
    model.packed_head = PackedLinear(model.embedding.weight) if model.head is None else model.head
    return model

"""Attention masks for rows that hold several documents."""

from __future__ import annotations

import torch
from torch import Tensor


def document_indices(ids: Tensor, eos: int) -> Tensor:
    """Index of each token's document within its row, int64 (B, T) for `ids` (B, T).

    That is the number of end-of-text tokens `eos` before it, so an end of text belongs to the document that it ends.
    """
    is_eos = ids == eos
    return is_eos.cumsum(-1) - is_eos.long()


def document_mask(ids: Tensor, eos: int) -> Tensor:
    """Causal attention mask within documents, bool (B, 1, T, T): True where a token attends to another one.

    A token attends to itself and to the earlier tokens of its document.
    """
    documents = document_indices(ids, eos)
    same_document = documents[:, None, :, None] == documents[:, None, None, :]
    return same_document & torch.ones(ids.shape[1:] * 2, dtype=torch.bool, device=ids.device).tril()

"""Attention masks for rows that hold several documents."""

from __future__ import annotations

import torch
from torch import Tensor


def document_indices(ids: Tensor, eos: int) -> Tensor:
    """Index of each token's document within its row, int64 (B, T) for `ids` (B, T).

    The index is the number of end-of-text tokens `eos` before the token. An `eos` belongs to the document that it ends.
    """
    is_eos = ids == eos
    return is_eos.cumsum(-1) - is_eos.long()


def document_mask(ids: Tensor, eos: int) -> Tensor:
    """Causal attention mask within documents, bool (B, 1, T, T): True where a token attends to another one.

    A token attends to itself and to the earlier tokens of its document.
    """
    return _causal(document_indices(ids, eos))


def packed_mask(positions: Tensor) -> Tensor:
    """Return the mask of `document_mask` for documents that are packed into rows by the `positions` (B, T) of tokens.

    Positions count from the beginning of a document. Padding has the position 0, so that it attends to itself alone.
    """
    return _causal(torch.arange(positions.shape[1], device=positions.device) - positions)


def _causal(documents: Tensor) -> Tensor:
    """Causal mask (B, 1, T, T) within documents; `documents` (B, T) has the document index of each token."""
    same_document = documents[:, None, :, None] == documents[:, None, None, :]
    return same_document & torch.ones(documents.shape[1:] * 2, dtype=torch.bool, device=documents.device).tril()

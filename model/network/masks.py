"""Attention masks of packed documents."""

from __future__ import annotations

import torch
from torch import Tensor


def document_numbers(ids: Tensor, end_of_text: int) -> Tensor:
    """Which document of its row each id is in, int64 of the shape (B, T) of `ids`: the ends of text before it.

    An end of text is in the document that it ends. Attention between ids of other numbers crosses a border.
    """
    ends = ids == end_of_text
    return ends.cumsum(-1) - ends.long()


def document_mask(ids: Tensor, end_of_text: int) -> Tensor:
    """Who may see whom, bool (B, 1, T, T): what came before in the same document, and itself."""
    numbers = document_numbers(ids, end_of_text)
    same = numbers[:, None, :, None] == numbers[:, None, None, :]
    return same & torch.ones(ids.shape[1:] * 2, dtype=torch.bool, device=ids.device).tril()

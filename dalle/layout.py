"""The slots of a sequence and the mask of each layer. The only place with offset arithmetic.

A sequence has S = T + G² slots. Text slots 0 … T−1 hold `[start-of-text, y₀ … y_{T−2}]`; image slots T … S−1 hold
`[start-of-image, z₀ … z_{G²−2}]`. Slot p predicts the token that slot p + 1 would hold, so image slot number i (counted
from 0 within the image) predicts zᵢ, and position embeddings are indexed by the predicted position: row i // G and
column i mod G. The last text slot predicts nothing.

Masks follow appendix B.1 of the paper: text attends to text causally, every image slot sees all text, and image slots
see one another by row, column or convolution. All three are subsets of the causal order.
"""

from __future__ import annotations

from typing import Literal

import torch

from dalle.config import PriorModel

Kind = Literal["row", "column", "conv", "dense"]


def predicting(x_BSD: torch.Tensor, text_slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of all slots those that predict caption tokens [B, T − 1, D] and those that predict codes [B, I, D]."""
    return x_BSD[:, : text_slots - 1], x_BSD[:, text_slots:]


def row_and_column(image_slots: torch.Tensor, grid: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of the code that each of the image slots predicts."""
    return image_slots // grid, image_slots % grid


def layer_kinds(config: PriorModel) -> list[Kind]:
    """The kind of each layer, first to last: the last is convolutional; otherwise layer i (from 1) is column where
    (i − 2) mod 4 = 0, else row (appendix B.1)."""
    if config.attention == "dense":
        return ["dense"] * config.depth
    kinds: list[Kind] = ["column" if (i - 2) % 4 == 0 else "row" for i in range(1, config.depth + 1)]
    kinds[-1] = "conv"
    return kinds


def image_mask(kind: Kind, grid: int, conv_kernel: int = 11) -> torch.Tensor:
    """Which image slot sees which: bool [I, I], query by key, I = grid².

    row: p sees p − G … p, so raster neighbours back to the same column one row up. column: the slots above in the
    same column, and itself. conv: p − (G·dr + dc) for dr in 0 … k//2 and dc in −k//2 … k//2, by raster arithmetic, so
    it wraps at the edges. dense: all earlier slots, and itself.
    """
    query = torch.arange(grid**2)[:, None]
    key = torch.arange(grid**2)[None, :]
    offset = query - key
    causal = offset >= 0
    if kind == "dense":
        return causal
    if kind == "row":
        return causal & (offset <= grid)
    if kind == "column":
        return causal & (offset % grid == 0)
    reach = conv_kernel // 2
    rows, columns = torch.arange(reach + 1), torch.arange(-reach, reach + 1)
    seen_offsets = (grid * rows[:, None] + columns[None, :]).flatten()
    return causal & torch.isin(offset, seen_offsets)


def attention_mask(kind: Kind, text_slots: int, grid: int, conv_kernel: int = 11) -> torch.Tensor:
    """The whole mask of a layer: bool [S, S], True where the query (row) sees the key (column)."""
    slots = text_slots + grid**2
    mask = torch.zeros(slots, slots, dtype=torch.bool)
    mask[:text_slots, :text_slots] = torch.ones(text_slots, text_slots, dtype=torch.bool).tril()
    mask[text_slots:, :text_slots] = True
    mask[text_slots:, text_slots:] = image_mask(kind, grid, conv_kernel)
    return mask

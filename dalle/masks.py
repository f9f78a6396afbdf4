"""The slots of a sequence and the mask of each layer. The only place with offset arithmetic.

A sequence has S = T + G² slots. Text slots 0 … T−1 hold `[start-of-text, y₀ … y_{T−2}]`; image slots T … S−1 hold
`[start-of-image, z₀ … z_{G²−2}]`. Slot p predicts the token that slot p + 1 would hold, so image slot number i (counted
from 0 within the image) predicts zᵢ, and position embeddings are indexed by the predicted position: row i // G and
column i mod G. The last text slot predicts nothing.

Masks follow appendix B.1 of the paper: text attends to text causally, every image slot sees all text, and image slots
see one another by row, column or convolution. All three are subsets of the causal order. `sees` is their definition;
whole masks, windows for a CPU and block masks for a GPU are made from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

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


def sees(kind: Kind, query: torch.Tensor, key: torch.Tensor, grid: int, conv_kernel: int = 11) -> torch.Tensor:
    """Whether image slot number `query` sees image slot number `key`: bool, elementwise.

    row: p sees p − G … p, so raster neighbours back to the same column one row up. column: the slots above in the
    same column, and itself. conv: p − (G·dr + dc) for dr in 0 … k//2 and dc in −k//2 … k//2, by raster arithmetic, so
    it wraps at the edges. dense: all earlier slots, and itself.
    """
    offset = query - key
    if kind == "dense":
        return offset >= 0
    if kind == "row":
        return (offset >= 0) & (offset <= grid)
    if kind == "column":
        return (offset >= 0) & (offset % grid == 0)
    reach = conv_kernel // 2
    # the last row up that a column offset of at least −reach can lie in
    rows_up = ((offset + reach) // grid).clamp(max=reach)
    return (offset >= 0) & (offset - grid * rows_up <= reach)


def seen_offsets(kind: Kind, grid: int, conv_kernel: int = 11) -> list[int]:
    """How far back an image slot sees, where so many slots are before it, ascending: whether it sees another depends on
    their distance alone."""
    slots = torch.arange(grid**2)
    return slots[sees(kind, slots[-1], slots[-1] - slots, grid, conv_kernel)].tolist()


def image_mask(kind: Kind, grid: int, conv_kernel: int = 11) -> torch.Tensor:
    """Which image slot sees which: bool [I, I], query by key, I = grid²."""
    slots = torch.arange(grid**2)
    return sees(kind, slots[:, None], slots[None, :], grid, conv_kernel)


def attention_mask(kind: Kind, text_slots: int, grid: int, conv_kernel: int = 11) -> torch.Tensor:
    """The whole mask of a layer: bool [S, S], True where the query (row) sees the key (column)."""
    slots = text_slots + grid**2
    mask = torch.zeros(slots, slots, dtype=torch.bool)
    mask[:text_slots, :text_slots] = torch.ones(text_slots, text_slots, dtype=torch.bool).tril()
    mask[text_slots:, :text_slots] = True
    mask[text_slots:, text_slots:] = image_mask(kind, grid, conv_kernel)
    return mask


def transposed(image_BHIK: torch.Tensor, grid: int) -> torch.Tensor:
    """Image slots in raster order to column order, or back: [B, H, I, K]. A column's slots then lie side by side."""
    return image_BHIK.unflatten(2, (grid, grid)).transpose(2, 3).flatten(2, 3)


def block_mask_rule(kind: Kind, text_slots: int, grid: int, conv_kernel: int = 11) -> Callable:
    """The whole mask as FlexAttention's `mask_mod`, for column layers with the image slots in column order.

    Elementwise on integer tensors, so that FlexAttention can trace it.
    """

    def rule(batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        image_query, image_key = query - text_slots, key - text_slots
        if kind == "column":
            image_query = image_query % grid * grid + image_query // grid
            image_key = image_key % grid * grid + image_key // grid
        text_sees = (query < text_slots) & (key <= query)
        image_sees = (query >= text_slots) & (
            (key < text_slots) | sees(kind, image_query, image_key, grid, conv_kernel)
        )
        return text_sees | image_sees

    return rule


@dataclass(frozen=True)
class Windows:
    """The image keys that blocks of consecutive image slots need, so that a sparse mask becomes small dense products.

    Column layers have their slots in column order here (`transposed`), all others in raster order.

    Args:
        runs: of the keys that a block needs, (first, length) of each run of consecutive slots, counted from the
            block's first slot; what lies before the image is never seen
        seen_WNM: bool [W, N, M], which of the M keys of its block each slot sees, for each of the W = I / N blocks of N slots
    """

    runs: list[tuple[int, int]]
    seen_WNM: torch.Tensor


def windows(kind: Kind, grid: int, conv_kernel: int = 11) -> Windows:
    """The windows of a sparse layer. Blocks have 16 to 32 slots where such a number divides the image, else G: smaller
    products are slow, larger ones compute more pairs that the mask drops."""
    slots = grid**2
    if kind == "column":
        seen_GNM = torch.ones(grid, grid, grid, dtype=torch.bool).tril()
        return Windows([(0, grid)], seen_GNM)
    block = next((n for n in range(32, 15, -1) if slots % n == 0), grid)
    offsets = seen_offsets(kind, grid, conv_kernel)
    needed = sorted({slot - offset for slot in range(block) for offset in offsets})
    runs: list[tuple[int, int]] = []
    for key in needed:
        if runs and key == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((key, 1))
    first_W = torch.arange(0, slots, block)
    query_WN1 = (first_W[:, None] + torch.arange(block))[:, :, None]
    key_W1M = (first_W[:, None] + torch.tensor(needed))[:, None, :]
    return Windows(runs, sees(kind, query_WN1, key_W1M, grid, conv_kernel) & (key_W1M >= 0))


@dataclass(frozen=True)
class CachePlaces:
    """Where a layer keeps the keys and values of the image slots while they are drawn one after another: as many as it sees
    back, and for column layers all.

    Args:
        size: P, the number of places
        place_I: int64 [I], the place of each slot; what an earlier slot left there is no longer needed
        visible_IM: int64 [I, M], the places that each slot reads; null where it reads all P in their order
        bias_IM: fp32 [I, M], 0 where it sees what lies there; −∞ for a place that nothing it sees has been written to
    """

    size: int
    place_I: torch.Tensor
    visible_IM: torch.Tensor | None
    bias_IM: torch.Tensor

    def to(self, device: torch.device) -> CachePlaces:
        """On a device."""
        visible_IM = None if self.visible_IM is None else self.visible_IM.to(device)
        return CachePlaces(self.size, self.place_I.to(device), visible_IM, self.bias_IM.to(device))

    def sight(self, slot_1: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Of one slot, int64 [1], the places that it reads (null for all) and their bias: [M] each."""
        return None if self.visible_IM is None else self.visible_IM[slot_1][0], self.bias_IM[slot_1][0]


def cache_places(kind: Kind, grid: int, conv_kernel: int = 11) -> CachePlaces:
    """The places of a layer's kind. M does not depend on the slot, so that a step is the same for all slots. Places are read
    in ascending order, and those of column and convolutional layers are laid out so that they lie nearly side by side."""
    slots = grid**2
    slot_I1 = torch.arange(slots)[:, None]
    offset_M = torch.tensor(seen_offsets(kind, grid, conv_kernel))
    if kind in ("column", "conv"):
        # column by column, of each the last rows: a slot's place is taken again that many rows further on
        rows = grid if kind == "column" else min(grid, conv_kernel // 2 + 1)
        size, place_I = grid * rows, slot_I1[:, 0] % grid * rows + slot_I1[:, 0] // grid % rows
        visible_IM = place_I[(slot_I1 - offset_M) % slots]
    else:
        size = int(offset_M[-1]) + 1
        place_I, visible_IM = slot_I1[:, 0] % size, (slot_I1 - offset_M) % size
    visible_IM, order_IM = visible_IM.sort(dim=1)
    seen_IM = (offset_M <= slot_I1).gather(1, order_IM)
    bias_IM = torch.zeros(seen_IM.shape).masked_fill(~seen_IM, -math.inf)
    reads_all = size == len(offset_M) and bool((visible_IM == torch.arange(size)).all())
    return CachePlaces(size, place_I, None if reads_all else visible_IM, bias_IM)

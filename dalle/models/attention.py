"""Attention with the masks of `dalle/masks.py`: the plain definition, and its fast twins behind one signature.

The axes are B batch, H heads, S query slots, M key slots, K head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from dalle.masks import Kind, Windows, attention_mask, block_mask_rule, transposed, windows
from dalle.models.window_attention import window_attention

_LEAST_HEAD_WIDTH = 16
"""FlexAttention has no kernel for narrower heads."""


@cache
def _compiled_flex_attention() -> Callable:
    """Compiled even where the model is not: as plain operations it would be dense. Each kind and batch size is a
    compilation of its own; one too many is an error, not a silent fall back to the dense form."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def reference_attention(
    q_BHSK: torch.Tensor, k_BHMK: torch.Tensor, v_BHMK: torch.Tensor, mask_SM: torch.Tensor
) -> torch.Tensor:
    """softmax(q·kᵀ/√K) v over the keys that the mask lets through, by the book and in fp32: [B, H, S, K].

    One softmax over text and image keys together (footnote 7 of the paper).
    """
    scores_BHSM = q_BHSK.float() @ k_BHMK.float().transpose(-1, -2) / math.sqrt(q_BHSK.shape[-1])
    weights_BHSM = scores_BHSM.masked_fill(~mask_SM, -math.inf).softmax(dim=-1)
    return (weights_BHSM @ v_BHMK.float()).to(q_BHSK.dtype)


class MaskedAttention(nn.Module):
    """Attention under the mask of one layer kind, in the dtype of its inputs but for the softmax. It has no parameters.

    On CUDA a sparse kind is FlexAttention with a block mask, on a CPU dense products of windows; a dense kind is
    PyTorch's own kernel.

    Args:
        kind: of the layer
        text_slots: T
        grid: G
        conv_kernel: side of the convolutional mask's kernel
    """

    mask_SS: torch.Tensor

    def __init__(self, kind: Kind, text_slots: int, grid: int, conv_kernel: int = 11):
        super().__init__()
        self.kind, self.text_slots, self.grid, self.conv_kernel = kind, text_slots, grid, conv_kernel
        with torch.device("cpu"):  # also where the model is built on the meta device
            mask_SS = attention_mask(kind, text_slots, grid, conv_kernel)
            self.windows: Windows | None = windows(kind, grid, conv_kernel) if kind != "dense" else None
        self.register_buffer("mask_SS", mask_SS, persistent=False)
        self.block_mask: BlockMask | None = None

    def _apply(self, fn: Callable, recurse: bool = True) -> MaskedAttention:
        super()._apply(fn, recurse)
        device = self.mask_SS.device
        stale = self.block_mask is None or self.block_mask.kv_indices.device != device
        if device.type == "cuda" and self.kind != "dense" and stale:  # now, not in a step, which may be compiled
            rule = block_mask_rule(self.kind, self.text_slots, self.grid, self.conv_kernel)
            slots = self.text_slots + self.grid**2
            self.block_mask = create_block_mask(rule, None, None, slots, slots, device=device)
        return self

    def forward(self, q_BHSK: torch.Tensor, k_BHSK: torch.Tensor, v_BHSK: torch.Tensor) -> torch.Tensor:
        """softmax(q·kᵀ/√K) v over what the mask lets through: [B, H, S, K].

        Args:
            q_BHSK, k_BHSK, v_BHSK: of all slots, or of the first ones, for which the mask is applied as it is
        """
        slots, head_width = q_BHSK.shape[2:]
        if self.kind == "dense":
            return F.scaled_dot_product_attention(q_BHSK, k_BHSK, v_BHSK, is_causal=True)
        if slots < self.mask_SS.shape[0] or (q_BHSK.is_cuda and head_width < _LEAST_HEAD_WIDTH):
            mask_SS = self.mask_SS[:slots, :slots]
            return F.scaled_dot_product_attention(q_BHSK, k_BHSK, v_BHSK, attn_mask=mask_SS)
        return (self.by_blocks if q_BHSK.is_cuda else self.by_windows)(q_BHSK, k_BHSK, v_BHSK)

    def by_blocks(self, q_BHSK: torch.Tensor, k_BHSK: torch.Tensor, v_BHSK: torch.Tensor) -> torch.Tensor:
        """FlexAttention over the blocks of 128 × 128 pairs that the mask does not drop whole."""
        assert self.block_mask is not None, "moved to CUDA by `.to`, which makes the block mask"
        flex: Any = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
        ordered = (self.ordered(x_BHSK) for x_BHSK in (q_BHSK, k_BHSK, v_BHSK))
        return self.ordered(flex(*ordered, block_mask=self.block_mask))

    def by_windows(self, q_BHSK: torch.Tensor, k_BHSK: torch.Tensor, v_BHSK: torch.Tensor) -> torch.Tensor:
        """Dense products of windows, on a CPU."""
        assert self.windows is not None
        q_PSK, k_PSK, v_PSK = (self.ordered(x_BHSK).flatten(0, 1) for x_BHSK in (q_BHSK, k_BHSK, v_BHSK))
        out_PSK = window_attention(q_PSK, k_PSK, v_PSK, self.text_slots, self.windows)
        return self.ordered(out_PSK.unflatten(0, q_BHSK.shape[:2]))

    def ordered(self, x_BHSK: torch.Tensor) -> torch.Tensor:
        """Image slots in the order in which what a slot sees lies side by side, or back from it."""
        if self.kind != "column":
            return x_BHSK
        text_BHTK, image_BHIK = x_BHSK.split([self.text_slots, self.grid**2], dim=2)
        return torch.cat([text_BHTK, transposed(image_BHIK, self.grid)], dim=2)

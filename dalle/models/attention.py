"""Masked attention: the plain definition that every faster form is tested against, and PyTorch's fused kernel.

The axes are B batch, H heads, S query slots, M key slots, K head width.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


def reference_attention(q_BHSK, k_BHMK, v_BHMK, mask_SM: torch.Tensor) -> torch.Tensor:
    """softmax(q·kᵀ/√K) v over the keys that the mask lets through, by the book and in fp32: [B, H, S, K].

    One softmax over text and image keys together (footnote 7 of the paper).
    """
    scores_BHSM = q_BHSK.float() @ k_BHMK.float().transpose(-1, -2) / math.sqrt(q_BHSK.shape[-1])
    weights_BHSM = scores_BHSM.masked_fill(~mask_SM, -math.inf).softmax(dim=-1)
    return (weights_BHSM @ v_BHMK.float()).to(q_BHSK.dtype)


def attention(q_BHSK, k_BHMK, v_BHMK, mask_SM: torch.Tensor) -> torch.Tensor:
    """The same, in the dtype of its inputs but for the softmax: PyTorch's fused kernel on a GPU, plain matrix products
    on a CPU, where the fused kernel's backward pass takes four times as long at these lengths."""
    if q_BHSK.is_cuda:
        return F.scaled_dot_product_attention(q_BHSK, k_BHMK, v_BHMK, attn_mask=mask_SM)
    bias_SM = torch.zeros_like(mask_SM, dtype=torch.float32).masked_fill_(~mask_SM, -math.inf)
    scores_BHSM = (q_BHSK / math.sqrt(q_BHSK.shape[-1])) @ k_BHMK.transpose(-1, -2)
    return (scores_BHSM.float() + bias_SM).softmax(dim=-1).to(v_BHMK.dtype) @ v_BHMK

"""Sparse attention on a CPU: text keys and the keys of small windows, one softmax over both.

Blocks of consecutive image slots take the keys that any of them sees (`masks.Windows`), so that a sparse mask becomes
dense products of a fraction of the size. The work is done for a few heads at a time, so that their scores stay in the
cache; the softmax weights are kept for the backward pass, in the dtype of the inputs.

The axes are P heads of all samples, S all slots, T text slots, I image slots, N slots in a block, M keys of its window,
X = P · I / N windows of several heads, L = T + M, K head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from dalle.masks import Windows

_SCORES_AT_ONCE = 1 << 21
"""Heads that are worked on together have at most this many scores: docs/LOG.md has other sizes."""


def window_attention(
    q_PSK: torch.Tensor, k_PSK: torch.Tensor, v_PSK: torch.Tensor, text_slots: int, windows: Windows
) -> torch.Tensor:
    """softmax(q·kᵀ/√K) v over what the slots see: [P, S, K]. Scores and weights have the dtype of the inputs; the softmax
    itself is fp32 inside.

    Args:
        q_PSK, k_PSK, v_PSK: the image slots in the windows' order
        text_slots: T
        windows: of the layer kind
    """
    runs = [number for run in windows.runs for number in run]
    learning = torch.is_grad_enabled() and (q_PSK.requires_grad or k_PSK.requires_grad or v_PSK.requires_grad)
    qkv = (q_PSK.contiguous(), k_PSK.contiguous(), v_PSK.contiguous())
    return _forward(*qkv, windows.seen_WNM, runs, text_slots, learning)[0]


# operators, not an autograd function: a compiler takes them as they are, so that they break no graph


@torch.library.custom_op("dalle::window_attention", mutates_args=())
def _forward(
    q_PSK: torch.Tensor,
    k_PSK: torch.Tensor,
    v_PSK: torch.Tensor,
    seen_WNM: torch.Tensor,
    runs: Sequence[int],
    text_slots: int,
    learning: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Also the weights [P, S, L], for the backward pass; else of no heads."""
    shape = _Shape(text_slots, seen_WNM, runs, q_PSK)
    out_PSK = torch.empty_like(q_PSK)
    kept_PSL = q_PSK.new_empty(shape.weights(len(q_PSK) if learning else 0))
    with torch.autocast("cpu", enabled=False):  # it would cast fp32 inputs
        for heads in shape.few_heads():
            q_PSK_, k_PSK_, v_PSK_ = q_PSK[heads] * shape.scale, k_PSK[heads], v_PSK[heads]
            weights_PSL = kept_PSL[heads] if learning else q_PSK.new_empty(shape.weights(len(q_PSK_)))
            text_PST, local_PWNM, unseen_PTM = shape.parts(weights_PSL)
            torch.bmm(q_PSK_, k_PSK_[:, :text_slots].mT, out=text_PST)
            text_PST[:, :text_slots] += shape.text_bias_TT
            local_XNM = shape.blocks(q_PSK_) @ shape.windows(k_PSK_).mT
            torch.add(local_XNM.view_as(local_PWNM), shape.bias_WNM, out=local_PWNM)
            unseen_PTM.fill_(-math.inf)
            torch.softmax(weights_PSL, dim=-1, out=weights_PSL)
            torch.bmm(text_PST, v_PSK_[:, :text_slots], out=out_PSK[heads])
            shape.image_of(out_PSK[heads]).add_(shape.image(local_PWNM.flatten(0, 1) @ shape.windows(v_PSK_)))
    return out_PSK, kept_PSL


@torch.library.custom_op("dalle::window_attention_backward", mutates_args=())
def _backward(
    dout_PSK: torch.Tensor,
    q_PSK: torch.Tensor,
    k_PSK: torch.Tensor,
    v_PSK: torch.Tensor,
    weights_PSL: torch.Tensor,
    seen_WNM: torch.Tensor,
    runs: Sequence[int],
    text_slots: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = _Shape(text_slots, seen_WNM, runs, q_PSK)
    dq_PSK, dk_PSK, dv_PSK = (torch.empty_like(q_PSK) for _ in range(3))
    with torch.autocast("cpu", enabled=False):
        for heads in shape.few_heads():
            q_PSK_, k_PSK_, v_PSK_, dout_PSK_ = q_PSK[heads] * shape.scale, k_PSK[heads], v_PSK[heads], dout_PSK[heads]
            q_XNK, dout_XNK, k_XMK, v_XMK = (
                *map(shape.blocks, (q_PSK_, dout_PSK_)),
                *map(shape.windows, (k_PSK_, v_PSK_)),
            )

            dscores_PSL = torch.empty_like(weights_PSL[heads])
            dtext_PST, dlocal_PWNM, unseen_PTM = shape.parts(dscores_PSL)
            torch.bmm(dout_PSK_, v_PSK_[:, :text_slots].mT, out=dtext_PST)
            dlocal_PWNM.copy_((dout_XNK @ v_XMK.mT).view_as(dlocal_PWNM))
            unseen_PTM.zero_()
            dscores_PSL = torch._softmax_backward_data(dscores_PSL, weights_PSL[heads], -1, dscores_PSL.dtype)

            dtext_PST, dlocal_PWNM, _ = shape.parts(dscores_PSL)
            text_PST, local_PWNM, _ = shape.parts(weights_PSL[heads])
            dlocal_XNM, local_XNM = dlocal_PWNM.flatten(0, 1), local_PWNM.flatten(0, 1)
            torch.bmm(dtext_PST, k_PSK_[:, :text_slots], out=dq_PSK[heads])
            shape.image_of(dq_PSK[heads]).add_(shape.image(dlocal_XNM @ k_XMK))
            dq_PSK[heads] *= shape.scale
            # (qᵀ·d)ᵀ, not dᵀ·q: products are slow with a large transposed matrix
            dk_PSK[heads, :text_slots] = (q_PSK_.mT @ dtext_PST).mT
            dv_PSK[heads, :text_slots] = (dout_PSK_.mT @ text_PST).mT
            shape.sum_windows(dlocal_XNM.mT @ q_XNK, out_PIK=shape.image_of(dk_PSK[heads]))
            shape.sum_windows(local_XNM.mT @ dout_XNK, out_PIK=shape.image_of(dv_PSK[heads]))
    return dq_PSK, dk_PSK, dv_PSK


@_forward.register_fake
def _(
    q_PSK: torch.Tensor,
    k_PSK: torch.Tensor,
    v_PSK: torch.Tensor,
    seen_WNM: torch.Tensor,
    runs: Sequence[int],
    text_slots: int,
    learning: bool,
) -> tuple[torch.Tensor, ...]:
    shape = _Shape(text_slots, seen_WNM, runs, q_PSK)
    return torch.empty_like(q_PSK), q_PSK.new_empty(shape.weights(len(q_PSK) if learning else 0))


@_backward.register_fake
def _(
    dout_PSK: torch.Tensor,
    q_PSK: torch.Tensor,
    k_PSK: torch.Tensor,
    v_PSK: torch.Tensor,
    weights_PSL: torch.Tensor,
    seen_WNM: torch.Tensor,
    runs: Sequence[int],
    text_slots: int,
) -> tuple[torch.Tensor, ...]:
    return torch.empty_like(q_PSK), torch.empty_like(q_PSK), torch.empty_like(q_PSK)


def _remember(ctx: Any, inputs: Any, output: Any) -> None:
    *qkv, seen_WNM, ctx.runs, ctx.text_slots, _ = inputs
    ctx.save_for_backward(*qkv, output[1], seen_WNM)
    ctx.set_materialize_grads(False)  # the weights get none


def _gradients(ctx: Any, dout_PSK: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
    return *_backward(dout_PSK.contiguous(), *ctx.saved_tensors, ctx.runs, ctx.text_slots), None, None, None, None


_forward.register_autograd(_gradients, setup_context=_remember)


class _Shape:
    """How the slots fall apart into blocks and windows, and the biases that hide what the mask drops."""

    def __init__(self, text_slots: int, seen_WNM: torch.Tensor, runs: Sequence[int], q_PSK: torch.Tensor):
        self.num_heads, slots, head_width = q_PSK.shape
        self.text_slots, self.image_slots = text_slots, slots - text_slots
        self.scale = 1 / math.sqrt(head_width)
        self.num_windows, self.block, self.num_keys = seen_WNM.shape
        self.runs = list(zip(runs[::2], runs[1::2], strict=True))
        self.before = max(0, -self.runs[0][0])  # slots before the image that the first windows reach into
        seen_TT = torch.ones(text_slots, text_slots, dtype=torch.bool).tril()
        # adding a bias takes a tenth of the time of filling by a mask
        self.text_bias_TT = q_PSK.new_zeros(seen_TT.shape).masked_fill_(~seen_TT, -math.inf)
        self.bias_WNM = q_PSK.new_zeros(seen_WNM.shape).masked_fill_(~seen_WNM, -math.inf)

    def weights(self, heads: int) -> tuple[int, int, int]:
        """[P, S, L], the last M keys being those of an image slot's window."""
        return heads, self.text_slots + self.image_slots, self.text_slots + self.num_keys

    def few_heads(self) -> list[slice]:
        """Slices of the heads, so many at a time that their scores fit the cache."""
        at_once = max(1, _SCORES_AT_ONCE // math.prod(self.weights(1)))
        return [slice(first, first + at_once) for first in range(0, self.num_heads, at_once)]

    def parts(self, x_PSL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of scores or weights the views over the text [P, S, T] and over the windows [P, W, N, M], and what is left, where
        text slots have no window [P, T, M]."""
        text_PST, local_PSM = x_PSL.split([self.text_slots, self.num_keys], dim=2)
        unseen_PTM, local_PIM = local_PSM.split([self.text_slots, self.image_slots], dim=1)
        return text_PST, local_PIM.unflatten(1, (self.num_windows, self.block)), unseen_PTM

    def image_of(self, x_PSK: torch.Tensor) -> torch.Tensor:
        """[P, I, K]: the image slots."""
        return x_PSK[:, self.text_slots :]

    def blocks(self, x_PSK: torch.Tensor) -> torch.Tensor:
        """[X, N, K]: the image slots by block."""
        return self.image_of(x_PSK).reshape(-1, self.block, x_PSK.shape[2])

    def image(self, x_XNK: torch.Tensor) -> torch.Tensor:
        """[P, I, K]: of blocks the image slots."""
        return x_XNK.view(-1, self.image_slots, x_XNK.shape[2])

    def windows(self, x_PSK: torch.Tensor) -> torch.Tensor:
        """[X, M, K]: of each block the keys or values of its window, zero where they lie before the image."""
        if self.num_keys == self.block:
            return self.blocks(x_PSK)
        padded_PIK = F.pad(self.image_of(x_PSK), (0, 0, self.before, 0))
        heads, slots, width = padded_PIK.shape
        runs = [
            padded_PIK.as_strided(
                (heads, self.num_windows, length, width),
                (slots * width, self.block * width, width, 1),
                (self.before + first) * width,
            )
            for first, length in self.runs
        ]
        return torch.cat(runs, dim=2).flatten(0, 1)

    def sum_windows(self, d_XMK: torch.Tensor, out_PIK: torch.Tensor) -> None:
        """For each image slot the sum over the windows that hold it, in fp32 where there are several."""
        if self.num_keys == self.block:
            out_PIK.copy_(self.image(d_XMK))
            return
        d_PWMK = d_XMK.unflatten(0, (-1, self.num_windows))
        heads, _, _, width = d_PWMK.shape
        total_PIK = d_XMK.new_zeros(heads, self.before + self.image_slots + self.block, width, dtype=torch.float32)
        key = 0
        for first, length in self.runs:
            # piece after piece as wide as a block: the pieces of all blocks lie side by side
            for piece in range(0, length, self.block):
                taken = min(self.block, length - piece)
                start = self.before + first + piece
                blocks_PWNK = total_PIK[:, start : start + self.image_slots].unflatten(1, (-1, self.block))
                blocks_PWNK[:, :, :taken] += d_PWMK[:, :, key : key + taken]
                key += taken
        out_PIK.copy_(total_PIK[:, self.before : self.before + self.image_slots])

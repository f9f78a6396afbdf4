"""The cross-entropy of a head's logits, which are never held all at once.

At 8,192 codes and 1,024 image slots the fp32 logits of one sample take 34 MB, and as much again for their gradient. Here
they live a few rows at a time. Their gradients are made in the same pass and held in the dtype of the products, for a block
of rows that is large enough for fast products, so that the backward pass is a multiplication. The axes are N rows, R rows
of a block, C rows of a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from dalle.text import PAD

CHUNK_ROWS = {"cpu": 256, "cuda": 8192}
"""Rows whose logits are in fp32 at a time: of 8,192 codes 8 MB, which a CPU's cache holds, and 256 MB."""
_SCORED_LOGITS = 1 << 24
"""Logits that are in fp32 at a time where nothing is learnt: 64 MB of them."""
_BLOCK_LOGITS = 1 << 26
"""Logits whose gradients are held in 16 bits at a time: 128 MB of them."""


def cross_entropy_reference(
    x_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor, targets_N: torch.Tensor
) -> torch.Tensor:
    """The plain form of `cross_entropy`."""
    logits_NV = F.linear(x_ND, weight_VD, bias_V).float()
    return F.cross_entropy(logits_NV, targets_N, ignore_index=PAD, reduction="sum")


def cross_entropy(
    x_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor, targets_N: torch.Tensor
) -> torch.Tensor:
    """The sum over rows of −ln softmax(x·wᵀ + b)[target], in nats: fp32, a scalar. Products run in the dtype of autocast.

    Args:
        x_ND: final states
        weight_VD: the head's weight
        bias_V: its bias
        targets_N: int64 [N]; `PAD` counts for nothing
    """
    learning = torch.is_grad_enabled() and any(t.requires_grad for t in (x_ND, weight_VD, bias_V))
    return _forward(x_ND, weight_VD, bias_V, targets_N, _product_dtype(x_ND), learning)[0]


@torch.no_grad()
def ln_p(x_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """ln softmax(x·wᵀ + b)[target] of each row, in nats, 0 for `PAD`: fp32 [N]. Arguments as of `cross_entropy`."""
    dtype = _product_dtype(x_ND)
    with torch.autocast(x_ND.device.type, enabled=False):
        x_ND, weight_VD = x_ND.to(dtype), weight_VD.to(dtype)
        return torch.cat(
            [
                _scored(x_ND[some], weight_VD, bias_V, targets_N[some])[1]
                for some in _slices(len(x_ND), min(CHUNK_ROWS[x_ND.device.type], _SCORED_LOGITS // len(weight_VD)))
            ]
        )


def logits(x_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor) -> torch.Tensor:
    """x·wᵀ + b: fp32 [N, V]. The product runs in the dtype of autocast; of 16-bit matrices a GPU keeps the sums in fp32
    where no gradient is asked for, a CPU rounds them first."""
    dtype = _product_dtype(x_ND)
    with torch.autocast(x_ND.device.type, enabled=False):
        x_ND, weight_VD = x_ND.to(dtype), weight_VD.to(dtype)
        if torch.is_grad_enabled():  # PyTorch's product with another dtype has no backward pass
            return (x_ND @ weight_VD.mT).float() + bias_V
        return _logits(x_ND, weight_VD, bias_V)


def _product_dtype(x_ND: torch.Tensor) -> torch.dtype:
    device = x_ND.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_ND.dtype


# an operator, which a compiler takes as it is: what Inductor makes of it takes four times as long on a CPU


@torch.library.custom_op("dalle::cross_entropy", mutates_args=())
def _forward(
    x_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor,
    targets_N: torch.Tensor,
    dtype: torch.dtype,
    learning: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return in_chunks(x_ND, weight_VD, bias_V, targets_N, dtype, learning, CHUNK_ROWS[x_ND.device.type])


def in_chunks(
    x_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor,
    targets_N: torch.Tensor,
    dtype: torch.dtype,
    learning: bool,
    chunk_rows: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The nats, and their gradients by states, weight and bias where they are wanted; else nothing."""
    nats, *gradients = _results(x_ND, weight_VD, bias_V, dtype, learning)
    dx_ND, dweight_VD, dbias_V = (gradient.zero_() for gradient in gradients)
    nats.zero_()
    vocabulary = len(weight_VD)
    with torch.autocast(x_ND.device.type, enabled=False):
        x_ND, weight_VD = x_ND.to(dtype), weight_VD.to(dtype)
        for rows in _slices(len(x_ND), _BLOCK_LOGITS // vocabulary):
            x_RD, targets_R = x_ND[rows], targets_N[rows]
            dlogits_RV = x_RD.new_empty(len(x_RD) if learning else 0, vocabulary)
            for some in _slices(len(x_RD), chunk_rows):
                ln_p_CV, ln_p_C = _scored(x_RD[some], weight_VD, bias_V, targets_R[some])
                nats -= ln_p_C.sum()
                if learning:
                    # d nats / d logits = softmax − one-hot
                    counted_C1 = (targets_R[some] != PAD).float()[:, None]
                    targets_C1 = targets_R[some].clamp(min=0)[:, None]
                    p_CV = ln_p_CV.exp_()
                    p_CV.scatter_add_(1, targets_C1, torch.full_like(counted_C1, -1)).mul_(counted_C1)
                    dbias_V += p_CV.sum(dim=0)
                    dlogits_RV[some] = p_CV
            if learning:
                torch.mm(dlogits_RV, weight_VD, out=dx_ND[rows])
                dweight_VD += dlogits_RV.mT @ x_RD
    return nats, dx_ND, dweight_VD, dbias_V


def _results(
    x_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor, dtype: torch.dtype, learning: bool
) -> tuple[torch.Tensor, ...]:
    """What `_forward` gives, with nothing in it."""
    nats = torch.empty((), dtype=torch.float32, device=x_ND.device)
    if not learning:
        return nats, *(nats.new_empty(0) for _ in range(3))
    return nats, torch.empty_like(x_ND, dtype=dtype), *(nats.new_empty(t.shape) for t in (weight_VD, bias_V))


@_forward.register_fake
def _(
    x_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor,
    targets_N: torch.Tensor,
    dtype: torch.dtype,
    learning: bool,
) -> tuple[torch.Tensor, ...]:
    return _results(x_ND, weight_VD, bias_V, dtype, learning)


def _remember(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dnats: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
    return *(dnats * gradient.float() for gradient in ctx.saved_tensors), None, None, None


_forward.register_autograd(_gradients, setup_context=_remember)


def _slices(length: int, at_once: int) -> list[slice]:
    at_once = max(1, at_once)
    return [slice(first, min(first + at_once, length)) for first in range(0, length, at_once)]


def _scored(
    x_CD: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor, targets_C: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """ln softmax of a chunk's logits [C, V], and of its targets [C], 0 for `PAD`: fp32."""
    ln_p_CV = _logits(x_CD, weight_VD, bias_V).log_softmax(dim=1)
    ln_p_C = ln_p_CV.gather(1, targets_C.clamp(min=0)[:, None])[:, 0]
    return ln_p_CV, ln_p_C * (targets_C != PAD)  # a product: what is not a number shows, behind a pad too


def _logits(x_CD: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor) -> torch.Tensor:
    if x_CD.is_cuda and x_CD.dtype.itemsize == 2:
        return torch.mm(x_CD, weight_VD.mT, out_dtype=torch.float32).add_(bias_V)
    return (x_CD @ weight_VD.mT).float().add_(bias_V)

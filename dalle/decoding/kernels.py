"""What a step of the token loop does between its matrix products: attention for one image slot of every row, and the
identity path with the layer norm behind it. They are defined in PyTorch's operations; a CPU has twins in C++
(`native.cpp`), on CUDA PyTorch's compiler takes the definition of attention itself.

Axes: C captions, N candidates of each, R = C·N rows, H heads, K head width, z which of q, k and v, T text slots, P places of
a cache, M places that a slot reads, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import nn

from dalle.decoding import native
from dalle.decoding.caches import LayerCache


def attend(
    q_RHK: torch.Tensor,
    text_k_CHKT: torch.Tensor,
    text_v_CHTK: torch.Tensor,
    k_RHPK: torch.Tensor,
    v_RHPK: torch.Tensor,
    visible_M: torch.Tensor | None,
    bias_M: torch.Tensor,
    sums: bool = False,
) -> torch.Tensor:
    """softmax(q·kᵀ/√K) v over the caption and the visible places, one softmax over both, in fp32: [R, H, K].

    Args:
        q_RHK: of one image slot
        text_k_CHKT, text_v_CHTK: the captions' keys and values
        k_RHPK, v_RHPK: the cache's
        visible_M: the places to read; null reads all
        bias_M: fp32, 0, or −∞ for what the slot does not see
        sums: image scores and values as sums of products, fp32, in place of batched products with one row: a compiler makes
            a few loops of them, which read the caches where they lie, once. Without one they take several times as long
            (docs/LOG.md), and hold all products
    """
    captions, _, head_width, _ = text_k_CHKT.shape
    if visible_M is not None:
        k_RHPK, v_RHPK = k_RHPK[:, :, visible_M], v_RHPK[:, :, visible_M]
    q_RHK = q_RHK / math.sqrt(head_width)
    text_CHNT = (_by_caption(q_RHK, captions) @ text_k_CHKT).float()
    if sums:
        image_RHM = (q_RHK.float()[:, :, None] * k_RHPK.float()).sum(dim=-1) + bias_M
    else:
        image_RHM = (q_RHK[:, :, None] @ k_RHPK.mT)[:, :, 0].float() + bias_M
    most_RH = torch.maximum(_by_row(text_CHNT.amax(dim=-1)), image_RHM.amax(dim=-1))
    text_CHNT = (text_CHNT - _by_caption(most_RH, captions)[..., None]).exp()
    image_RHM = (image_RHM - most_RH[..., None]).exp()
    total_RH = _by_row(text_CHNT.sum(dim=-1)) + image_RHM.sum(dim=-1)
    text_RHK = _by_row(text_CHNT.to(q_RHK.dtype) @ text_v_CHTK).float()
    if sums:
        values_RHK = text_RHK + (image_RHM[..., None] * v_RHPK.float()).sum(dim=2)
    else:
        values_RHK = text_RHK + (image_RHM.to(q_RHK.dtype)[:, :, None] @ v_RHPK)[:, :, 0].float()
    return (values_RHK / total_RH[..., None]).to(q_RHK.dtype)


@cache
def _compiled_attend() -> Callable:
    """Each kind of layer and shape of batch is a compilation of its own."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    return torch.compile(partial(attend, sums=True), dynamic=False, fullgraph=True)


class Kernels:
    """The plain forms."""

    name = "plain-2"
    """What a drawing's file calls it: another name where the last bits are others. The first had its softmax in 16 bits."""
    attention = staticmethod(attend)

    def attend(
        self,
        qkv_RzHK: torch.Tensor,
        cache: LayerCache,
        slot_1: torch.Tensor,
        visible_M: torch.Tensor | None,
        bias_M: torch.Tensor,
    ) -> torch.Tensor:
        """Attention of one image slot, whose keys and values are written to the cache: [R, H, K]."""
        q_RHK, k_RHK, v_RHK = qkv_RzHK.unbind(1)
        cache.write(slot_1, k_RHK, v_RHK)
        text = (cache.text_k_CHKT, cache.text_v_CHTK)
        return self.attention(q_RHK, *text, cache.k_RHPK, cache.v_RHPK, visible_M, bias_M)

    def add_norm(
        self, x_RD: torch.Tensor, change_RD: torch.Tensor | None, norm: nn.LayerNorm, dtype: torch.dtype
    ) -> torch.Tensor:
        """Adds a change to the identity path x, fp32, in place, and returns its layer norm in `dtype`: [R, D]."""
        if change_RD is not None:
            x_RD += change_RD
        return norm(x_RD).to(dtype)


class CompiledKernels(Kernels):
    """With attention by PyTorch's compiler."""

    name = "compiled"

    def __init__(self) -> None:
        self.attention = _compiled_attend()


class NativeKernels(Kernels):
    """In C++, for a CPU."""

    def __init__(self) -> None:
        self.library = native.library_there()
        self.name = native.name()

    def attend(
        self,
        qkv_RzHK: torch.Tensor,
        cache: LayerCache,
        slot_1: torch.Tensor,
        visible_M: torch.Tensor | None,
        bias_M: torch.Tensor,
    ) -> torch.Tensor:
        rows, _, heads, width = qkv_RzHK.shape
        captions, _, _, text_slots = cache.text_k_CHKT.shape
        text_CHNT = _by_caption(qkv_RzHK[:, 0], captions) @ cache.text_k_CHKT  # becomes the softmax weights
        scores_RHM = qkv_RzHK.new_empty(rows, heads, len(bias_M), dtype=torch.float32)
        out_RHK = qkv_RzHK.new_empty(rows, heads, width)
        function = self.library.attend_bf16 if qkv_RzHK.dtype == torch.bfloat16 else self.library.attend_fp32
        function(
            native.pointer(qkv_RzHK), rows, heads, width,
            native.pointer(cache.k_RHPK), native.pointer(cache.v_RHPK),
            cache.places.size, cache.places.place_I[slot_1].item(),
            native.pointer(visible_M), native.pointer(bias_M), len(bias_M),
            native.pointer(text_CHNT), text_slots, rows // captions,
            native.pointer(scores_RHM), native.pointer(out_RHK), torch.get_num_threads(),
        )  # fmt: skip
        return out_RHK + _by_row(text_CHNT @ cache.text_v_CHTK)

    def add_norm(
        self, x_RD: torch.Tensor, change_RD: torch.Tensor | None, norm: nn.LayerNorm, dtype: torch.dtype
    ) -> torch.Tensor:
        out_RD = torch.empty_like(x_RD, dtype=dtype)
        function = self.library.add_norm_bf16 if dtype == torch.bfloat16 else self.library.add_norm_fp32
        function(
            native.pointer(x_RD), native.pointer(change_RD), native.pointer(norm.weight), native.pointer(norm.bias),
            *x_RD.shape, norm.eps, native.pointer(out_RD), torch.get_num_threads(),
        )  # fmt: skip
        return out_RD


def kernels(device: torch.device, compile: bool, head_width: int) -> Kernels:
    """The fastest there are for a device; or, where they are not wanted or cannot be had, the plain ones."""
    if compile and device.type == "cuda":
        return CompiledKernels()
    return NativeKernels() if compile and head_width <= native.MOST_HEAD_WIDTH and native.library() else Kernels()


def _by_caption(x_RH: torch.Tensor, captions: int) -> torch.Tensor:
    """[R, H, …] as [C, H, N, …]."""
    return x_RH.unflatten(0, (captions, -1)).transpose(1, 2)


def _by_row(x_CHN: torch.Tensor) -> torch.Tensor:
    """[C, H, N, …] as [R, H, …]."""
    return x_CHN.transpose(1, 2).flatten(0, 1)

"""The token loop: from captions to image codes, with a key-value cache.

A caption, and the given rows of an image prompt with it, is read in one pass for all of its candidates. Of the image's
keys a step reads only those that the layer's mask lets it see. The plain form: caches hold every slot.

Axes: C captions, N candidates of each, T text slots, I image slots, V codes, H heads, K head width, M visible slots.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from dalle.config import Sampling
from dalle.layout import image_mask
from dalle.models.prior import Attention, InputMajorLinear, Prior


@dataclass
class _Cache:
    """Of one layer: the caption's keys and values, and those of the image slots so far."""

    text_k_CHTK: torch.Tensor
    text_v_CHTK: torch.Tensor
    image_k_IRHK: torch.Tensor  # R = C·N rows of the batch
    image_v_IRHK: torch.Tensor


class TokenLoop:
    """Decodes image codes with a prior.

    Args:
        prior: its matrices are cast to the precision once; where they have it, its parameters and buffers are shared
        precision: "fp32" or "bf16"
    """

    def __init__(self, prior: Prior, precision: str):
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.prior = _cast(prior, self.dtype).eval()
        self.device = self.prior.image_head.weight.device
        config = self.prior.config
        self._visible = {
            kind: [row.nonzero().flatten().to(self.device) for row in image_mask(kind, config.grid, config.conv_kernel)]
            for kind in set(self.prior.kinds)
        }

    @torch.inference_mode()
    def codes(
        self, text_CU: torch.Tensor, seeds_CN: torch.Tensor, sampling: Sampling, given_CG: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Sampled codes int64 [C, N, I].

        Args:
            text_CU: caption tokens int64 [C, T − 1], PAD after the end
            seeds_CN: one seed for each candidate int64; the same seed draws the same random numbers
            sampling: temperature and filters
            given_CG: codes int64 [C, G] of the first G image slots that are kept as they are
        """
        slots = self.prior.config.image_slots
        uniform_CNI = _uniform_numbers(seeds_CN, slots).to(self.device)
        num_given = 0 if given_CG is None else given_CG.shape[1]
        codes_CNI = torch.zeros(*seeds_CN.shape, slots, dtype=torch.int64, device=self.device)
        if given_CG is not None:
            codes_CNI[:, :, :num_given] = given_CG[:, None].to(self.device)
        for slot, logits_CNV in enumerate(self.logits(text_CU, codes_CNI, num_given), num_given):
            codes_CNI[..., slot] = choose(logits_CNV, uniform_CNI[..., slot], sampling)
        return codes_CNI

    def logits(self, text_CU: torch.Tensor, codes_CNI: torch.Tensor, num_given: int = 0) -> Iterator[torch.Tensor]:
        """Logits fp32 [C, N, V] of each image slot in turn, from slot number `num_given` on.

        Args:
            text_CU: caption tokens int64 [C, T − 1], PAD after the end
            codes_CNI: int64 [C, N, I]; code i is read after the logits of slot i were yielded
            num_given: how many of the first codes are there from the start, the same for all candidates of a caption
        """
        num_captions, num_candidates, slots = codes_CNI.shape
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            held_C1 = self.prior.start_of_image(num_captions)
            held_CG = torch.cat([held_C1, codes_CNI[:, 0]], dim=1)[:, :num_given]
            caches = self._read_given(text_CU.to(self.device), held_CG, num_candidates, slots)
            for slot in range(num_given, slots):
                held_CN = codes_CNI[..., slot - 1] if slot else held_C1.expand(-1, num_candidates)
                x_RSD = self.prior.embed_image(held_CN.reshape(-1, 1), first=slot)
                for kind, layer, cache in zip(self.prior.kinds, self.prior.layers, caches, strict=True):
                    visible_M = self._visible[kind][slot]
                    x_RSD = x_RSD + self._attend(layer.attention, x_RSD, cache, slot, visible_M).float()
                    x_RSD = x_RSD + layer.mlp(x_RSD).float()
                logits_RSV = self.prior.image_head(self.prior.norm(x_RSD))
                yield logits_RSV.view(num_captions, num_candidates, -1)

    def _read_given(self, text_CU: torch.Tensor, held_CG: torch.Tensor, candidates: int, slots: int) -> list[_Cache]:
        """Caches after one pass over the text slots and the first G image slots, which hold `held_CG`."""
        x_CSD = torch.cat([self.prior.embed_text(text_CU), self.prior.embed_image(held_CG)], dim=1)
        captions, given = held_CG.shape
        text_slots = x_CSD.shape[1] - given
        caches = []
        for kind, layer in zip(self.prior.kinds, self.prior.layers, strict=True):
            _, k_CHSK, v_CHSK = (tensor.to(self.dtype) for tensor in layer.attention.split(x_CSD))
            x_CSD = layer(x_CSD, self.prior.masked[kind])
            shape = (slots, captions * candidates, k_CHSK.shape[1], k_CHSK.shape[3])
            cache = _Cache(
                k_CHSK[:, :, :text_slots], v_CHSK[:, :, :text_slots], *(k_CHSK.new_empty(shape) for _ in "kv")
            )
            for whole_CHSK, image_IRHK in ((k_CHSK, cache.image_k_IRHK), (v_CHSK, cache.image_v_IRHK)):
                image_GCHK = whole_CHSK[:, :, text_slots:].permute(2, 0, 1, 3)
                image_IRHK[:given] = image_GCHK.repeat_interleave(candidates, dim=1)
            caches.append(cache)
        return caches

    def _attend(self, block: Attention, x_RSD: torch.Tensor, cache: _Cache, slot: int, visible_M: torch.Tensor):
        """The attention resblock for one image slot of every row."""
        q_RHSK, k_RHSK, v_RHSK = block.split(x_RSD)
        cache.image_k_IRHK[slot], cache.image_v_IRHK[slot] = k_RHSK[:, :, 0], v_RHSK[:, :, 0]
        captions, heads, text_slots, head_width = cache.text_k_CHTK.shape
        rows = q_RHSK.shape[0]
        q_RHSK = q_RHSK.to(self.dtype) / math.sqrt(head_width)
        # one matrix product for all candidates of a caption
        q_CHNK = q_RHSK.view(captions, rows // captions, heads, head_width).transpose(1, 2)
        text_CHNT = q_CHNK @ cache.text_k_CHTK.transpose(-1, -2)
        image_k_RHMK = cache.image_k_IRHK.index_select(0, visible_M).permute(1, 2, 0, 3)
        image_v_RHMK = cache.image_v_IRHK.index_select(0, visible_M).permute(1, 2, 0, 3)
        image_RHSM = q_RHSK @ image_k_RHMK.transpose(-1, -2)
        text_RHST = text_CHNT.transpose(1, 2).reshape(rows, heads, 1, text_slots)
        weights = torch.cat([text_RHST, image_RHSM], dim=-1).float().softmax(dim=-1).to(self.dtype)
        text_RHST, image_RHSM = weights.split([text_slots, len(visible_M)], dim=-1)
        text_CHNT = text_RHST.reshape(captions, rows // captions, heads, text_slots).transpose(1, 2)
        values_RHSK = (text_CHNT @ cache.text_v_CHTK).transpose(1, 2).reshape(rows, heads, 1, head_width)
        return block.merge(values_RHSK + image_RHSM @ image_v_RHMK)


def _cast(prior: Prior, dtype: torch.dtype) -> Prior:
    """The prior with the weights of its linear layers in `dtype`. Cast once: autocast would do it again at every step."""
    modules = [module for module in prior.modules() if isinstance(module, nn.Linear | InputMajorLinear)]
    linear = {id(p) for module in modules for p in module.parameters()}
    tensors: dict[int, torch.Tensor] = {id(buffer): buffer for buffer in prior.buffers()}
    for p in prior.parameters():
        tensors[id(p)] = nn.Parameter(p.detach().to(dtype if id(p) in linear else p.dtype), requires_grad=False)
    return copy.deepcopy(prior, tensors)  # what is in its second argument it takes from there


def choose(logits_NV: torch.Tensor, uniform_N: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """A code for each row, by inverting the cumulative distribution at a uniform number: int64 [...].

    Args:
        logits_NV: fp32 [..., V]
        uniform_N: in [0, 1) [...]
        sampling: temperature, then top-k, then top-p
    """
    logits_NV = logits_NV / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits_NV.shape[-1]:
        least = logits_NV.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < least, -math.inf)
    p_NV = logits_NV.softmax(dim=-1)
    if sampling.top_p is not None and sampling.top_p < 1:
        sorted_NV, order_NV = p_NV.sort(dim=-1, descending=True)
        # keep a code when those before it have less than top_p together; the likeliest always stays
        dropped_NV = sorted_NV.cumsum(dim=-1) - sorted_NV >= sampling.top_p
        p_NV = p_NV.scatter(-1, order_NV, sorted_NV.masked_fill(dropped_NV, 0))
    cumulative_NV = p_NV.cumsum(dim=-1)
    target_N1 = (uniform_N * cumulative_NV[..., -1])[..., None]
    chosen_N = torch.searchsorted(cumulative_NV, target_N1, right=True)[..., 0]
    # rounding may put the target past the last code that has any probability
    last_N = (p_NV > 0).int().cumsum(dim=-1).argmax(dim=-1)
    return torch.minimum(chosen_N, last_N)


def _uniform_numbers(seeds_CN: torch.Tensor, slots: int) -> torch.Tensor:
    """Uniform numbers in [0, 1) for each candidate and slot, from the candidate's own seed: fp32 [C, N, I].

    Drawn on the CPU, so that they are the same on every device.
    """
    generator = torch.Generator()
    rows = [torch.rand(slots, generator=generator.manual_seed(int(seed))) for seed in seeds_CN.flatten()]
    return torch.stack(rows).view(*seeds_CN.shape, slots)

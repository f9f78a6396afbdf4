"""Which code comes next: temperature, filters, and an exponential race on numbers that depend on a candidate's seed alone.

If each code v runs for a time E / p_v, with E exponential, the first to arrive is v with probability p_v: no cumulative
sums, and a result that does not depend on the order of the codes. It is run in two rounds, blocks of about √V codes and
then the codes of the block that won, which takes 2·√V random numbers in place of V.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from dalle.config import Sampling
from dalle.splitmix import GOLDEN, mix


def choose(logits_RV: torch.Tensor, uniform_RU: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """A code for each row, int64 [R], and whether its logits allow a choice, bool [R]: where one is NaN or +∞ the code
    means nothing.

    Args:
        logits_RV: fp32; −∞ is a code that never comes
        uniform_RU: in (0, 1), `num_uniform` of them for each row
        sampling: temperature (null is 1), then top-k, then top-p
    """
    most_R1 = logits_RV.amax(dim=-1, keepdim=True)  # of a row with a NaN it is NaN, wherever that stands
    weights_RV = _filtered(logits_RV, most_R1, sampling)
    blocks, width = _race(logits_RV.shape[-1])
    weights_RBW = F.pad(weights_RV, (0, blocks * width - weights_RV.shape[-1])).unflatten(-1, (blocks, width))
    block_time_RB, code_time_RW = (-uniform_RU.log()).split([blocks, width], dim=-1)
    block_R1 = (weights_RBW.sum(dim=-1) / block_time_RB).argmax(dim=-1, keepdim=True)
    weights_RW = weights_RBW.take_along_dim(block_R1[..., None], dim=1)[:, 0]
    return block_R1[:, 0] * width + (weights_RW / code_time_RW).argmax(dim=-1), most_R1[:, 0].isfinite()


def num_uniform(vocabulary: int) -> int:
    """U, the random numbers that one choice takes."""
    return sum(_race(vocabulary))


def uniform_numbers(seeds_R: torch.Tensor, slot_1: torch.Tensor, count: int) -> torch.Tensor:
    """In (0, 1), fp32 [R, U], for one slot of each candidate: SplitMix64 (Steele et al., 2014) with a counter, which is the
    same on every device and for any batch.

    Args:
        seeds_R: int64
        slot_1: int64 [1], or of as many elements as there are seeds
        count: U
    """
    counter_1U = slot_1[:, None] * count + torch.arange(1, count + 1, device=seeds_R.device)
    # the seed is mixed first: the streams of neighbouring seeds begin far apart
    bits_RU = mix(mix(seeds_R * GOLDEN)[:, None] + counter_1U * GOLDEN)
    # of 23 bits, so that the middle of each interval is a float and neither 0 nor 1 comes up
    return (((bits_RU >> 41) & 0x7FFFFF).float() + 0.5) * 2.0**-23


def _race(vocabulary: int) -> tuple[int, int]:
    """Blocks, and codes in each."""
    width = 1 << (math.ceil(math.log2(vocabulary)) // 2)
    return math.ceil(vocabulary / width), width


def _filtered(logits_RV: torch.Tensor, most_R1: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities up to a factor of each row, 0 for what the filters drop. Of top-p, codes as likely as the
    last one kept stay. most_R1: the greatest logits."""
    temperature = 1.0 if sampling.temperature is None else sampling.temperature
    weights_RV = ((logits_RV - most_R1) / temperature).exp()
    if sampling.top_k is not None and sampling.top_k < logits_RV.shape[-1]:
        best_RK = logits_RV.topk(sampling.top_k, dim=-1, sorted=False).indices  # so many, also of equal ones
        weights_RV = torch.zeros_like(weights_RV).scatter(-1, best_RK, weights_RV.gather(-1, best_RK))
    if sampling.top_p is not None and sampling.top_p < 1:
        weights_RV = _nucleus(weights_RV / weights_RV.sum(dim=-1, keepdim=True), sampling.top_p)
    return weights_RV


def _nucleus(p_RV: torch.Tensor, top_p: float) -> torch.Tensor:
    """The likeliest codes that together have `top_p`, the others 0.

    The least probability that stays is found bit by bit, since floats in [0, 1] are ordered as their bits are: exact, and
    without a sort.
    """
    bits_RV = p_RV.view(torch.int32)
    least_R1 = torch.zeros_like(bits_RV[:, :1])
    for bit in reversed(range(30)):
        higher_R1 = least_R1 | (1 << bit)
        mass_R1 = p_RV.where(bits_RV >= higher_R1, 0).sum(dim=-1, keepdim=True)
        least_R1 = torch.where(mass_R1 >= top_p, higher_R1, least_R1)
    return p_RV.where(bits_RV >= least_R1, 0)

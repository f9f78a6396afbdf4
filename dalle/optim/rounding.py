"""Stochastic rounding: weights in 16 bits that an update moves by less than their last bit, on average by exactly so much.

A weight is updated in fp32 and then becomes one of its two neighbours in 16 bits, each with the probability that makes the mean
of many roundings the fp32 value (Gupta et al., 2015). Rounding to the nearest would leave a weight where it is for good as soon
as a step is smaller than half of its last bit, which in bf16 is 2⁻⁹ of the weight. A compensation term in 16 bits (Kahan) loses
less still and costs 2 bytes a weight, all that 16 bits save; this costs none.

The random bits are a function of (seed, parameter, update, position in the whole parameter) and of nothing else: a resumed run has
the same ones, and so has every process, whatever part of a parameter it holds.
"""

from __future__ import annotations

import hashlib

import torch

from dalle.splitmix import GOLDEN, mix

_DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}
"""By how many bits a significand is shorter than fp32's 23."""
_SMALLEST_NORMAL = 2.0**-14
"""Of float16. Below it the last bit is worth as much as in the binade above; bfloat16's exponents are those of fp32."""


def key_of(seed: int, name: str) -> int:
    """What tells a parameter's random bits from all others': 64 bits, signed.

    Args:
        seed: of the run
        name: of the parameter in its model
    """
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest(), "little", signed=True)


def random_bits(key: torch.Tensor, update: torch.Tensor, position: torch.Tensor, count: int) -> torch.Tensor:
    """16 random bits for each of a run of elements, int32 [count], the same on every device: SplitMix64 with a counter.

    Args:
        key: of the parameter, int64 []
        update: its number, of any dtype, []
        position: in the flattened whole parameter of the first of them, int64 []
        count: how many
    """
    # the update is mixed into the key first: the streams of neighbouring updates begin far apart
    stream = mix(mix(key) + update.long() * GOLDEN)
    counter = position + torch.arange(1, count + 1, device=key.device)
    return ((mix(stream + counter * GOLDEN) >> 48) & 0xFFFF).int()


def rounded(x: torch.Tensor, random: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The value in 16 bits below or above each number, by as many of its random bits as the format drops. A value that the format
    has stays. Numbers beyond its largest value become infinite, and what is infinite or NaN stays so.

    Args:
        x: fp32
        random: int32 of the same shape, in [0, 2¹⁶)
        dtype: bfloat16 or float16
    """
    dropped = (1 << _DROPPED_BITS[dtype]) - 1
    lift = None
    if dtype == torch.float16:
        # lifted into the binade above, whose last bit is worth as much, a subnormal number is rounded like any other
        lift = torch.copysign(torch.full_like(x, _SMALLEST_NORMAL), x).where(x.abs() < _SMALLEST_NORMAL, 0.0)
        x = x + lift
    # the sign has a bit of its own, so that what is added to the others adds to the magnitude
    value = (x.view(torch.int32) + (random & dropped)).bitwise_and_(~dropped).view(torch.float32)
    return (value if lift is None else value - lift).to(dtype)

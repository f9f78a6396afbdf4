"""SplitMix64 (Steele et al., 2014) on tensors of int64: random numbers by a counter, integers alone, so that they are the same on
every device."""

from __future__ import annotations

import torch

GOLDEN, _MIX_1, _MIX_2 = (n - (1 << 64) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""The first is the step of the counter."""


def mix(x: torch.Tensor) -> torch.Tensor:
    """64 bits that look random, of any 64 bits: int64, of the same shape."""
    x = (x ^ _shifted(x, 30)) * _MIX_1
    x = (x ^ _shifted(x, 27)) * _MIX_2
    return x ^ _shifted(x, 31)


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """To the right, with zeros from the left, which int64 does not do of itself."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)

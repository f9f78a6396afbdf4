"""Rounding to bf16 by the bits, beside which the wire's is tested."""

from __future__ import annotations

import numpy as np


def rounded(values: np.ndarray) -> np.ndarray:
    """Fp32 values of the nearest bf16 ones; of two that are equally near, the one whose last bit is 0."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    nearest = (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)
    return np.where(np.isnan(values), np.float32(np.nan), nearest).astype(np.float32)

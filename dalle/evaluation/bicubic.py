"""What a dVAE has to beat: a small picture of the same number of bits, enlarged."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from dalle.models.likelihood import unit_range


def bicubic_of_equal_size(images_BCYX: torch.Tensor, factor: int, bits_per_image: float) -> torch.Tensor | None:
    """Images reduced by `factor` with a bicubic filter, their values rounded to as many levels as the bits allow, and
    enlarged again.

    Args:
        images_BCYX: uint8 [B, 3, Y, X]
        factor: how many times smaller each side becomes
        bits_per_image: of the codes to compare with: positions times log2 of the codebook size

    Returns:
        [B, 3, Y, X] in [0, 1]; None where the bits do not even allow two levels, or the sides no such factor
    """
    if min(images_BCYX.shape[-2:]) < factor:
        return None
    size = images_BCYX.shape[-2:]
    small_BCYX = F.interpolate(
        unit_range(images_BCYX), (size[0] // factor, size[1] // factor), mode="bicubic", antialias=True
    ).clamp(0, 1)
    bits_per_value = min(16.0, bits_per_image / small_BCYX[0].numel())  # the images themselves have 8
    # 512 codes at one position are 8 levels for each of its three colours; the nudge is against 7.999…
    levels = math.floor(2**bits_per_value + 1e-9)
    if levels < 2:
        return None
    rounded_BCYX = torch.round(small_BCYX * (levels - 1)) / (levels - 1)
    return F.interpolate(rounded_BCYX, size, mode="bicubic").clamp(0, 1)

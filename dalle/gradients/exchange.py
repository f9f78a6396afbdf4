"""Averages over the machines, in the format of the wire.

Fp32 is one all-reduce. A 16-bit format is summed in fp32 all the same: every process gets its part of the tensor from
all others as codes, averages it, and sends the codes of the average to all. That is what a ring all-reduce sends, with
two roundings instead of one at each hop, and it works where the library has no sum for the format (1-6-9).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.nn import functional as F

from dalle.gradients.lowbit import ONE_SIX_NINE

Average = Callable[[torch.Tensor], torch.Tensor]
"""From a flat fp32 tensor to its mean over the machines."""


class Exchange:
    """Averages flat tensors over a group of processes.

    Args:
        group: the processes of equal ordinal on all machines
        format: of the wire: "fp32", "bf16" or "1-6-9"
    """

    def __init__(self, group: dist.ProcessGroup, format: str = "fp32"):
        self.group, self.format, self.size = group, format, dist.get_world_size(group)

    def __call__(self, values_N: torch.Tensor) -> torch.Tensor:
        """The mean over the group, fp32 [N]. All of the group have to call it with as many elements."""
        if self.size == 1:
            return decode(encode(values_N, self.format), self.format)
        if self.format == "fp32":
            mean_N = values_N / self.size
            dist.all_reduce(mean_N, group=self.group)
            return mean_N
        part = math.ceil(values_N.numel() / self.size)
        codes = F.pad(encode(values_N, self.format), (0, self.size * part - values_N.numel()))
        theirs = torch.empty_like(codes)
        # bytes: gloo does not know every 16-bit type
        dist.all_to_all_single(theirs.view(torch.uint8), codes.view(torch.uint8), group=self.group)
        mean = decode(theirs, self.format).view(self.size, part).mean(dim=0)
        dist.all_gather_into_tensor(
            codes.view(torch.uint8), encode(mean, self.format).view(torch.uint8), group=self.group
        )
        return decode(codes, self.format)[: values_N.numel()]


def encode(values: torch.Tensor, format: str) -> torch.Tensor:
    """Fp32 values in a format: fp32 as they are, bf16, or the codes of 1-6-9 as int16, which has no infinities but clamps
    them to its largest value."""
    if format == "fp32":
        return values
    if format == "bf16":
        return values.to(torch.bfloat16)
    return ONE_SIX_NINE.encode(values)


def decode(stored: torch.Tensor, format: str) -> torch.Tensor:
    """What `encode` took, as fp32; fp32 itself is not copied."""
    return ONE_SIX_NINE.decode(stored) if format == "1-6-9" else stored.float()

"""Averages over the machines, in the format of the wire.

Every process gets its part of a tensor from all others, averages it in fp32, and sends what came of it to all. That is as many
bytes as a ring all-reduce sends, with two roundings instead of one at each hop, and it works where the library has no sum for
the format (1-6-9). It is also the place for work that one process can do for all: what is computed of the average of a part is computed
once, by its owner, and all get the same bits of it.

Fp32 without such work is one all-reduce, and so is bf16 where that is asked for ("bf16-ring"): of the library's algorithms the ring
has each process talk to two neighbours, where above it talks to all. It rounds the sum so far at every hop. bf16 has the exponents
of fp32, so that neither overflows or underflows where fp32 does not; what is not finite stays so.

An exchange is a generator that gives its collectives as they begin, and is to go on when they have ended: so several may be
under way (`overlap.py`). All processes of the group have to begin them in one order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
import torch.distributed as dist

from dalle.gradients.lowbit import ONE_SIX_NINE

Steps = Generator[dist.Work, None, Any]

_SUMMED = ("fp32", "bf16-ring")
"""Formats in which a mean is a sum of the library's"""


class Exchange:
    """Averages flat tensors over a group of processes.

    Args:
        group: the processes of equal ordinal on all machines
        format: of the wire: "fp32", "bf16", "bf16-ring" or "1-6-9"
    """

    def __init__(self, group: dist.ProcessGroup, format: str = "fp32"):
        self.group, self.format = group, format
        self.size, self.number = dist.get_world_size(group), dist.get_rank(group)

    def mean(self, values_N: torch.Tensor) -> Steps:
        """The mean over the group, fp32 [N]. All of the group have to call it with as many elements."""
        if self.format in _SUMMED and self.size > 1:
            mean_N = encode(values_N / self.size, self.format)
            yield self.sum_begun(mean_N)
            return decode(mean_N, self.format)
        part = math.ceil(values_N.numel() / self.size)
        sizes = [max(0, min(part, values_N.numel() - number * part)) for number in range(self.size)]
        parts = yield from self.owned(values_N, sizes, lambda mean: mean)
        return torch.cat(parts)

    def owned(
        self,
        values_N: torch.Tensor,
        sizes: Sequence[int],
        compute: Callable[[torch.Tensor], torch.Tensor],
        more: int = 0,
    ) -> Steps:
        """What is computed by the owner of each part from its mean.

        Args:
            values_N: fp32, the parts one after the other
            sizes: elements of each process's part, the same for all
            compute: from the mean of this process's part, fp32, to as many elements and `more`
            more: see `compute`

        Returns:
            fp32, by process: what its `compute` gave, rounded to the format; the same bits on all, its own included
        """
        codes_N = encode(values_N, self.format)
        theirs = codes_N
        width, mine = codes_N.element_size(), sizes[self.number]
        if self.size > 1:
            theirs = codes_N.new_empty(self.size * mine)
            given, got = [size * width for size in sizes], [mine * width] * self.size
            yield self.send_begun(_bytes(theirs), _bytes(codes_N), got, given)
        mean = decode(theirs, self.format).view(self.size, mine).mean(dim=0)
        found = encode(compute(mean), self.format)
        if self.size == 1:
            return [decode(found, self.format)]
        back = [size + more for size in sizes]
        everyones = found.new_empty(sum(back))
        got, given = [size * width for size in back], [back[self.number] * width] * self.size
        # not a gather, whose parts would have to be as large as the largest
        copies = found.repeat(self.size)
        yield self.send_begun(_bytes(everyones), _bytes(copies), got, given)
        return list(decode(everyones, self.format).split(back))

    def sum_begun(self, values: torch.Tensor) -> dist.Work:
        """Sums over the group, in place."""
        return dist.all_reduce(values, group=self.group, async_op=True)

    def send_begun(self, received: torch.Tensor, sent: torch.Tensor, got: list[int], given: list[int]) -> dist.Work:
        """From each process so many bytes, and to each so many."""
        return dist.all_to_all_single(received, sent, got, given, group=self.group, async_op=True)


def finished(steps: Steps) -> Any:
    """What an exchange gives, waited for."""
    while True:
        try:
            next(steps).wait()
        except StopIteration as stopped:
            return stopped.value


def _bytes(codes: torch.Tensor) -> torch.Tensor:
    """As gloo, which does not know every 16-bit type, takes them."""
    return codes.view(torch.uint8)


def encode(values: torch.Tensor, format: str) -> torch.Tensor:
    """Fp32 values in a format: fp32 as they are, bf16 of the nearest, or the codes of 1-6-9 as int16, which has no infinities but clamps
    them to its largest value."""
    if format == "fp32":
        return values
    if format in ("bf16", "bf16-ring"):
        return values.to(torch.bfloat16)
    return ONE_SIX_NINE.encode(values)


def decode(stored: torch.Tensor, format: str) -> torch.Tensor:
    """What `encode` took, as fp32; fp32 itself is not copied."""
    return ONE_SIX_NINE.decode(stored) if format == "1-6-9" else stored.float()

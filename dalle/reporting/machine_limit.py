"""The rates of this machine, which utilisation is counted against, and what a process has held of its memory: in a run's figures and in
the benchmarks."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

_MEASURED_S = 0.3
"""A few matrix products on a CPU, and on a GPU enough of them for its clock to settle."""


def best_rate(call: Callable[[], Any], work: float, device: torch.device, least_calls: int = 2) -> float:
    """The most work per second that a call reached: what limits is the machine, not its hiccups.

    Args:
        call: does the work
        work: of one call, in operations or bytes
        device, least_calls: as for `seconds_of`
    """
    return work / min(seconds_of(call, device, least_calls))


def seconds_of(call: Callable[[], Any], device: torch.device, least_calls: int = 2) -> list[float]:
    """What each of some calls took, after one that does not count.

    Args:
        call: does the work
        device: which does it
        least_calls: timed, however long they take; others only within a third of a second
    """

    def took_s() -> float:
        began_s = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began_s

    took_s()
    times_s: list[float] = []
    until_s = time.perf_counter() + _MEASURED_S
    while len(times_s) < least_calls or time.perf_counter() < until_s:
        times_s.append(took_s())
    return times_s


def matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], Any], float]:
    """A product of square matrices, as large as makes the rate best, 8192 on CUDA and 2048 elsewhere, and its floating-point
    operations."""
    side = 8192 if device.type == "cuda" else 2048
    generator = torch.Generator(device).manual_seed(0)  # a run's own stays as it is
    # random, since a GPU draws less power on constants and clocks higher
    a, b = (torch.randn(side, side, generator=generator, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=product), 2 * side**3


@cache
def matrix_flops_per_s(device: torch.device, precision: str) -> float:
    """The best rate of a few large matrix products, each timed alone. It takes a third of a second, once in a process."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16  # fp16 is as fast on a GPU, and slow on a CPU
    return best_rate(*matrix_product(device, dtype), device)


def peak_memory_bytes(device: torch.device) -> int:
    """The most that this process has held: of the GPU in tensors, on a CPU of main memory in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else 1024 * resident

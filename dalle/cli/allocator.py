"""How the C library keeps memory, for commands that compute on a CPU."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Let freed memory stay with the process, so that the next tensor finds its pages there.

    glibc maps every block above 32 MB anew and gives it back when it is freed: a training step at 256² then spends a third of
    its time in page faults (docs/benchmarks.md). Does nothing with another C library.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)  # no blocks of their own
        mallopt(_M_TRIM_THRESHOLD, -1)  # never

"""What commands that compute on a CPU ask of the C library and of OpenMP's: how memory is kept, and how threads wait."""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_SPINS = "10000"


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


def wait_briefly() -> None:
    """Let a thread that waits for the others of a product sleep soon. To be called before PyTorch is loaded.

    GNU's OpenMP lets it look 300,000 times first, milliseconds long, in which on a busy machine it holds the very core that
    those others need: drawing then takes many times as long (docs/benchmarks.md). What the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)

"""What every benchmark needs: sides in processes of their own, their times in turns, the machine's limit, one result's form."""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.nn import functional as F

from dalle.cli.allocator import keep_freed_memory
from dalle.reporting import machine_limit

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_QUIET_S = 0.02
"""Before a call: OpenMP's threads of the side that had its turn go on spinning for some milliseconds."""
_END_S = 10
"""For a process to end of itself, and with it its compiler's workers."""


# ---- times


def seconds(sides: Mapping[str, Callable[[], float]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """The times of the calls of each, made in turns; each side says how long it took. The first `warmup` are left out."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(warmup + repeats):
        for name, call in sides.items():
            took_s = call()
            if round_ >= warmup:
                times[name].append(took_s)
    return times


def timed(call: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    _wait()
    began_s = time.perf_counter()
    call()
    _wait()
    return time.perf_counter() - began_s


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


# ---- processes


class Side:
    """Calls by name, made and timed in a process of their own.

    Args:
        name: what an error calls it
        build: makes the calls, {name: callable}; a function that another process can import
        keep_memory: with our allocator settings (`dalle.cli.allocator`), in place of PyTorch's and glibc's own
    """

    def __init__(self, name: str, build: Callable[[], dict[str, Callable[[], Any]]], keep_memory: bool):
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.peak_memory_bytes = 0
        """The most that the process, or on CUDA its part of the GPU, had held by the end of the last call. To Linux, this
        process's resident memory is a new process's first peak (`ru_maxrss`): start sides before it holds much itself."""
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(build, keep_memory, theirs), daemon=True)
        self._process.start()
        theirs.close()  # theirs alone now, so that it ends with them and `recv` does not wait for ever

    def call(self, what: str) -> float:
        """Seconds that one call took. Raises RuntimeError when the process has died."""
        try:
            self._pipe.send(what)
            took_s, self.peak_memory_bytes = self._pipe.recv()
            return took_s
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            raise RuntimeError(
                f"{self.name} died in {what!r} with exit code {code} (-9: often out of memory)"
            ) from None

    def close(self) -> None:
        """End the process, so that its memory is free again."""
        with contextlib.suppress(OSError):  # it has died
            self._pipe.send(None)
        self._process.join(_END_S)
        self._process.terminate()
        self._process.join()
        self._pipe.close()


@contextlib.contextmanager
def running(sides: Mapping[str, Callable[[], Side]]) -> Iterator[dict[str, Side]]:
    """The sides, all at the same time, closed at the end."""
    built: dict[str, Side] = {}
    try:
        for name, start in sides.items():
            built[name] = start()
        yield built
    finally:
        for side in built.values():
            side.close()


def peak_memory_bytes(side: Callable[[], Side], what: str) -> int:
    """The peak of a process that makes two calls and nothing else: the second has the optimizer's state beside it."""
    with running({"alone": side}) as sides:
        for _ in range(2):
            sides["alone"].call(what)
        return sides["alone"].peak_memory_bytes


def _serve(build: Callable[[], dict], keep_memory: bool, pipe) -> None:
    if keep_memory:
        keep_freed_memory()
    torch.manual_seed(0)
    calls = build()
    while (what := pipe.recv()) is not None:
        time.sleep(_QUIET_S)
        pipe.send((timed(calls[what]), _peak_bytes()))


def _peak_bytes() -> int:
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ---- results


def case(
    name: str, unit: str, rates: dict[str, list[float]], limit: float, peaks: dict[str, int], settings: dict
) -> dict:
    """One result, in the form that every benchmark has.

    Args:
        rates: by side, of which one is "ours", what each call reached; more is faster
        limit: the rate that the machine allows
        peaks: by side, peak memory in bytes; of ours, and of those peers of which it was measured
    """
    peers = {side: statistics.median(values) for side, values in rates.items()}
    ours = peers.pop("ours")
    return {
        "name": name,
        "unit": unit,
        "ours": ours,
        "peers": peers,
        "ratio": {peer: ours / value for peer, value in peers.items()},
        "limit": limit,
        "fraction_of_limit": ours / limit,
        "spread": {side: [max(values), min(values)] for side, values in rates.items()},
        "peak_memory_bytes": peaks["ours"],
        "peers_peak_memory_bytes": {side: peak for side, peak in peaks.items() if side != "ours"},
        "settings": {"device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu", **settings},
    }


# ---- the machine's limit


def best_rate(call: Callable[[], Any], work: float) -> float:
    """The most work per second that a call reached, of at least 20."""
    keep_freed_memory()
    return machine_limit.best_rate(call, work, torch.device(DEVICE), least_calls=20)


def convolution(dtype: torch.dtype) -> tuple[Callable[[], Any], float]:
    """The dVAE's heaviest kind of convolution, 3×3 on 512 channels, and its floating-point operations."""
    batch, side, width = (32, 128, 512) if DEVICE == "cuda" else (1, 64, 512)
    x = torch.randn(batch, width, side, side, device=DEVICE, dtype=dtype).to(memory_format=torch.channels_last)
    w = torch.randn(width, width, 3, 3, device=DEVICE, dtype=dtype).to(memory_format=torch.channels_last)
    return lambda: F.conv2d(x, w, padding=1), 2 * batch * side**2 * width**2 * 9


def matrix_product(dtype: torch.dtype) -> tuple[Callable[[], Any], float]:
    """That of `dalle.reporting.machine_limit`, on the benchmarks' device."""
    return machine_limit.matrix_product(torch.device(DEVICE), dtype)

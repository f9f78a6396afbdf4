"""Several processes of one test, as a launcher would start them."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

import torch

from tests.conftest import ROOT, clean_environment
from tests.forking import ON_CPU, Forked, Fresh


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def begin_alone(script: str, *arguments: str) -> Forked:
    """One process by itself, on the CPU, as leader of a group of its own."""
    return Forked(script, arguments, clean_environment() | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})


def run_processes(
    script: str,
    count: int,
    ranks_per_machine: int,
    timeout_s: float = 240,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Run a script as `count` processes that find one another, and return what the first printed.

    Args:
        script: Python
        count: number of processes
        ranks_per_machine: how many of them the launcher is to have started on each machine
        timeout_s: for each of them
        arguments: what the script finds in `sys.argv[1:]`
        environment: what it finds beside its place among the others

    Raises:
        AssertionError: one failed; with its last words
    """
    port = free_port()
    started = []
    for rank in range(count):
        place = {
            "RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_RANK": str(rank % ranks_per_machine),
            "LOCAL_WORLD_SIZE": str(ranks_per_machine),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        surroundings = clean_environment() | place | environment
        on_cpu = not torch.cuda.is_available() or surroundings.items() >= ON_CPU.items()
        begin = Forked if on_cpu else Fresh
        started.append(begin(script, arguments, surroundings, rank))
    try:
        # all at once: one whose pipe is full, of warnings for instance, would keep the others waiting
        with ThreadPoolExecutor(count) as pool:
            told = list(pool.map(lambda process: process.communicate(timeout=timeout_s), started))
    finally:
        for process in started:
            process.kill()
    for rank, (process, (_, complaint)) in enumerate(zip(started, told, strict=True)):
        assert process.returncode == 0, f"rank {rank}: {complaint[-3000:]}"
    return told[0][0]

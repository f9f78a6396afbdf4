"""Several processes of one test, as a launcher would start them."""

from __future__ import annotations

import socket
import subprocess
import sys

from tests.conftest import ROOT, clean_environment


def run_processes(script: str, count: int, ranks_per_machine: int, timeout_s: float = 240) -> str:
    """Run a script as `count` processes that find one another, and return what the first printed.

    Raises:
        AssertionError: one failed; with its last words
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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
        environment = clean_environment() | place
        command = [sys.executable, "-c", script]
        started.append(
            subprocess.Popen(
                command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
    try:
        told = [process.communicate(timeout=timeout_s) for process in started]
    finally:
        for process in started:
            process.kill()
    for rank, (process, (_, complaint)) in enumerate(zip(started, told, strict=True)):
        assert process.returncode == 0, f"rank {rank}: {complaint[-3000:]}"
    return told[0][0]

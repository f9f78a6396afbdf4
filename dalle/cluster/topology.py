"""The processes of a training run: who am I, what device is mine, which machine is ours, and sums over all of us.

A process started by the DeepSpeed launcher, torchrun or `launch/train.sbatch` finds its place in the environment;
one started by hand is the only one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dalle.config import Run
from dalle.config.checks import out_of_memory


@dataclass(frozen=True)
class World:
    """This process's place.

    Args:
        rank: among all processes
        size: number of processes
        device: of this process
        machines: how the processes are grouped, when not all of them do the same with one another
        timeout: after which a collective gives up; longer than `cluster/watch.py` waits, which can say whose fault it is
    """

    rank: int
    size: int
    device: torch.device
    machines: Machines | None = None
    timeout: timedelta = timedelta(minutes=20)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def number(self) -> int:
        """Of this process's machine."""
        return self.machines.number if self.machines else 0

    @property
    def num_machines(self) -> int:
        return self.machines.count if self.machines else 1

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, the same on each; costs nothing with one."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean over all processes, the same on each."""
        return self.sum(tensor) / self.size

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        return self.mean(torch.tensor(float(flag), device=self.device)).item() > 0

    def gather(self, value: Any) -> list[Any]:
        """Each process's value, by rank, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather_int(self, value: int) -> list[int]:
        """Each process's number of 64 bits, by rank, on every process: 8 bytes each, where `gather` sends pickles."""
        if self.size == 1:
            return [value]
        mine = torch.tensor([value], device=self.device)
        values = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(values, mine)
        return torch.cat(values).tolist()

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()


class Machines:
    """Processes in two directions (section 2.5): those of one machine shard the weights among themselves, and those of
    equal ordinal on all machines hold the same shard and average its gradient.

    Args:
        world: all processes; ranks are counted machine by machine
        ranks_per_machine: m
    """

    def __init__(self, world: World, ranks_per_machine: int):
        self.ranks_per_machine = ranks_per_machine
        self.count = world.size // ranks_per_machine
        self.number, self.ordinal = divmod(world.rank, ranks_per_machine)
        by_machine = torch.arange(world.size).view(self.count, ranks_per_machine)
        self.shards, _ = dist.new_subgroups_by_enumeration(by_machine.tolist(), timeout=world.timeout)
        self.replicas, _ = dist.new_subgroups_by_enumeration(by_machine.T.tolist(), timeout=world.timeout)


def grouped(world: World, run: Run) -> World:
    """The world with its machines. Where nothing is sharded, compressed or rounded all processes count as one.

    Raises:
        ValueError: the processes do not divide into machines, or the rank of the compression by those of one, or those of one
            would send the same
    """
    ranks = _ranks_per_machine(run, world)
    if run.compression is not None and run.zero_stage == 3:
        run.compression.rank_of_shard(ranks)  # refused before a model is built
    return replace(world, machines=Machines(world, run.processes_together(ranks, world.size)))


def _ranks_per_machine(run: Run, world: World) -> int:
    """m: how many processes shard among themselves, from the configuration or else from the launcher.

    Raises:
        ValueError: the processes do not divide, or the machines differ
    """
    if run.ranks_per_machine is not None:
        found = run.ranks_per_machine or world.size
        if world.size % found:
            raise ValueError(
                f"run.ranks_per_machine {found}: does not divide the {world.size} processes; start as many on every machine"
            )
        return found
    here = next((int(os.environ[name]) for name in _LOCAL_SIZES if name in os.environ), None)
    by_rank = world.gather((socket.gethostname(), here))
    hosts = [host for host, _ in by_rank]
    if here is None and len(set(hosts)) == 1:
        return world.size
    advice = "start as many processes on every machine, ranks counted machine by machine, or set run.ranks_per_machine"
    counts = {host: count for host, count in by_rank}
    if here is None or len(set(counts.values())) > 1:
        told = ", ".join(
            f"{host} runs {count or 'an unknown number of'} processes" for host, count in list(counts.items())[:4]
        )
        raise ValueError(f"{told}: {advice}")
    if world.size % here or any(len(set(hosts[first : first + here])) > 1 for first in range(0, world.size, here)):
        raise ValueError(f"{world.size} processes on {len(counts)} machines, {here} on each: {advice}")
    return here


_LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
"""Where torchrun and the DeepSpeed launcher say how many processes this machine runs."""


@contextmanager
def joined(silence_limit_s: float = 600.0) -> Iterator[World]:
    """Within the block this process has its place among the others: NCCL on GPUs, gloo on CPUs.

    Blocks may nest: the outermost one ends the process group, without which some runs abort at exit.

    Raises:
        ValueError: one of the others is not there, or goes while they meet
    """
    alone: dict[str, str] = {}
    if "WORLD_SIZE" not in os.environ:
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        alone["MASTER_PORT"] = str(_free_port())
        os.environ.update(alone)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    is_outermost = not dist.is_initialized()
    timeout = timedelta(seconds=2 * silence_limit_s)
    if is_outermost:
        try:
            dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timeout)
        except RuntimeError as error:
            if out_of_memory(error) or "built in" in str(error):  # a PyTorch without NCCL
                raise
            place, why = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}", " ".join(str(error).split())
            raise ValueError(
                f"the {os.environ['WORLD_SIZE']} processes did not all meet at {place} ({why[:200]}); see whether another one says "
                "what stopped it, let machines reach that address, set MASTER_PORT to a free one, and start them all again"
            ) from None
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device, timeout=timeout)
    finally:
        if is_outermost:
            dist.destroy_process_group()
            for name in alone:
                os.environ.pop(name, None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

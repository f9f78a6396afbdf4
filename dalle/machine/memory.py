"""Main memory and cores: of the machine, and of the control group that this process is in, which a container, a cluster's
scheduler or a service manager may have given less."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dalle.machine.finding import Finding, size

_PROGRAM_BYTES = 1_500_000_000
"""Of a training process with nothing to train (`dalle.own.needs`)."""
_PLENTY_BYTES = 4_000_000_000
_MOST_LOAD = 1.5
"""Programs that want a core, for each core, beyond which all of them are slow."""


@dataclass(frozen=True)
class Memory:
    """In bytes.

    Args:
        total: of the machine
        limit: of the tightest control group; null where none has one
        available: to a new process
    """

    total: int
    limit: int | None
    available: int

    @property
    def usable(self) -> int:
        return self.total if self.limit is None else min(self.total, self.limit)


def look_at_memory(root: Path = Path("/")) -> Memory:
    """Of this machine. root: where `proc` and `sys` are."""
    told = {}
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            told[name] = 1024 * int(value.split()[0])
    except (OSError, ValueError, IndexError):  # not Linux
        told["MemTotal"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    total = told["MemTotal"]
    limit, available = None, told.get("MemAvailable", total)
    for folder, is_new in _groups(root, "memory"):
        most = _number(folder / ("memory.max" if is_new else "memory.limit_in_bytes"))
        if most is None or most >= total:  # the first version's "no limit" is a number of 19 digits
            continue
        used = _number(folder / ("memory.current" if is_new else "memory.usage_in_bytes")) or 0
        # pages of files are counted, and given back as soon as they are wanted
        used -= min(used, _statistic(folder / "memory.stat", "inactive_file" if is_new else "total_inactive_file"))
        limit = most if limit is None else min(limit, most)
        available = min(available, most - used)
    return Memory(total, limit, max(0, available))


def num_cores() -> int:
    """Of the CPU, those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def core_quota(root: Path = Path("/")) -> float | None:
    """How many cores' time this process's control group gets; null where it has all."""
    quotas = []
    for folder, is_new in _groups(root, "cpu"):
        if is_new:
            try:
                words = (folder / "cpu.max").read_text().split()
            except OSError:
                continue
            if len(words) == 2 and all(word.isdigit() for word in words):
                quotas.append(int(words[0]) / int(words[1]))
        else:
            quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
            if quota and period:
                quotas.append(quota / period)
    return min(quotas, default=None)


def memory_finding(memory: Memory) -> Finding:
    """Whether a training process fits."""
    limit = f", of which this process's control group may use {size(memory.limit)}" if memory.limit else ""
    fact = f"{size(memory.total)}{limit}, {size(memory.available)} available"
    if memory.available < _PROGRAM_BYTES:
        what = "give the container or job more" if memory.limit else "close other programs"
        return Finding(
            "memory", "fail", fact, f"a training takes {size(_PROGRAM_BYTES)} before it holds any model; {what}"
        )
    if memory.available < _PLENTY_BYTES:
        return Finding("memory", "warn", fact, "enough for small models; lower --run.batch_size where a training ends")
    return Finding("memory", "ok", fact)


def cpu_finding(cores: int, quota: float | None, load: float, name: str) -> Finding:
    """Whether the cores are there, and free.

    Args:
        cores: that this process may use
        quota: see `core_quota`
        load: programs that wanted one in the last minute, on average
        name: of the processor
    """
    fact = f"{name}, {cores} core{'s' * (cores != 1)}"
    if quota is not None and quota < cores:
        threads = max(1, int(quota))
        fact += f", of which the control group gets the time of {quota:.3g}"
        return Finding("cpu", "warn", fact, f"set OMP_NUM_THREADS={threads}, or threads wait for one another")
    if load > _MOST_LOAD * cores:
        fact += f", and {load:.1f} programs wanted one in the last minute"
        return Finding("cpu", "warn", fact, "all takes longer than it would alone; close other programs")
    return Finding("cpu", "ok", fact)


def processor_name(root: Path = Path("/")) -> str:
    """What the processor calls itself."""
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
        return next(" ".join(line.partition(":")[2].split()) for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return os.uname().machine


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Folders of this process's control group and of those around it, each with whether it is of the second version."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    base = root / "sys/fs/cgroup"
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        if controllers == "":
            mounts = [(base, True), (base / "unified", True)]
        elif controller in controllers.split(","):
            mounts = [(base / controllers, False), (base / controller, False)]
        else:
            continue
        # in a container the own group may be mounted where the whole tree would be
        parts = [part for part in place.split("/") if part not in ("", "..")]
        for mount, is_new in dict.fromkeys(mounts):
            for depth in range(len(parts), -1, -1):
                folder = mount.joinpath(*parts[:depth])
                if folder.is_dir():
                    yield folder, is_new


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _statistic(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)

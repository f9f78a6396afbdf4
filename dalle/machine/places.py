"""Where things are written, and how many files may be open."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from pathlib import Path

from dalle.machine.finding import Finding, size

_PROBE_BYTES = 1 << 20
_LEAST_FILES = 10_000
"""Names that a file system should have left: a data set of single files takes as many."""
_LEAST_OPEN, _FEW_OPEN = 256, 1024

SHARED_MEMORY = Path("/dev/shm")


def folder_finding(name: str, folder: Path, least_bytes: int, plenty_bytes: int, advice: str) -> Finding:
    """Whether a folder can be written to, and has room. One that is not there yet is judged by the one that it would be made in.

    Args:
        name: of the finding
        folder: that is meant
        least_bytes: with fewer nothing works
        plenty_bytes: with fewer something may not
        advice: where there is too little
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        free = shutil.disk_usage(there).free
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(min(_PROBE_BYTES, least_bytes)))
            file.flush()
            os.fsync(file.fileno())
        names = os.statvfs(there)
    except OSError as error:
        return Finding(name, "fail", f"{folder} cannot be written to: {error.strerror}", advice)
    fact = f"{size(free)} free in {folder}"
    if free < least_bytes:
        return Finding(name, "fail", fact, advice)
    # some file systems make names as they are wanted, and say 0
    if names.f_files and names.f_favail < _LEAST_FILES:
        return Finding(name, "warn", f"{fact}, with room for {names.f_favail:,} more files", advice)
    return Finding(name, "warn" if free < plenty_bytes else "ok", fact, advice if free < plenty_bytes else "")


def shared_memory_finding(folder: Path = SHARED_MEMORY) -> Finding:
    """Where processes that load data hand over batches. Containers have 64 MB of it, if nobody asks for more."""
    advice = "start the container with --shm-size 8g, or train with --run.loader_workers 0"
    if not folder.is_dir():
        return Finding("shared memory", "warn", f"there is no {folder}", advice)
    return folder_finding("shared memory", folder, _PROBE_BYTES, 1_000_000_000, advice)


def open_files_finding(limits: tuple[int, int] | None = None) -> Finding:
    """How many files a process may have open. limits: what it has, and what it may ask for."""
    soft, hard = limits or resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return Finding("open files", "ok", "any number")
    fact = f"{soft:,} at once"
    most = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft >= _FEW_OPEN:
        return Finding("open files", "ok", fact)
    advice = f"ulimit -n {most}" if most > soft else "raise nofile in /etc/security/limits.conf"
    return Finding("open files", "fail" if soft < _LEAST_OPEN else "warn", fact, advice)

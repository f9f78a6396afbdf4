"""Do all ranks run the same thing? Found out at the start, not as a collective that hangs or a loss that is a little off."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import dalle
from dalle.cluster.topology import World
from dalle.cluster.watch_hub import Member, named

_SHOWN = 4


def facts(config: Any) -> dict[str, str]:
    """What has to be the same on all ranks, by name: versions, a hash of this package's code, and each setting.

    Args:
        config: a command's settings, a dataclass
    """
    versions = {"torch": torch.__version__, "deepspeed": version("deepspeed"), "Python": platform.python_version()}
    if torch.cuda.is_available():  # each machine computes the update for itself: other kernels round otherwise
        versions |= {"CUDA": torch.version.cuda or "none", "GPU": torch.cuda.get_device_name()}
    return {"dalle code": _code_hash(), **versions, **dict(_flat(asdict(config)))}


def check_same(world: World, facts: dict[str, str]) -> None:
    """Compare all ranks' facts with those of rank 0. Called by all ranks.

    Raises:
        ValueError: on every rank; one line that names the ranks that differ, their hosts, and in what
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    if len(set(world.gather(digest))) == 1:  # with 1,024 ranks all the facts would be megabytes
        return
    everyones = world.gather((facts, socket.gethostname(), os.getpid()))
    expected = everyones[0][0]
    differing: dict[tuple[str, str], list[Member]] = {}
    for rank, (theirs, host, process) in enumerate(everyones):
        for name in {**expected, **theirs}:
            if theirs.get(name) != expected.get(name):
                differing.setdefault((name, theirs.get(name, "unknown")), []).append(Member(rank, host, process))
    parts = [
        f"{named(members)}: {name} {value} differs from rank 0's {expected.get(name, 'unknown')}"
        for (name, value), members in differing.items()
    ]
    more = f"; and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    raise ValueError(f"{'; '.join(parts[:_SHOWN])}{more}: install and start the same on every machine")


def _code_hash() -> str:
    """12 hex digits over the names and contents of this package's files."""
    folder = Path(dalle.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder)} {len(content)} ".encode() + content)
    return digest.hexdigest()[:12]


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, json.dumps(value)

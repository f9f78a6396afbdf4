"""Do all ranks run the same thing? Found out at the start, not as a collective that hangs or a loss that is a little off. And do
those that should still hold the same weights?"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import dalle
from dalle.cluster.topology import World
from dalle.cluster.watch_hub import Member, named, spans
from dalle.config.checks import Hopeless

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


def check_same_weights(world: World, weights: Sequence[torch.Tensor], sharded: bool) -> None:
    """See that processes that should hold the same bits do: each computes its updates for itself. Called by all ranks.

    Args:
        weights: what this process holds, in the same order everywhere
        sharded: whether only those of equal ordinal on all machines hold the same; otherwise all do

    Raises:
        Hopeless: on every rank; one line that names those that differ from most
    """
    ordinals = 1
    if sharded:
        ordinals = world.machines.ranks_per_machine if world.machines else world.size
    sums = world.gather_int(_sum_of_bits(weights))
    usual = [Counter(sums[ordinal::ordinals]).most_common(1)[0][0] for ordinal in range(ordinals)]
    differing = [rank for rank, found in enumerate(sums) if found != usual[rank % ordinals]]
    if differing:
        raise Hopeless(
            f"the weights of {'ranks' if len(differing) > 1 else 'rank'} {spans(differing)} of {world.size} differ from those "
            "of others that should hold the same: look for a faulty GPU or another library in one of the machines. They did "
            "not when the last checkpoint was written; go on from it with --resume"
        )


def _sum_of_bits(tensors: Iterable[torch.Tensor]) -> int:
    """64 bits that any change of one number changes; a sum of integers, whose order is of no account."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [tensor.detach().view(integers[tensor.element_size()]).sum(dtype=torch.int64) for tensor in tensors]
    if not sums:
        return 0
    odd = torch.arange(1, 2 * len(sums), 2, device=sums[0].device)  # two tensors that change places show
    return int((torch.stack(sums) * odd).sum())


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

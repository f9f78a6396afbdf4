"""What it costs that checkpoints survive a loss of power: bytes a second of checkpoints that are synced and proven, as trainings write
them, beside the same with every sync left out. The limit is the same bytes written by one call, and not synced.

To be read as a share of a training: its checkpoints' bytes, by what a second of them costs here, every `checkpoint_every_minutes`.
It takes a disk and a processor with nothing else to do.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from benchmarks.sides import Side, case, running, seconds


class _Alone:
    """A process without others, as checkpoints see it."""

    rank, size, is_main = 0, 1, True

    def gather(self, value):
        return [value]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Sizes."""
    parser.add_argument("--mib", type=int, default=512, help="of a checkpoint")
    parser.add_argument("--folder", default=".", help="on the disk that is meant")
    parser.add_argument("--repeats", type=int, default=5, help="calls of each side that are counted")


def run(options: argparse.Namespace) -> list[dict]:
    """One case."""
    builds = {"ours": ours, "unsynced": unsynced, "limit": written}
    made = {name: partial(build, mib=options.mib, folder=options.folder) for name, build in builds.items()}
    with running({name: partial(Side, name, build, True) for name, build in made.items()}) as sides:
        times_s = seconds({name: partial(side.call, "save") for name, side in sides.items()}, options.repeats)
        peaks = {name: side.peak_memory_bytes for name, side in sides.items() if name != "limit"}
    rates = {name: [options.mib * 2**20 / took_s for took_s in values] for name, values in times_s.items()}
    limit = float(np.median(rates.pop("limit")))
    return [case("synced", "bytes/s", rates, limit, peaks, {"mib": options.mib, "folder": options.folder})]


def ours(mib: int, folder: str) -> dict[str, Callable[[], None]]:
    """A checkpoint, as trainings save it, in place of the one before."""
    from dalle.checkpoints.checkpoint import Fragment, save

    place = tempfile.TemporaryDirectory(dir=folder)
    values = _values(mib)
    step = iter(range(1, 10**9))

    def save_one(place=place) -> None:  # which goes with the process
        fragments = [Fragment("model/a", tuple(values.shape), 0, values)]
        save(Path(place.name), next(step), fragments, {}, 1, cast(Any, _Alone()))

    return {"save": save_one}


def unsynced(mib: int, folder: str) -> dict[str, Callable[[], None]]:
    """The same in a process in which nothing is synced."""
    for name in ("fsync", "fdatasync"):
        setattr(os, name, lambda file: None)
    return ours(mib, folder)


def written(mib: int, folder: str) -> dict[str, Callable[[], None]]:
    """The bytes alone."""
    values = memoryview(cast(Any, _values(mib).numpy())).cast("B")

    def write() -> None:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(values)

    return {"save": write}


def _values(mib: int) -> torch.Tensor:
    return torch.randn(mib * 2**18, generator=torch.Generator().manual_seed(0))

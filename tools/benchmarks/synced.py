"""What it costs that checkpoints and drawings survive a loss of power: bytes a second of checkpoints that are synced and proven, as
trainings write them, beside the same with every sync left out; and candidates a second of `dalle-sample`, loading included. The limit
is, of a checkpoint, its bytes written by one call and not synced; of drawing, what is not synced.

A checkpoint is to be read as a share of a training: its bytes, by what a second of them costs here, every
`checkpoint_every_minutes`. It takes a disk and a processor with nothing else to do.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
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
    parser.add_argument(
        "--n", type=int, default=256, help="candidates of the ready model `shapes`, of which all are kept"
    )
    parser.add_argument("--folder", default=".", help="on the disk that is meant")
    parser.add_argument("--repeats", type=int, default=5, help="calls of each side that are counted")


def run(options: argparse.Namespace) -> list[dict]:
    """A case for checkpoints, and one for drawings."""
    sizes = {"mib": options.mib, "folder": options.folder}
    saving = {
        name: partial(build, **sizes) for name, build in (("ours", ours), ("unsynced", unsynced), ("limit", written))
    }
    rates, peaks = _timed(saving, "save", options.mib * 2**20, options.repeats)
    limit = float(np.median(rates.pop("limit")))
    del peaks["limit"]
    saved = case("synced", "bytes/s", rates, limit, peaks, sizes)
    sizes = {"n": options.n, "folder": options.folder}
    rates, peaks = _timed(
        {"ours": partial(drawing, **sizes), "unsynced": partial(unsynced_drawing, **sizes)},
        "draw",
        options.n,
        options.repeats,
    )
    limit = float(np.median(rates["unsynced"]))
    return [saved, case("synced drawings", "candidates/s", rates, limit, peaks, sizes)]


def _timed(
    builds: Mapping[str, Callable], what: str, work: int, repeats: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Work a second of each call of each side, by turns, and each side's peak memory, bytes."""
    with running({name: partial(Side, name, build, True) for name, build in builds.items()}) as sides:
        times_s = seconds({name: partial(side.call, what) for name, side in sides.items()}, repeats)
        peaks = {name: side.peak_memory_bytes for name, side in sides.items()}
    return {name: [work / took_s for took_s in values] for name, values in times_s.items()}, peaks


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
    _never_sync()
    return ours(mib, folder)


def drawing(n: int, folder: str) -> dict[str, Callable[[], None]]:
    """`dalle-sample`, into a new folder each time."""
    from dalle.cli.sample import sample

    place = tempfile.TemporaryDirectory(dir=folder)
    numbers = iter(range(10**9))

    def draw(place=place) -> None:
        output = str(Path(place.name) / str(next(numbers)))
        with redirect_stdout(io.StringIO()):
            sample(["--model", "shapes", "--n", str(n), "--keep", str(n), "--output", output, "a red circle"])

    return {"draw": draw}


def unsynced_drawing(n: int, folder: str) -> dict[str, Callable[[], None]]:
    """The same in a process in which nothing is synced."""
    _never_sync()
    return drawing(n, folder)


def _never_sync() -> None:
    for name in ("fsync", "fdatasync"):
        setattr(os, name, lambda file: None)


def written(mib: int, folder: str) -> dict[str, Callable[[], None]]:
    """The bytes alone."""
    values = memoryview(cast(Any, _values(mib).numpy())).cast("B")

    def write() -> None:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(values)

    return {"save": write}


def _values(mib: int) -> torch.Tensor:
    return torch.randn(mib * 2**18, generator=torch.Generator().manual_seed(0))

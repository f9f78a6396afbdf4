"""The names of checkpoints in a run's folder: which are complete, and how one gets and loses its name."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

STATE = "state.json"
"""Its index, which is written last."""


def make_room(partial: Path) -> None:
    """An empty folder, and none left of saving that was cut off."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    for left in partial.parent.glob("step-*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir()


def delete_old(target: Path, keep: int) -> None:
    """Delete what is older than the latest `keep`, and copies that were replaced. What cannot be deleted now is tried
    again after the next checkpoint: the new one is safe all the same."""
    older = [path for path in complete(target.parent) if step_of(path) < step_of(target)]
    for path in older[: max(0, len(older) - keep + 1)]:
        with suppress(OSError):
            retire(path)
    for path in target.parent.glob("step-*.old"):
        shutil.rmtree(path, ignore_errors=True)


def retire(path: Path) -> None:
    """Take a checkpoint's name away at once; a deletion that is cut off must not leave half of one under it."""
    old = path.with_name(path.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(path, old)


def complete(checkpoints: Path) -> list[Path]:
    """Those that are whole, oldest first."""
    found = [p for p in checkpoints.glob("step-*") if re.fullmatch(r"step-\d+", p.name) and (p / STATE).is_file()]
    # of one that was to be replaced, where that was cut off after it had lost its name
    retired = [p for p in checkpoints.glob("step-*.old") if (p / STATE).is_file() and not p.with_suffix("").exists()]
    return sorted(found + retired, key=step_of)


def step_of(path: Path) -> int:
    """The updates done before it, by its name."""
    return int(path.name.removeprefix("step-").removesuffix(".old"))
